"""Captions of the `scenes` family: a grammar so small that the exact meaning of every caption is known.

A scene holds one or two things on a plain background. "a large red circle left of a small blue star on a pink
background" and "a small blue star right of a large red circle on a pink background" describe the same image;
`Scene.layout` is that image: the first thing is the left or top one, the second the right or bottom one.
"""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from sdbench.errors import unknown_name

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (245, 220, 50),
    "green": (44, 150, 60),
    "cyan": (60, 210, 220),
    "blue": (40, 70, 220),
    "purple": (130, 50, 170),
    "brown": (120, 75, 40),
}
BACKGROUNDS = {"white": (250, 250, 250), "black": (15, 15, 15), "gray": (150, 150, 150), "pink": (250, 180, 200)}
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
EXAMPLE = "a large red circle left of a small blue star on a pink background"
Split = Literal["train", "heldout"]

_CAPTION = re.compile(
    r"a (?P<size>\w+) (?P<colour>\w+) (?P<shape>\w+)"
    r"(?: (?P<relation>left of|right of|above|below) a (?P<size2>\w+) (?P<colour2>\w+) (?P<shape2>\w+))?"
    r" on a (?P<background>\w+) background"
)


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Layout:
    """The content of an image, the same for all captions that describe it."""

    axis: Literal["single", "row", "column"]
    things: tuple[Thing, ...]
    background: str


@dataclass(frozen=True)
class Scene:
    """The meaning of a caption: one thing, or two with a relation, on a background."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str

    @cached_property
    def caption(self) -> str:
        """The scene in words."""
        body = str(self.things[0]) if self.relation is None else f"{self.things[0]} {self.relation} {self.things[1]}"
        return f"{body} on a {self.background} background"

    @cached_property
    def layout(self) -> Layout:
        """The layout that the caption asks for."""
        if self.relation is None:
            return Layout("single", self.things, self.background)
        things = self.things if self.relation in ("left of", "above") else self.things[::-1]
        return Layout("row" if self.relation.endswith("of") else "column", things, self.background)

    @property
    def split(self) -> Split:
        """The split of the layout, the same for all its captions; one layout in eight is held out of every training set."""
        digest = hashlib.sha256(repr(self.layout).encode()).digest()
        return "heldout" if digest[0] % 8 == 0 else "train"


def scene_at(index: int, split: Split = "train", seed: int = 0) -> Scene:
    """Draw the scene at an index of a split, the same on every machine; about a quarter of all scenes hold a single thing."""
    rng = np.random.default_rng((seed, index))
    while True:
        scene = _draw_scene(rng)
        if scene.split == split:
            return scene


def parse(caption: str) -> Scene:
    """Parse a caption, whatever its case.

    Raises:
        ValueError: the caption does not follow the grammar; the message shows an unknown word with its nearest match.
    """
    match = _CAPTION.fullmatch(caption.strip().lower())
    if match is None:
        raise ValueError(f"not a caption of the scenes grammar: {caption!r}")
    words = match.groupdict()
    things = [_thing(words["size"], words["colour"], words["shape"])]
    if words["relation"] is not None:
        things.append(_thing(words["size2"], words["colour2"], words["shape2"]))
    return Scene(tuple(things), words["relation"], _known_word(words["background"], BACKGROUNDS, "background"))


def _thing(size: str, colour: str, shape: str) -> Thing:
    return Thing(_known_word(size, SIZES, "size"), _known_word(colour, COLOURS, "colour"), _known_word(shape, SHAPES, "shape"))


def _known_word(word: str, known: Collection[str], kind: str) -> str:
    if word not in known:
        raise ValueError(str(unknown_name(kind, word, known)))
    return word


def _draw_scene(rng: np.random.Generator) -> Scene:
    def pick(words: Collection[str]) -> str:
        return list(words)[rng.integers(len(words))]

    first = Thing(pick(SIZES), pick(COLOURS), pick(SHAPES))
    background = pick(BACKGROUNDS)
    if rng.random() < 0.25:
        return Scene((first,), None, background)
    while (second := Thing(pick(SIZES), pick(COLOURS), pick(SHAPES))) == first:
        pass  # a relation between two equal things would mean nothing
    return Scene((first, second), pick(RELATIONS), background)
