"""What every protocol shares: blocks of images in order, and decoded ahead."""

import threading
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from sdbench.arrays import U8
from sdbench.errors import UserError
from sdbench.protocols import base
from sdbench.protocols.base import Subject
from sdbench.store import Store


def subject(folder: Path, name: str, n: int, shift: int = 0) -> Subject:
    """Images of one colour, whose red is their number plus `shift`."""
    store, names = Store(folder, {"images": name}), [f"{name}-{index}" for index in range(n)]
    for index, image_id in enumerate(names):
        store.put(image_id, np.full((4, 6, 3), (index + shift, 0, 0), np.uint8))
    return Subject(store, folder, names, names, [0] * n, [""] * n)


def test_blocks_are_in_order_and_those_of_two_subjects_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BLOCK", 4)

    def reds(ours: U8, theirs: U8) -> list[tuple[int, int]]:
        return [(int(a), int(b)) for a, b in zip(ours[:, 0, 0, 0], theirs[:, 0, 0, 0], strict=True)]

    found = subject(tmp_path, "a", 10).map_blocks(reds, "reds", subject(tmp_path, "b", 10, shift=100))
    assert [len(block) for block in found] == [4, 4, 2]
    assert [*chain.from_iterable(found)] == [(index, index + 100) for index in range(10)]


def test_the_next_block_is_decoded_while_one_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BLOCK", 4)
    images, read, decoded = subject(tmp_path, "a", 10), Store.read, [threading.Event() for _ in range(3)]

    def read_and_tell(store: Store, image_ids: list[str]) -> U8:
        block = read(store, image_ids)
        decoded[int(image_ids[0].removeprefix("a-")) // 4].set()
        return block

    def is_next_decoded(block: U8) -> bool:
        return decoded[min(int(block[0, 0, 0, 0]) // 4 + 1, 2)].wait(timeout=30)

    monkeypatch.setattr(Store, "read", read_and_tell)
    assert images.map_blocks(is_next_decoded, "decoding") == [True] * 3


def test_a_damaged_image_is_named_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "BLOCK", 4)
    images = subject(tmp_path, "a", 10)
    images.store.path("a-9").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a-9\.png cannot be read"):
        images.map_blocks(len, "counting")
