"""The record: all that is known about one model under one suite. The gate, the leaderboard and the report read nothing else.

A record is an immutable folder `results/<family>/<suite>@<version>/<model>/<digest>/`. It holds `record.json`, `scores.parquet` (a row
for each prompt and sample) and `images/` (a few thumbnails). It is written beside its final place and then renamed. The folder's name
is the digest of its content, so a record cannot be changed without changing its name.
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
import numpy.typing as npt
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
Kind = Literal["score", "set", "probe", "count"]
_INFLUENCE = ":influence"


def column_of(metric: str, kind: Kind) -> str:
    """The column of `scores.parquet` that holds a picture metric: the score of each picture, or its influence on a `set` metric."""
    return f"{metric}{_INFLUENCE}" if kind == "set" else metric


def influenced_metric(column: str) -> str | None:
    """The set metric whose influences a column of `scores.parquet` holds; None for a column of scores."""
    return column.removesuffix(_INFLUENCE) if column.endswith(_INFLUENCE) else None


def mean_per_prompt(prompt_ids: Sequence[str], values: F64) -> tuple[npt.NDArray[np.str_], F64]:
    """The prompt ids, sorted and each once, and the mean value of each prompt's samples, (prompts,) both.

    Statistics over prompts start from these means, because the samples of one prompt are not independent.
    """
    prompts, row = np.unique(np.asarray(prompt_ids), return_inverse=True)
    return prompts, np.bincount(row, values) / np.bincount(row)


class Value(Table):
    """One number, or the reason why there is none.

    Attributes:
        name: protocol (`fd.scenes`, `clip_score.scenes`) or probe (`latency.pipeline.p50`).
        kind: how the gate compares it: `score` (mean of a column of `scores.parquet`, paired by prompt and sample), `set`
            (a distance of the whole set, paired through the column `<name>:influence`), `probe` (raw rounds in
            `samples`, compared on the log scale), `count` (exact: parameters, FLOPs).
        low, high: ends of the 95 % interval; None where there is none (counts).
        n: number of images, prompts or calls behind the value.
        reference: digest of what the value was measured against: the reference of a set metric, or the teacher's weights where the metric
            compares with the teacher. Only values with the same reference are comparable. Older records do not name the teacher's weights;
            they are comparable among themselves.
        samples: raw measurements of a probe, a list of calls for each round.
        note: what a reader must know ("descriptive: n < 5 d", "random weights").
    """

    name: str
    kind: Kind
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

    @property
    def is_picture_metric(self) -> bool:
        """Whether it measures the pictures, and not the speed, memory or size of the model."""
        return self.kind in ("score", "set")

    @property
    def column(self) -> str:
        """The column of `scores.parquet` behind a picture metric."""
        return column_of(self.name, self.kind)

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        numbers = [number for number in (self.value, self.low, self.high) if number is not None]
        if not all(math.isfinite(call) for calls in self.samples or () for call in calls):
            raise ValueError(f"{self.name}: samples must be finite")  # JSON would turn NaN into null
        if self.state == "ok" and (self.value is None or not all(map(math.isfinite, numbers))):
            raise ValueError(f"{self.name}: state 'ok' needs finite numbers, found {numbers}")
        if self.state != "ok" and (numbers or not self.reason):
            raise ValueError(f"{self.name}: state {self.state!r} needs a reason and no numbers")
        return self


class Model(Table):
    """The model that was measured.

    Attributes:
        source: `hub:<repo>@<commit>`, `folder:<name>`, `file:<name>`, `embedded`, `random`, `rendered` (pictures, no model), `memory`,
            `images:<folder>, <width> x <height> px, <formats>` (made elsewhere; older records have only the folder).
        label: shown beside the name in every table where the weights are not what the name suggests ("random weights").
        weights_digest: SHA-256 over all tensors of the pipeline; None where there is no model.
    """

    name: str
    architecture: str
    source: str
    weights_digest: str | None
    label: str = ""

    @property
    def title(self) -> str:
        """The name for readers, with the label where there is one."""
        return f"{self.name} ({self.label})" if self.label else self.name

    @property
    def is_made_elsewhere(self) -> bool:
        """Whether there are only pictures, made by another program."""
        return self.source.startswith("images:")

    @property
    def is_pictures_only(self) -> bool:
        """Whether there are only pictures, made elsewhere or rendered, and no model."""
        return self.is_made_elsewhere or self.source == "rendered"


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

        The processor counts beside a GPU too: eager PyTorch launches some 2,500 kernels per UNet step from one thread. At batch 1 that
        can take as long as a fast GPU takes to run them, so two hosts with the same GPU are not one machine. With a GPU, cores do not count.
        """
        torch_minor = ".".join(self.torch.split("+")[0].split(".")[:2])
        if self.cuda is None:
            return f"{self.cpu} ({self.cores} cores), torch {torch_minor}"
        driver_major = (self.driver or "unknown").split(".")[0]
        return f"{self.device}, driver {driver_major}, torch {torch_minor}, CUDA {self.cuda}, {self.cpu}"


