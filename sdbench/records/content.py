"""The content of `record.json`: types that are checked when they are made or read."""

import operator
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sdbench.validation import Table

SCHEMA_VERSION: Literal[1] = 1
State = Literal["ok", "missing", "failed", "not_applicable"]
Direction = Literal["higher", "lower", "neither"]
Kind = Literal["score", "set", "probe", "count"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]*$")]  # names a folder too, and so must not lead out of it
_INFLUENCE = ":influence"


def column_of(metric: str, kind: Kind) -> str:
    """The column of `scores.parquet` that holds an image metric: the score of each image, or its influence on a `set` metric."""
    return f"{metric}{_INFLUENCE}" if kind == "set" else metric


def influenced_metric(column: str) -> str | None:
    """The set metric whose influences a column of `scores.parquet` holds; None for a column of scores."""
    return column.removesuffix(_INFLUENCE) if column.endswith(_INFLUENCE) else None


def is_one(value: int) -> bool:
    """Whether to leave a number of images per prompt out, so that records and digests made before it existed stay valid."""
    return value == 1


class Value(Table):
    """One number, or the reason why there is none.

    Attributes:
        name: protocol (`fd.scenes`, `clip_score.scenes`) or probe (`latency.pipeline.p50`).
        kind: how the gate compares it: `score` (mean of a column of `scores.parquet`, paired by prompt and sample), `set`
            (a distance of the whole set, paired through the column `<name>:influence`), `probe` (raw rounds in
            `samples`, compared on the log scale), `count` (exact: parameters, MACs).
        low, high: ends of the 95 % interval; None where there is none (counts).
        n: number of independent observations behind the value: prompts, whatever the number of images of each, or calls.
        reference: digest of what the value was measured against: the reference of a set metric, or the teacher's weights where the metric
            compares with the teacher. Only values with the same reference are comparable. Older records do not name the teacher's weights;
            they are comparable among themselves.
        samples: raw measurements of a probe, a list of calls for each round.
        note: what a reader must know ("descriptive only, since n = 6 < 5 d = 30 for d features", "random weights").
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
    def is_image_metric(self) -> bool:
        """Whether it measures the images, and not the speed, memory or size of the model."""
        return self.kind in ("score", "set")

    @property
    def column(self) -> str:
        """The column of `scores.parquet` behind an image metric."""
        return column_of(self.name, self.kind)

    def with_note(self, note: str) -> Self:
        """The value with another note after its own."""
        return self.model_copy(update={"note": "; ".join(filter(None, [self.note, note]))})

    @model_validator(mode="after")
    def _check_numbers(self) -> Self:
        numbers = [number for number in (self.value, self.low, self.high) if number is not None]
        if self.state == "ok" and self.value is None:
            raise ValueError(f"{self.name}: state 'ok' needs a value")
        if self.state != "ok" and (numbers or not self.reason):
            raise ValueError(f"{self.name}: state {self.state!r} needs a reason and no numbers")
        return self


class Model(Table):
    """The model that was measured.

    Attributes:
        source: `hub:<repo>@<commit>`, `folder:<name>`, `file:<name>`, `embedded`, `random`, `rendered` (images, no model), `memory`,
            `images:<folder>, <width> x <height> px, <formats>` (made elsewhere; older records have only the folder); a LoRA after a `+`.
        label: shown beside the name in every table where the weights are not what the name suggests ("random weights").
        weights_digest: SHA-256 over all tensors of the pipeline; None where there is no model.
    """

    name: Name
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
        """Whether there are only images, made by another program."""
        return self.source.startswith("images:")

    @property
    def is_images_only(self) -> bool:
        """Whether there are only images, made elsewhere or rendered, and no model."""
        return self.is_made_elsewhere or self.source == "rendered"


class Machine(Table):
    """Where it was measured. Latency and memory are compared only within one `machine_class`.

    Attributes:
        device: name of the GPU, "cpu", or the kind of another device, such as "mps".
        cuda: version of CUDA, or "HIP" and its version for a GPU that PyTorch reaches through ROCm; None for other devices.
    """

    device: str
    driver: str | None
    torch: str
    cuda: str | None
    cpu: str
    cores: int
    ram_gib: float

    @property
    def runtime(self) -> str:
        """What PyTorch reaches the GPU through, with its version; "" without one."""
        return f"CUDA {self.cuda}" if self.cuda and not self.cuda.startswith("HIP") else self.cuda or ""

    @property
    def machine_class(self) -> str:
        """Device name, driver major, torch minor, CUDA minor, and the host's processor.

        The processor counts even with a GPU: eager PyTorch launches some 2,500 kernels per UNet step from one thread. At batch 1 that can
        take as long as a fast GPU takes to run them, so two hosts with the same GPU are not one machine. With a GPU, cores do not count.
        """
        torch_minor = ".".join(self.torch.split("+")[0].split(".")[:2])
        if self.device == "cpu":
            return f"{self.cpu} ({self.cores} cores), torch {torch_minor}"
        if self.cuda is None:
            return f"{self.device}, torch {torch_minor}, {self.cpu}"
        driver_major = (self.driver or "unknown").split(".")[0]
        return f"{self.device}, driver {driver_major}, torch {torch_minor}, {self.runtime}, {self.cpu}"


class SuiteId(Table):
    """A suite's name and version, and the digest of its resolved content."""

    name: Name
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


