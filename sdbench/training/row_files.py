"""Arrays on disk that take hours to compute: a row for each image or caption, computed once, chunk by chunk.

A computation that was killed resumes where it stopped. The processes of a distributed run share the chunks, and threads read
the images of the next chunks ahead. Images that cannot be decoded are left out with a message, up to a share of them.

Rows that an earlier file has, of other images or captions, are copied from it. A row's last bits depend on how many rows are computed
at once, and may depend on which; therefore only rows whose whole chunk is the same are copied, and have the bytes that they would have
if they were computed.
"""

import hashlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdbench.disk import create_array, load_array, locked, size_text, write_bytes
from sdbench.errors import UndecodableError, UserError
from sdbench.notes import print_note, progress
from sdbench.training.processes import broadcast_from_main, rank_and_local_size

READERS = 8  # threads that read and decode the next images while the device encodes
FLUSH_EVERY_S = 30.0  # at most so much encoding is lost when a process is killed or the machine goes down
COPIED_AT_ONCE = 256  # rows; 80 MB of SDXL's embeddings
KEY = np.dtype("S32")  # hexadecimal digits

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowFile:
    """A file of `n` rows, computed `chunk_size` rows at a time.

    Attributes:
        path: of the complete file.
        compute: makes a tensor for each field from what `read` returned, with a row for each row number.
        read: reads the input of `compute` for some row numbers; runs in threads.
        max_undecodable: share of the rows that may be left out because their images cannot be decoded.
        inputs: returns a digest for each row of all that it is computed from; without it, no row is copied. Called by the main process.
    """

    path: Path
    n: int
    chunk_size: int
    compute: Callable[[Any], dict[str, Tensor]]
    read: Callable[[Rows], Any] = lambda rows: rows
    max_undecodable: float = 0.0
    inputs: Callable[[], Sequence[bytes]] | None = None

    @property
    def part_path(self) -> Path:
        """The path of the file while it is incomplete."""
        return self.path.with_suffix(".part")

    @property
    def marks_path(self) -> Path:
        """The path of the marks of an incomplete file: a byte for each row, 1 once the row is computed."""
        return self.path.with_suffix(".done")

    @property
    def undecodable_path(self) -> Path:
        """The path of the row numbers of undecodable images; there is no such file if all could be decoded."""
        return self.path.with_suffix(".left-out.npy")

    @property
    def keys_path(self) -> Path:
        """The path of the keys of the rows, complete or not, see `_keys`; without them, no row is copied from the file."""
        return self.path.with_suffix(".keys")

    @property
    def is_missing(self) -> bool:
        """Whether there is neither the complete file, nor an incomplete one and marks that belong to it."""
        is_started = self.part_path.exists() and self.marks_path.exists() and self.marks_path.stat().st_size == self.n
        return not self.path.exists() and not is_started

    def undecodable_rows(self) -> Rows:
        """The row numbers of undecodable images in a complete file."""
        rows: Rows = load_array(self.undecodable_path) if self.undecodable_path.exists() else np.zeros(0, np.int64)
        return rows

    def computed_rows(self) -> Rows:
        """The row numbers of what is computed, in a file that is complete or started."""
        if self.path.exists():
            return np.setdiff1d(np.arange(self.n), self.undecodable_rows())
        return np.flatnonzero(np.fromfile(self.marks_path, np.uint8) == 1)


@torch.no_grad()
def fill_and_load(*files: RowFile) -> list[npt.NDArray[np.void]]:
    """Compute the missing rows of these files, all in one folder, and return their arrays, memory-mapped, with a field for each tensor.

    One run at a time: another that needs the same rows waits for them.

    Raises:
        UserError: the disk has too little space, or a file is damaged or has no rows.
        UndecodableError: too many images cannot be decoded; what was computed is kept.
    """
    try:
        with ExitStack() as alone:
            broadcast_from_main(lambda: alone.enter_context(locked(files[0].path.parent / ".lock")))
            for file, is_complete in zip(files, broadcast_from_main(lambda: _create_missing(files)), strict=True):
                if not is_complete:
                    _fill(file)
                    broadcast_from_main(partial(_finish, file))
    except UndecodableError as error:
        raise error.followed_by(_limit(files)) from error
    return [load_array(file.path, "r") for file in files]


