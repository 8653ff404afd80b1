"""What all models of a suite get alike: prompts, in an order for runs that stop when sure, and initial noise."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sdbench.assets.prompts import check_digest, locate, locate_tables, prompts_digest, read_dataset, read_lines
from sdbench.disk import file_digest
from sdbench.errors import UserError
from sdbench.records import is_one
from sdbench.scenes.grammar import scene_at
from sdbench.settings import is_unset
from sdbench.suites.folders import find
from sdbench.validation import Table

MAX_IMAGES = 1_000_000  # all are listed before anything is measured
_GOLDEN_RATIO = (5**0.5 - 1) / 2


class Prompts(Table):
    """The captions of a suite.

    Attributes:
        source: `scenes` draws held-out captions from the grammar, `file` reads a text file (one prompt per line), `dataset` reads a column
            of anything that `datasets` opens.
        file: in a suite file, relative to that file; in a loaded suite, or one made in Python, its path.
        path: the dataset: `asset:<name>`, a local file or folder (in a suite file, relative to that file), or a name on the Hub.
        column: the dataset's column of prompts; may be left out where one is called prompt, caption or text.
        seed: for a dataset, 0 takes the first `n` prompts, any other number draws `n` of them.
        digest: digest of a dataset's prompts, as `--dry-run` prints it. A different list is refused; without a digest, the record says
            "unverified".
        groups: the parts of an ordered list, such as HPDv2's four styles, each with its number of prompts; tables show the scores of each.
        samples: images drawn for each prompt, each from noise of its own; the first are those that fewer samples would give.
        looked: in the record of a run that stopped when sure: how many of the `n` prompts it used, the first by `look_order`.
    """

    source: Literal["scenes", "file", "dataset"] = "scenes"
    file: str | None = None
    path: str | None = Field(default=None, exclude_if=is_unset)
    split: str | None = Field(default=None, exclude_if=is_unset)
    column: str | None = Field(default=None, exclude_if=is_unset)
    n: Annotated[int, Field(gt=0, le=MAX_IMAGES)]
    seed: int = 0
    digest: str | None = Field(default=None, exclude_if=is_unset)
    groups: Annotated[dict[str, Annotated[int, Field(gt=0)]], Field(min_length=1)] | None = Field(default=None, exclude_if=is_unset)
    samples: Annotated[int, Field(gt=0)] = Field(default=1, exclude_if=is_one)
    looked: Annotated[int, Field(gt=0)] | None = Field(default=None, exclude_if=is_unset)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.groups and sum(self.groups.values()) != self.n:
            raise ValueError(f"the 'groups' have {sum(self.groups.values())} prompts in total, but 'n' is {self.n}")
        if self.groups and self.source == "dataset" and self.seed:
            raise ValueError("'groups' are parts of a list in its own order; a seed other than 0 draws from it")
        if (images := self.n * self.samples) > MAX_IMAGES:
            raise ValueError(f"'n' times 'samples' is {images:,} images; at most {MAX_IMAGES:,}")
        needed = {"scenes": None, "file": "file", "dataset": "path"}[self.source]
        if needed and not getattr(self, needed):
            raise ValueError(f"source {self.source!r} needs {needed!r}")
        return self


class Noise(Table):
    """Initial latents: one for each image, or one for all (as in MLPerf), drawn from `seed` or read from `file`.

    Attributes:
        file: `asset:<name>` or path (in a suite file, relative to that file) of a tensor saved by `torch.save`; from a seed alone, the
            last digits differ between machines.
        digest: SHA-256 of that file; a file with another digest is refused.
    """

    kind: Literal["per_image", "fixed"] = "per_image"
    seed: int = 0
    file: str | None = Field(default=None, exclude_if=is_unset)
    digest: str | None = Field(default=None, exclude_if=is_unset)

    @model_validator(mode="after")
    def _check_file(self) -> Self:
        if self.file and self.kind != "fixed":
            raise ValueError("'file' is one latent for all; it needs kind = \"fixed\"")
        return self

    def path(self) -> Path | None:
        """The file of the latent, its digest checked; None where there is no file.

        Raises:
            MissingError: an asset is neither here nor reachable.
            UserError: there is no such file, or it has another digest.
        """
        if self.file is None:
            return None
        path = Path(locate(self.file, find(self.file)))
        if not path.is_file():
            raise UserError(f"the suite's latent {self.file} is missing: no file {path}, nor one beside the suites")
        check_digest(f"latent {path}", file_digest(path), self.digest)
        return path

    def identity(self) -> dict[str, Any]:
        """What two equal noises have in common: the settings and, where there is a file, its content.

        Raises:
            MissingError, UserError: see `path`.
        """
        path = self.path()
        return self.model_dump(exclude={"file", "digest"} if path else None) | ({"content": file_digest(path)} if path else {})


def read_prompts(prompts: Prompts) -> tuple[str, ...]:
    """The captions, in order.

    Raises:
        MissingError: they are neither here nor reachable.
        UserError: they cannot be read, there are too few, one is empty, or they have another digest.
    """
    if prompts.source == "scenes":
        return _draw_captions(prompts.n, prompts.seed)
    if prompts.source == "dataset":
        tables = locate_tables(prompts.path or "", find(prompts.path or ""))
        texts = read_dataset(tables, prompts.split or "train", prompts.column, prompts.n, prompts.seed)
        check_digest(f"the list of prompts {prompts.path}", prompts_digest(texts), prompts.digest)
        return texts
    path = Path(prompts.file or "")
    if not path.is_file():
        raise UserError(f"prompt file {path} of the suite is missing; a relative path starts from the suite's own file")
    texts = read_lines(path)
    if len(texts) < prompts.n:
        raise UserError(f"prompt file {path} holds {len(texts)} prompts; the suite asks for {prompts.n}. Add prompts, or lower n")
    return texts[: prompts.n]


@cache  # drawing 10,000 captions takes seconds
def _draw_captions(n: int, seed: int) -> tuple[str, ...]:
    return tuple(scene_at(index, "heldout", seed).caption for index in range(n))


def look_order(prompt_ids: Sequence[str], batch: int) -> list[str]:
    """The order in which a run that stops when sure takes its prompts: the first k batches lie evenly over the list, for any k.

    Steps of the golden ratio around the list spread this way (Knuth 1998, 6.4). A shuffle would not do: batches stay together, since the
    bytes of an image may depend on the others of its batch, and a few random batches of a sorted list over-represent some style or length.
    A short batch stays last.
    """
    batches = [prompt_ids[start : start + batch] for start in range(0, len(prompt_ids), batch)]
    spread = sorted(range(len(batches)), key=lambda place: (len(batches[place]) < batch, place * _GOLDEN_RATIO % 1))
    return [prompt_id for place in spread for prompt_id in batches[place]]
