"""Arrays on disk that take hours to make: a row for each picture or caption, made once, chunk by chunk.

Making that was killed goes on where it stood. The processes of a distributed run share the chunks out, and threads read what the
next ones are made of. Rows of pictures that cannot be decoded are left out and said, up to one in a hundred.
"""

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from sdbench.errors import UndecodableError, UserError
from sdbench.training.processes import from_main, sharing

READERS = 8  # threads that read and decode the next pictures while the device encodes
UNFLUSHED_S = 30.0  # of encoding, which is lost at most where a process is killed or the machine goes down
UNDECODABLE = 0.01  # of the pictures, which may be left out


@dataclass(frozen=True)
class RowFile:
    """A file of `n` rows that `make` gives of what `read`, in threads, read for it; `at_once` of them at a time.

    Beside it, while it is not whole: itself with the suffix `.part`, and `.done`, a byte for each row, 1 once it is made.
    """

    path: Path
    n: int
    at_once: int
    make: Callable[[Any], dict[str, Tensor]]
    read: Callable[[npt.NDArray[np.int64]], Any] = lambda rows: rows

    @property
    def beside(self) -> Path:
        """The file that is not whole."""
        return self.path.with_suffix(".part")

    @property
    def done(self) -> Path:
        """The marks."""
        return self.path.with_suffix(".done")

    @property
    def begun(self) -> bool:
        """Whether file and marks are there and belong together."""
        return self.beside.exists() and self.done.exists() and self.done.stat().st_size == self.n

    def left_out(self) -> npt.NDArray[np.int64]:
        """Rows of pictures that cannot be decoded, once the file is whole."""
        noted = self.path.with_suffix(".left-out.npy")
        found: npt.NDArray[np.int64] = np.load(noted) if noted.exists() else np.zeros(0, np.int64)
        return found


@torch.no_grad()
def filled(*wanted: RowFile) -> list[npt.NDArray[np.void]]:
    """The arrays of these files of one folder, with a field for each tensor; what is there already is not made again."""
    for rows, is_there in zip(wanted, from_main(lambda: _begin(wanted)), strict=True):
        if not is_there:
            _fill(rows)
            from_main(partial(_end, rows))
    return [np.load(rows.path, mmap_mode="r") for rows in wanted]


def _begin(wanted: Sequence[RowFile]) -> list[bool]:
    """See to a file and its marks for each that is not whole => which are whole.

    Where the disk cannot hold them all, writing would kill the process hours later, so that is seen first.
    """
    new = [rows for rows in wanted if not rows.path.exists() and not rows.begun]
    kinds = [_kind(rows) for rows in new]
    folder = wanted[0].path.parent
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(rows.n * kind.itemsize for rows, kind in zip(new, kinds, strict=True))
    if needed > (free := shutil.disk_usage(folder).free):
        fields = ", ".join(name for kind in kinds for name in kind.names or ())
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed for {fields} of {wanted[0].n:,} pictures. Make room, or name another folder with --work"
        )
    for rows, kind in zip(new, kinds, strict=True):
        rows.done.unlink(missing_ok=True)
        np.lib.format.open_memmap(rows.beside, "w+", kind, (rows.n,))  # takes no room before it is written to
        rows.done.write_bytes(bytes(rows.n))
    return [rows.path.exists() for rows in wanted]


def _kind(rows: RowFile) -> np.dtype[np.void]:
    """Fields of a row, from the first that can be made."""
    for row in range(rows.n):
        try:
            made = rows.make(rows.read(np.array([row])))
        except UndecodableError:
            if row < UNDECODABLE * rows.n:
                continue
            raise
        return np.dtype([(name, tensor.cpu().numpy().dtype, tuple(tensor.shape[1:])) for name, tensor in made.items()])
    raise UserError(f"there is nothing to make {rows.path} of")


def _fill(rows: RowFile) -> None:
    """Make this process's share of the rows that are not there; which chunks these are follows from their number alone.

    Rows are marked once they are on the disk, or as the process ends; those that cannot be made never are.
    """
    array, marks = np.load(rows.beside, mmap_mode="r+"), np.memmap(rows.done, np.uint8, "r+")
    (process, processes), chunks = sharing(), range(0, rows.n, rows.at_once)
    mine = [first for number, first in enumerate(chunks) if number % processes == process and not marks[first : first + rows.at_once].all()]
    fresh, flushed, torn = np.zeros(rows.n, bool), -UNFLUSHED_S, 0
    ahead = _read_ahead(rows.read, [np.arange(first, min(first + rows.at_once, rows.n)) for first in mine])
    try:
        for whole, read in tqdm(
            ahead, desc=f"encoding {rows.path.stem.split('-')[0]}", total=len(mine), mininterval=2, disable=process > 0
        ):
            for chunk, made in _made(rows, whole, read):
                if isinstance(made, UndecodableError):
                    torn += 1
                    if torn > UNDECODABLE * rows.n / processes:
                        raise made
                    tqdm.write(f"left out: {made}", file=sys.stderr)
                    continue
                for name, tensor in made.items():
                    array[name][chunk] = tensor.cpu().numpy()
                fresh[chunk] = True
            if time.monotonic() - flushed > UNFLUSHED_S:
                array.flush()
                marks[fresh] = 1
                flushed = time.monotonic()
    finally:
        ahead.close()  # left to the garbage collector, it may wait for threads in one that only begins, for ever
        array.flush()
        marks[fresh] = 1


def _read_ahead(
    read: Callable[[npt.NDArray[np.int64]], Any], chunks: Sequence[npt.NDArray[np.int64]]
) -> Generator[tuple[npt.NDArray[np.int64], Callable[[], Any]], None, None]:
    """Chunks in turn, each with a function that waits for what was read of it, while the next ones are read."""
    pool, pending = ThreadPoolExecutor(READERS), deque[tuple[npt.NDArray[np.int64], Callable[[], Any]]]()
    try:
        for chunk in chunks:
            pending.append((chunk, pool.submit(read, chunk).result))
            if len(pending) > READERS:
                yield pending.popleft()
        yield from pending
    finally:
        pool.shutdown(cancel_futures=True)


def _made(
    rows: RowFile, chunk: npt.NDArray[np.int64], read: Callable[[], Any]
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, Tensor] | UndecodableError]]:
    """What can be made of a chunk: all at once, or else one by one."""
    try:
        yield chunk, rows.make(read())
    except UndecodableError as error:
        if len(chunk) == 1:
            yield chunk, error
            return
        for row in chunk:
            alone = np.array([row])
            yield from _made(rows, alone, partial(rows.read, alone))


def _end(rows: RowFile) -> None:
    with suppress(FileNotFoundError):  # another run in the same folder was done sooner; both filled one file, with the same rows
        if len(left_out := np.flatnonzero(np.fromfile(rows.done, np.uint8) == 0)):
            np.save(rows.path.with_suffix(".left-out.npy"), left_out)
        rows.beside.rename(rows.path)
        rows.done.unlink()
