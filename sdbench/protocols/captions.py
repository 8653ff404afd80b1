"""Scores of each picture under its caption: CLIP score, human-preference proxies, and how often they prefer it to the teacher's."""

import numpy as np

from sdbench import stats
from sdbench.encoders import full_size, scenes
from sdbench.metrics import clip_score, preference
from sdbench.protocols.base import Protocol, Result, Subject


def _clip_scenes(subject: Subject, protocol: Protocol) -> Result:
    image = subject.features(scenes.encoder_id("clip"), scenes.clip_images)
    return protocol.mean(clip_score.clip_score(image, scenes.clip_texts(subject.prompts)))


def _clip_full_size(subject: Subject, protocol: Protocol) -> Result:
    image = subject.features(f"{full_size.CLIP}-{full_size.CLIP_WEIGHTS}", full_size.clip_images)
    return protocol.mean(clip_score.clip_score(image, full_size.clip_texts(subject.prompts)))


def _preference_scenes(subject: Subject, protocol: Protocol) -> Result:
    image = subject.features(scenes.encoder_id("preference"), scenes.preference_images)
    return protocol.mean(preference.pickscore(image, *scenes.preference_texts(subject.prompts)))


def _pickscore(subject: Subject, protocol: Protocol) -> Result:
    image = subject.features("pickscore.v1", full_size.pickscore_images)
    return protocol.mean(preference.pickscore(image, *full_size.pickscore_texts(subject.prompts)))


def _win_rate(subject: Subject, protocol: Protocol) -> Result:
    judge = protocol.name.removeprefix("win_rate.")
    if subject.is_teacher:
        return protocol.without("not_applicable", "the teacher is what the others are compared with"), {}
    if judge not in subject.columns:
        return protocol.without("missing", f"there is no {judge} of these pictures"), {}
    if subject.teacher is None or judge not in subject.teacher.columns:
        return protocol.without("missing", f"the family's teacher has no {judge} under this suite; run it too"), {}
    theirs = dict(zip(subject.teacher.keys, subject.teacher.columns[judge], strict=True))
    baseline = np.array([theirs[key] for key in zip(subject.prompt_ids, subject.samples, strict=True)])
    candidate = subject.columns[judge]
    rate = stats.wins_interval(candidate, baseline)
    column = np.where(candidate > baseline, 1.0, np.where(candidate < baseline, 0.0, 0.5))
    return protocol.value(rate.estimate, f"{rate.wins} wins, {rate.ties} ties, {rate.losses} losses"), {protocol.name: column}


PROTOCOLS = (
    Protocol("clip_score.scenes",          "score", "higher", "100 cos", _clip_scenes),
    Protocol("clip_score.vit-l-14",        "score", "higher", "100 cos", _clip_full_size),
    Protocol("preference.scenes",          "score", "higher", "logit",   _preference_scenes),
    Protocol("pickscore.v1",               "score", "higher", "logit",   _pickscore),
    Protocol("win_rate.preference.scenes", "score", "higher", "share",   _win_rate),
    Protocol("win_rate.pickscore.v1",      "score", "higher", "share",   _win_rate),
)  # fmt: skip  # a table
