"""The record: everything that is known of one model under one suite, and the only thing that gate, leaderboard and report read.

A record is an immutable folder `results/<family>/<suite>@<version>/<model>/<digest>/` that holds `record.json`,
`scores.parquet` (a row per prompt and sample) and `images/` (a few thumbnails). It is written beside and renamed, and
its name is the digest of what it says, so that a record cannot be changed without changing its name.
"""

import hashlib
import math
import operator
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from sdbench.arrays import F64
from sdbench.errors import UserError
from sdbench.validation import Table, error_message

SCHEMA_VERSION: Literal[1] = 1
MAX_THUMBNAILS = 64
State = Literal["ok", "missing", "failed", "not_applicable"]
Direction = Literal["higher", "lower", "neither"]


class Value(Table):
    """One number, or the reason why there is none.

    Attributes:
        name: protocol (`fd.scenes`, `clip_score.scenes`) or probe (`latency.pipeline.p50`).
        kind: how a gate compares it: `score` (mean of a column of `scores.parquet`, paired by prompt and sample), `set`
            (a distance of the whole set, paired through the column `<name>:influence`), `probe` (raw rounds in
            `samples`, compared on the log scale), `count` (exact: parameters, FLOPs).
        low, high: ends of the 95 % interval; None where there is none (counts).
        n: images, prompts or calls behind the value.
        reference: digest of what it was taken against: of the reference of a set metric, of the teacher's weights where it compares with
            the teacher. Values are alike only where it is the same; older records do not name the teacher's, and are alike among themselves.
        samples: raw measurements of a probe, a list of calls for each round.
        note: what a reader must know ("descriptive: n < 5 d", "random weights").
    """

    name: str
    kind: Literal["score", "set", "probe", "count"]
    direction: Direction
    unit: str
    state: State = "ok"
    reason: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reference: str | None = None
    samples: tuple[tuple[float, ...], ...] | None = None
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        numbers = [number for number in (self.value, self.low, self.high) if number is not None]
        if not all(math.isfinite(call) for calls in self.samples or () for call in calls):
            raise ValueError(f"{self.name}: samples must be finite")  # JSON would turn NaN into null
        if self.state == "ok" and (self.value is None or not all(map(math.isfinite, numbers))):
            raise ValueError(f"{self.name}: state 'ok' needs finite numbers, found {numbers}")
        if self.state != "ok" and (numbers or not self.reason):
            raise ValueError(f"{self.name}: state {self.state!r} needs a reason and no numbers")
        return self


class Model(Table):
    """What was measured.

    Attributes:
        source: `hub:<repo>@<commit>`, `folder:<name>`, `file:<name>`, `embedded`, `random`, `rendered` (pictures, no model), `memory`,
            `images:<folder>, <width> x <height> px, <formats>` (made elsewhere; older records have the folder alone).
        label: shown in every table beside the name where weights are not what they seem ("random weights").
        weights_digest: SHA-256 over all tensors of the pipeline; None where there is no model.
    """

    name: str
    architecture: str
    source: str
    weights_digest: str | None
    label: str = ""

    @property
    def title(self) -> str:
        """The name, and the label where there is one, as people read it."""
        return f"{self.name} ({self.label})" if self.label else self.name

    @property
    def is_elsewhere(self) -> bool:
        """Whether there are only pictures, which another program has made."""
        return self.source.startswith("images:")

    @property
    def is_pictures(self) -> bool:
        """Whether there are only pictures, made elsewhere or rendered, and no model."""
        return self.is_elsewhere or self.source == "rendered"


class Machine(Table):
    """Where it was measured. Latency and memory are compared only within one `machine_class`."""

    device: str
    driver: str | None
    torch: str
    cuda: str | None
    cpu: str
    cores: int
    ram_gib: float

    @property
    def machine_class(self) -> str:
        """Device name, driver major, torch minor, CUDA minor, and the host's processor.

        The processor counts beside a card too: eager PyTorch launches some 2,500 kernels a UNet step from one thread, which at batch 1
        can take as long as a fast card takes to run them, so two hosts of one card are not one machine. Cores are not named there.
        """
        torch_minor = ".".join(self.torch.split("+")[0].split(".")[:2])
        if self.cuda is None:
            return f"{self.cpu} ({self.cores} cores), torch {torch_minor}"
        driver_major = (self.driver or "unknown").split(".")[0]
        return f"{self.device}, driver {driver_major}, torch {torch_minor}, CUDA {self.cuda}, {self.cpu}"


