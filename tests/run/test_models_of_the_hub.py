"""A model of the Hub from its name to its record: fetched once, known for what it is, the same record from the cache."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub import COMMIT, Hub, serving
from stand_ins import SUITE, bench, files_of
from tiny import save_tiny_pipeline, tiny_unet

from sdbench import records
from sdbench.models.digest import weights_digest
from sdbench.models.spec import resolve
from sdbench.run import runner

pytestmark = pytest.mark.usefixtures("stand_ins")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "hub", monkeypatch) as server:
        yield server


def test_a_pipeline_that_is_not_cached_is_fetched_and_measured(hub: Hub, tmp_path: Path) -> None:
    folder = save_tiny_pipeline(hub.root / "someone" / "tiny", family="sdxl")
    suite = SUITE.model_copy(update={"family": "sdxl", "metrics": {"sdxl": SUITE.metrics["scenes"]}})
    unknown = resolve("someone/tiny")
    assert unknown.architecture == "custom"
    (made,) = runner.run([unknown], bench(tmp_path, suite))
    record = records.read_record(made)
    assert (record.model.architecture, record.model.source) == ("vega", f"hub:someone/tiny@{COMMIT}")
    assert record.model.weights_digest == weights_digest(resolve(str(folder)), dtype="float32")
    assert len(list((made / "images").glob("*.png"))) == record.n_images == 4
    before, fetched = files_of(tmp_path / "results"), dict(hub.hits)
    assert fetched["someone/tiny/unet/diffusion_pytorch_model.safetensors"] == 1
    assert runner.run([resolve("someone/tiny")], bench(tmp_path, suite)) == [made], "of the same architecture, so it is the same record"
    assert (files_of(tmp_path / "results"), dict(hub.hits)) == (before, fetched)


def test_a_unet_that_is_not_cached_is_fetched_for_its_base(hub: Hub, made: Path, tmp_path: Path) -> None:
    tiny_unet("ssd-1b", seed=3).save_pretrained(hub.root / "someone" / "student")
    spec = resolve("someone/student", base=replace(resolve(str(made)), name="base"))
    (folder,) = runner.run([spec], bench(tmp_path))
    record = records.read_record(folder)
    assert (record.family, record.model.architecture, record.n_images) == ("scenes", "ssd-1b", 4)
    assert set(hub.hits) == {f"someone/student/{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors")}
