"""Diversity of scenes: none where a prompt's images are all the same, and none is claimed of a single image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import number

from sdbench.arrays import U8
from sdbench.protocols.base import Subject
from sdbench.records import Scores, Value
from sdbench.run.external import store_images
from sdbench.scenes.grammar import scene_at
from sdbench.scenes.render import render
from sdbench.score import score

NAMES = ["diversity.clip.scenes", "diversity.features.scenes"]
PROMPTS, SAMPLES = 6, 3
SCENES = [scene_at(index, "heldout") for index in range(PROMPTS)]


def of_prompts(images: U8, folder: Path) -> Subject:
    """Images in the order of prompts, with all samples of a prompt together."""
    captions = [scene.caption for scene in SCENES for _ in range(SAMPLES)]
    ids, samples = [str(row // SAMPLES) for row in range(len(images))], [row % SAMPLES for row in range(len(images))]
    return replace(store_images(images, captions, folder), prompt_ids=ids, samples=samples)


def measure(images: U8, folder: Path) -> tuple[dict[str, Value], Scores]:
    values, scores = score(of_prompts(images, folder), NAMES)
    return {value.name: value for value in values}, scores


def test_images_that_differ_are_more_diverse_than_copies(tmp_path: Path) -> None:
    drawn = render([scene for scene in SCENES for _ in range(SAMPLES)], range(PROMPTS * SAMPLES))
    others = render([scene_at(index, "heldout", 1) for index in range(PROMPTS * SAMPLES)], range(PROMPTS * SAMPLES))
    placed, scores = measure(drawn, tmp_path / "placed")  # of one caption, at other places
    copied, _ = measure(np.repeat(drawn[::SAMPLES], SAMPLES, axis=0), tmp_path / "copied")
    mixed, _ = measure(others, tmp_path / "mixed")  # of other captions
    for name in NAMES:
        assert number(copied[name]) == pytest.approx(0, abs=1e-6)
        assert 1e-3 < number(placed[name]) < number(mixed[name])
        assert (placed[name].n, placed[name].unit) == (PROMPTS, "1 - cos")
        assert scores.columns[name].mean() == pytest.approx(number(placed[name]))


def test_single_images_have_none(tmp_path: Path) -> None:
    images = render(SCENES, range(PROMPTS))
    values, scores = score(store_images(images, [scene.caption for scene in SCENES], tmp_path), NAMES)
    assert {value.state for value in values} == {"not_applicable"}
    assert "with --samples-per-prompt 4 there are four" in values[0].reason
    assert not scores.columns
