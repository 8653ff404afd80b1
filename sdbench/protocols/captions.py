"""Scores of each image: CLIP score, human-preference proxies and how often they prefer it to the teacher's, and an aesthetic score."""

from functools import partial

import numpy as np

from sdbench.encoders import aesthetic, imagereward
from sdbench.encoders.catalogue import TOWERS
from sdbench.encoders.clip import BACKBONES
from sdbench.metrics.aesthetic import aesthetic_score
from sdbench.metrics.cosine import caption_score
from sdbench.metrics.imagereward import reward
from sdbench.protocols.base import Protocol, Result, Subject
from sdbench.records.names import win_rate_by
from sdbench.stats import intervals


def _cosine(encoder: str, subject: Subject, protocol: Protocol) -> Result:
    towers = TOWERS[encoder]()
    return protocol.mean(subject, caption_score(subject.features(towers.name, towers.images), towers.texts(subject.prompts), towers.scale))


def _reward(subject: Subject, protocol: Protocol) -> Result:
    judge = imagereward.load()
    return protocol.mean(subject, reward(subject.features_with_prompts(judge.name, judge.features), judge.head.weight, judge.head.bias))


def _aesthetic(subject: Subject, protocol: Protocol) -> Result:
    head, towers = aesthetic.head(), TOWERS[f"clip.{aesthetic.BACKBONE}"]()
    return protocol.mean(subject, aesthetic_score(subject.features(towers.name, towers.images), head.weight, head.bias))


def _win_rate(judge: str, subject: Subject, protocol: Protocol) -> Result:
    if subject.is_teacher:
        return protocol.without_value("not_applicable", "the teacher is what the others are compared with")
    if judge not in subject.columns:
        return protocol.without_value("missing", f"{judge} was not measured on these images")
    teacher = subject.teacher_scores
    if teacher is None or judge not in teacher.columns:
        return protocol.without_value(
            "missing", f"the teacher, {subject.teacher_name}, has no {judge}; run the teacher, then this model again"
        )
    baseline = teacher.column_for(list(zip(subject.prompt_ids, subject.samples, strict=True)), judge)
    candidate = subject.columns[judge]
    rate = intervals.wins_interval(candidate, baseline)
    column = np.where(candidate > baseline, 1.0, np.where(candidate < baseline, 0.0, 0.5))  # a tie counts half
    note = "; ".join(filter(None, [f"{rate.wins} wins, {rate.ties} ties, {rate.losses} losses", subject.teacher_note]))
    if subject.has_several_samples:
        return protocol.share(subject, column, note)
    return protocol.value(rate.estimate, note), {protocol.name: column}


_CLIP = (
    Protocol("clip_score.scenes",   "score", "higher", "100 cos", partial(_cosine, "clip.scenes")),
    *(Protocol(f"clip_score.{backbone}", "score", "higher", "100 cos", partial(_cosine, f"clip.{backbone}")) for backbone in BACKBONES),
    # MLPerf inference's SDXL: OpenAI's ViT-B/32, 100 cos, not clipped (text_to_image/tools/clip/clip_encoder.py, accuracy_coco.py).
    Protocol("clip_score.mlperf",   "score", "higher", "100 cos", partial(_cosine, "clip.vit-b-32")),
)  # fmt: skip  # a table
_JUDGES = (
    Protocol("preference.scenes",   "score", "higher", "logit",   partial(_cosine, "preference.scenes")),
    Protocol("pickscore.v1",        "score", "higher", "logit",   partial(_cosine, "pickscore.v1")),
    Protocol("hpsv2.1",             "score", "higher", "100 cos", partial(_cosine, "hpsv2.1")),
    Protocol("imagereward.v1",      "score", "higher", "reward",  _reward),
)  # fmt: skip  # a table
_WINS = (
    Protocol(win_rate_by(judge.name), "score", "higher", "share", partial(_win_rate, judge.name), against_teacher=True) for judge in _JUDGES
)
_AESTHETIC = Protocol("aesthetic.laion-v2", "score", "higher", "points", _aesthetic)
PROTOCOLS = (*_CLIP, *_JUDGES, *_WINS, _AESTHETIC)
