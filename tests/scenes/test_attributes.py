"""Layouts to class indices and back."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sdbench.scenes.attributes import IGNORED, VOCABULARY, AttributeHeads, attribute_loss, labels, read_layouts
from sdbench.scenes.grammar import Layout, parse, scene_at


def certain(truth: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits that say the labels; where there is none, anything."""
    return {name: 20.0 * F.one_hot(index.clamp(min=0), len(VOCABULARY[name])) for name, index in truth.items()}


@given(st.lists(st.integers(0, 100_000).map(lambda index: scene_at(index).layout), min_size=1, max_size=8))
def test_reading_is_the_inverse_of_labelling(layouts: list[Layout]) -> None:
    assert read_layouts(certain(labels(layouts))) == layouts


def test_a_single_thing_has_no_second_place() -> None:
    single, pair = (
        parse(text).layout
        for text in ("a large red circle on a pink background", "a large red circle left of a small blue star on a pink background")
    )
    found = labels([single, pair])
    assert [index[0].item() for name, index in found.items() if name.endswith("_1")] == [IGNORED] * 3
    assert IGNORED not in [index[1].item() for index in found.values()]
    assert VOCABULARY["axis"][found["axis"][1]] == "row"
    assert VOCABULARY["colour_1"][found["colour_1"][1]] == "blue"


def test_the_loss_is_small_for_the_truth_and_grows_with_each_attribute_that_is_wrong() -> None:
    truth = labels([scene_at(index).layout for index in range(40)])
    right = certain(truth)
    losses = [attribute_loss(right, truth)]
    for name in VOCABULARY:
        right[name] = right[name].roll(1, 1)
        losses.append(attribute_loss(right, truth))
    assert losses[0] < 1e-6
    assert all(before < after for before, after in pairwise(losses))


def test_the_heads_answer_for_every_attribute() -> None:
    logits = AttributeHeads(5)(torch.zeros(3, 5))
    assert {name: tuple(values.shape) for name, values in logits.items()} == {name: (3, len(words)) for name, words in VOCABULARY.items()}
