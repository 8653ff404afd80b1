"""Suite files: what is measured, on which prompts, and how the images are made. They are checked before anything is loaded.

A suite is a TOML file in `suites/`. `include` takes over the metrics (of the suite's own family) and the probes of other suites,
so that `quality` and `standard` state only what is specific to them. The digest of a suite covers its resolved content, with includes,
prompts and the file of the latent. Settings introduced later are not in it unless the suite uses them.
"""

import hashlib
import json
import operator
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sdbench.assets.prompts import check_digest, is_verified, locate, locate_tables, prompts_digest, read_dataset, read_lines
from sdbench.disk import file_digest
from sdbench.errors import UserError, unknown_name
from sdbench.models.architectures import Family
from sdbench.models.catalogue import DEFAULT_SUITES, TEACHERS
from sdbench.records import Name, SuiteId, is_one
from sdbench.records.names import id_of_prompt
from sdbench.scenes.grammar import scene_at
from sdbench.settings import Probes, Sampling, is_unset
from sdbench.validation import Table, parse_toml, validate

HALVES = ("quality", "probes")  # image metrics; latency and memory
POLICY = "gate.toml"
_LOCAL = Path("suites")
_INSTALLED, _CHECKED_OUT = Path(__file__).parent / "_suites", Path(__file__).parents[1] / "suites"
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _CHECKED_OUT  # the folder of the package's own files
MAX_IMAGES = 1_000_000  # all are listed before anything is measured
_GOLDEN_RATIO = (5**0.5 - 1) / 2
_INTERNAL = {"prompts": {"looked"}, "teacher": {"changed", "options"}}  # keys that the program writes: unknown in a file


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


class Accept(Table):
    """The ranges that the source of a suite's protocol accepts, and the inputs they hold for: the suite's check of itself.

    Attributes:
        name: what is reproduced.
        source: where the ranges are stated.
        prompts: digest of the prompts.
        noise: SHA-256 of the latent's file.
        statistics: git's SHA-1 (of a blob) of the file of the reference statistics.
        ranges: lowest and highest value by protocol.
    """

    name: str
    source: str
    prompts: str
    noise: str
    statistics: str
    ranges: dict[str, tuple[float, float]]


class Teacher(Table):
    """The teacher that win rates and agreement compare with, in place of the family's teacher under the same suite.

    Attributes:
        model: the name of the teacher in its records.
        suite: name or path (in a suite file, relative to that file) of the suite of those records, with the same prompts, noise and size
            but other sampling, such as 25 steps where the students take 4; None for the suite itself.
        changed: that suite with settings that an override gives both, so that the images can still be paired.
        options: those of `sdbench run` that change it so.
    """

    model: str
    suite: str | None = None
    changed: "Suite | None" = Field(default=None, exclude_if=is_unset)
    options: tuple[str, ...] = Field(default=(), exclude_if=operator.not_)

    def find_suite(self) -> "Suite | None":
        """The suite of the teacher's records; None for the suite itself.

        Raises:
            UserError: see `load`.
        """
        return self.changed or (load(self.suite) if self.suite else None)

    @property
    def command(self) -> str:
        """The command that makes the teacher's images under a suite of its own."""
        return shlex.join(["sdbench", "run", "--model", self.model, "--suite", self.suite or "", *self.options])


def check_half(only: str | None, among: Sequence[str] = HALVES) -> None:
    """Check the name of the half of a suite that is asked for; None is both.

    Args:
        among: the halves that the caller can measure or weigh alone.

    Raises:
        UserError: it is none of them.
    """
    if only not in (None, *among):
        raise unknown_name("value of `only`", str(only), among)


class Part(Table):
    """What suites include: metrics and probes, without images of its own.

    Attributes:
        metrics: names of protocols by family, since each family has its own evaluators.
        reference: what set metrics compare with: `scenes` renders 4,096 scenes of the training split, whatever the prompts; any other name
            is that of a reference that `sdbench reference` built or imported.
    """

    name: Name
    version: Annotated[int, Field(gt=0)]
    description: str
    include: tuple[str, ...] = ()
    metrics: dict[Family, tuple[str, ...]] = Field(default_factory=dict)
    reference: str | None = None
    probes: Probes | None = None


