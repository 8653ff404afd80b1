"""Images to be scored, in a store of their own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdbench.arrays import U8
from sdbench.protocols.base import Subject
from sdbench.store import Store


def make_subject(folder: Path, images: U8, prompts: Sequence[str] | None = None, name: str = "student", **changes: Any) -> Subject:
    """Store images, N x H x W x 3, as "0", "1", ... under the prompts "p0", "p1", ...; `changes` replace fields of the subject."""
    n, store = len(images), Store(folder / "runs", {"images": name, "n": len(images)})
    image_ids = [f"{index}" for index in range(n)]
    for image_id, image in zip(image_ids, images, strict=True):
        store.put(image_id, image)
    texts = [*(prompts or [""] * n)][:n]
    subject = Subject(store, folder / "runs", image_ids, [f"p{image_id}" for image_id in image_ids], [0] * n, texts)
    return replace(subject, **changes)
