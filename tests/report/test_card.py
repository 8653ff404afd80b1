"""Results in a model card: the Hub's own tools can read them, writing twice changes nothing, and the rest of the card is kept."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from boards import write_board
from factories import GPU, with_value
from huggingface_hub import ModelCard

from sdbench import api, cli, records
from sdbench.errors import UserError
from sdbench.leaderboard import standings
from sdbench.leaderboard.standings import Row
from sdbench.models.digest import weights_digest
from sdbench.models.resolve import resolve
from sdbench.report import card

CARD = """---
library_name: diffusers
license: apache-2.0
tags:
- distillation
model-index:
- name: mine
  results:
  - task:
      type: text-to-image
    dataset:
      type: coco
      name: COCO 2014
    metrics:
    - type: fid
      value: 23.5
---
# mine

Words of my own, with a \\1 and a | in them.
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("results")
    write_board(results)
    return results


@pytest.fixture(scope="module")
def rows(results: Path) -> list[Row]:
    return standings.read_rows(results)


def student_row(rows: list[Row]) -> Row:
    return next(row for row in rows if row.record.model.name == "scenes-vega")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # some editors write a byte order mark
def test_results_are_added_and_the_rest_of_the_card_is_kept(encoding: str, tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "README.md").write_text(CARD, encoding=encoding)
    row = student_row(rows)
    model_card = ModelCard.load(card.write(tmp_path, rows, [row]))
    assert model_card.data.license == "apache-2.0"
    assert "Words of my own, with a \\1 and a | in them." in model_card.text
    assert model_card.data.model_name == "mine"
    results = {result.metric_type: result for result in model_card.data.eval_results}
    assert results["fid"].metric_value == 23.5
    value = row.record.value("clip_score.scenes")
    assert value is not None
    assert results["clip_score.scenes"].metric_value == pytest.approx(value.value, rel=1e-5)
    assert results["clip_score.scenes"].dataset_name == "quality@1, 48 prompts"
    assert results["clip_score.scenes"].dataset_revision == "5017e"
    assert "latency.pipeline.p50" not in results
    assert "| latency.pipeline.p50 (s) ↓ | " in model_card.text
    assert "| scenes-vega | scenes-teacher |" in model_card.text


def test_writing_twice_changes_nothing_and_new_results_replace_the_old(tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    once = card.write(tmp_path, rows, [student_row(rows)]).read_text(encoding="utf-8")
    assert card.write(tmp_path, rows, [student_row(rows)]).read_text(encoding="utf-8") == once
    other = card.write(tmp_path, rows, [rows[0]]).read_text(encoding="utf-8")
    assert other.count("## Results") == 1
    assert student_row(rows).folder.name not in other


def test_missing_card_is_created(tmp_path: Path, rows: list[Row]) -> None:
    model_card = ModelCard.load(card.write(tmp_path, rows, [rows[0]]))
    assert model_card.data.model_name == tmp_path.name
    assert model_card.text.strip().startswith("<!-- sdbench: results")


def test_suite_on_several_machines_has_the_entries_of_its_newest_record_with_images(tmp_path: Path, rows: list[Row]) -> None:
    row = student_row(rows)
    elsewhere = with_value((row.record, row.scores), "clip_score.scenes", value=12.5)[0]
    later = {"machine": GPU.model_copy(update={"device": "A GPU"}), "created": row.record.created + timedelta(days=1)}
    only_timed = {"machine": GPU, "created": row.record.created + timedelta(days=2)}
    others = [
        elsewhere.model_copy(update=later),
        elsewhere.model_copy(update={**only_timed, "values": (elsewhere.value("latency.pipeline.p50"),)}),
    ]
    own = [row, *(Row(Path(f"{number}"), record) for number, record in enumerate(others))]
    model_card = ModelCard.load(card.write(tmp_path, own, own))
    found = [(result.metric_type, result.metric_value) for result in model_card.data.eval_results]
    assert len(found) == len(dict(found))
    assert dict(found)["clip_score.scenes"] == 12.5
    assert model_card.text.count("Suite digest") == 3, "the section of each machine class"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\n[1, 2\n---\n", "cannot be read"),
        ("---\njust words\n---\n", "cannot be read"),
        ("---\n{}\n---\n<!-- sdbench: end -->", "only one"),
        (f"---\n{{}}\n---\n{card._END}\n{card._START}", "or the second first"),
    ],
)
def test_invalid_card_is_rejected_and_left_unchanged(text: str, message: str, tmp_path: Path, rows: list[Row]) -> None:
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        card.write(tmp_path, rows, [rows[0]])
    assert path.read_text(encoding="utf-8") == text


def test_command_finds_records_by_the_digest_of_the_weights(
    tmp_path: Path, tiny_pipeline: Path, results: Path, rows: list[Row], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shutil.copytree(results, tmp_path / "results")
    words = ["card", str(tiny_pipeline), "--results", str(results)]
    assert cli.main(words) == 2
    assert f"measure them first: sdbench run --model {tiny_pipeline}\n" in capsys.readouterr().err
    (tmp_path / "my student").symlink_to(tiny_pipeline, target_is_directory=True)
    assert cli.main(["card", str(tmp_path / "my student"), "--results", str(results)]) == 2
    assert f"sdbench run --model '{tmp_path}/my student'\n" in capsys.readouterr().err
    assert cli.main(["card", "scenes-vega", "--results", str(results)]) == 2
    assert "written into the folder of a pipeline or UNet, and 'scenes-vega' is not one (embedded)" in capsys.readouterr().err
    spec = resolve(str(tiny_pipeline))
    record, row = student_row(rows).record, student_row(rows)
    model = record.model.model_copy(update={"name": "tiny-vega", "weights_digest": weights_digest(spec)})
    mine = record.model_copy(update={"model": model, "family": spec.family, "sampling": {**record.sampling, "dtype": "float32"}})
    newest = records.write(mine, row.scores, {}, results)
    earlier = {"model": model.model_copy(update={"name": "fp16"}), "created": mine.created - timedelta(days=1)}
    records.write(mine.model_copy(update=earlier), row.scores, {}, results)
    copy = tmp_path / "student"
    copy.symlink_to(tiny_pipeline, target_is_directory=True)
    path = tiny_pipeline / "README.md"
    try:
        assert api.card(str(tiny_pipeline), places=api.Places(results)) == path
        text = path.read_text(encoding="utf-8")
        assert "tiny-vega" in text
        assert "fp16" not in text
        assert text.count("Suite digest") == 1
        assert newest.name in text
        metrics = [result.metric_type for result in ModelCard.load(path).data.eval_results]
        assert len(metrics) == len(set(metrics))
        monkeypatch.setenv("HOME", str(tmp_path))
        assert api.card("~/student", places=api.Places(results)) == copy / "README.md"
        capsys.readouterr()
        assert cli.main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == [str(path)]
    finally:
        path.unlink(missing_ok=True)
