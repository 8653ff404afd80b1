"""Golden pictures: inputs of which it is known how a metric has to rank them, put through every metric at hand.

Healthy are rendered scenes that show what their captions ask. Every metric must find them better than black, gray, noise and
inverted pictures, the ways in which a decoder or a conversion fails, and than a few pictures over and over; only precision and density
do not mind those, which is how one sees that they are not mistaken for recall. The same pictures a second time must bring
the same value, and compared with themselves what a perfect copy has. Nothing is fetched.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from huggingface_hub import constants

from sdbench.arrays import U8
from sdbench.assets import catalogue
from sdbench.protocols.base import Protocol, Subject
from sdbench.records import Scores, Value
from sdbench.run import external
from sdbench.scenes.grammar import scene_at
from sdbench.scenes.render import render
from sdbench.score import PROTOCOLS, score

N, KINDS, SEED = 64, 8, 5
SCENES = [scene_at(index, "heldout", SEED) for index in range(N)]
PROMPTS = [scene.caption for scene in SCENES]
COLLAPSE_SPARES = {"precision", "density"}
_AWAY = {"missing", "not_applicable"}
Seen = Mapping[str, Value]  # what one metric makes of each set of pictures


@dataclass(frozen=True)
class Judgement:
    """What is wrong with a metric, nothing where it behaves; `seen` is None where it was not tried for want of weights or a GPU."""

    name: str
    seen: Seen | None
    complaints: tuple[str, ...] = ()


def pictures() -> dict[str, U8]:
    """Sets of N pictures, each N x 64 x 64 x 3 uint8 RGB, by what they are."""
    healthy = render(SCENES, range(N), SEED)
    return {
        "healthy": healthy,
        "black": np.zeros_like(healthy),
        "gray": np.full_like(healthy, 128),
        "noise": np.random.default_rng(SEED).integers(0, 256, healthy.shape, np.uint8),
        "inverted": 255 - healthy,
        "collapsed": healthy[np.arange(N) % KINDS],
    }


def judge() -> list[Judgement]:
    """Every known metric, in the order of `PROTOCOLS`; those of full-size networks only on a GPU, without one they would take hours."""
    names = [name for name in PROTOCOLS if torch.cuda.is_available() or not catalogue.evaluators_for([name])]
    with offline(), TemporaryDirectory() as folder:
        runs, values = Path(folder), dict[str, dict[str, Value]]()
        original = _subject(render(SCENES, range(N), SEED + 1), runs)
        _, teacher = score(original, names)
        for name, drawn in pictures().items():
            values[name], scores = _scored(_subject(drawn, runs), teacher, original, names)
            if name == "healthy":
                own, names = scores, [metric for metric, value in values[name].items() if value.state not in _AWAY]
        # A store of their own has no features kept from the first time.
        again = replace(_subject(pictures()["healthy"], runs / "twice"), runs=runs)
        values["twice"], _ = _scored(again, own, _subject(pictures()["healthy"], runs), names)
    return [
        _judged(protocol, {name: of[protocol.name] for name, of in values.items()})
        if protocol.name in names
        else Judgement(protocol.name, None)
        for protocol in PROTOCOLS.values()
    ]


def complaints(protocol: Protocol, seen: Seen) -> Iterator[str]:
    """How a metric's values of the golden pictures differ from what they have to be; `healthy` must have been scored."""
    numbers = {name: value.value for name, value in seen.items() if value.value is not None}
    healthy, again = numbers["healthy"], numbers.get("twice", math.nan)
    sign = -1 if protocol.direction == "lower" else 1
    for name in [name for name in numbers if name not in ("healthy", "twice")]:
        spared = name == "collapsed" and protocol.name.rpartition(".")[2] in COLLAPSE_SPARES
        if spared and numbers[name] < healthy / 2:
            yield f"a few pictures over and over get {numbers[name]:.4g}, less than half of {healthy:.4g}"
        elif not spared and protocol.direction != "neither" and sign * numbers[name] >= sign * healthy:
            yield f"{name} pictures get {numbers[name]:.4g}, no worse than healthy ones with {healthy:.4g}"
    expected = _perfect(protocol, healthy)
    if not math.isclose(again, expected, rel_tol=1e-4, abs_tol=1e-4):
        yield f"the same pictures a second time get {again:.6g}, expected {expected:.6g}"


def _perfect(protocol: Protocol, healthy: float) -> float:
    """What the healthy pictures get when scored again, now with themselves as the teacher's."""
    of = protocol.name.partition(".")[0]
    if of == "win_rate":
        return 0.5
    if of in ("agreement", "fd_to_teacher"):
        return 1.0 if protocol.direction == "higher" else 0.0
    return healthy


def _judged(protocol: Protocol, seen: Seen) -> Judgement:
    healthy = seen["healthy"]
    if healthy.state != "ok":
        return Judgement(protocol.name, seen, (f"healthy pictures are {healthy.state}: {healthy.reason}",))
    return Judgement(protocol.name, seen, tuple(complaints(protocol, seen)))


def _subject(drawn: U8, runs: Path) -> Subject:
    return replace(external.kept(drawn, PROMPTS, runs), reference="scenes")


def _scored(subject: Subject, teacher: Scores, original: Subject, names: list[str]) -> tuple[dict[str, Value], Scores]:
    values, scores = score(replace(subject, teacher=teacher, original=original), names)
    return {value.name: value for value in values}, scores


@contextmanager
def offline() -> Iterator[None]:
    """What is not on this disk stays away, as under HF_HUB_OFFLINE=1."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
