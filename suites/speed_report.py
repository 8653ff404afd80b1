"""The time to build and to open the page: 1,000 records, the newest of 10 models over 1,000 prompts; run by `nox -s speed`.

Every record holds 64 images. A second leaderboard has 1,000 models with 8 prompts each. Opening is timed in the system's
chromium, where there is one, from the navigation to the end of the load event.
"""

import io
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdbench import api, records
from sdbench.records import Environment, Machine, Model, Record, Scores, SuiteId, Value

ROUNDS = 3
METRICS = ("clip_score.scenes", "preference.scenes", "scene_accuracy")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def _record(model: str, created: datetime, n: int, rng: np.random.Generator) -> tuple[Record, Scores]:
    columns = {name: rng.normal(30, 3, n) for name in METRICS} | {"fd.scenes:influence": rng.normal(0, 100, n)}
    kinds = [("fd.scenes", "set", "lower", "distance"), *((name, "score", "higher", "1") for name in METRICS)]
    values = [
        Value.model_validate(
            {"name": name, "kind": kind, "direction": way, "unit": unit, "value": mean, "low": mean - 1, "high": mean + 1, "n": n}
        )
        for name, kind, way, unit in kinds
        for mean in [float(rng.normal(30, 1))]
    ]
    values += [
        Value(
            name=f"latency.{part}.p50",
            kind="probe",
            direction="lower",
            unit="s",
            value=float(rng.uniform(0.1, 1)),
            n=8,
            samples=((0.1, 0.2),) * 2,
        )
        for part in ("pipeline", "unet_step", "vae_decode")
    ]
    values.append(Value(name="memory.peak_data", kind="probe", direction="lower", unit="MiB", value=float(rng.uniform(900, 1000)), n=2))
    record = Record(
        family="scenes",
        suite=SuiteId(name="quality", version=1, digest="5017e"),
        model=Model(name=model, architecture="sdxl", source="folder:m", weights_digest="3e16"),
        machine=Machine(device="cpu", driver=None, torch="2.11.0", cuda=None, cpu="Some CPU", cores=2, ram_gib=16),
        environment=Environment(python="3.11.9", packages={}, commit=None, dirty=None),
        created=created,
        n_images=n,
        values=tuple(values),
        sampling={"steps": 12},
    )
    ids = [f"{place:05d}-0a1b2c3d" for place in range(n)]
    return record, Scores(ids, [0] * n, columns, [f"a large red circle left of a small blue star, number {place}" for place in range(n)])


def _images(n: int, rng: np.random.Generator) -> dict[str, bytes]:
    made = {}
    for place in range(n):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((64, 64)).save(buffer, "PNG")
        made[f"{place:05d}-0a1b2c3d.png"] = buffer.getvalue()
    return made


def _fill(results: Path, models: int, records_each: int, prompts: int, thumbnails: int) -> Path:
    rng = np.random.default_rng(0)
    names = ["scenes-teacher", *(f"student-{place:03d}" for place in range(1, models))]
    images = _images(thumbnails, rng)
    for name in names:
        for age in range(records_each):
            made = _record(name, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=age), prompts, rng)
            records.write(*made, images if age == records_each - 1 else {}, results)
    return results


@pytest.fixture(scope="module", params=[(10, 100, 1000, 64), (1000, 1, 8, 0)], ids=["10-models-1000-prompts", "1000-models"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _fill(tmp_path_factory.mktemp("results"), *request.param)


def test_build(results: Path, benchmark: Any) -> None:
    benchmark.pedantic(api.report, kwargs={"places": results}, rounds=ROUNDS)
    assert (results / "report.html").stat().st_size < 5e6


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_open(results: Path, benchmark: Any) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        benchmark.pedantic(page.goto, args=[(results / "report.html").as_uri()], rounds=ROUNDS)
        browser.close()
