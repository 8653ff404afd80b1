"""Locks between commands, files that get their space at once, and reading what earlier runs wrote."""

import errno
import os
import signal
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from filelock import FileLock, Timeout
from processes import by_one, is_locked

from sdbench.disk import create_array, load_array, locked, read_json, read_json_lines, write_json_lines
from sdbench.errors import UserError


def hold_until_killed(path: Path) -> None:
    with locked(path):
        os.kill(os.getpid(), signal.SIGKILL)


def test_lock_excludes_others_while_open(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    with locked(path):
        assert is_locked(path)
    assert not is_locked(path)


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    assert by_one(hold_until_killed, tmp_path / ".lock") == -signal.SIGKILL
    assert not is_locked(tmp_path / ".lock")


def test_command_that_waits_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    timeouts = []

    def acquire(_: FileLock, timeout: float = -1) -> None:
        timeouts.append(timeout)
        if timeout == 0:
            raise Timeout("held by another")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with locked(tmp_path / ".lock"):
        assert timeouts == [0, -1]
    assert capsys.readouterr().err == f"waiting for another command that works in {tmp_path}\n"


def test_lock_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot lock .*file/\.lock: .*Make its folder writable"), locked(tmp_path / "file" / ".lock"):
        pass


def test_file_system_without_locks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with (
        pytest.raises(UserError, match=r"cannot lock .*\.lock: FileSystem .*\. Make its folder writable, or name another"),
        locked(tmp_path / ".lock"),
    ):
        pass


def test_space_of_an_array_is_taken_when_it_is_created(tmp_path: Path) -> None:
    array = create_array(tmp_path / "a.npy", np.uint8, (300, 1000))
    assert not array.any()
    assert 512 * (tmp_path / "a.npy").stat().st_blocks >= 300_000


def test_array_without_space_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot create .*a\.npy, 12 MB: No space left on device\. Make room"):
        create_array(tmp_path / "a.npy", np.float32, (3, 1_000_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mmap_mode", [None, "r", "r+"])
def test_damaged_array_is_named(mmap_mode: Literal["r", "r+"] | None, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(3))
    assert load_array(path, mmap_mode).tolist() == [0, 1, 2]
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content.replace(b"{", b"(", 1)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.npy is damaged .*; remove it, and run the same command again"):
            load_array(path, mmap_mode)
        assert path.read_bytes() == damaged


def test_half_a_line_at_the_end_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert list(read_json_lines(log)) == []
    log.write_text('{"a": "\u2028"}\n{"a": 2}\n{"a":', encoding="utf-8")
    assert list(read_json_lines(log)) == [{"a": "\u2028"}, {"a": 2}]
    log.write_bytes(b'{"a": 1}\n\0\0\0\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"line 2 of .*log\.jsonl is damaged .*; remove that line"):
        list(read_json_lines(log))


@pytest.mark.parametrize("content", [b"", b"[1", b'"\xff"', b"{}", b"[1]", b"null"])
def test_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "losses.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"losses\.json is damaged .*; restore it, or move {tmp_path} away"):
        read_json(path, lambda losses: losses["task"])
    with pytest.raises(UserError, match=rf"or move {path} away to start that part again"):
        read_json(path, lambda losses: losses["task"], part=path)


def test_captions_in_any_language_stay_readable(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "metadata.jsonl", [{"caption": "eine Tür"}])
    assert (tmp_path / "metadata.jsonl").read_text(encoding="utf-8") == '{"caption": "eine Tür"}\n'
