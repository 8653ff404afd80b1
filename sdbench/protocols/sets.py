"""Distances of a whole set of pictures to a reference."""

from sdbench import reference, stats
from sdbench.encoders import scenes
from sdbench.encoders.catalogue import ENCODERS
from sdbench.metrics import frechet
from sdbench.protocols.base import Protocol, Result, Subject


def _frechet(subject: Subject, protocol: Protocol) -> Result:
    against = reference.find(subject.reference, ENCODERS["scenes.features"], subject.runs)
    features = subject.features(scenes.encoder_id("features"), scenes.features)
    n, width = features.shape
    if n < 2:
        return protocol.without("not_applicable", f"a distance of distributions needs at least 2 pictures, found {n}"), {}
    influence = frechet.influence(features, against.statistics)
    distance = frechet.frechet_distance(frechet.gaussian(features), against.statistics)
    note = "" if n >= 5 * width else f"descriptive: n = {n} < 5 d = {5 * width}"
    estimate = stats.standard_error_interval(distance, influence)
    return protocol.value(estimate, note, against.digest), {f"{protocol.name}:influence": influence}


PROTOCOLS = (Protocol("fd.scenes", "set", "lower", "distance", _frechet),)