class SuiteId(Table):
    """A suite's name and version, and the digest of its resolved content."""

    name: str
    version: int
    digest: str

    @property
    def title(self) -> str:
        """`<name>@<version>`, as in folders and tables."""
        return f"{self.name}@{self.version}"

    @property
    def title_with_digest(self) -> str:
        """The same with the digest, for messages and reports."""
        return f"{self.title} (digest {self.digest})"


class Environment(Table):
    """The software that made the numbers.

    Attributes:
        variables: those environment variables of the process that change speed, memory or digits.
    """

    python: str
    packages: dict[str, str]
    variables: dict[str, str] = Field(default={}, exclude_if=operator.not_)
    commit: str | None
    dirty: bool | None


class Looks(Table):
    """The interim looks of a run that went on until its verdict.

    Attributes:
        baseline: digest of the record it was compared with.
        verdict: the gate's verdict when the run stopped.
        prompts: number of prompts at each look; the last is the number used.
        of: number of prompts in the suite.
    """

    baseline: str
    verdict: str
    prompts: tuple[int, ...]
    of: int


class NamedTeacher(Table):
    """The teacher that a suite names in place of the family's teacher under the suite itself."""

    model: str
    suite: SuiteId


class Record(Table):
    """The content of `record.json`."""

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
        description="the scheduler that drew the pictures: class, kind of prediction, timesteps; older records lack it",
    )
    noise: dict[str, Any] = Field(
        default={}, exclude_if=operator.not_, description="the initial latents: kind and seed; older records lack it"
    )
    teacher: NamedTeacher | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="the teacher behind win rates and agreement, where the suite names one",
    )
    prompts: str = Field(
        default="", description="for prompts that do not come with the suite: their source, their digest, whether it is verified"
    )
    run: str = Field(default="", description="identifies the run of the probes; models with the same run were measured in turns")
    looks: Looks | None = Field(default=None, description="the interim looks of a run that stops when it is sure")

    def value(self, name: str) -> Value | None:
        """The value with this name, or None."""
        return next((value for value in self.values if value.name == name), None)

    def is_same_run(self, other: "Record") -> bool:
        """Whether the probes of both were measured in turns, so that changes in the machine's speed met both alike."""
        return bool(self.run) and self.run == other.run


