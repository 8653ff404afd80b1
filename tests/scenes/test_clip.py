"""Training of the scenes' CLIP: captions with exactly one wrong word, and the contrastive loss."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from sdbench.scenes.grammar import Scene, parse, scene_at
from sdbench.scenes.training.clip import change_one_word, contrastive_loss


def words_of(scene: Scene) -> list[str | None]:
    return [word for thing in scene.things for word in (thing.size, thing.colour, thing.shape)] + [scene.relation, scene.background]


@given(st.integers(0, 100_000), st.integers(0, 2**32))
def test_changed_scene_differs_in_exactly_one_attribute(index: int, seed: int) -> None:
    scene = scene_at(index)
    wrong = change_one_word(scene, np.random.default_rng(seed))
    assert len(words_of(wrong)) == len(words_of(scene))
    assert sum(one != other for one, other in zip(words_of(scene), words_of(wrong), strict=True)) == 1
    assert wrong.layout != scene.layout
    assert parse(wrong.caption) == wrong


def test_every_kind_of_word_is_changed_at_times() -> None:
    scene = parse("a large red circle left of a small blue star on a pink background")
    rng = np.random.default_rng(0)
    changed = {
        place
        for _ in range(200)
        for place, (one, other) in enumerate(zip(words_of(scene), words_of(change_one_word(scene, rng)), strict=True))
        if one != other
    }
    assert changed == set(range(8))


def test_contrastive_loss_matches_the_closed_form_of_both_directions() -> None:
    scenes = [scene_at(0), scene_at(1)]
    image, text = torch.eye(4)[:2], torch.eye(4)  # each image fits its own caption and no other
    loss = contrastive_loss(image, text, torch.tensor(2.0), scenes)
    e = np.exp(2)
    torch.testing.assert_close(loss.item(), 0.5 * (np.log((e + 3) / e) + np.log((e + 1) / e)), rtol=1e-5, atol=0)


def test_images_of_one_layout_are_not_negatives_of_each_other() -> None:
    one = parse("a large red circle left of a small blue star on a pink background")
    same = parse("a small blue star right of a large red circle on a pink background")
    image = F.normalize(torch.ones(2, 4))
    text = torch.cat([image, -image])
    assert contrastive_loss(image, text, torch.tensor(50.0), [one, same]) < 1e-6
    assert contrastive_loss(image, text, torch.tensor(50.0), [one, scene_at(0)]) > 0.5
