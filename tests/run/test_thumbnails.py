"""A record keeps thumbnails that all models share, and its own worst ones."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from sdbench.records import Scores, Value
from sdbench.run.thumbnails import SHARED, choose_images, thumbnail

N = 200
DISTANCE = Value(name="fd", kind="set", direction="lower", unit="distance", value=1.0)
RECALL = Value(name="recall", kind="set", direction="higher", unit="share", value=0.5)


def test_shared_thumbnails_come_first_then_the_worst_of_each_metric_in_turn() -> None:
    influence, own, teachers = np.zeros(N), np.full(N, 5.0), np.full(N, 5.0)
    influence[[150, 160]] = 9, 8
    own[[170, 180]] = 1, 2  # the teacher is as bad at 180
    teachers[180] = 2
    student = Scores([f"p{n}" for n in range(N)], [0] * N, {"fd:influence": influence, "clip": own, "win_rate.clip": own})
    teacher = Scores([f"p{n}" for n in reversed(range(N))], [0] * N, {"clip": teachers[::-1]})
    kept = choose_images(student, [DISTANCE], teacher, with_teacher=False)
    assert len(kept) == len(set(kept)) == 64
    assert kept[:SHARED] == [(row, False) for row in range(SHARED)]
    assert kept[SHARED : SHARED + 2] == [(150, False), (170, False)]
    assert (160, False) in kept
    assert (180, False) not in kept[: SHARED + 4]
    paired = choose_images(student, [DISTANCE], teacher, with_teacher=True)
    assert len(paired) == len(set(paired)) == 64
    assert paired[:SHARED] == kept[:SHARED], "the teacher's record holds these, too"
    assert paired[SHARED : SHARED + 4] == [(150, False), (170, False), (170, True), (160, False)]


def test_worst_of_a_metric_of_which_more_is_better_are_the_lowest() -> None:
    influence = np.zeros(N)
    influence[[150, 160]] = -9, 9
    scores = Scores([f"p{n}" for n in range(N)], [0] * N, {"recall:influence": influence})
    kept = [row for row, _ in choose_images(scores, [RECALL], None, with_teacher=False)]
    assert kept[SHARED] == 150
    assert 160 not in kept


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        (Scores([f"p{n}" for n in range(N)], [0] * N, {}), range(64)),
        (Scores(["a", "b"], [0, 0], {"fd:influence": np.array([0.0, 1.0])}), [0, 1]),
        (Scores([], [], {}), []),
    ],
)
def test_without_a_teacher_or_scores_the_first_are_kept(scores: Scores, kept: Sequence[int]) -> None:
    assert choose_images(scores, [DISTANCE], None, with_teacher=False) == [(row, False) for row in kept]


@pytest.mark.parametrize(("height", "width", "size"), [(1024, 512, (128, 256)), (40, 64, (64, 40))])
def test_thumbnail_has_at_most_256_px_and_is_never_enlarged(height: int, width: int, size: tuple[int, int]) -> None:
    pixels = np.full((height, width, 3), (10, 200, 30), np.uint8)
    with Image.open(io.BytesIO(thumbnail(pixels))) as image:
        assert (image.format, image.size, image.getpixel((5, 5))) == ("PNG", size, (10, 200, 30))