class SuiteId(Table):
    """Which suite: the digest is over its resolved content."""

    name: str
    version: int
    digest: str

    @property
    def text(self) -> str:
        """All of it, for messages and reports."""
        return f"{self.name}@{self.version} (digest {self.digest})"


class Environment(Table):
    """What made the numbers.

    Attributes:
        variables: of the process's environment, those that change speed, memory or digits.
    """

    python: str
    packages: dict[str, str]
    variables: dict[str, str] = Field(default={}, exclude_if=operator.not_)
    commit: str | None
    dirty: bool | None


class Looks(Table):
    """A run that went on until its verdict.

    Attributes:
        baseline: digest of the record it was compared with.
        verdict: what the gate said when it stopped.
        prompts: how many prompts each look had, the last one's being what was used.
        of: how many the suite has.
    """

    baseline: str
    verdict: str
    prompts: tuple[int, ...]
    of: int


class Original(Table):
    """The teacher that a suite names, where that is not the family's under the suite itself."""

    model: str
    suite: SuiteId


class Record(Table):
    """`record.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    family: str
    suite: SuiteId
    model: Model
    machine: Machine
    environment: Environment
    created: datetime
    n_images: int
    values: tuple[Value, ...]
    sampling: dict[str, Any] = Field(description="resolved sampling settings, as the run used them")
    scheduler: dict[str, Any] = Field(
        default={},
        exclude_if=operator.not_,
        description="that drew the pictures: class, kind of prediction, timesteps; older records lack it",
    )
    noise: dict[str, Any] = Field(
        default={}, exclude_if=operator.not_, description="of the initial latents: kind and seed; older records lack it"
    )
    teacher: Original | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="whose pictures win rates and agreement are against, where the suite names it",
    )
    prompts: str = Field(
        default="", description="of prompts that do not come with the suite: where from, their digest, whether it is verified"
    )
    run: str = Field("", description="the turns that the probes took; models of one name were measured in turns")
    looks: Looks | None = Field(None, description="how a run that stops when sure came to its end")

    def value(self, name: str) -> Value | None:
        """The value of this name, or None."""
        return next((value for value in self.values if value.name == name), None)

    def same_run(self, other: "Record") -> bool:
        """Whether the probes of both were taken in turns, so that the machine's mood is the same for both."""
        return bool(self.run) and self.run == other.run


