"""Rendered scenes as a `datasets` dataset: unlimited captioned images, each a function of its index."""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset, Features, Image, Value

from sdbench.scenes.grammar import Split, scene_at
from sdbench.scenes.render import render

FEATURES = Features({"index": Value("int64"), "caption": Value("string"), "image": Image()})


def scenes(n: int, split: Split = "train", seed: int = 0) -> Dataset:
    """The first `n` scenes of a split, with columns `index`, `caption` and `image` (64 x 64 px RGB)."""

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(n):
            scene = scene_at(index, split, seed)
            yield {"index": index, "caption": scene.caption, "image": render([scene], [index], seed)[0]}

    return Dataset.from_generator(rows, features=FEATURES)
