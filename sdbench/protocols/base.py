"""What a protocol is, what it measures, and how it answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from sdbench.arrays import F32, F64, U8
from sdbench.records import Direction, Scores, State, Value, column_of
from sdbench.stats import intervals
from sdbench.store import Store

T = TypeVar("T")
BLOCK = 64  # pictures in memory at a time, a multiple of every encoder's batch
Result = tuple[Value, dict[str, F64]]  # the value, and its columns of `scores.parquet`


@dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
        images: identities of the pictures in the store, a row each.
        teacher: scores of the teacher on the same prompts; None where it has none (yet).
        is_teacher: the pictures are the teacher's own.
        is_elsewhere: another program has made them, from noise of its own.
        reference: what set metrics compare with, by the name that the suite gives; None where it names none.
        original: the teacher's pictures of the same prompts and noise, in the same order; None where they are not on this disk.
        original_name: what the teacher is called, and the suite that its record is of.
        original_digest: of the teacher's weights, or of its record where pictures are all there is; None where there is no teacher (yet).
        columns: what earlier protocols found, for those that build on it.
        shared: what earlier protocols computed, for those that need the same.
    """

    store: Store
    runs: Path
    images: Sequence[str]
    prompt_ids: Sequence[str]
    samples: Sequence[int]
    prompts: Sequence[str]
    teacher: Scores | None = None
    is_teacher: bool = False
    is_elsewhere: bool = False
    reference: str | None = None
    original: "Subject | None" = None
    original_name: str = "the family's teacher"
    original_digest: str | None = None
    columns: dict[str, F64] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    def blocks(self) -> Iterator[U8]:
        """The stored bytes, decoded, 64 pictures at a time => N x H x W x 3 uint8 RGB.

        Raises:
            UserError: a picture is missing, corrupted, or not 8-bit RGB.
        """
        for start in range(0, len(self.images), BLOCK):
            yield self.store.read(self.images[start : start + BLOCK])

    def features(self, encoder: str, compute: Callable[[U8], F32]) -> F32:
        """Features under an encoder, whose name tells its weights; computed once and kept in the run folder."""
        return self.store.features(encoder, self.images, lambda: np.concatenate([compute(block) for block in self.blocks()]))

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """What several protocols need, computed for the first of them."""
        if name not in self.shared:
            self.shared[name] = compute()
        found: T = self.shared[name]
        return found


@dataclass(frozen=True)
class Protocol:
    """How a metric is made, and how its values are to be read.

    Attributes:
        against_teacher: it compares with the family's teacher, so pictures without a record cannot have it.
    """

    name: str
    kind: Literal["set", "score"]
    direction: Direction
    unit: str
    measure: Callable[[Subject, "Protocol"], Result]
    against_teacher: bool = False

    @property
    def column(self) -> str:
        """Its column of `scores.parquet`."""
        return column_of(self.name, self.kind)

    def value(self, estimate: intervals.Estimate, note: str = "", reference: str | None = None) -> Value:
        """A number with its interval, where there is one."""
        low, high = (estimate.low, estimate.high) if estimate.has_interval else (None, None)
        return Value(
            name=self.name, kind=self.kind, direction=self.direction, unit=self.unit, value=estimate.value, low=low, high=high,
            n=estimate.n, note=note, reference=reference,
        )  # fmt: skip

    def mean(self, scores: F64) -> Result:
        """The mean of a score of each picture, (n,), and the scores."""
        return self.value(intervals.mean_interval(scores)), {self.column: scores}

    def without(self, state: State, reason: str) -> Value:
        """A value that says why there is no number."""
        return Value(name=self.name, kind=self.kind, direction=self.direction, unit=self.unit, state=state, reason=reason)
