"""A Hub model from its name to its record: fetched once, its architecture recognised, the same record from the cache."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import SUITE, modification_times, prepare_in
from hub import COMMIT, Hub, serving
from tiny import save_tiny_pipeline, tiny_unet

from sdbench import records
from sdbench.errors import UserError
from sdbench.models.digest import weights_digest
from sdbench.models.resolve import resolve
from sdbench.run import runner

pytestmark = pytest.mark.usefixtures("fake_evaluators")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "hub", monkeypatch) as server:
        yield server


def test_uncached_pipeline_is_fetched_and_measured(hub: Hub, tmp_path: Path) -> None:
    folder = save_tiny_pipeline(hub.root / "someone" / "tiny", family="sdxl")
    suite = SUITE.model_copy(update={"family": "sdxl", "metrics": {"sdxl": SUITE.metrics["scenes"]}})
    unknown = resolve("someone/tiny")
    assert unknown.architecture == "custom"
    (record_folder,) = runner.run([unknown], prepare_in(tmp_path, suite))
    record = records.read_record(record_folder)
    assert (record.model.architecture, record.model.source) == ("vega", f"hub:someone/tiny@{COMMIT}")
    assert record.model.weights_digest == weights_digest(resolve(str(folder)), dtype="float32")
    assert len(list((record_folder / "images").glob("*.png"))) == record.n_images == 4
    before, fetched = modification_times(tmp_path / "results"), dict(hub.hits)
    assert fetched["someone/tiny/unet/diffusion_pytorch_model.safetensors"] == 1
    assert runner.run([resolve("someone/tiny")], prepare_in(tmp_path, suite)) == [record_folder], (
        "the same architecture, so the same record"
    )
    assert (modification_times(tmp_path / "results"), dict(hub.hits)) == (before, fetched)


def test_pipeline_that_turns_out_to_be_of_another_family_is_refused(hub: Hub, tmp_path: Path) -> None:
    save_tiny_pipeline(hub.root / "someone" / "tiny")
    suite = SUITE.model_copy(update={"family": "sdxl", "metrics": {"sdxl": SUITE.metrics["scenes"]}})
    with pytest.raises(UserError, match="'tiny' is of family 'scenes', suite 'own' is for 'sdxl'"):
        runner.run([resolve("someone/tiny")], prepare_in(tmp_path, suite))


@pytest.mark.parametrize("place", ["", "unet/"])
def test_uncached_unet_is_fetched_and_completed_by_its_base(place: str, hub: Hub, tiny_pipeline: Path, tmp_path: Path) -> None:
    student = tiny_unet("ssd-1b", seed=3)
    student.save_pretrained(hub.root / "someone" / "student" / place)
    student.save_pretrained(tmp_path / "local")
    base = replace(resolve(str(tiny_pipeline)), name="base")
    spec = resolve("someone/student", base=base)
    (folder,) = runner.run([spec], prepare_in(tmp_path))
    record = records.read_record(folder)
    assert (record.family, record.model.architecture, record.n_images) == ("scenes", "ssd-1b", 4)
    assert record.model.weights_digest == weights_digest(resolve(str(tmp_path / "local"), base=base))
    assert set(hub.hits) == {f"someone/student/{place}{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors")}
    assert resolve("someone/student", base=base).architecture == "ssd-1b"
