"""A suite, and how its file is read with all that it includes."""

import hashlib
import json
import operator
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from sdbench.assets.prompts import is_verified, prompts_digest
from sdbench.errors import UserError, unknown_name
from sdbench.models.architectures import Family
from sdbench.models.catalogue import DEFAULT_SUITES, TEACHERS
from sdbench.records import Name, SuiteId
from sdbench.records.names import id_of_prompt
from sdbench.settings import Probes, Sampling, is_unset
from sdbench.suites.folders import POLICY, SHIPPED, find, names
from sdbench.suites.inputs import Noise, Prompts, look_order, read_prompts
from sdbench.validation import Table, parse_toml, validate

HALVES = ("quality", "probes")  # image metrics; latency and memory
_NO_SETTINGS = {"description", "include", "accept"}  # keys that decide no number
_FILES = {"prompts": ("file", "path"), "noise": ("file",), "teacher": ("suite",)}  # keys that may name a file beside the suite's own
_INTERNAL = {"prompts": {"looked"}, "teacher": {"changed", "options"}}  # keys that the program writes: unknown in a file


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
        settings = self.model_dump(exclude=_NO_SETTINGS) | {"noise": self.noise.identity()}
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
    def is_changed_copy(self) -> bool:
        """Whether it has the name and version of a shipped suite, but other settings; found without its prompts, which may be far away."""
        path = SHIPPED / f"{self.name}.toml"
        if not path.is_file() or path.name == POLICY:
            return False
        shipped = load_part(str(path))
        return isinstance(shipped, Suite) and shipped.version == self.version and _with_contents(shipped) != _with_contents(self)

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
        texts = read_prompts(self.prompts)
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
    where = f"suite {including[-1]}: include: " if including else ""
    if not path.is_file():
        raise UserError(f"{where}no suite file {what}" if is_path else f"{where}{unknown_name('suite', name, names())}")
    if path.resolve() in including:
        trail = " -> ".join(each.stem for each in (*including, path))
        raise UserError(f"suite {path.stem} includes itself: {trail}; take one of these out of an `include`")
    suite = _read(path)
    if not is_path and version not in ("", str(suite.version)):
        raise UserError(f"{where}there is no suite {what}: {path} has version {suite.version}")
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


def _with_contents(suite: Suite) -> dict[str, object]:
    """The settings of a suite, with the contents of files in place of their paths."""
    settings = suite.model_dump(exclude=_NO_SETTINGS)
    for table, keys in _FILES.items():
        content = settings.get(table) or {}
        content |= {key: Path(path).read_bytes() for key in keys if (path := content.get(key)) and Path(path).is_file()}
    return settings


def _with_files_beside(suite: Suite, folder: Path) -> Suite:
    """The suite with the files that it names beside its own; where there is none, a name means something else, such as a Hub dataset."""
    for table, keys in _FILES.items():
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