class Suite(Part):
    """A resolved suite, for models of one family."""

    family: Family
    prompts: Prompts
    sampling: Sampling
    noise: Noise = Noise()
    accept: Accept | None = Field(default=None, exclude_if=is_unset)
    teacher: Teacher | None = Field(default=None, exclude_if=is_unset)

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        if self.samples > 1 and self.noise.kind == "fixed":
            raise ValueError(
                f'{self.samples} samples of a prompt would be equal images, because noise of kind "fixed" is one latent for all; '
                'draw 1, or take noise of kind "per_image"'
            )
        return self

    @property
    def samples(self) -> int:
        """Number of images for each prompt."""
        return self.prompts.samples

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """The metrics of its own family."""
        return self.metrics.get(self.family, ())

    @property
    def id(self) -> SuiteId:
        """Name, version, and digest of everything that decides a number.

        Raises:
            MissingError: prompts or the latent are neither here nor reachable.
            UserError: see `Noise.path`, `teacher_suite` and `prompt_list`.
        """
        settings = self.model_dump(exclude={"description", "include", "accept"}) | {"noise": self.noise.identity()}
        if self.prompts.groups:
            del settings["prompts"]["groups"]  # they decide how scores are shown
        if self.prompts.file:
            settings["prompts"]["file"] = "prompts.txt"  # its lines are in the digest, its name and place are not
        if self.prompts.source == "dataset":  # likewise
            settings["prompts"] = {
                key: value for key, value in settings["prompts"].items() if key not in ("path", "split", "column", "digest")
            }
        if self.teacher and self.teacher.suite:
            settings["teacher"] = {"model": self.teacher.model, "suite": self.teacher_suite().id.model_dump()}
        content = json.dumps([settings, self.prompt_list()], sort_keys=True)
        return SuiteId(name=self.name, version=self.version, digest=hashlib.sha256(content.encode()).hexdigest()[:16])

    @property
    def teacher_name(self) -> str:
        """The name of the model that the others are compared with."""
        return self.teacher.model if self.teacher else TEACHERS[self.family]

    @property
    def other_suite(self) -> str | None:
        """Name or path of the suite under which the teacher's images were made, where that is not this one."""
        return self.teacher.suite if self.teacher else None

    def teacher_suite(self) -> "Suite":
        """The suite under which the teacher's images were made: the one that `teacher` names, or this one.

        Raises:
            MissingError, UserError: that suite, its prompts or its latent cannot be read, its images cannot be paired with this suite's,
                or it names a third suite.
        """
        other = self.teacher.find_suite() if self.teacher else None
        if other is None:
            return self
        intro, prompts = f"suite {self.name!r} takes its teacher from suite {other.name!r}", other.prompt_list()
        if other.other_suite:
            raise UserError(f"{intro}, which takes its own from {other.other_suite!r}; name that one")
        pairs = {
            "family": (self.family, other.family),
            **{side: tuple(getattr(suite.sampling, side) for suite in (self, other)) for side in ("size_px", "height_px")},
            "noise": (self.noise.identity(), other.noise.identity()),
        }
        if differences := [f"{name} {own} against {its}" for name, (own, its) in pairs.items() if own != its]:
            raise UserError(f"{intro}, whose images cannot be paired with its own: {', '.join(differences)}")
        if self.samples > other.samples:
            raise UserError(
                f"{intro}, which draws fewer images of a prompt, {other.samples} against {self.samples}; give both as many, in suite files "
                "of your own"
            )
        if missing := [text for prompt_id, text in self.prompt_list().items() if prompts.get(prompt_id) != text]:
            raise UserError(f"{intro}, which lacks {len(missing)} of its prompts at their places, such as {missing[0]!r}")
        return other

    def prompt_list(self) -> dict[str, str]:
        """The prompts by id, in order; an id is made of the prompt's place and text.

        Raises:
            MissingError: the prompts are neither here nor reachable.
            UserError: they cannot be read, there are too few, one is empty, or they have another digest.
        """
        texts = _read_prompts(self.prompts)
        by_id = {id_of_prompt(place, text): text for place, text in enumerate(texts)}
        if self.prompts.looked is None:
            return by_id
        used = set(look_order([*by_id], self.sampling.batch)[: self.prompts.looked])
        return {prompt_id: text for prompt_id, text in by_id.items() if prompt_id in used}

    def describe_prompts(self) -> str:
        """The source and the digest of a dataset's prompts, and how many prompts of a file or dataset repeat others, as text; else "".

        Raises:
            MissingError, UserError: see `prompt_list`.
        """
        if self.prompts.source == "scenes":
            return ""
        texts = tuple(self.prompt_list().values())
        repeated = len(texts) - len(set(texts))
        repeats = f", {repeated} of them repeat an earlier one" if repeated else ""
        if self.prompts.source == "file":
            return f"{len(texts)} of {Path(self.prompts.file or '').name}{repeats}" if repeats else ""
        unverified = "" if is_verified(self.prompts.path or "", self.prompts.digest) else " (unverified)"
        return f"{len(texts)} of {self.prompts.path}, digest {prompts_digest(texts)}{unverified}{repeats}"


def look_order(prompt_ids: Sequence[str], batch: int) -> list[str]:
    """The order in which a run that stops when sure takes its prompts: the first k batches lie evenly over the list, for any k.

    Steps of the golden ratio around the list spread this way (Knuth 1998, 6.4). A shuffle would not do: batches stay together, since the
    bytes of an image may depend on the others of its batch, and a few random batches of a sorted list over-represent some style or length.
    A short batch stays last.
    """
    batches = [prompt_ids[start : start + batch] for start in range(0, len(prompt_ids), batch)]
    spread = sorted(range(len(batches)), key=lambda place: (len(batches[place]) < batch, place * _GOLDEN_RATIO % 1))
    return [prompt_id for place in spread for prompt_id in batches[place]]