DRAWING_PACKAGES = ("diffusers", "peft", "torch", "transformers")  # those whose version may change an image
ENCODING_PACKAGES = ("numpy", "open-clip-torch", "pillow", "torch", "torchvision", "transformers")  # or the features of one


class Environment(Table):
    """The software that produced the numbers.

    Attributes:
        variables: those environment variables of the process that change speed, memory or digits.
    """

    python: str
    packages: dict[str, str]
    variables: dict[str, str] = Field(default={}, exclude_if=operator.not_)
    commit: str | None
    dirty: bool | None


class Looks(Table):
    """The interim looks of a run that stopped at its verdict.

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
    """The content of `record.json`.

    Attributes:
        sampling: resolved sampling settings, as the run used them.
        scheduler: the scheduler that drew the images: class, kind of prediction, timesteps; older records lack it.
        noise: the initial latents: kind and seed; older records lack it.
        teacher: the teacher behind win rates and agreement, where the suite names one.
        prompts: for prompts that do not come with the suite: their source, their digest, whether it is verified.
        groups: the suite's groups of prompts, in their order, each with its number of prompts.
        samples: images of each prompt.
        run: identifies the run of the probes; models with the same run were measured in turns.
        looks: the interim looks of a run that stops when it is sure.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    family: Name
    suite: SuiteId
    model: Model
    machine: Machine
    environment: Environment
    created: datetime
    n_images: int
    values: tuple[Value, ...]
    sampling: dict[str, Any]
    scheduler: dict[str, Any] = Field(default={}, exclude_if=operator.not_)
    noise: dict[str, Any] = Field(default={}, exclude_if=operator.not_)
    teacher: NamedTeacher | None = Field(default=None, exclude_if=operator.not_)
    prompts: str = ""
    groups: dict[str, int] = Field(default={}, exclude_if=operator.not_)
    samples: int = Field(default=1, exclude_if=is_one)
    run: str = ""
    looks: Looks | None = None

    def value(self, name: str) -> Value | None:
        """The value with this name, or None."""
        return next((value for value in self.values if value.name == name), None)

    @property
    def n_prompts(self) -> int:
        """Number of prompts behind the images."""
        return self.n_images // self.samples

    def is_same_run(self, other: "Record") -> bool:
        """Whether the probes of both were measured in turns, so that changes in the machine's speed affected both alike."""
        return bool(self.run) and self.run == other.run
