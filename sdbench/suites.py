"""Suite files: what is measured, on which prompts, how the pictures are made. Checked before anything is loaded.

A suite is a TOML file of `suites/`. `include` takes the metrics (of the suite's own family) and probes of other suites, so
that `quality` and `standard` say only what is their own. The digest of a suite is over its resolved content, includes,
prompts and the latent's file included; settings that came later are not in it where a suite does not use them.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sdbench.assets import prompts as lists
from sdbench.errors import UserError, unknown_name
from sdbench.records import SuiteId
from sdbench.scenes.grammar import scene_at
from sdbench.settings import Probes, Sampling, unset
from sdbench.validation import Table, validate

Family = Literal["sdxl", "scenes"]
POLICY = "gate.toml"
_OWN = Path("suites")
_INSTALLED, _CHECKED_OUT = Path(__file__).parent / "_suites", Path(__file__).parents[1] / "suites"
_SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _CHECKED_OUT


class Prompts(Table):
    """Which captions.

    Attributes:
        source: `scenes` draws held-out ones from the grammar, `file` reads a text file (a prompt a line) beside the suite's own,
            `dataset` reads a column of whatever `datasets` opens.
        file: as written, beside the suite's own; of a loaded suite, or one made in Python, its path.
        path: of a dataset: `asset:<name>`, local file or folder, or name on the Hub.
        column: of a dataset; may be left out where one is called prompt, caption or text.
        seed: of a dataset, 0 takes the first `n` prompts and any other draws `n` of them.
        digest: of a dataset's prompts, as `--dry-run` prints it; another list is refused, and without it the record says "unverified".
        looked: of a run that stopped when sure, as records have it: only so many of the `n`, the first by `look_order`.
    """

    source: Literal["scenes", "file", "dataset"] = "scenes"
    file: str | None = None
    path: str | None = Field(default=None, exclude_if=unset)
    split: str | None = Field(default=None, exclude_if=unset)
    column: str | None = Field(default=None, exclude_if=unset)
    n: Annotated[int, Field(gt=0)]
    seed: int = 0
    digest: str | None = Field(default=None, exclude_if=unset)
    looked: Annotated[int, Field(gt=0)] | None = Field(default=None, exclude_if=unset)

    @model_validator(mode="after")
    def _has_its_place(self) -> Self:
        needed = {"scenes": None, "file": "file", "dataset": "path"}[self.source]
        if needed and not getattr(self, needed):
            raise ValueError(f"source {self.source!r} needs {needed!r}")
        return self


class Noise(Table):
    """Initial latents: one generator a picture, or one latent for all (as MLPerf), drawn from `seed` or read from `file`.

    Attributes:
        file: `asset:<name>` or path of a tensor saved by `torch.save`; the same seed gives other last digits on another machine.
        digest: SHA-256 of that file; another is refused.
    """

    kind: Literal["per_image", "fixed"] = "per_image"
    seed: int = 0
    file: str | None = Field(default=None, exclude_if=unset)
    digest: str | None = Field(default=None, exclude_if=unset)

    @model_validator(mode="after")
    def _file_is_fixed(self) -> Self:
        if self.file and self.kind != "fixed":
            raise ValueError("'file' is one latent for all; it needs kind = \"fixed\"")
        return self

    def path(self) -> Path | None:
        """The latent's file, its digest checked; None where there is none.

        Raises:
            MissingError: an asset that is neither here nor reachable.
            UserError: no such file, or it has another digest.
        """
        if self.file is None:
            return None
        path = Path(lists.locate(self.file, find(self.file)))
        if not path.is_file():
            raise UserError(f"the suite's latent {self.file} is missing: no file {path}, nor one beside the suites")
        lists.check_digest(f"latent {path}", lists.file_digest(path), self.digest)
        return path

    def identity(self) -> dict[str, Any]:
        """What makes two noises the same: the settings and, where there is a file, what is in it."""
        path = self.path()
        return self.model_dump(exclude={"file", "digest"} if path else None) | ({"content": lists.file_digest(path)} if path else {})


class Accept(Table):
    """The ranges that the source of a suite's protocol accepts, and what their maker fed it: the suite's check of itself.

    Attributes:
        name: what is reproduced.
        source: where the ranges are stated.
        prompts: digest of the prompts.
        noise: SHA-256 of the latent's file.
        statistics: git's name (SHA-1 of a blob) of the file of the reference statistics.
        ranges: protocol -> lowest and highest value.
    """

    name: str
    source: str
    prompts: str
    noise: str
    statistics: str
    ranges: dict[str, tuple[float, float]]


class Teacher(Table):
    """Whose pictures win rates and agreement are against, in place of the family's teacher under the same suite.

    Attributes:
        model: name of its records.
        suite: name or path of the suite that those are of: the same prompts, noise and size, other sampling, such as 25 steps
            for students of 4; None for the suite itself.
    """

    model: str
    suite: str | None = None


class Suite(Table):
    """A resolved suite.

    Attributes:
        family: which models it is for; None in a part, which other suites include.
        metrics: protocols by family, since the two families have evaluators of their own.
        reference: what set metrics compare with: `scenes` renders scenes of the training split, eight for each prompt;
            another name is of a reference that `sdbench reference` built or imported.
    """

    name: str
    version: Annotated[int, Field(gt=0)]
    family: Family | None = None
    description: str
    include: tuple[str, ...] = ()
    metrics: dict[Family, tuple[str, ...]] = Field(default_factory=dict)
    reference: str | None = None
    prompts: Prompts | None = None
    sampling: Sampling | None = None
    noise: Noise = Noise()
    probes: Probes | None = None
    accept: Accept | None = Field(default=None, exclude_if=unset)
    teacher: Teacher | None = Field(default=None, exclude_if=unset)

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """The protocols of its own family; a part has none."""
        return self.metrics.get(self.family, ()) if self.family else ()

    @property
    def id(self) -> SuiteId:
        """Name, version, and digest of everything that decides a number.

        Raises:
            MissingError: prompts or the latent are neither here nor reachable.
            UserError: as `of_teacher`.
        """
        settings = self.model_dump(exclude={"description", "include", "accept"}) | {"noise": self.noise.identity()}
        if self.prompts and self.prompts.file:
            settings["prompts"]["file"] = "prompts.txt"  # its lines are in the digest; where it lies, and what it is called, is not
        if self.prompts and self.prompts.source == "dataset":  # likewise
            settings["prompts"] = {
                key: value for key, value in settings["prompts"].items() if key not in ("path", "split", "column", "digest")
            }
        if (theirs := self.of_teacher()) is not self:
            settings["teacher"]["suite"] = theirs.id.model_dump()
        content = json.dumps([settings, self.prompt_list()], sort_keys=True)
        return SuiteId(name=self.name, version=self.version, digest=hashlib.sha256(content.encode()).hexdigest()[:16])

    def of_teacher(self) -> "Suite":
        """The suite that the teacher's pictures are of: the one that `teacher` names, or this.

        Raises:
            UserError: its pictures could not be paired with this suite's, or it names a third suite.
        """
        if self.teacher is None or self.teacher.suite is None:
            return self
        found = load(self.teacher.suite)
        theirs, what = found.prompt_list(), f"suite {self.name!r} takes its teacher from suite {found.name!r}"
        if found.teacher and found.teacher.suite:
            raise UserError(f"{what}, which takes its own from {found.teacher.suite!r}; name that one")
        pairs = {
            "family": (self.family, found.family),
            "size_px": (self.sampling and self.sampling.size_px, found.sampling and found.sampling.size_px),
            "noise": (self.noise.identity(), found.noise.identity()),
        }
        if unlike := [f"{name} {ours} against {others}" for name, (ours, others) in pairs.items() if ours != others]:
            raise UserError(f"{what}, whose pictures cannot be paired with its own: {', '.join(unlike)}")
        if lacking := [text for prompt_id, text in self.prompt_list().items() if theirs.get(prompt_id) != text]:
            raise UserError(f"{what}, which lacks {len(lacking)} of its prompts at their places, such as {lacking[0]!r}")
        return found

    def prompt_list(self) -> dict[str, str]:
        """Prompt id -> prompt, in order; the id is made of the prompt's place and text.

        Raises:
            MissingError: they are neither here nor reachable.
            UserError: too few of them, one is empty, or they have another digest.
        """
        if self.prompts is None:
            return {}
        texts = _read_prompts(self.prompts)
        listed = {f"{index:05d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}": text for index, text in enumerate(texts)}
        if self.prompts.looked is None:
            return listed
        kept = set(look_order([*listed], self.sampling.batch if self.sampling else 1)[: self.prompts.looked])
        return {prompt_id: text for prompt_id, text in listed.items() if prompt_id in kept}

    def prompts_described(self) -> str:
        """Where prompts of a dataset come from, and their digest; "" for those that come with the suite.

        Raises:
            MissingError, UserError: as `prompt_list`.
        """
        if self.prompts is None or self.prompts.source != "dataset":
            return ""
        texts = tuple(self.prompt_list().values())
        repeated = len(texts) - len(set(texts))
        return (
            f"{len(texts)} of {self.prompts.path}, digest {lists.digest(texts)}"
            + ("" if lists.is_verified(self.prompts.path or "", self.prompts.digest) else " (unverified)")
            + (f", {repeated} of them repeat an earlier one" if repeated else "")
        )


def look_order(prompt_ids: Sequence[str], batch: int) -> list[str]:
    """The order in which a run that stops when sure takes its prompts: the same each time, and mixed however the list is sorted.

    Batches stay as they are, for the bytes of a picture may depend on its neighbours; a short one stays the last.
    """
    batches = [prompt_ids[start : start + batch] for start in range(0, len(prompt_ids), batch)]
    mixed = sorted(batches, key=lambda ids: (len(ids) < batch, hashlib.sha256(ids[0].encode()).digest()))
    return [prompt_id for ids in mixed for prompt_id in ids]


def find(name: str) -> Path:
    """A suite file, the policy, or what else lies beside them: that of `./suites` where it has one of this name, else the package's own."""
    own = _OWN / name
    return own if own.exists() else _SHIPPED / name