class Scores:
    """Per-image columns of a record: `prompt_id`, `sample`, the `prompt` itself where it was kept, and a float64 column for each metric."""

    def __init__(
        self, prompt_ids: Sequence[str], samples: Sequence[int], columns: Mapping[str, F64], prompts: Sequence[str] | None = None
    ) -> None:
        self.prompt_ids, self.samples, self.columns = tuple(prompt_ids), tuple(samples), dict(columns)
        self.prompts = None if prompts is None else tuple(prompts)

    @property
    def keys(self) -> list[tuple[str, int]]:
        """(prompt id, sample index) of each row."""
        return list(zip(self.prompt_ids, self.samples, strict=True))

    @property
    def prompt_texts(self) -> list[str]:
        """The prompt of each row, or its id where the record does not hold the text."""
        return list(self.prompts or self.prompt_ids)

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
    """Write a record folder beside its final place, rename it, and return its path.

    Args:
        record: content of `record.json`.
        scores: per-image columns.
        thumbnails: PNG bytes by file name; the first 64 are kept.
        results: the folder of all records.

    Raises:
        UserError: the folder cannot be written.
    """
    parent = results / record.family / record.suite.title / record.model.name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=parent) as temporary:
            folder = Path(temporary) / "record"
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
        UserError: it is not a record, has another schema version, or was changed after it was written.
    """
    scores = read_scores(folder)
    return read_record(folder), scores


def read_record(folder: Path) -> Record:
    """Load `record.json` and check the digest of the whole folder; the scores, which take far longer, are not parsed.

    Raises:
        UserError: see `read`.
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


def read_scores(folder: Path) -> Scores:
    """Load the per-image columns of a record folder.

    Raises:
        UserError: they cannot be read.
    """
    try:
        return Scores.read(folder / "scores.parquet")
    except (OSError, KeyError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> UserError:
    if (folder / "record.json").exists():
        what = f"record {folder} cannot be read (record.json and scores.parquet of schema {SCHEMA_VERSION})"
        return UserError(f"{what}: {error_message(error)}. Restore it, or delete the folder")
    return UserError(f"{folder} is not a record: there is no {folder / 'record.json'}. {suggest_record_in(folder)}".rstrip())


def suggest_record_in(folder: Path) -> str:
    """Advice for a folder that holds records but is not one itself: the newest of them; empty where it holds none.

    Raises:
        UserError: see `read`.
    """
    found = [(read_record(path.parent).created, path.parent) for path in folder.glob("*/record.json")]
    return f"It holds {len(found)} records; name one of them, such as the newest, {max(found)[1]}" if found else ""


def newest_per_model(results: Path, family: str | None = None) -> list[tuple[Path, Record]]:
    """The newest record of each (family, suite, model, label, machine class), in a stable order.

    Raises:
        UserError: see `read`.
    """
    rows: dict[tuple[str | int, ...], tuple[Path, Record]] = {}
    for folder in folders(results, family):
        record = read_record(folder)
        suite, model = record.suite, record.model
        key = (record.family, suite.name, suite.version, model.name, record.machine.machine_class, model.label, suite.digest)
        if key not in rows or rows[key][1].created < record.created:
            rows[key] = (folder, record)
    return [rows[key] for key in sorted(rows)]


def folders(results: Path, family: str | None = None) -> list[Path]:
    """All record folders, of one family or of all."""
    return sorted(path.parent for path in results.glob(f"{family or '*'}/*@*/*/*/record.json"))


def find(results: Path, family: str, suite: SuiteId, name: str, label: str = "") -> list[tuple[Path, Record]]:
    """A model's records under exactly this suite, digest included, oldest first; records of random weights have a label.

    Raises:
        UserError: see `read`.
    """
    paths = sorted((results / family / suite.title / name).glob("*/record.json"))
    found = [(path.parent, read_record(path.parent)) for path in paths]
    matching = [(folder, record) for folder, record in found if (record.suite, record.model.label) == (suite, label)]
    return sorted(matching, key=lambda pair: pair[1].created)


def digest_of(folder: Path) -> str:
    """The digest of a record folder's content, its record and its scores (16 hex digits of SHA-256)."""
    digest = hashlib.sha256()
    for name in ("record.json", "scores.parquet"):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def now() -> datetime:
    """The time that a record is stamped with."""
    return datetime.now(UTC)