def _create_missing(files: Sequence[RowFile]) -> list[bool]:
    """Create array and marks of the files that are neither complete nor started, and return whether each file is complete.

    Checks the free disk space of all of them first.
    """
    new = [file for file in files if file.is_missing]
    dtypes = [_row_dtype(file) for file in new]
    folder = files[0].path.parent
    needed = sum(file.n * dtype.itemsize for file, dtype in zip(new, dtypes, strict=True))
    if needed > (free := shutil.disk_usage(folder).free):
        fields = ", ".join(name for dtype in dtypes for name in dtype.names or ())
        raise UserError(
            f"{folder} has {size_text(free)} free; {size_text(needed)} are needed for {fields} of {files[0].n:,} images. Make room, or "
            f"name another folder with --work{_sizes('. Made for other images or models: ', _files_of_others(files))}"
        )
    for file in files:
        if file.path.exists():
            _check_left_out(file, len(file.undecodable_rows()))
    for file, dtype in zip(new, dtypes, strict=True):
        file.marks_path.unlink(missing_ok=True)
        file.marks_path.write_bytes(_copy_rows(file, create_array(file.part_path, dtype, (file.n,))))
    return [file.path.exists() for file in files]


def _copy_rows(file: RowFile, array: "np.memmap[Any, Any]") -> bytes:
    """Copy the rows that other files in the folder have, complete or not, and return the marks of the new file."""
    marks = np.zeros(file.n, np.uint8)
    if file.inputs is None:
        return marks.tobytes()
    keys = _keys(file.inputs(), file.chunk_size)
    write_bytes(file.keys_path, keys.tobytes())
    for keys_path in sorted(file.path.parent.glob(f"{file.path.stem.partition('-')[0]}-*.keys")):
        known = np.fromfile(keys_path, KEY)
        other = replace(file, path=keys_path.with_suffix(".npy"), n=len(known))
        if other.is_missing:  # as is this file, which has no marks yet
            continue
        source = load_array(other.path if other.path.exists() else other.part_path, "r")
        there, missing = other.computed_rows(), np.flatnonzero(marks == 0)
        _, rows, origins = np.intersect1d(keys[missing], known[there], return_indices=True)
        rows, origins = missing[rows], there[origins]
        pieces = np.array_split(np.argsort(rows), range(COPIED_AT_ONCE, len(rows), COPIED_AT_ONCE))
        for piece in progress(pieces, desc=f"copying from {other.path.stem}", disable=not len(rows)):
            array[rows[piece]] = source[origins[piece]]
        marks[rows] = 1
    array.flush()
    return marks.tobytes()


def _keys(inputs: Sequence[bytes], chunk_size: int) -> "npt.NDArray[np.bytes_]":
    """A key for each row: a digest of the inputs of its chunk and of its place there."""
    keys = list[str]()
    for first in range(0, len(inputs), chunk_size):
        chunk = inputs[first : first + chunk_size]
        together = hashlib.sha256(b"".join(chunk)).hexdigest()
        keys += (hashlib.sha256(f"{together} {place}".encode()).hexdigest() for place in range(len(chunk)))
    return np.array(keys, KEY)


def _row_dtype(file: RowFile) -> np.dtype[np.void]:
    """The fields of a row, found by computing the first row that can be decoded."""
    for row in range(file.n):
        try:
            tensors = file.compute(file.read(np.array([row])))
        except UndecodableError:
            if row < file.max_undecodable * file.n:
                continue
            raise
        return np.dtype([(name, tensor.cpu().numpy().dtype, tuple(tensor.shape[1:])) for name, tensor in tensors.items()])
    raise UserError(f"there is nothing to compute {file.path} from")


def _fill(file: RowFile) -> None:
    """Compute this process's share of the missing rows.

    Rows are marked after they are flushed to disk, regularly and when the process ends. Undecodable rows are never marked.
    """
    array, marks = load_array(file.part_path, "r+"), np.memmap(file.marks_path, np.uint8, "r+")
    process, processes = rank_and_local_size()
    chunks = _missing_chunks(file, marks, process, processes)
    is_computed, flushed_at, undecodable = np.zeros(file.n, bool), -FLUSH_EVERY_S, 0
    ahead = _read_ahead(file.read, chunks)
    title = f"encoding {file.path.stem.split('-')[0]}"
    try:
        for chunk, wait_for_input in progress(ahead, desc=title, total=len(chunks), disable=process > 0):
            for rows, result in _compute_chunk(file, chunk, wait_for_input):
                if isinstance(result, UndecodableError):
                    undecodable += 1
                    if undecodable > file.max_undecodable * file.n:  # of all processes together, `_finish` checks
                        raise result
                    print_note(f"left out: {result}")
                    continue
                for name, tensor in result.items():
                    array[name][rows] = tensor.cpu().numpy()
                is_computed[rows] = True
            if time.monotonic() - flushed_at > FLUSH_EVERY_S:
                array.flush()
                marks[is_computed] = 1
                flushed_at = time.monotonic()
    finally:
        ahead.close()  # the garbage collector may close it inside a thread that is just starting, and so wait for its threads for ever
        array.flush()
        marks[is_computed] = 1


