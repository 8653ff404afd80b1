"""Student against teacher, same prompt and same noise: how near the copy is, whatever the original is worth.

A distance to real pictures mixes two things, what distillation cost and what the teacher itself lacks, and a poor
reference adds a third. These need neither a reference nor a caption. They say how near, not how good.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from sdbench.arrays import F32, U8
from sdbench.encoders import clip, perceptual, scenes
from sdbench.encoders.catalogue import ENCODERS
from sdbench.metrics import agreement, frechet
from sdbench.protocols.base import Protocol, Result, Subject
from sdbench.stats import intervals


class Features(NamedTuple):
    """An encoder of pictures and the name, its weights' digest in it, that features are kept under."""

    name: str
    compute: Callable[[U8], F32]


def _scenes_clip() -> Features:
    return Features(scenes.encoder_id("clip"), scenes.clip_images)


def _of(encoder: str) -> Features:
    found = ENCODERS[encoder]
    return Features(found.id(), found.features)


def _full_size_clip() -> Features:
    towers = clip.load("vit-l-14")
    return Features(towers.name, towers.images)


def _paired(measure: Callable[[Subject, Subject, Protocol], Result], subject: Subject, protocol: Protocol) -> Result:
    """What `measure` makes of the student's pictures and of the teacher's, or why there is nothing to compare."""
    if subject.is_teacher:
        return protocol.without("not_applicable", "the teacher is what the others are compared with"), {}
    if subject.is_elsewhere:
        return protocol.without("not_applicable", "made elsewhere, not from the teacher's noise"), {}
    if subject.original is None:
        return protocol.without(
            "missing", f"the pictures of the teacher, {subject.original_name}, are not in the run folder; run it, then this model again"
        ), {}
    return measure(subject, subject.original, protocol)


def _cosine(encoder: Callable[[], Features], student: Subject, teacher: Subject, protocol: Protocol) -> Result:
    return protocol.mean(agreement.cosine_agreement(student.features(*(found := encoder())), teacher.features(*found)))


def _pixels(compare: Callable[[U8, U8], F32], student: Subject, teacher: Subject, protocol: Protocol) -> Result:
    found = [compare(*pictures) for pictures in zip(student.blocks(), teacher.blocks(), strict=True)]
    return protocol.mean(np.concatenate(found).astype(np.float64))


def _frechet(encoder: Callable[[], Features], student: Subject, teacher: Subject, protocol: Protocol) -> Result:
    """Both sides are samples, drawn in pairs: the influence of a pair is the sum of its two, and its spread over pairs is the error."""
    theirs, ours = (subject.features(*encoder()) for subject in (teacher, student))
    n, width = ours.shape
    if n < 2:
        return protocol.without("not_applicable", f"a distance of distributions needs at least 2 pictures, found {n}"), {}
    student_side, teacher_side = frechet.gaussian(ours), frechet.gaussian(theirs)
    influence = frechet.influence(ours, teacher_side) + frechet.influence(theirs, student_side)
    estimate = intervals.standard_error_interval(frechet.frechet_distance(student_side, teacher_side), influence)
    note = "" if n >= 5 * width else f"descriptive: n = {n} < 5 d = {5 * width}"
    return protocol.value(estimate, note), {f"{protocol.name}:influence": influence}


def _against(measure: Callable[[Subject, Subject, Protocol], Result]) -> Callable[[Subject, Protocol], Result]:
    return partial(_paired, measure)


PROTOCOLS = (
    Protocol("agreement.clip.scenes",     "score", "higher", "cos",      _against(partial(_cosine, _scenes_clip)),      True),
    Protocol("agreement.features.scenes", "score", "higher", "cos",      _against(partial(_cosine, partial(_of, "scenes.features"))),  True),
    Protocol("agreement.clip.vit-l-14",   "score", "higher", "cos",      _against(partial(_cosine, _full_size_clip)),   True),
    Protocol("agreement.dinov2",          "score", "higher", "cos",      _against(partial(_cosine, partial(_of, "dinov2.vit-l-14"))),  True),
    Protocol("agreement.ssim",            "score", "higher", "SSIM",     _against(partial(_pixels, perceptual.ssim)),   True),
    Protocol("agreement.lpips",           "score", "lower",  "LPIPS",    _against(partial(_pixels, perceptual.lpips)),  True),
    Protocol("fd_to_teacher.scenes",      "set",   "lower",  "distance", _against(partial(_frechet, partial(_of, "scenes.features"))), True),
    Protocol("fd_to_teacher.clean",       "set",   "lower",  "distance", _against(partial(_frechet, partial(_of, "inception.clean"))), True),
)  # fmt: skip  # a table
