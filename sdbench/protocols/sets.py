"""Metrics of a whole set of images: its distances to a reference, and how far the two overlap."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from sdbench.arrays import F32, F64
from sdbench.encoders.catalogue import ENCODERS
from sdbench.errors import MissingError
from sdbench.metrics import cmmd, frechet, frechet_infinity, kid, prdc
from sdbench.protocols.base import Protocol, Result, Subject, small_sample_note
from sdbench.reference import cards
from sdbench.reference.cards import Reference
from sdbench.reference.encoders import ENCODER_OF
from sdbench.stats import intervals

_NO_INTERVAL = "no interval, because leaving out any single image does not change the value"
_NO_INTERVAL_OF_SAMPLES = "no interval, because leaving out single images does not show what their prompts contribute"


def _features_and_reference(subject: Subject, protocol: Protocol) -> tuple[F32, Reference]:
    """Features of the images by the metric's encoder, n x d, and the reference of the same encoder."""
    chosen = ENCODERS[ENCODER_OF[protocol.name]]
    reference = cards.find(subject.reference, chosen, subject.runs)  # first: where it is missing, no features are computed
    return subject.features(chosen.id(), chosen.features), reference


def _features_of_both(subject: Subject, protocol: Protocol) -> tuple[F32, F32, str]:
    """Features of the images and of the reference's images, n x d and m x d, and the reference's digest."""
    features, reference = _features_and_reference(subject, protocol)
    if reference.features is None:
        raise MissingError(
            f"reference: {subject.reference!r} holds only published moments, but this metric needs features; build one from images: "
            "`sdbench reference build`"
        )
    return features, reference.features, reference.digest


def _too_few(protocol: Protocol, least: int, subject: Subject) -> Result | None:
    """The answer where there are fewer than this many images, or fewer than 2 prompts, which have no spread."""
    n, prompts = len(subject.image_ids), subject.n_prompts
    if n < least:
        return protocol.without_value("not_applicable", f"comparing sets needs at least {least} images, found {n}")
    if prompts < 2:
        return protocol.without_value("not_applicable", f"comparing sets needs images of at least 2 prompts, found {n} of one prompt")
    return None


def _frechet(subject: Subject, protocol: Protocol) -> Result:
    features, reference = _features_and_reference(subject, protocol)
    if too_few := _too_few(protocol, 2, subject):
        return too_few
    value, influence = frechet.frechet(features, reference.statistics)
    estimate = intervals.standard_error_interval(value, subject.per_prompt(influence))
    note = small_sample_note(features.shape[1], estimate.n, reference.statistics.n)
    return protocol.distance(estimate, influence, note, reference.digest)


def _frechet_infinity(subject: Subject, protocol: Protocol) -> Result:
    features, reference = _features_and_reference(subject, protocol)
    if subject.has_several_samples:
        reason = "its extrapolation takes images as independent, and several images of a prompt are not; draw one for each prompt"
        return protocol.without_value("not_applicable", reason)
    if too_few := _too_few(protocol, math.ceil(frechet_infinity.LEAST_PER_DIMENSION * features.shape[1]), subject):
        return too_few
    found = frechet_infinity.frechet_infinity(features, reference.statistics)
    estimate = intervals.standard_error_interval(found.value, found.influence, systematic=abs(found.curvature))
    few = small_sample_note(features.shape[1], reference_n=reference.statistics.n)
    note = "; ".join(filter(None, ["extrapolated to unlimited images", few]))
    return protocol.distance(estimate, found.influence, note, reference.digest)


def _kernel_distance(distance: Callable[[F32, F32], tuple[float, F64]], subject: Subject, protocol: Protocol) -> Result:
    features, real, digest = _features_of_both(subject, protocol)
    if too_few := _too_few(protocol, 2, subject):
        return too_few
    value, influence = distance(features, real)
    return protocol.distance(intervals.standard_error_interval(value, subject.per_prompt(influence)), influence, reference=digest)


def _kid(subject: Subject, protocol: Protocol) -> Result:
    distance = partial(kid.kid, prompts=subject.prompt_ids if subject.has_several_samples else None)
    return _kernel_distance(distance, subject, protocol)


def _prdc(subject: Subject, protocol: Protocol) -> Result:
    features, real, digest = _features_of_both(subject, protocol)
    if too_few := _too_few(protocol, prdc.K + 2, subject):
        return too_few
    if len(real) < prdc.K + 2:
        raise MissingError(
            f"reference: {subject.reference!r} holds {len(real)} images, but this metric needs at least {prdc.K + 2}; build one from more"
        )
    if (key := f"prdc {digest}") not in subject.cache:  # four metrics share the result
        subject.cache[key] = prdc.prdc(features, real)
    value, influence = subject.cache[key][protocol.name.removeprefix("prdc.")]
    if protocol.name == "prdc.precision":  # each image counts by itself: for 0.95 of 64 images, Student's 95 % interval covers 83 %
        shares = subject.per_prompt(np.rint(value + influence))
        return protocol.distance(intervals.share_interval(shares, len(features)), influence, reference=digest)
    is_mean = protocol.name == "prdc.density"  # over images; what else a prompt contributes is not the sum of what each of its images does
    if np.allclose(influence, 0) or (subject.has_several_samples and not is_mean):
        note = _NO_INTERVAL_OF_SAMPLES if subject.has_several_samples else _NO_INTERVAL
        return protocol.value(intervals.Estimate(value, value, value, subject.n_prompts, has_interval=False), note, digest), {}
    estimate = intervals.standard_error_interval(value, subject.per_prompt(influence))
    highest = 1.0 if protocol.unit == "share" else math.inf
    estimate = replace(estimate, low=max(0.0, estimate.low), high=min(highest, estimate.high))
    return protocol.distance(estimate, influence, reference=digest)


PROTOCOLS = (
    Protocol("fd.scenes",        "set", "lower",  "distance",    _frechet),
    Protocol("fid.clean",        "set", "lower",  "distance",    _frechet),
    Protocol("fid_infinity.clean", "set", "lower", "distance",   _frechet_infinity),
    Protocol("fid.tf1",          "set", "lower",  "distance",    _frechet),
    Protocol("fid.mlperf",       "set", "lower",  "distance",    _frechet),
    Protocol("fid.torchmetrics", "set", "lower",  "distance",    _frechet),
    Protocol("fd.dinov2",        "set", "lower",  "distance",    _frechet),
    Protocol("kid",              "set", "lower",  "MMD^2",       _kid),
    Protocol("cmmd",             "set", "lower",  "1000 MMD^2",  partial(_kernel_distance, cmmd.cmmd)),
    Protocol("prdc.precision",   "set", "higher", "share",       _prdc),
    Protocol("prdc.recall",      "set", "higher", "share",       _prdc),
    Protocol("prdc.density",     "set", "higher", "ratio",       _prdc),
    Protocol("prdc.coverage",    "set", "higher", "share",       _prdc),
)  # fmt: skip  # a table