def names() -> list[str]:
    """Every suite that can be named."""
    return sorted({path.stem for folder in (_OWN, _SHIPPED) for path in folder.glob("*.toml") if path.name != POLICY})


def load(what: str, including: tuple[str, ...] = ()) -> Suite:
    """Read a suite by name or path.

    Args:
        what: a name, or the path of a `.toml` file.
        including: the suites that are being read and include this one.

    Raises:
        UserError: no such suite, a misspelt key, a value out of range, or a suite that includes itself.
    """
    if what in including:
        raise UserError(f"suite {what} includes itself: {' -> '.join((*including, what))}; take one of these out of an `include`")
    path = Path(what) if what.endswith(".toml") else find(f"{what}.toml")
    if not path.is_file():
        raise UserError(f"no suite file {what}") if what.endswith(".toml") else unknown_name("suite", what, names())
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not TOML, or not UTF-8
        raise UserError(f"suite {path} is not valid TOML: {error}") from error
    suite = validate(Suite, content, f"suite {path}")
    if suite.prompts and suite.prompts.file:
        beside = suite.prompts.model_copy(update={"file": str(path.parent / suite.prompts.file)})
        suite = suite.model_copy(update={"prompts": beside})
    for name in suite.include:
        part = load(name, (*including, what))
        taken = {family: names for family, names in part.metrics.items() if suite.family in (None, family)}
        suite = suite.model_copy(
            update={
                "metrics": _merged(suite.metrics, taken),
                "probes": suite.probes or part.probes,
                "reference": suite.reference or part.reference,
            }
        )
    return suite


