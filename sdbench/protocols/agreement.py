"""Student against teacher, same prompt and same noise: how near the copy is, whatever the original is worth.

A distance to real pictures mixes two things, what distillation cost and what the teacher itself lacks, and a poor
reference adds a third. These need neither a reference nor a caption. They say how near, not how good.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from sdbench.arrays import F32, U8
from sdbench.encoders import perceptual
from sdbench.encoders.catalogue import ENCODERS, TOWERS
from sdbench.metrics import frechet
from sdbench.metrics.cosine import cosine
from sdbench.protocols.base import Protocol, Result, Subject
from sdbench.stats import intervals


def _encoder(name: str) -> tuple[str, Callable[[U8], F32]]:
    """What features of an encoder are kept under, its weights' digest in it, and the function that makes them."""
    if name in TOWERS:
        towers = TOWERS[name]()
        return towers.name, towers.images
    return ENCODERS[name].id(), ENCODERS[name].features


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


def _cosine(encoder: str, student: Subject, teacher: Subject, protocol: Protocol) -> Result:
    ours, theirs = (subject.features(*_encoder(encoder)) for subject in (student, teacher))
    return protocol.mean(cosine(ours, theirs))


def _pixels(compare: Callable[[U8, U8], F32], student: Subject, teacher: Subject, protocol: Protocol) -> Result:
    found = [compare(*pictures) for pictures in zip(student.blocks(), teacher.blocks(), strict=True)]
    return protocol.mean(np.concatenate(found).astype(np.float64))


def _frechet(encoder: str, student: Subject, teacher: Subject, protocol: Protocol) -> Result:
    ours, theirs = (subject.features(*_encoder(encoder)) for subject in (student, teacher))
    n, width = ours.shape
    if n < 2:
        return protocol.without("not_applicable", f"a distance of distributions needs at least 2 pictures, found {n}"), {}
    value, influence = frechet.paired(ours, theirs)
    estimate = intervals.standard_error_interval(value, influence)
    note = "" if n >= 5 * width else f"descriptive: n = {n} < 5 d = {5 * width}"
    return protocol.value(estimate, note), {protocol.column: influence}


def _against(measure: Callable[[Subject, Subject, Protocol], Result]) -> Callable[[Subject, Protocol], Result]:
    return partial(_paired, measure)


PROTOCOLS = (
    Protocol("agreement.clip.scenes",     "score", "higher", "cos",      _against(partial(_cosine, "clip.scenes")),      True),
    Protocol("agreement.features.scenes", "score", "higher", "cos",      _against(partial(_cosine, "scenes.features")),  True),
    Protocol("agreement.clip.vit-l-14",   "score", "higher", "cos",      _against(partial(_cosine, "clip.vit-l-14")),    True),
    Protocol("agreement.dinov2",          "score", "higher", "cos",      _against(partial(_cosine, "dinov2.vit-l-14")),  True),
    Protocol("agreement.ssim",            "score", "higher", "SSIM",     _against(partial(_pixels, perceptual.ssim)),    True),
    Protocol("agreement.lpips",           "score", "lower",  "LPIPS",    _against(partial(_pixels, perceptual.lpips)),   True),
    Protocol("fd_to_teacher.scenes",      "set",   "lower",  "distance", _against(partial(_frechet, "scenes.features")), True),
    Protocol("fd_to_teacher.clean",       "set",   "lower",  "distance", _against(partial(_frechet, "inception.clean")), True),
)  # fmt: skip  # a table
