"""Rendered training images on disk."""

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from sdbench.arrays import U8
from sdbench.errors import UserError
from sdbench.scenes.grammar import Scene, scene_at
from sdbench.scenes.render import render
from sdbench.scenes.training import pool
from sdbench.scenes.training.pool import Pool


def test_processes_that_share_a_folder_render_once_and_read_whole_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered, barrier = [], Barrier(2)

    def render_at_once(scenes: Sequence[Scene], *arguments: Any) -> U8:
        rendered.append(len(scenes))
        images = render(scenes, *arguments)
        if len(scenes) == 8:
            barrier.wait(60)  # both then look for the file, which without a lock neither finds
        return images

    monkeypatch.setattr(pool, "render", render_at_once)
    with ThreadPoolExecutor(2) as processes:  # a lock does not tell threads from processes
        one, other = processes.map(lambda _: Pool(tmp_path, 300), range(2))
    assert [n for n in rendered if n > 8] == [256, 44], "beside the first ones, which name the file"
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.images[299], render([scene_at(299, "train", 0)], [299], 0)[0])


def test_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="No space left on device"):
        Pool(tmp_path, 3)


def test_images_of_another_renderer_are_not_taken_for_those_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Pool(tmp_path, 3)
    monkeypatch.setattr(pool, "render", lambda *arguments: 255 - render(*arguments))
    after = Pool(tmp_path, 3)
    assert np.array_equal(after.images, 255 - before.images)
    assert np.array_equal(before.images, render([scene_at(row, "train") for row in range(3)], range(3)))