def _merged(one: dict[Family, tuple[str, ...]], other: dict[Family, tuple[str, ...]]) -> dict[Family, tuple[str, ...]]:
    return {family: tuple(dict.fromkeys([*one.get(family, ()), *other.get(family, ())])) for family in {**one, **other}}


@cache  # drawing 10,000 captions takes seconds
def _drawn(n: int, seed: int) -> tuple[str, ...]:
    return tuple(scene_at(index, "heldout", seed).caption for index in range(n))


def _read_prompts(prompts: Prompts) -> tuple[str, ...]:
    if prompts.source == "scenes":
        return _drawn(prompts.n, prompts.seed)
    if prompts.source == "dataset":
        place = lists.locate(prompts.path or "", find(prompts.path or ""))
        drawn = lists.from_dataset(place, prompts.split or "train", prompts.column, prompts.n, prompts.seed)
        lists.check_digest(f"the list of prompts {prompts.path}", lists.digest(drawn), prompts.digest)
        return drawn
    path = Path(prompts.file or "")
    if not path.is_file():
        raise UserError(f"prompt file {path} of the suite is missing; it is looked for beside the suite's own file")
    texts = lists.read_lines(path)
    if len(texts) < prompts.n:
        raise UserError(f"prompt file {path} holds {len(texts)} prompts; the suite asks for {prompts.n}")
    return texts[: prompts.n]
