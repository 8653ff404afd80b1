"""Scores of each picture under its caption: CLIP score, human-preference proxies, and how often they prefer it to the teacher's."""

from functools import partial

import numpy as np

from sdbench.encoders import clip, scenes
from sdbench.encoders import preference as judges
from sdbench.metrics import clip_score, preference
from sdbench.protocols.base import Protocol, Result, Subject
from sdbench.stats import intervals


def _clip_scenes(subject: Subject, protocol: Protocol) -> Result:
    image = subject.features(scenes.encoder_id("clip"), scenes.clip_images)
    return protocol.mean(clip_score.clip_score(image, scenes.clip_texts(subject.prompts)))


def _clip(backbone: str, subject: Subject, protocol: Protocol) -> Result:
    towers = clip.load(backbone)
    return protocol.mean(clip_score.clip_score(subject.features(towers.name, towers.images), towers.texts(subject.prompts)))


def _preference_scenes(subject: Subject, protocol: Protocol) -> Result:
    image = subject.features(scenes.encoder_id("preference"), scenes.preference_images)
    return protocol.mean(preference.pickscore(image, *scenes.preference_texts(subject.prompts)))


def _pickscore(subject: Subject, protocol: Protocol) -> Result:
    judge = judges.pickscore()
    return protocol.mean(preference.pickscore(subject.features(judge.name, judge.images), *judge.texts(subject.prompts)))


def _hpsv2(subject: Subject, protocol: Protocol) -> Result:
    judge = judges.hps()
    return protocol.mean(preference.hpsv2(subject.features(judge.name, judge.images), judge.texts(subject.prompts)))


def _win_rate(subject: Subject, protocol: Protocol) -> Result:
    judge = protocol.name.removeprefix("win_rate.")
    if subject.is_teacher:
        return protocol.without("not_applicable", "the teacher is what the others are compared with"), {}
    if judge not in subject.columns:
        return protocol.without("missing", f"there is no {judge} of these pictures"), {}
    if subject.teacher is None or judge not in subject.teacher.columns:
        return protocol.without("missing", f"the teacher, {subject.original_name}, has no {judge}; run it, then this model again"), {}
    theirs = dict(zip(subject.teacher.keys, subject.teacher.columns[judge], strict=True))
    baseline = np.array([theirs[key] for key in zip(subject.prompt_ids, subject.samples, strict=True)])
    candidate = subject.columns[judge]
    rate = intervals.wins_interval(candidate, baseline)
    column = np.where(candidate > baseline, 1.0, np.where(candidate < baseline, 0.0, 0.5))
    return protocol.value(rate.estimate, f"{rate.wins} wins, {rate.ties} ties, {rate.losses} losses"), {protocol.name: column}


_CLIP = (
    Protocol("clip_score.scenes",   "score", "higher", "100 cos", _clip_scenes),
    *(Protocol(f"clip_score.{backbone}", "score", "higher", "100 cos", partial(_clip, backbone)) for backbone in clip.BACKBONES),
    # MLPerf inference's SDXL: OpenAI's ViT-B/32, 100 cos, not clipped (text_to_image/tools/clip/clip_encoder.py, accuracy_coco.py).
    Protocol("clip_score.mlperf",   "score", "higher", "100 cos", partial(_clip, "vit-b-32")),
)  # fmt: skip  # a table
_JUDGES = (
    Protocol("preference.scenes",   "score", "higher", "logit",   _preference_scenes),
    Protocol("pickscore.v1",        "score", "higher", "logit",   _pickscore),
    Protocol("hpsv2.1",             "score", "higher", "100 cos", _hpsv2),
)  # fmt: skip  # a table
_WINS = (Protocol(f"win_rate.{judge.name}", "score", "higher", "share", _win_rate, against_teacher=True) for judge in _JUDGES)
PROTOCOLS = (*_CLIP, *_JUDGES, *_WINS)
