"""The renderer is the ground truth of the embedded family: it draws what the caption says, deterministically."""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest

from sdbench.arrays import U8
from sdbench.scenes.grammar import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Scene, parse, scene_at
from sdbench.scenes.render import CHUNK, RADIUS, SIZE_PX, render

GOLDEN = "ac6d8d138239e9c59f43511e081f971ccea07807dfa7430e89b9fe235bab4b21"


def draw(caption: str, n: int = 1, seed: int = 0) -> U8:
    return render([parse(caption)] * n, range(n), seed)


def has_colour(image: U8, colour: tuple[int, int, int], within: int) -> npt.NDArray[np.bool_]:
    """Where an image has a colour, give or take the jitter."""
    return np.asarray((abs(image.astype(int) - colour) <= within).all(-1))


def foreground(image: U8) -> npt.NDArray[np.bool_]:
    """Where an image is not background; edge pixels count if they are at least half covered."""
    ground = image[0, 0].astype(int)
    return np.asarray(abs(image.astype(int) - ground).max(-1) > 20)


def coverage(images: U8) -> float:
    """Share of the images that a thing covers; edge pixels count in part."""
    away = abs(images.astype(float) - images[:, :1, :1]).sum(-1)
    return float((away.sum((1, 2)) / away.max((1, 2))).mean() / SIZE_PX**2)


def centroid(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    y, x = np.nonzero(mask)
    return float(x.mean()), float(y.mean())


def test_image_is_identical_alone_in_a_batch_and_in_any_order() -> None:
    n = CHUNK + 24
    scenes = [scene_at(index) for index in range(n)]
    batch = render(scenes, range(n), seed=5)
    assert batch.shape == (n, SIZE_PX, SIZE_PX, 3)
    assert batch.dtype == np.uint8
    backwards = render(scenes[::-1], range(n - 1, -1, -1), seed=5)
    np.testing.assert_array_equal(backwards[::-1], batch)
    for index in (0, 7, CHUNK, n - 1):
        np.testing.assert_array_equal(render([scenes[index]], [index], seed=5)[0], batch[index])


def test_jitter_depends_on_index_and_seed() -> None:
    scene = [scene_at(0)]
    images = [render(scene, [index], seed) for index, seed in ((0, 0), (1, 0), (0, 1))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(images[one], images[other])


def test_images_are_those_the_shipped_weights_were_trained_on() -> None:
    images = render([scene_at(index) for index in range(16)], range(16))
    assert hashlib.sha256(images.tobytes()).hexdigest() == GOLDEN


@pytest.mark.parametrize("colour", COLOURS)
def test_centre_of_a_large_circle_has_its_colour(colour: str) -> None:
    for image in draw(f"a large {colour} circle on a {'white' if colour == 'yellow' else 'gray'} background", n=8):
        x, y = centroid(foreground(image))
        assert has_colour(image[round(y), round(x)], COLOURS[colour], 11)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_corners_have_the_background_colour(background: str) -> None:
    for index, image in enumerate(render([Scene(scene_at(i).things, scene_at(i).relation, background) for i in range(16)], range(16))):
        corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert has_colour(corners, BACKGROUNDS[background], 7).all(), index
        assert (corners == corners[0]).all()


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi),
        ("square", (2 * 0.88) ** 2),
        ("cross", 4 * 0.64 - 0.64**2),  # two bars of 2 x 0.64 that share their middle
        ("ring", np.pi * (1 - 0.48**2)),
        ("triangle", 0.9 * 1.8 / 0.866),  # from 0.75 down to -1.05 (its tip), as wide at the base as the slanted edges allow
    ],
)
def test_shape_covers_the_area_of_its_closed_form(shape: str, area: float) -> None:
    for size, radius in RADIUS.items():
        # The radius jitters evenly within 8 %, which hardly moves the mean area.
        assert coverage(draw(f"a {size} blue {shape} on a white background", n=40)) == pytest.approx(area * radius**2, rel=0.06), size


def test_large_things_cover_about_three_times_the_area_of_small_ones() -> None:
    for shape in SHAPES:
        small, large = (coverage(draw(f"a {size} blue {shape} on a white background", n=24)) for size in RADIUS)
        assert large / small == pytest.approx((RADIUS["large"] / RADIUS["small"]) ** 2, rel=0.1), shape


def test_ring_is_hollow_and_square_is_not() -> None:
    for shape, hollow in (("ring", True), ("square", False)):
        for image in draw(f"a large blue {shape} on a white background", n=8):
            x, y = centroid(foreground(image))
            assert has_colour(image[round(y), round(x)], BACKGROUNDS["white"] if hollow else COLOURS["blue"], 11)


@pytest.mark.parametrize("relation", RELATIONS)
def test_first_thing_is_placed_as_the_relation_says(relation: str) -> None:
    for image in draw(f"a large red square {relation} a small blue circle on a white background", n=12):
        first, second = (centroid(has_colour(image, COLOURS[colour], 12)) for colour in ("red", "blue"))
        along = 0 if relation.endswith("of") else 1
        assert abs(first[along] - second[along]) > SIZE_PX / 4
        assert (first[along] < second[along]) == (relation in ("left of", "above"))


def test_no_thing_is_cut_off_by_the_edge() -> None:
    for image in render([scene_at(index) for index in range(200)], range(200)):
        mask = foreground(image)
        assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()
