"""Layouts are converted to class indices and back."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sdbench.scenes.attributes import IGNORED, VOCABULARY, AttributeHeads, attribute_loss, labels, read_layouts
from sdbench.scenes.grammar import Layout, parse, scene_at


def confident_logits(truth: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits with a high score for each label; arbitrary where there is none."""
    return {name: 20.0 * F.one_hot(index.clamp(min=0), len(VOCABULARY[name])) for name, index in truth.items()}


@given(st.lists(st.integers(0, 100_000).map(lambda index: scene_at(index).layout), min_size=1, max_size=8))
def test_reading_is_the_inverse_of_labelling(layouts: list[Layout]) -> None:
    assert read_layouts(confident_logits(labels(layouts))) == layouts


def test_labels_of_a_single_thing_ignore_the_second_one() -> None:
    single, pair = (
        parse(text).layout
        for text in ("a large red circle on a pink background", "a large red circle left of a small blue star on a pink background")
    )
    found = labels([single, pair])
    assert [index[0].item() for name, index in found.items() if name.endswith("_1")] == [IGNORED] * 3
    assert IGNORED not in [index[1].item() for index in found.values()]
    assert VOCABULARY["axis"][found["axis"][1]] == "row"
    assert VOCABULARY["colour_1"][found["colour_1"][1]] == "blue"


def test_loss_is_small_for_the_truth_and_grows_with_each_wrong_attribute() -> None:
    truth = labels([scene_at(index).layout for index in range(40)])
    right = confident_logits(truth)
    losses = [attribute_loss(right, truth)]
    for name in VOCABULARY:
        right[name] = right[name].roll(1, 1)
        losses.append(attribute_loss(right, truth))
    assert losses[0] < 1e-6
    assert all(before < after for before, after in pairwise(losses))


def test_heads_return_logits_for_every_attribute() -> None:
    logits = AttributeHeads(5)(torch.zeros(3, 5))
    assert {name: tuple(values.shape) for name, values in logits.items()} == {name: (3, len(words)) for name, words in VOCABULARY.items()}
