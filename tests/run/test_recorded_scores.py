"""Images that committed records keep, scored again: the shipped evaluators, and all around them, give the recorded scores."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sdbench import api, records

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("model", ["scenes-rendered", "scenes-vega-pruned"])  # nearly all scenes right, and hardly any
def test_committed_images_have_their_recorded_scores(model: str, tmp_path: Path) -> None:
    folder = next(path for path, record in records.newest_per_model(RESULTS, name=model) if record.suite.name == "quality")
    images, prompts = tmp_path / "images", tmp_path / "prompts.txt"
    shutil.copytree(folder / "images", images, ignore=shutil.ignore_patterns("*.teacher.png"))
    _, recorded = records.read(folder)
    row_of = {name: row for row, name in enumerate(recorded.image_names)}
    rows = [row_of[name] for name in sorted(path.stem for path in images.iterdir())]
    prompts.write_text("\n".join(recorded.prompt_texts[row] for row in rows), encoding="utf-8")
    _, scores = api.score(images, prompts, "quality", places=tmp_path)
    for metric in ("clip_score.scenes", "preference.scenes", "scene_accuracy"):
        np.testing.assert_allclose(
            scores.columns[metric], recorded.columns[metric][rows], atol=2e-3, err_msg=metric
        )  # of 60 to 90, 10 to 20, 0 or 1
