"""Renders scenes with signed distances, vectorised over a batch; the same index gives the same bytes.

Coordinates cover the unit square, x to the right and y down. Place, size, angle and colour are jittered a little in every
image, so that one caption has any number of images. The signed distances are the standard ones for 2D primitives
(Inigo Quilez, "2D distance functions").
"""

from collections.abc import Sequence

import numpy as np

from sdbench.arrays import F32, U8
from sdbench.scenes.grammar import BACKGROUNDS, COLOURS, SHAPES, Scene

SIZE_PX = 64
CHUNK = 64  # scenes drawn at a time: arrays of thousands leave the processor's cache, which takes four times as long
RADIUS = {"small": 0.105, "large": 0.185}


def render(scenes: Sequence[Scene], indices: Sequence[int], seed: int = 0) -> U8:
    """Render scenes, with jitter decided by `indices` and `seed`; returns N x 64 x 64 x 3, uint8 RGB."""
    images = np.empty((len(scenes), SIZE_PX, SIZE_PX, 3), np.uint8)
    for start in range(0, len(scenes), CHUNK):
        rows = slice(start, start + CHUNK)
        images[rows] = _render_chunk(scenes[rows], indices[rows], seed)
    return images


def _render_chunk(scenes: Sequence[Scene], indices: Sequence[int], seed: int) -> U8:
    jitters = np.stack([np.random.default_rng((seed, 1, index)).uniform(-1, 1, 24) for index in indices]).astype(np.float32)
    canvas = np.empty((len(scenes), SIZE_PX, SIZE_PX, 3), np.float32)
    canvas[:] = np.array([BACKGROUNDS[scene.background] for scene in scenes], np.float32)[:, None, None] + 6 * jitters[:, None, None, :3]
    for place in (0, 1):
        rows = [row for row, scene in enumerate(scenes) if len(scene.layout.things) > place]
        if rows:
            _paint(canvas, rows, [scenes[row] for row in rows], place, jitters[rows, 4 + 10 * place : 14 + 10 * place])
    return np.asarray(np.clip(np.rint(canvas), 0, 255), np.uint8)


def _paint(canvas: F32, rows: list[int], scenes: list[Scene], place: int, jitter: F32) -> None:
    things = [scene.layout.things[place] for scene in scenes]
    centre = np.array([_CENTRES[scene.layout.axis][place] for scene in scenes], np.float32)
    place_jitter = np.array([_PLACE_JITTER[scene.layout.axis] for scene in scenes], np.float32)
    x0, y0 = (centre + place_jitter * jitter[:, :2]).T[..., None, None]
    radius = np.array([RADIUS[thing.size] for thing in things], np.float32) * (1 + 0.08 * jitter[:, 2])
    angle = 0.2 * jitter[:, 3]
    pixel_centres = (np.arange(SIZE_PX, dtype=np.float32) + 0.5) / SIZE_PX
    dx, dy = pixel_centres[None, None, :] - x0, pixel_centres[None, :, None] - y0
    cos, sin = (np.cos(angle) / radius)[:, None, None], (np.sin(angle) / radius)[:, None, None]
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
    distance = np.empty_like(x)
    for shape in SHAPES:
        indices = [index for index, thing in enumerate(things) if thing.shape == shape]
        distance[indices] = _DISTANCES[shape](x[indices], y[indices])
    alpha = np.clip(0.5 - distance * radius[:, None, None] * SIZE_PX, 0, 1)[..., None]
    colour = np.array([COLOURS[thing.colour] for thing in things], np.float32) + 10 * jitter[:, 4:7]
    canvas[rows] += alpha * (colour[:, None, None] - canvas[rows])


_CENTRES = {"single": ((0.5, 0.5),), "row": ((0.27, 0.5), (0.73, 0.5)), "column": ((0.5, 0.27), (0.5, 0.73))}
_PLACE_JITTER = {"single": (0.2, 0.2), "row": (0.03, 0.14), "column": (0.14, 0.03)}


def _circle(x: F32, y: F32) -> F32:
    return np.hypot(x, y) - np.float32(1)


def _square(x: F32, y: F32) -> F32:
    return np.maximum(abs(x), abs(y)) - np.float32(0.88)


def _triangle(x: F32, y: F32) -> F32:
    y = y - np.float32(0.15)
    return np.maximum(np.float32(0.866) * abs(x) - y / 2, y) - np.float32(0.6)


def _star(x: F32, y: F32) -> F32:
    sector, inner = np.float32(np.pi / 5), 0.42
    bend = (np.arctan2(x, -y) + sector) % (2 * sector) - sector
    radius = np.hypot(x, y)
    along, across = radius * np.cos(bend), radius * abs(np.sin(bend))
    tip, notch = np.array([1.12, 0.0]), inner * 1.12 * np.array([np.cos(sector), np.sin(sector)])
    normal = np.array([tip[1] - notch[1], notch[0] - tip[0]]) / -np.linalg.norm(notch - tip)
    return np.asarray((along - tip[0]) * normal[0] + (across - tip[1]) * normal[1], np.float32)


def _cross(x: F32, y: F32) -> F32:
    x, y = abs(x), abs(y)
    bar, post = np.maximum(x - 1, y - np.float32(0.32)), np.maximum(x - np.float32(0.32), y - 1)
    return np.asarray(np.minimum(bar, post), np.float32)


def _ring(x: F32, y: F32) -> F32:
    return abs(np.hypot(x, y) - np.float32(0.74)) - np.float32(0.26)


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "ring": _ring}