def find(name: str) -> Path:
    """The path of a suite file, the policy, or another file beside them: in `./suites` where it exists there, else in the package."""
    own = _LOCAL / name
    return own if own.exists() else SHIPPED / name


def base_name(name: str) -> str:
    """The name of the suite that `<name>-custom`, `<name>-sequential` or `<name>-custom-sequential` was made from."""
    return name.removesuffix("-sequential").removesuffix("-custom")


def names() -> list[str]:
    """The names of all suites, in `./suites` and in the package."""
    return sorted({path.stem for folder in (_LOCAL, SHIPPED) for path in folder.glob("*.toml") if path.name != POLICY})


def load(what: str) -> Suite:
    """Read a suite by its name, by `<name>@<version>`, or by the path of a `.toml` file.

    Raises:
        UserError: it is a part, or see `load_part`.
    """
    suite = load_part(what)
    if not isinstance(suite, Suite):
        raise UserError(
            f"suite {suite.name!r} is a part: it has no family, no prompts and no sampling of its own; name one that includes it, such as "
            "'quality' or 'standard'"
        )
    return suite


def load_default(family: str) -> Suite:
    """Read the suite that models of a family are measured under where none is named.

    Raises:
        UserError: see `load`.
    """
    return load(DEFAULT_SUITES.get(family, "standard"))


def load_part(what: str, including: tuple[Path, ...] = ()) -> Part:
    """Read what a suite may include, a part or a suite, named as for `load`.

    Args:
        including: the files being read that include this one.

    Raises:
        UserError: there is no such file, or not in this version; or it is not TOML, a key is misspelt or missing, a value is out of
            range, it includes itself, or parts of it differ in their probes and it has none of its own.
    """
    is_path, (name, _, version) = what.endswith(".toml"), what.partition("@")
    path = Path(what) if is_path else find(f"{name}.toml")
    if not path.is_file():
        raise UserError(f"no suite file {what}") if is_path else unknown_name("suite", name, names())
    if path.resolve() in including:
        trail = " -> ".join(each.stem for each in (*including, path))
        raise UserError(f"suite {path.stem} includes itself: {trail}; take one of these out of an `include`")
    suite = _read(path)
    if not is_path and version not in ("", str(suite.version)):
        raise UserError(f"there is no suite {what}: {path} has version {suite.version}")
    states_probes = suite.probes is not None
    for name in suite.include:
        beside = path.parent / name
        part = load_part(str(beside) if name.endswith(".toml") and beside.is_file() else name, (*including, path.resolve()))
        if not states_probes and suite.probes and part.probes and suite.probes != part.probes:
            raise UserError(
                f"suite {path} includes {name!r}, whose [probes] differ from those of a part before it; state [probes] in the file itself, "
                "or include only one of these parts"
            )
        metrics = {family: names for family, names in part.metrics.items() if not isinstance(suite, Suite) or family == suite.family}
        suite = suite.model_copy(
            update={
                "metrics": _merge(suite.metrics, metrics),
                "probes": suite.probes or part.probes,
                "reference": suite.reference or part.reference,
            }
        )
    return suite


def _read(path: Path) -> Part:
    """A file without what it includes. One with any key of a suite is meant to be one, so whatever else it lacks is an error."""
    where = f"suite {path}"
    content = parse_toml(path, where)
    if content.keys() & (Suite.model_fields.keys() - Part.model_fields.keys()):
        return _with_files_beside(validate(Suite, content, where, _INTERNAL), path.parent)
    return validate(Part, content, where)


def _with_files_beside(suite: Suite, folder: Path) -> Suite:
    """The suite with the files that it names beside its own; where there is none, a name means something else, such as a Hub dataset."""
    tables = {"prompts": ("file", "path"), "noise": ("file",), "teacher": ("suite",)}
    for table, keys in tables.items():
        content = getattr(suite, table)
        beside = {key: folder / name for key in keys if (name := getattr(content, key, None))}
        found = {
            key: str(place)
            for key, place in beside.items()
            if place.is_file() or (table == "prompts" and (key == "file" or place.is_dir()))  # a missing file of prompts is an error
        }
        if found:
            suite = suite.model_copy(update={table: content.model_copy(update=found)})
    return suite


def _merge(one: dict[Family, tuple[str, ...]], other: dict[Family, tuple[str, ...]]) -> dict[Family, tuple[str, ...]]:
    """The metrics of both by family, each once, in order."""
    return {family: tuple(dict.fromkeys([*one.get(family, ()), *other.get(family, ())])) for family in {**one, **other}}


@cache  # drawing 10,000 captions takes seconds
def _draw_captions(n: int, seed: int) -> tuple[str, ...]:
    return tuple(scene_at(index, "heldout", seed).caption for index in range(n))


def _read_prompts(prompts: Prompts) -> tuple[str, ...]:
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
