"""Distances of a whole set of pictures to a reference, and what they share with it."""

import math
from dataclasses import replace
from functools import partial

import numpy as np

from sdbench.arrays import F32, F64
from sdbench.encoders.catalogue import ENCODERS
from sdbench.errors import MissingError
from sdbench.metrics import cmmd, frechet, frechet_infinity, kid, prdc
from sdbench.protocols.base import Protocol, Result, Subject
from sdbench.reference import cards
from sdbench.reference.cards import Reference
from sdbench.stats import intervals

_ALONE = "no interval: no picture, left out alone, changes the value"


def _compared(encoder: str, subject: Subject) -> tuple[F32, Reference]:
    """Features of the pictures, n x d, and the reference of the same encoder, which is looked up first: it costs nothing."""
    by = ENCODERS[encoder]
    against = cards.find(subject.reference, by, subject.runs)
    return subject.features(by.id(), by.features), against


def _with_pictures(encoder: str, subject: Subject) -> tuple[F32, F32, str]:
    """Features of the pictures, of the reference's pictures, and its digest."""
    features, against = _compared(encoder, subject)
    if against.features is None:
        raise MissingError(
            f"reference: {subject.reference!r} is of published moments, and this needs features; build one from pictures: `sdbench reference build`"
        )
    return features, against.features, against.digest


def _too_few(protocol: Protocol, least: int, n: int) -> Result:
    return protocol.without("not_applicable", f"a comparison of sets needs at least {least} pictures, found {n}"), {}


def _result(protocol: Protocol, value: float, influence: F64, against: str, note: str = "") -> Result:
    estimate = intervals.standard_error_interval(value, influence)
    return protocol.value(estimate, note, against), {protocol.column: influence}


def _frechet(encoder: str, subject: Subject, protocol: Protocol) -> Result:
    features, against = _compared(encoder, subject)
    n, width = features.shape
    if n < 2:
        return _too_few(protocol, 2, n)
    note = "" if n >= 5 * width else f"descriptive: n = {n} < 5 d = {5 * width}"
    return _result(protocol, *frechet.frechet(features, against.statistics), against.digest, note)


def _infinity(encoder: str, subject: Subject, protocol: Protocol) -> Result:
    features, against = _compared(encoder, subject)
    least = math.ceil(frechet_infinity.LEAST_PER_DIMENSION * features.shape[1])
    if len(features) < least:
        return _too_few(protocol, least, len(features))
    made = frechet_infinity.frechet_infinity(features, against.statistics)
    estimate = intervals.standard_error_interval(made.value, made.influence, systematic=abs(made.curvature))
    return protocol.value(estimate, "extrapolated to unlimited pictures", against.digest), {protocol.column: made.influence}


def _kid(subject: Subject, protocol: Protocol) -> Result:
    features, real, against = _with_pictures("inception.clean", subject)
    if len(features) < 2:
        return _too_few(protocol, 2, len(features))
    return _result(protocol, *kid.kid(features, real), against)


def _cmmd(subject: Subject, protocol: Protocol) -> Result:
    features, real, against = _with_pictures("clip.vit-l-14-336", subject)
    if len(features) < 2:
        return _too_few(protocol, 2, len(features))
    return _result(protocol, *cmmd.cmmd(features, real), against)


def _prdc(subject: Subject, protocol: Protocol) -> Result:
    features, real, against = _with_pictures("inception.clean", subject)
    if len(features) < prdc.K + 2:
        return _too_few(protocol, prdc.K + 2, len(features))
    found = subject.once(f"prdc {against}", lambda: prdc.prdc(features, real))
    value, influence = found[protocol.name.removeprefix("prdc.")]
    if np.allclose(influence, 0):
        return protocol.value(intervals.Estimate(value, value, value, len(features), has_interval=False), _ALONE, against), {}
    estimate = intervals.standard_error_interval(value, influence)
    ends = max(0.0, estimate.low), min(1.0 if protocol.unit == "share" else math.inf, estimate.high)
    estimate = replace(estimate, low=ends[0], high=ends[1])
    return protocol.value(estimate, reference=against), {protocol.column: influence}


PROTOCOLS = (
    Protocol("fd.scenes",        "set", "lower",  "distance",    partial(_frechet, "scenes.features")),
    Protocol("fid.clean",        "set", "lower",  "distance",    partial(_frechet, "inception.clean")),
    Protocol("fid_infinity.clean", "set", "lower", "distance",  partial(_infinity, "inception.clean")),
    Protocol("fid.tf1",          "set", "lower",  "distance",    partial(_frechet, "inception.tf1")),
    Protocol("fid.mlperf",       "set", "lower",  "distance",    partial(_frechet, "inception.mlperf")),
    Protocol("fid.torchmetrics", "set", "lower",  "distance",    partial(_frechet, "inception.torchmetrics")),
    Protocol("fd.dinov2",        "set", "lower",  "distance",    partial(_frechet, "dinov2.vit-l-14")),
    Protocol("kid",              "set", "lower",  "MMD^2",       _kid),
    Protocol("cmmd",             "set", "lower",  "1000 MMD^2",  _cmmd),
    Protocol("prdc.precision",   "set", "higher", "share",       _prdc),
    Protocol("prdc.recall",      "set", "higher", "share",       _prdc),
    Protocol("prdc.density",     "set", "higher", "ratio",       _prdc),
    Protocol("prdc.coverage",    "set", "higher", "share",       _prdc),
)  # fmt: skip  # a table
