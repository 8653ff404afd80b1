"""Measure a model from Python, including one in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdbench import records, suites, tables
from sdbench.api import gating, measuring
from sdbench.api.inputs import NamedModel, NamedSuite, as_text, find_model, find_suite
from sdbench.api.places import NamedPlaces, Places, as_places
from sdbench.errors import UserError, unknown_name
from sdbench.gate.verdicts import Report
from sdbench.models.spec import ModelSpec
from sdbench.records import Record, Scores, Value


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        folder: record folder, for the gate, the leaderboard and the report.
        scores: per-image columns of the record.
        report: the gate's, where a baseline was given.
    """

    folder: Path
    record: Record
    scores: Scores
    report: Report | None

    def __getitem__(self, name: str) -> Value:
        """The value with this name, such as `found["clip_score.scenes"].value`.

        Raises:
            UserError: the record has none.
        """
        if value := self.record.value(name):
            return value
        raise unknown_name("value", name, [value.name for value in self.record.values])

    def __contains__(self, name: str) -> bool:
        """Whether the record has a value with this name."""
        return self.record.value(name) is not None

    def __iter__(self) -> Iterator[Value]:
        """The values in order."""
        return iter(self.record.values)

    def grid(self) -> tables.Grid:
        """The values, a row each."""
        rows = (
            (f"{value.name}{tables.ARROWS[value.direction]}", tables.format_value(value), str(value.n or ""))
            for value in self.record.values
        )
        return tables.Grid(("metric", "value", "n"), tuple(rows))

    def __str__(self) -> str:
        """The values and the verdict, for `print`."""
        return "\n".join([f"{self._title()}\n", tables.text(self.grid(), width=120), *([f"\n{self.report}"] if self.report else [])])

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        title = tables.escape_markdown(self._title())
        return "\n\n".join([title, tables.markdown(self.grid()), *([self.report.markdown()] if self.report else [])])

    def _title(self) -> str:
        return f"{self.record.model.name} under {self.record.suite.title_with_digest}, {self.record.n_images} images"


def evaluate(
    model: Any,
    suite: NamedSuite | None = None,
    *,
    baseline: str | Path | None = None,
    name: str | None = None,
    only: str | None = None,
    policy: str | Path | None = None,
    places: NamedPlaces = "results",
    device: str | None = None,
) -> Evaluation:
    """Measure a model, from a notebook or in the middle of a training loop, and return the record that the command line would make.

    A pipeline in memory is left as it was: device, dtype, scheduler, train or eval mode, and the state of the random
    generators. Its networks are copied where the suite computes in another dtype. Latency and memory are measured in separate processes, so
    a pipeline in memory has neither: save it and name the folder. In a distributed run, call this in one process.

        >>> import sdbench
        >>> from sdbench.api import Overrides
        >>> from sdbench.suites import load
        >>> few = Overrides(n=4, steps=2).apply(load("quality"))  # whole suites by their name: suite="quality"
        >>> teacher = sdbench.evaluate("scenes-teacher", few, only="quality")  # once: win rates and agreement are against it
        >>> found = sdbench.evaluate(pipeline, few, baseline="scenes-vega", name="step-1000")
        >>> found["clip_score.scenes"].n
        4
        >>> found.report.verdict in ("pass", "regressed", "inconclusive")
        True

    Args:
        model: a `StableDiffusionXLPipeline`, what `sdbench run --model` takes (a folder, a file, a name), or a `ModelSpec`.
        suite: a name, the path of a suite file, or a suite; by default the family's.
        baseline: a record folder or what `--baseline` of the gate takes; a model without a record is run with it, in turns, or before
            a pipeline in memory.
        name: what tables call the model.
        only: "quality" or "probes" for one half of the suite.
        policy: policy file of the gate; by default `gate.toml` beside the suites, which knows the shipped suites.
        device: for a model that is not in memory and its baseline.

    Raises:
        UserError: bad input, as from the command line.
    """
    suites.check_half(only)
    in_memory = not isinstance(model, NamedModel)
    if in_memory and only == "probes":
        raise UserError("latency and memory are measured in separate processes; save the pipeline and name its folder")
    (spec, device), places = _describe(model, name, device), as_places(places)
    only = "quality" if in_memory else only
    chosen, asked, old = find_suite(suite, spec), gating.Request(gating.load_policy(policy), places, device, only), None
    if in_memory:
        from sdbench.models.in_memory import check_dtype

        check_dtype(model, chosen.sampling.dtype)
    if baseline is not None:  # before the model, which may take hours, is run for a misspelt name
        suites.check_half(only, gating.GATED)
        old = asked.find_baseline(as_text(baseline), chosen)
        asked.check_required(chosen)
    named = [each for each in ((old,) if in_memory else (spec, old)) if isinstance(each, ModelSpec)]
    unmeasured = [*dict.fromkeys(named)]  # in one run, so that changes in the machine's speed meet both alike
    folders = (
        dict(zip(unmeasured, measuring.run(unmeasured, chosen, places=places, device=device, only=only), strict=True)) if named else {}
    )
    folder = _run_in_memory(model, spec, chosen, places) if in_memory else folders[spec]
    old = folders[old] if isinstance(old, ModelSpec) else old
    report = None if old is None else asked.judge(folder, old, str(baseline))
    return Evaluation(folder, *records.read(folder), report)


def load_pipeline(model: NamedModel, *, dtype: str = "float32", device: str | None = None) -> Any:
    """Load a model as a `StableDiffusionXLPipeline`, with frozen networks; what the Hub has of it and this disk lacks is fetched.

    Args:
        model: what `sdbench run --model` takes, or a `ModelSpec`.
        dtype: of all weights: "float32", "bfloat16" or "float16".
        device: "cpu", "cuda" or "cuda:<index>"; by default "cuda" where there is one.

    Raises:
        UserError: there is no such model or device, or see `sdbench.models.loading.load`.
    """
    spec = find_model(model)
    from sdbench import machine
    from sdbench.assets.pipelines import fetch
    from sdbench.models.loading import load

    fetch(spec, dtype=dtype)
    return load(spec, dtype=dtype, device=machine.choose_device(device))


def _describe(model: Any, name: str | None, device: str | None) -> tuple[ModelSpec, str | None]:
    """The model's spec, and where it runs: a pipeline in memory on its own device, or None where a baseline could not run on that (mps)."""
    if isinstance(model, NamedModel):
        return find_model(model, name), device
    from sdbench.models import in_memory

    spec, own = in_memory.describe(model, name or "pipeline"), in_memory.device(model)
    return spec, own if own.startswith(("cpu", "cuda")) else None


def _run_in_memory(pipeline: Any, spec: ModelSpec, suite: suites.Suite, places: Places) -> Path:
    """Score the images of a pipeline in memory, and return the record folder."""
    import torch

    from sdbench.models import in_memory
    from sdbench.run import runner
    from sdbench.run.context import RunContext, prepare

    context = RunContext(suite, in_memory.device(pipeline), places.results, places.work, only="quality")
    prepare(context)
    with in_memory.sampling_copy(pipeline, getattr(torch, context.sampling.dtype)) as sampler:
        (folder,) = runner.run([spec], replace(context, pipelines={spec.name: sampler}))
    return folder
