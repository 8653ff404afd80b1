import numpy as np

from sdbench.scenes.dataset import scenes
from sdbench.scenes.grammar import parse, scene_at
from sdbench.scenes.render import render


def test_row_is_determined_by_its_index() -> None:
    rows = scenes(5, "heldout", seed=3)
    assert rows["caption"] == [scene_at(index, "heldout", 3).caption for index in range(5)]
    for row in rows:
        assert parse(row["caption"]).split == "heldout"
        image = render([scene_at(row["index"], "heldout", 3)], [row["index"]], 3)[0]
        np.testing.assert_array_equal(np.asarray(row["image"]), image)