class Scores:
    """Per-image columns of a record: `prompt_id`, `sample`, the `prompt` itself where it was kept, and one float64 column a metric."""

    def __init__(
        self, prompt_ids: Sequence[str], samples: Sequence[int], columns: Mapping[str, F64], prompts: Sequence[str] | None = None
    ) -> None:
        self.prompt_ids, self.samples, self.columns = tuple(prompt_ids), tuple(samples), dict(columns)
        self.prompts = None if prompts is None else tuple(prompts)

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(prompt id, sample index) of each row."""
        return list(zip(self.prompt_ids, self.samples, strict=True))

    def write(self, path: Path) -> None:
        """Save as Parquet."""
        table = {
            "prompt_id": self.prompt_ids,
            "sample": self.samples,
            **({} if self.prompts is None else {"prompt": self.prompts}),
            **{name: np.asarray(self.columns[name]) for name in sorted(self.columns)},
        }
        pq.write_table(pa.table(table), path)

    @classmethod
    def read(cls, path: Path) -> "Scores":
        """Load from Parquet."""
        with pq.ParquetFile(path) as file:  # pq.read_table and to_numpy would import pandas, which takes a second
            table = file.read().to_pydict()
        ids, samples, prompts = table.pop("prompt_id"), table.pop("sample"), table.pop("prompt", None)
        return cls(ids, samples, {name: np.array(column, np.float64) for name, column in table.items()}, prompts)


def write(record: Record, scores: Scores, thumbnails: Mapping[str, bytes], results: Path) -> Path:
    """Write a record folder beside its place and rename it there => its path.

    Args:
        record: what `record.json` will say.
        scores: its per-image columns.
        results: the folder all records lie under.
        thumbnails: file name -> PNG bytes; the first 64 are kept.

    Raises:
        UserError: the folder cannot be written.
    """
    parent = results / record.family / f"{record.suite.name}@{record.suite.version}" / record.model.name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=parent) as made:
            folder = Path(made) / "record"
            (folder / "images").mkdir(parents=True)
            (folder / "record.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
            scores.write(folder / "scores.parquet")
            for name, png in list(thumbnails.items())[:MAX_THUMBNAILS]:
                (folder / "images" / name).write_bytes(png)
            final = parent / digest_of(folder)
            if not final.exists():
                folder.replace(final)
    except OSError as error:
        raise UserError(
            f"cannot write the record of {record.model.name!r} under {parent}: {error}. Make it writable, or name another folder with --results."
        ) from error
    return final


def read(folder: Path) -> tuple[Record, Scores]:
    """Load a record folder.

    Raises:
        UserError: it is no record, of another schema version, or changed since it was written.
    """
    found = scores(folder)
    return head(folder), found


def head(folder: Path) -> Record:
    """What `record.json` says, with the digest of the whole record checked; its scores are not parsed, which takes far longer.

    Raises:
        UserError: as `read`.
    """
    try:
        record = Record.model_validate_json((folder / "record.json").read_text(encoding="utf-8"))
        digest = digest_of(folder)
    except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise _unreadable(folder, error) from error
    if folder.resolve().name != digest:
        raise UserError(
            f"record {folder} was changed after it was written: its content has digest {digest}. Restore it, or delete the folder and run the suite again."
        )
    return record


def scores(folder: Path) -> Scores:
    """The per-image columns of a record folder.

    Raises:
        UserError: they cannot be read.
    """
    try:
        return Scores.read(folder / "scores.parquet")
    except (OSError, KeyError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> UserError:
    if (folder / "record.json").exists():
        what = f"{folder} is no readable record (record.json and scores.parquet of schema {SCHEMA_VERSION})"
        return UserError(f"{what}: {error_message(error)}. Restore it, or delete the folder")
    return UserError(f"{folder} is no record: there is no {folder / 'record.json'}. {inside(folder)}".rstrip())


def inside(folder: Path) -> str:
    """What to name in place of a folder that holds records and is none; empty where it holds none."""
    held = [(head(path.parent).created, path.parent) for path in folder.glob("*/record.json")]
    return f"It holds {len(held)} records; name one of them, such as the newest, {max(held)[1]}" if held else ""


def newest(results: Path, family: str | None = None) -> list[tuple[Path, Record]]:
    """The row of each (family, suite, model, label, machine class): the newest of its records, in a stable order."""
    rows: dict[tuple[str | int, ...], tuple[Path, Record]] = {}
    for folder in folders(results, family):
        record = head(folder)
        suite, model = record.suite, record.model
        key = (record.family, suite.name, suite.version, model.name, record.machine.machine_class, model.label, suite.digest)
        if key not in rows or rows[key][1].created < record.created:
            rows[key] = (folder, record)
    return [rows[key] for key in sorted(rows)]


def folders(results: Path, family: str | None = None) -> list[Path]:
    """All record folders, of one family or of all."""
    return sorted(path.parent for path in results.glob(f"{family or '*'}/*@*/*/*/record.json"))


def under(results: Path, family: str, suite: SuiteId, name: str, label: str = "") -> list[tuple[Path, Record]]:
    """A model's records of exactly this suite, its digest included, oldest first; those of random weights have a label."""
    paths = sorted((results / family / f"{suite.name}@{suite.version}" / name).glob("*/record.json"))
    found = [(path.parent, head(path.parent)) for path in paths]
    wanted = (kept for kept in found if (kept[1].suite, kept[1].model.label) == (suite, label))
    return sorted(wanted, key=lambda kept: kept[1].created)


def digest_of(folder: Path) -> str:
    """Digest of what a record folder says: its record and its scores (16 hex digits of SHA-256)."""
    whole = hashlib.sha256()
    for name in ("record.json", "scores.parquet"):
        whole.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return whole.hexdigest()[:16]


def now() -> datetime:
    """The time a record is stamped with."""
    return datetime.now(UTC)
