"""Pictures -> values with intervals, and the per-image scores behind them.

A protocol is a function of the pictures and their prompts, listed under its name in `PROTOCOLS`. One that throws, or whose
weights are not at hand, gives a value whose state says so; the others go on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from sdbench import reference, stats
from sdbench.encoders import full_size, scenes
from sdbench.encoders.full_size import WeightsMissingError
from sdbench.errors import unknown
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
        """Features under an encoder, whose name tells its weights; computed once and kept in the run folder."""
        return self.store.features(encoder, self.images, lambda: compute(self.pixels))


def score(subject: Subject, metrics: Sequence[str]) -> tuple[list[Value], Scores]:
    """Every metric of the list, in the order of `PROTOCOLS`, since a win rate needs the preference scores before it.

    Raises:
        UserError: a metric that is not known, or a picture that cannot be read.
    """
    for name in metrics:
        if name not in PROTOCOLS:
            raise unknown("metric", name, PROTOCOLS)
    subject.pixels  # noqa: B018  # a picture that cannot be read ends the run here, before any metric
    values = []
    for name in sorted(metrics, key=list(PROTOCOLS).index):
        try:
            value, columns = PROTOCOLS[name].measure(subject, name)
        except WeightsMissingError as error:
            value, columns = without(name, "missing", str(error)), {}
        except Exception as error:  # noqa: BLE001  # a metric that fails loses only itself
            value, columns = without(name, "failed", f"{type(error).__name__}: {error}"), {}
        subject.columns.update(columns)
        values.append(value)
    return values, Scores(subject.prompt_ids, subject.samples, subject.columns)


def without(name: str, state: State, reason: str) -> Value:
    """A value that says why there is no number."""
    kind = PROTOCOLS[name]
    return Value(name=name, kind=kind.kind, direction=kind.direction, unit=kind.unit, state=state, reason=reason)


def _value(name: str, estimate: stats.Estimate, note: str = "", reference_digest: str | None = None) -> Value:
    kind = PROTOCOLS[name]
    low, high = (estimate.low, estimate.high) if estimate.enough else (None, None)
    return Value(
        name=name, kind=kind.kind, direction=kind.direction, unit=kind.unit, value=estimate.value, low=low, high=high, n=estimate.n,
        note=note, reference=reference_digest,
    )  # fmt: skip


def _frechet(subject: Subject, name: str) -> Result:
    against = reference.scenes(subject.runs)
    features = subject.features(scenes.encoder_id("features"), scenes.features)
    n, width = features.shape
    if n < 2:
        return without(name, "not_applicable", f"a distance of distributions needs at least 2 pictures, found {n}"), {}
    influence = frechet.influence(features, against.statistics)
    distance = frechet.frechet_distance(frechet.gaussian(features), against.statistics)
    note = "" if n >= 5 * width else f"descriptive: n = {n} < 5 d = {5 * width}"
    return _value(name, stats.standard_error_interval(distance, influence), note, against.digest), {f"{name}:influence": influence}


def _clip_scenes(subject: Subject, name: str) -> Result:
    image = subject.features(scenes.encoder_id("clip"), scenes.clip_images)
    return _mean(name, clip_score.clip_score(image, scenes.clip_texts(subject.prompts)))


def _clip_full_size(subject: Subject, name: str) -> Result:
    image = subject.features(f"{full_size.CLIP}-{full_size.CLIP_WEIGHTS}", full_size.clip_images)
    return _mean(name, clip_score.clip_score(image, full_size.clip_texts(subject.prompts)))


def _preference_scenes(subject: Subject, name: str) -> Result:
    text, scale = scenes.preference_texts(subject.prompts)
    return _mean(name, preference.pickscore(subject.features(scenes.encoder_id("preference"), scenes.preference_images), text, scale))


def _pickscore(subject: Subject, name: str) -> Result:
    text, scale = full_size.pickscore_texts(subject.prompts)
    return _mean(name, preference.pickscore(subject.features("pickscore.v1", full_size.pickscore_images), text, scale))


def _mean(name: str, scores: F64) -> Result:
    return _value(name, stats.mean_interval(scores)), {name: scores}


def _win_rate(subject: Subject, name: str) -> Result:
    judge = name.removeprefix("win_rate.")
    if subject.is_teacher:
        return without(name, "not_applicable", "the teacher is what the others are compared with"), {}
    if judge not in subject.columns:
        return without(name, "missing", f"there is no {judge} of these pictures"), {}
    if subject.teacher is None or judge not in subject.teacher.columns:
        return without(name, "missing", f"the family's teacher has no {judge} under this suite; run it too"), {}
    theirs = dict(zip(subject.teacher.keys, subject.teacher.columns[judge], strict=True))
    baseline = np.array([theirs[key] for key in zip(subject.prompt_ids, subject.samples, strict=True)])
    candidate = subject.columns[judge]
    rate = stats.wins_interval(candidate, baseline)
    column = np.where(candidate > baseline, 1.0, np.where(candidate < baseline, 0.0, 0.5))
    return _value(name, rate.estimate, f"{rate.wins} wins, {rate.ties} ties, {rate.losses} losses"), {name: column}


def _scene_accuracy(subject: Subject, name: str) -> Result:
    right = [seen == parse(prompt).layout for seen, prompt in zip(scenes.layouts(subject.pixels), subject.prompts, strict=True)]
    return _value(name, stats.proportion_interval(sum(right), len(right))), {name: np.asarray(right, np.float64)}


@dataclass(frozen=True)
class Protocol:
    """How a metric is made, and how its values are to be read."""

    kind: Literal["set", "score"]
    direction: Direction
    unit: str
    measure: Callable[[Subject, str], Result]


PROTOCOLS: dict[str, Protocol] = {
    "scene_accuracy":             Protocol("score", "higher", "share",    _scene_accuracy),
    "fd.scenes":                  Protocol("set",   "lower",  "distance", _frechet),
    "clip_score.scenes":          Protocol("score", "higher", "100 cos",  _clip_scenes),
    "clip_score.vit-l-14":        Protocol("score", "higher", "100 cos",  _clip_full_size),
    "preference.scenes":          Protocol("score", "higher", "logit",    _preference_scenes),
    "pickscore.v1":               Protocol("score", "higher", "logit",    _pickscore),
    "win_rate.preference.scenes": Protocol("score", "higher", "share",    _win_rate),
    "win_rate.pickscore.v1":      Protocol("score", "higher", "share",    _win_rate),
}  # fmt: skip  # a table