def _missing_chunks(file: RowFile, marks: npt.NDArray[np.uint8], process: int, processes: int) -> list[Rows]:
    """The chunks with missing rows that are this process's share, which depends only on the number of the chunk."""
    chunks = (np.arange(first, min(first + file.chunk_size, file.n)) for first in range(0, file.n, file.chunk_size))
    return [chunk for number, chunk in enumerate(chunks) if number % processes == process and not marks[chunk].all()]


def _read_ahead(read: Callable[[Rows], Any], chunks: Sequence[Rows]) -> Generator[tuple[Rows, Callable[[], Any]], None, None]:
    """Yield each chunk with a function that waits for its input, while threads read the next chunks."""
    pending = deque[tuple[Rows, Callable[[], Any]]]()
    with ThreadPoolExecutor(READERS) as pool:
        for chunk in chunks:
            pending.append((chunk, pool.submit(read, chunk).result))
            if len(pending) > READERS:
                yield pending.popleft()
        yield from pending


def _compute_chunk(
    file: RowFile, chunk: Rows, wait_for_input: Callable[[], Any]
) -> Iterator[tuple[Rows, dict[str, Tensor] | UndecodableError]]:
    """Yield rows and their tensors: the whole chunk, or its rows one by one if an image in it cannot be decoded."""
    try:
        yield chunk, file.compute(wait_for_input())
    except UndecodableError as error:
        if len(chunk) == 1:
            yield chunk, error
            return
        for row in chunk:
            rows = np.array([row])
            yield from _compute_chunk(file, rows, partial(file.read, rows))


def _finish(file: RowFile) -> None:
    """Give the complete file its name, and remove its marks.

    Raises:
        UndecodableError: the processes together have left out too many images.
    """
    undecodable = np.flatnonzero(np.fromfile(file.marks_path, np.uint8) == 0)
    _check_left_out(file, len(undecodable))
    file.undecodable_path.unlink(missing_ok=True)  # of a file that was deleted, or of a run that was killed here
    if len(undecodable):
        np.save(file.undecodable_path, undecodable)
    file.part_path.rename(file.path)
    file.marks_path.unlink()


def _check_left_out(file: RowFile, n: int) -> None:
    """Check that no more images were left out than may be, be it by this run or, in a complete file, by one that might leave out more."""
    if n > file.max_undecodable * file.n:
        raise UndecodableError(f"{n:,} of {file.n:,} images cannot be decoded, those reported as left out")


def _limit(files: Sequence[RowFile]) -> str:
    """How many images may be left out, and the ways to go on where there are more."""
    started = [path for file in files for path in (file.path, file.part_path) if path.exists()]
    return (
        f"At most {100 * max(file.max_undecodable for file in files):.3g} % of the images may be left out. To leave out more, raise "
        "--max-undecodable, which keeps what is encoded of the same images"
        f"{_sizes('. After a change to an image or a row, most is copied from these files, which are of no use after that: ', started)}"
    )


def _files_of_others(files: Sequence[RowFile]) -> list[Path]:
    """The files in the folder with rows of the same kinds, complete or not, that are not these."""
    own = {path for file in files for path in (file.path, file.part_path)}
    found = {path for file in files for path in file.path.parent.glob(f"{file.path.stem.partition('-')[0]}-*")}
    return sorted(path for path in found - own if path.suffixes in ([".npy"], [".part"]))


def _sizes(title: str, paths: Sequence[Path]) -> str:
    """The title, and the paths with their sizes; nothing if there are none."""
    return title + ", ".join(f"{path} ({size_text(path.stat().st_size)})" for path in paths) if paths else ""
