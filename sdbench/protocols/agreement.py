"""Student against teacher, same prompt and same noise: how near the copy is, however good the teacher is.

A distance to real images mixes two things, what distillation cost and what the teacher itself lacks; a poor reference adds
a third. The agreement metrics need neither a reference nor a caption. They say how near, not how good.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from sdbench.arrays import F32, F64, U8
from sdbench.encoders import perceptual
from sdbench.encoders.catalogue import ENCODERS, TOWERS
from sdbench.metrics import frechet
from sdbench.metrics.cosine import cosine
from sdbench.protocols.base import Protocol, Result, Subject, small_sample_note
from sdbench.stats import intervals

Comparison = Callable[[Subject, Subject, Protocol], Result]  # of the student's images with the teacher's


def _against(compare: Comparison) -> Callable[[Subject, Protocol], Result]:
    """A measurement by `compare`, or the reason why there is nothing to compare."""

    def measure(subject: Subject, protocol: Protocol) -> Result:
        if subject.is_teacher:
            return protocol.without_value("not_applicable", "the teacher is what the others are compared with")
        if subject.is_made_elsewhere:
            return protocol.without_value("not_applicable", "made elsewhere, not from the teacher's noise")
        if subject.teacher_images is None:
            return protocol.without_value(
                "missing",
                f"the images of the teacher, {subject.teacher_name}, are not in the run folder; run the teacher, then this model again",
            )
        return compare(subject, subject.teacher_images, protocol)

    return measure


def features(encoder: str, subject: Subject) -> F32:
    """Features of the images, n x d."""
    if encoder in TOWERS:
        towers = TOWERS[encoder]()
        return subject.features(towers.name, towers.images)
    return subject.features(ENCODERS[encoder].id(), ENCODERS[encoder].features)


def _cosine(encoder: str, student: Subject, teacher: Subject, protocol: Protocol) -> Result:
    return protocol.mean(student, cosine(features(encoder, student), features(encoder, teacher)))


def _pixels(compare: Callable[[U8, U8], F64], student: Subject, teacher: Subject, protocol: Protocol) -> Result:
    return protocol.mean(student, np.concatenate(student.map_blocks(compare, protocol.name, teacher)))


def _frechet(encoder: str, student: Subject, teacher: Subject, protocol: Protocol) -> Result:
    student_features, teacher_features = features(encoder, student), features(encoder, teacher)
    n, width = student.n_prompts, student_features.shape[1]
    if n < 2:
        return protocol.without_value("not_applicable", f"a distance between distributions needs images of at least 2 prompts, found {n}")
    value, influence = frechet.paired(student_features, teacher_features)
    return protocol.distance(
        intervals.standard_error_interval(value, student.per_prompt(influence)), influence, small_sample_note(width, n)
    )


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
