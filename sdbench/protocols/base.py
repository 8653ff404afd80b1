"""The parts that every protocol shares: the images it scores, and the form of its answer."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from sdbench.arrays import F32, F64, U8
from sdbench.disk import digest
from sdbench.encoders.inference import BLOCK, computed_by
from sdbench.notes import progress
from sdbench.records import Direction, Scores, State, Value, column_of, mean_per_prompt
from sdbench.stats import intervals
from sdbench.store import Store

T = TypeVar("T")
Result = tuple[Value, dict[str, F64]]  # the value, and its columns of `scores.parquet`


@dataclass(frozen=True)
class Subject:
    """The images to score, and what they are compared with.

    Attributes:
        store: the run folder of the model, with the images.
        runs: the folder of run folders, which holds the references too.
        image_ids: identities of the images in the store, one for each row.
        prompt_ids, prompts: id and text of each image's prompt.
        samples: index of each image among those of its prompt.
        is_teacher: the images are the teacher's own.
        is_made_elsewhere: another program made the images, from noise of its own.
        reference: name of the reference that set metrics compare with, as the suite gives it; None where it names none.
        teacher_scores: scores of the teacher on the same prompts; None where it has none (yet).
        teacher_images: the teacher's images of the same prompts and noise, in the same order; None where they are not on this disk.
        teacher_name: the teacher's name, and the suite of its record.
        teacher_digest: digest of the teacher's weights, or of its record where it consists of images alone; None where there is no
            teacher (yet).
        teacher_note: what else readers of its scores must know.
        columns: columns that earlier protocols produced, for those that build on them.
        cache: intermediate results of earlier protocols, for those that need the same.
    """

    store: Store
    runs: Path
    image_ids: Sequence[str]
    prompt_ids: Sequence[str]
    samples: Sequence[int]
    prompts: Sequence[str]
    is_teacher: bool = False
    is_made_elsewhere: bool = False
    reference: str | None = None
    teacher_scores: Scores | None = None
    teacher_images: "Subject | None" = None
    teacher_name: str = "the family's teacher"
    teacher_digest: str | None = None
    teacher_note: str = ""
    columns: dict[str, F64] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)

    def map_blocks(self, compute: Callable[..., T], title: str, *others: "Subject") -> list[T]:
        """Apply `compute` to the stored images, at most 64 at a time, decoded: N x H x W x 3 uint8 RGB.

        A thread decodes the next block meanwhile, so that a GPU does not wait for it.

        Args:
            title: what the progress bar calls the work; the bar appears only if it takes long.
            others: subjects with as many images; `compute` gets the same rows of these too.

        Raises:
            UserError: see `Store.read`.
        """
        n, results = len(self.image_ids), list[T]()

        def read(start: int) -> list[U8]:
            return [subject.store.read(subject.image_ids[start : start + BLOCK]) for subject in (self, *others)]

        bar = progress(total=n, desc=f"scoring: {title}", unit="image", delay=5, leave=False)
        with ThreadPoolExecutor(1) as reader, bar:
            ahead = reader.submit(read, 0)
            for start in range(0, n, BLOCK):
                images = ahead.result()
                if start + BLOCK < n:
                    ahead = reader.submit(read, start + BLOCK)
                results.append(compute(*images))
                bar.update(len(images[0]))
        return results

    def features(self, encoder: str, compute: Callable[[U8], F32]) -> F32:
        """Features under an encoder, N x d, whose name includes the digest of its weights; computed once and kept in the run folder.

        Other versions of the packages, or another kind of device, compute their own: a record names those that it was made with.

        Raises:
            UserError: see `Store.read`.
        """
        return self.store.features(f"{encoder}-{computed_by()}", self.image_ids, lambda: np.concatenate(self.map_blocks(compute, encoder)))

    def features_with_prompts(self, encoder: str, compute: Callable[[U8, Sequence[str]], F32]) -> F32:
        """Features of each image together with its prompt, N x d, under an encoder of both; kept like `features`.

        Raises:
            UserError: see `features`.
        """
        prompts = iter(self.prompts)  # `map_blocks` takes the images in order
        name = f"{encoder}-{digest(list(self.prompts))[:12]}"
        return self.features(name, lambda images: compute(images, list(islice(prompts, len(images)))))

    def per_prompt(self, column: F64) -> F64:
        """The mean over each prompt's images, (prompts,). Intervals rest on these: two images of a prompt are not independent."""
        return mean_per_prompt(self.prompt_ids, column)[1]

    @property
    def n_prompts(self) -> int:
        """Number of prompts, each with one image or several."""
        return len(set(self.prompt_ids))

    @property
    def has_several_samples(self) -> bool:
        """Whether a prompt has several images."""
        return self.n_prompts < len(self.prompt_ids)


@dataclass(frozen=True)
class Protocol:
    """How a metric is computed, and how its values are to be read.

    Attributes:
        name, kind, direction, unit: those of its values, see `records.Value`.
        measure: computes the value of a subject, and its columns.
        against_teacher: the metric compares with the family's teacher, so it is not available for images without a record.
    """

    name: str
    kind: Literal["set", "score"]
    direction: Direction
    unit: str
    measure: Callable[[Subject, "Protocol"], Result]
    against_teacher: bool = False

    @property
    def column(self) -> str:
        """The metric's column of `scores.parquet`."""
        return column_of(self.name, self.kind)

    def value(self, estimate: intervals.Estimate, note: str = "", reference: str | None = None) -> Value:
        """A number, with its interval where n suffices for one."""
        low, high = (estimate.low, estimate.high) if estimate.has_interval else (None, None)
        return Value(
            name=self.name, kind=self.kind, direction=self.direction, unit=self.unit, value=estimate.value, low=low, high=high,
            n=estimate.n, note=note, reference=reference,
        )  # fmt: skip

    def without_value(self, state: State, reason: str) -> Result:
        """The result where there is no number, with the reason."""
        return Value(name=self.name, kind=self.kind, direction=self.direction, unit=self.unit, state=state, reason=reason), {}

    def mean(self, subject: Subject, scores: F64) -> Result:
        """The mean of one score for each image, (n,), and the scores."""
        return self.value(intervals.mean_interval(subject.per_prompt(scores))), {self.column: scores}

    def share(self, subject: Subject, scores: F64, note: str = "") -> Result:
        """The mean of one number in 0..1 for each image, (n,), and the numbers."""
        return self.value(intervals.share_interval(subject.per_prompt(scores), len(scores)), note), {self.column: scores}

    def distance(self, estimate: intervals.Estimate, influence: F64, note: str = "", reference: str | None = None) -> Result:
        """A number of the whole set, and the influence of each image on it, (n,)."""
        return self.value(estimate, note, reference), {self.column: influence}


def small_sample_note(width: int, n: int | None = None, reference_n: int | None = None) -> str:
    """A note on a Frechet distance of d = `width` features whose moments are poorly determined; "" where n and the reference's suffice."""
    counts = {"n": n, "the reference's n": reference_n}
    few = [f"{name} = {count}" for name, count in counts.items() if count is not None and count < 5 * width]
    return f"descriptive only, since {' and '.join(few)} < 5 d = {5 * width} for d features" if few else ""
