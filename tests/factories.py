"""Records with known values, for tests of code that reads records."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sdbench import records
from sdbench.gate.judging import judge
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy
from sdbench.gate.verdicts import Report
from sdbench.models.resolve import resolve
from sdbench.probes.request import Request
from sdbench.records import Environment, Machine, Model, Record, Scores, SuiteId, Value
from sdbench.settings import Dtype, Sampling, Setting
from sdbench.stats.decisions import BetweenRuns

Measurement = tuple[Record, Scores]
LAPTOP = Machine(device="cpu", driver=None, torch="2.11.0+cpu", cuda=None, cpu="Some CPU 3000", cores=8, ram_gib=31.2)
GPU = Machine(device="Some GPU 80GB", driver="550.54.15", torch="2.11.0+cu128", cuda="12.8", cpu="Some CPU 3000", cores=16, ram_gib=251.0)


def make_record(name: str = "scenes-teacher", values: tuple[Value, ...] = (), **changes: object) -> Record:
    """A plain record; `changes` replace its fields."""
    plain: dict[str, object] = {
        "family": "scenes",
        "suite": SuiteId(name="quality", version=1, digest="5017e"),
        "model": Model(name=name, architecture="sdxl", source="embedded", weights_digest="3e16"),
        "machine": LAPTOP,
        "environment": Environment(python="3.11.9", packages={"torch": "2.11.0", "diffusers": "0.37.0"}, commit="c0441e", dirty=False),
        "created": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        "n_images": 4,
        "values": values,
        "sampling": {"steps": 20, "guidance_scale": 5.0, "scheduler": "ddim"},
        "run": "c411",
    }
    return Record.model_validate({**plain, **changes})


def make_scores(n_prompts: int = 2, samples: int = 2, **columns: np.ndarray) -> Scores:
    """Scores whose rows go prompt by prompt, sample by sample."""
    ids = [f"p{prompt:04d}" for prompt in range(n_prompts) for _ in range(samples)]
    return Scores(ids, list(range(samples)) * n_prompts, columns)


def make_measurement(
    name: str = "scenes-student", *, seed: int = 1, n_prompts: int = 100, worse: str = "", by: float = 0.0, **changes: object
) -> Measurement:
    """The record and scores of one model; models differ by noise only, except that metric `worse` is worse by `by`.

    Prompts differ far more than models do, as in practice. `by` is in the metric's unit for scores and sets, a share for probes.
    """
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    n = 2 * n_prompts

    def column(mean: float, prompt_spread: float, noise: float) -> np.ndarray:
        return mean + shared.normal(0, prompt_spread, n) + own.normal(0, noise, n)

    columns = {
        "clip_score.scenes": column(30, 4, 0.3),
        "preference.scenes": column(2, 1, 0.05),
        "fd.scenes:influence": column(0, 20, 2),
        "scene_accuracy": (shared.random(n) < 0.9).astype(float),
    }
    columns["fd.scenes:influence"] -= columns["fd.scenes:influence"].mean()
    if worse in columns:
        columns[worse] -= by
    scale = {name: 1 + by if name == worse else 1.0 for name in ("latency.pipeline.p50", "memory.peak_data")}
    calls = scale["latency.pipeline.p50"] * own.lognormal(np.log(0.5), 0.01, (8, 5))
    resident = scale["memory.peak_data"] * own.normal(900, 3, 8)
    values = (
        Value(
            name="fd.scenes",
            kind="set",
            direction="lower",
            unit="distance",
            value=50 + by * (worse == "fd.scenes"),
            low=45,
            high=200,
            n=n,
            reference="4ef",
        ),
        *(
            Value(name=name, kind="score", direction="higher", unit=unit, value=columns[name].mean(), low=-10, high=100, n=n)
            for name, unit in (("clip_score.scenes", "100 cos"), ("preference.scenes", "logit"), ("scene_accuracy", "share"))
        ),
        Value(
            name="latency.pipeline.p50",
            kind="probe",
            direction="lower",
            unit="s",
            value=float(np.median(calls)),
            low=0.1,
            high=9,
            n=40,
            samples=tuple(map(tuple, calls.tolist())),
        ),
        Value(
            name="memory.peak_data",
            kind="probe",
            direction="lower",
            unit="MiB",
            value=float(np.median(resident)),
            n=8,
            samples=tuple((peak,) for peak in resident.tolist()),
        ),
    )
    return make_record(name, values, n_images=n, **changes), make_scores(n_prompts, 2, **columns)


def save_record(measurement: Measurement, results: Path) -> Path:
    """Write a record without images; returns its folder."""
    return records.write(*measurement, {}, results)


def judge_folders(candidate: Path, baseline: Path, policy: Policy, between_runs: Mapping[str, BetweenRuns] | None = None) -> Report:
    """The gate's verdict on two record folders."""
    return judge(Side.read(candidate), Side.read(baseline), policy, between_runs or {})


def number(value: Value) -> float:
    """The number of a value that has one."""
    assert value.value is not None
    return value.value


def with_value(measurement: Measurement, name: str, **changes: object) -> Measurement:
    """The same record with fields of one value replaced."""
    record, scores = measurement
    values = tuple(Value.model_validate({**value.model_dump(), **changes}) if value.name == name else value for value in record.values)
    return record.model_copy(update={"values": values}), scores


def make_request(*, device: str = "cpu", dtype: Dtype = "float32", random: bool = False, **setting: Any) -> Request:
    """The request for a round of the embedded Vega; `setting` are those of `Setting`."""
    sampling = Sampling(steps=1, guidance_scale=3.0, size_px=64, dtype=dtype, batch=1)
    spec = resolve("scenes-vega", random=random)
    return Request(spec=spec, sampling=sampling, setting=Setting(**setting), calls=1, warmup=0, device=device, machine=LAPTOP)
