"""Captions are parsed as the scenes that wrote them, and held-out layouts are never in the train split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbench.scenes.grammar import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, Split, Thing, parse, scene_at

THINGS = st.builds(Thing, st.sampled_from(SIZES), st.sampled_from(sorted(COLOURS)), st.sampled_from(SHAPES))
GROUNDS = st.sampled_from(sorted(BACKGROUNDS))
SINGLES = st.builds(lambda thing, ground: Scene((thing,), None, ground), THINGS, GROUNDS)
PAIRS = st.builds(
    lambda one, other, relation, ground: Scene((one, other), relation, ground), THINGS, THINGS, st.sampled_from(RELATIONS), GROUNDS
)
REVERSED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@given(SINGLES | PAIRS)
def test_caption_parses_to_the_scene_that_wrote_it(scene: Scene) -> None:
    assert parse(scene.caption) == scene
    assert parse(f"  {scene.caption.upper()}\n") == scene


@given(PAIRS)
def test_reversed_relation_describes_the_same_image(scene: Scene) -> None:
    assert scene.relation is not None
    other = Scene(scene.things[::-1], REVERSED[scene.relation], scene.background)
    assert other.layout == scene.layout
    assert other.split == scene.split
    swapped = Scene(scene.things[::-1], scene.relation, scene.background)
    assert (swapped.layout == scene.layout) == (scene.things[0] == scene.things[1])


def test_layout_puts_the_left_or_upper_thing_first() -> None:
    row = parse("a small blue star right of a large red circle on a pink background").layout
    column = parse("a small blue star below a large red circle on a pink background").layout
    assert (row.axis, column.axis) == ("row", "column")
    assert [str(thing) for thing in row.things] == [str(thing) for thing in column.things] == ["a large red circle", "a small blue star"]


def test_no_layout_of_the_heldout_split_is_in_the_train_split() -> None:
    heldout = {scene_at(index, "heldout").layout for index in range(300)}
    train = {scene_at(index, "train").layout for index in range(3000)}
    assert len(heldout) > 200
    assert not heldout & train


def test_one_scene_in_eight_is_held_out_and_one_in_four_is_single() -> None:
    things = [Thing(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES]
    scenes = [Scene((one, other), "above", "gray") for one in things for other in things if one != other]
    assert sum(scene.split == "heldout" for scene in scenes) / len(scenes) == pytest.approx(1 / 8, abs=0.01)
    sampled = [scene_at(index) for index in range(2000)]
    assert sum(scene.relation is None for scene in sampled) / len(sampled) == pytest.approx(1 / 4, abs=0.04)


def test_scene_of_an_index_never_changes() -> None:
    assert scene_at(3).caption == "a large brown ring right of a large yellow ring on a pink background"
    assert scene_at(3, "heldout", seed=7).caption == "a large orange cross left of a small green circle on a pink background"


@given(st.integers(0, 10_000), st.sampled_from(("train", "heldout")))
def test_sampled_scene_belongs_to_its_split_and_has_distinct_things(index: int, split: Split) -> None:
    scene = scene_at(index, split)
    assert scene.split == split
    assert len(set(scene.things)) == len(scene.things) == (1 if scene.relation is None else 2)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a large red circl on a white background", "unknown shape 'circl'.*did you mean 'circle'"),
        ("a large rde circle on a white background", "unknown colour 'rde'.*did you mean 'red'"),
        ("a large red circle on a whit background", "unknown background 'whit'.*did you mean 'white'"),
        ("a larg red circle above a small blue star on a gray background", "unknown size 'larg'.*did you mean 'large'"),
        ("a large red circle above a small blue zzzz on a gray background", "unknown shape 'zzzz'.*known: circle, "),
        ("a large red circle beside a small blue star on a gray background", "^not a caption of the scenes grammar: "),
        ("a photograph of a cat", "^not a caption of the scenes grammar: "),
        ("", "^not a caption of the scenes grammar: "),
    ],
)
def test_invalid_caption_is_rejected_with_the_nearest_word(caption: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(caption)
