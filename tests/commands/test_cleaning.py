"""`sdbench clean` finds what runs have left, and deletes that and nothing else."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from commandline import error_message

from sdbench import cli
from sdbench.disk import digest
from sdbench.store import Store, stored_runs

DAY_S = 86400


def store_of(runs: Path, identity: dict[str, str], n: int, days: float) -> Path:
    """The folder of a run with n images, the newest of which was written so many days ago."""
    store = Store(runs, identity)
    for number in range(n):
        store.put(f"{number}", np.zeros((8, 8, 3), np.uint8))
    store.features("net-1234", ["0"], lambda: np.zeros((1, 4), np.float32))
    for age, path in enumerate(sorted(path for path in store.folder.rglob("*") if path.is_file())):
        os.utime(path, times=(time.time() - (days + age) * DAY_S,) * 2)
    return store.folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs with images of two models and some that were made elsewhere, beside all that must stay."""
    runs = tmp_path / "results" / "runs"
    store_of(runs, {"model": "sdxl", "device": "cuda"}, 5, days=40)
    store_of(runs, {"model": "my-vega", "device": "cuda"}, 3, days=2)
    store_of(runs, {"images": "made elsewhere"}, 1, days=0)
    kept = [
        "references/mine/manifest.json",
        "students/my-vega/unet/config.json",
        "distillation/vega-0123456789ab/1-half/step-00000001/model.safetensors",
        "probes/rounds.json",
        f"{'0' * 24}/images/0.png",  # without a manifest
        f"{'1' * 24}/manifest.json",  # not named by its digest
        f"{digest({})}x/manifest.json",
    ]
    for name in kept:
        (runs / name).parent.mkdir(parents=True, exist_ok=True)
        (runs / name).write_text("{}", encoding="utf-8")
    return runs


def clean(runs: Path, *words: str) -> int:
    return cli.main(["clean", "--results", str(runs.parent), *words])


def files(runs: Path) -> set[str]:
    return {path.relative_to(runs).as_posix() for path in runs.rglob("*") if path.is_file()}


def test_images_are_listed_by_model_and_nothing_is_deleted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(runs)
    assert clean(runs, "--json") == 0
    out, shown = capsys.readouterr()
    rows = json.loads(out)
    assert [(row["model"], row["device"], row["n_images"]) for row in rows] == [
        ("sdxl", "cuda", 5),
        ("my-vega", "cuda", 3),
        (None, None, 1),
    ]
    for row in rows:
        folder = Path(row["folder"])
        assert row["size_bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert [row["age_days"] for row in rows] == pytest.approx([40, 2, 0], abs=0.01), "of the newest file"
    assert "(made elsewhere)" in shown
    assert shown.endswith(": nothing is deleted without --delete\n")
    assert files(runs) == before


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ([], set()),
        (["--model", "sdxl"], {"my-vega", None}),
        (["--model", "sdxl", "--model", "my-vega"], {None}),
        (["--older-than", "1.5"], {None}),
        (["--older-than", "3", "--model", "my-vega"], {"sdxl", "my-vega", None}),
    ],
)
def test_only_what_is_chosen_and_only_images_of_runs_are_deleted(words: list[str], left: set[str | None], runs: Path) -> None:
    before, folders = files(runs), {run.model: run.folder.name for run in stored_runs(runs)}
    assert clean(runs, "--delete", *words) == 0
    gone = {folders[model] for model in folders.keys() - left}
    assert files(runs) == {name for name in before if name.partition("/")[0] not in gone}
    assert {run.model for run in stored_runs(runs)} == left
    assert all(not (runs / name).exists() for name in gone)


def test_what_an_interruption_leaves_of_a_folder_is_found_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = (run for run in stored_runs(runs) if run.model == "sdxl")
    rmtree = shutil.rmtree

    def interrupted(path: Path) -> None:
        if path == run.folder:
            raise KeyboardInterrupt
        rmtree(path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.delete()
    assert files(run.folder) == {"manifest.json"}
    assert clean(runs, "--delete", "--model", "sdxl") == 0
    assert not run.folder.exists()


def test_a_misspelt_model_deletes_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(runs)
    said = error_message(["clean", "--results", str(runs.parent), "--delete", "--model", "my-vego"], capsys)
    assert "unknown model with images here 'my-vego'; did you mean 'my-vega'?" in said
    assert files(runs) == before


def test_where_nothing_was_drawn_there_is_nothing_to_delete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(tmp_path / "runs", "--delete") == 0
    assert capsys.readouterr().out == f"0 folders in {tmp_path / 'runs'}, 0 bytes: deleted\n"
