"""Pictures -> values with intervals, and the per-image scores behind them.

A protocol is a function of the pictures and their prompts, registered under its name. One that throws, or whose weights are
not at hand, gives a value whose state says so; the others go on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from sdbench import reference, stats
from sdbench.encoders import scenes
from sdbench.errors import UserError
from sdbench.metrics import clip_score, frechet, preference
from sdbench.records import F64, Direction, Scores, State, Value
from sdbench.scenes.grammar import parse
from sdbench.store import F32, U8, Store

Result = tuple[Value, dict[str, F64]]


@dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
        images: identities of the pictures in the store, a row each.
        teacher: scores of the family's teacher on the same prompts; None where the teacher has none (yet).
        is_teacher: the pictures are the teacher's own.
    """

    store: Store
    runs: Path
    images: Sequence[str]
    prompt_ids: Sequence[str]
    samples: Sequence[int]
    prompts: Sequence[str]
    teacher: Scores | None = None
    is_teacher: bool = False
    columns: dict[str, F64] = field(default_factory=dict)

    @cached_property
    def pixels(self) -> U8:
        """The stored bytes, decoded => N x H x W x 3 uint8 RGB."""
        return self.store.read(self.images)

    def features(self, encoder: str, compute: Callable[[U8], F32]) -> F32:
        """Features under a scenes evaluator, computed once and kept in the run folder."""
        return self.store.features(scenes.encoder_id(encoder), self.images, lambda: compute(self.pixels))


PROTOCOLS: dict[str, Callable[[Subject], Result]] = {}


def protocol(name: str) -> Callable[[Callable[[Subject], Result]], Callable[[Subject], Result]]:
    """Register a protocol under its name."""

    def register(function: Callable[[Subject], Result]) -> Callable[[Subject], Result]:
        PROTOCOLS[name] = function
        return function

    return register


def score(subject: Subject, metrics: Sequence[str]) -> tuple[list[Value], Scores]:
    """Every metric of the list, in the order of `PROTOCOLS`, since a win rate needs the preference scores before it."""
    values = []
    for name in sorted(metrics, key=list(PROTOCOLS).index):
        try:
            value, columns = PROTOCOLS[name](subject)
        except (UserError, ValueError, ArithmeticError) as error:
            if isinstance(error, UserError):
                raise
            value, columns = without(name, "failed", f"{type(error).__name__}: {error}"), {}
        subject.columns.update(columns)
        values.append(value)
    return values, Scores(subject.prompt_ids, subject.samples, subject.columns)


DESCRIBED: dict[str, tuple[str, Direction, str]] = {
    # name                         kind     better    unit
    "fd.scenes":                  ("set",   "lower",  "distance"),
    "clip_score.scenes":          ("score", "higher", "100 cos"),
    "preference.scenes":          ("score", "higher", "logit"),
    "win_rate.preference.scenes": ("score", "higher", "share"),
    "scene_accuracy":             ("score", "higher", "share"),
}  # fmt: skip  # a table


def without(name: str, state: State, reason: str) -> Value:
    """A value that says why there is no number."""
    kind, direction, unit = DESCRIBED[name]
    return Value(name=name, kind=kind, direction=direction, unit=unit, state=state, reason=reason)  # type: ignore[arg-type]  # the table's literals


def _value(name: str, estimate: stats.Estimate, note: str = "", reference_digest: str | None = None) -> Value:
    kind, direction, unit = DESCRIBED[name]
    return Value(
        name=name, kind=kind, direction=direction, unit=unit, value=estimate.value, low=estimate.low, high=estimate.high,  # type: ignore[arg-type]  # the table's literals
        n=estimate.n, note=note, reference=reference_digest,
    )  # fmt: skip


@protocol("fd.scenes")
def _frechet(subject: Subject) -> Result:
    against = reference.scenes(subject.runs)
    features = subject.features("features", scenes.features)
    n, width = features.shape
    if n < 2:
        return without("fd.scenes", "not_applicable", f"a distance of distributions needs at least 2 pictures, found {n}"), {}
    influence = frechet.influence(features, against.statistics)
    distance = frechet.frechet_distance(frechet.gaussian(features), against.statistics)
    note = "" if n >= 5 * width else f"descriptive: n = {n} < 5 d = {5 * width}"
    return _value("fd.scenes", stats.standard_error_interval(distance, influence), note, against.digest), {"fd.scenes:influence": influence}


@protocol("clip_score.scenes")
def _clip_score(subject: Subject) -> Result:
    scores = clip_score.clip_score(subject.features("clip", scenes.clip_images), scenes.clip_texts(subject.prompts))
    return _value("clip_score.scenes", stats.mean_interval(scores)), {"clip_score.scenes": scores}


@protocol("preference.scenes")
def _preference(subject: Subject) -> Result:
    text, scale = scenes.preference_texts(subject.prompts)
    scores = preference.pickscore(subject.features("preference", scenes.preference_images), text, scale)
    return _value("preference.scenes", stats.mean_interval(scores)), {"preference.scenes": scores}


@protocol("win_rate.preference.scenes")
def _win_rate(subject: Subject) -> Result:
    name = "win_rate.preference.scenes"
    if subject.is_teacher:
        return without(name, "not_applicable", "the teacher is what the others are compared with"), {}
    if subject.teacher is None or "preference.scenes" not in subject.columns:
        return without(name, "missing", "the teacher has no record under this suite; run scenes-teacher under it"), {}
    theirs = dict(zip(subject.teacher.keys, subject.teacher.columns["preference.scenes"], strict=True))
    baseline = np.array([theirs[key] for key in zip(subject.prompt_ids, subject.samples, strict=True)])
    candidate = subject.columns["preference.scenes"]
    rate = stats.wins_interval(candidate, baseline)
    column = np.where(candidate > baseline, 1.0, np.where(candidate < baseline, 0.0, 0.5))
    return _value(name, rate.estimate, f"{rate.wins} wins, {rate.ties} ties, {rate.losses} losses"), {name: column}


@protocol("scene_accuracy")
def _scene_accuracy(subject: Subject) -> Result:
    right = [seen == parse(prompt).layout for seen, prompt in zip(scenes.layouts(subject.pixels), subject.prompts, strict=True)]
    return _value("scene_accuracy", stats.proportion_interval(sum(right), len(right))), {"scene_accuracy": np.asarray(right, np.float64)}
