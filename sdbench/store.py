"""The run folder of one model on one device: `results/runs/<digest>/`, ignored by git, safe to delete.

It is not tied to a single suite. Images are named by their identity (weights, prompt, sampling, noise), so a run that was
killed resumes where it stopped, and a changed suite draws only the images that changed. All writes are atomic.
"""

import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdbench.arrays import F32, U8
from sdbench.disk import digest, load_array, read_json, write_bytes
from sdbench.errors import UserError
from sdbench.image_files import png_bytes, read_images, verify_image
from sdbench.notes import print_note

_MAX_NAMED = 10  # damaged images that an error names
_WAY_OUT = "delete it and run again: only that image is made again"


class Store:
    """Images and features of one run.

    Args:
        identity: JSON content whose digest names the run; saved as `manifest.json` with the first image.
    """

    def __init__(self, runs: Path, identity: dict[str, Any]) -> None:
        self.folder, self._identity = runs / digest(identity), identity

    def path(self, image_id: str) -> Path:
        """The path of the image with this identity, whether it exists or not."""
        return self.folder / "images" / f"{image_id}.png"

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """The images that do not exist yet, in order."""
        return [image_id for image_id in image_ids if not self.path(image_id).exists()]

    def elsewhere(self, image_ids: Sequence[str]) -> list[Path]:
        """The folders of other runs that hold any of these images, made under another identity."""
        names = {self.path(image_id).name for image_id in image_ids}
        others = (folder for folder in self.folder.parent.glob("*/images") if folder.parent != self.folder)
        return sorted(folder.parent for folder in others if any(path.name in names for path in folder.iterdir()))

    def put(self, image_id: str, pixels: U8) -> None:
        """Write an image, H x W x 3 uint8 RGB, as PNG.

        Raises:
            UserError: see `write_bytes`.
        """
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            write_bytes(manifest, json.dumps(self._identity, indent=1, sort_keys=True).encode() + b"\n")
        write_bytes(self.path(image_id), png_bytes(pixels))

    def read(self, image_ids: Sequence[str]) -> U8:
        """Read stored images, N x H x W x 3 uint8 RGB.

        Raises:
            UserError: an image is missing or damaged, is not 8-bit RGB, or differs in size from the first.
        """
        return read_images([self.path(image_id) for image_id in image_ids], _WAY_OUT)

    def verify(self, image_ids: Sequence[str], way_out: str = _WAY_OUT) -> None:
        """Check that stored images are whole, by their checksums: 2 ms for a PNG of 1024 px, which takes 38 ms to decode.

        Raises:
            UserError: images are missing or damaged; `way_out` ends the line of each.
        """

        def error_of(image_id: str) -> str | None:
            try:
                verify_image(self.path(image_id), way_out)
            except UserError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            errors = [error for error in pool.map(error_of, image_ids) if error]
        if errors:
            more = [f"and {len(errors) - _MAX_NAMED} more images of {self.folder}"] if len(errors) > _MAX_NAMED else []
            raise UserError("\n".join([*errors[:_MAX_NAMED], *more]))

    def features(self, name: str, image_ids: Sequence[str], compute: Callable[[], F32]) -> F32:
        """Load the features of these images, N x d float32, or compute and store them; `name` holds the digest of the encoder.

        Where they cannot be stored, a note says so.
        """
        return load_or_compute(self.folder / "features" / f"{name}-{digest(list(image_ids))[:12]}.npy", compute, _write_or_note)


@dataclass(frozen=True)
class StoredRun:
    """What is in the folder of a run.

    Attributes:
        model: its name, as in records; None for images that were made elsewhere.
        device: kind of device that drew the images, `cpu` or `cuda`; likewise.
        size_bytes: of all files.
        age_days: since the newest file was written.
    """

    folder: Path
    model: str | None
    device: str | None
    n_images: int
    size_bytes: int
    age_days: float

    def delete(self) -> None:
        """Delete the folder, its manifest last, so that a rest that an interruption leaves is found again.

        Raises:
            OSError: a file cannot be deleted.
        """
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        shutil.rmtree(self.folder)


def stored_runs(runs: Path) -> list[StoredRun]:
    """The runs whose images are kept in a folder, the largest first.

    Only a folder that is named by the digest of its manifest, as `Store` names it, is one: beside them are references, students and more.

    Raises:
        UserError: a manifest is damaged.
    """
    found = []
    for manifest in runs.glob(f"{'?' * 24}/manifest.json"):
        identity, folder = read_json(manifest), manifest.parent
        if digest(identity) == folder.name:
            files = [path.stat() for path in folder.rglob("*") if path.is_file()]
            found.append(
                StoredRun(
                    folder=folder,
                    model=identity.get("model"),
                    device=identity.get("device"),
                    n_images=len([*folder.glob("images/*.png")]),
                    size_bytes=sum(file.st_size for file in files),
                    age_days=(time.time() - max(file.st_mtime for file in files)) / 86400,
                )
            )
    return sorted(found, key=lambda run: (-run.size_bytes, run.folder))


def _write_or_note(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except UserError as error:
        print_note(f"{error} Until then, these features are computed whenever a metric needs them.")


def load_or_compute(path: Path, compute: Callable[[], F32], write: Callable[[Path, bytes], object] = write_bytes) -> F32:
    """Load a float32 array, or compute and write it where the file is missing or was cut off by a crash.

    Raises:
        UserError: see `write_bytes`, or `write`.
    """
    with contextlib.suppress(OSError, UserError):
        loaded: F32 = load_array(path)
        return loaded
    computed = np.asarray(compute(), np.float32)
    buffer = io.BytesIO()
    np.save(buffer, computed)
    write(path, buffer.getvalue())
    return computed
