"""The assets of the catalogue, fetched and checked by digest.

An asset is taken from `SDBENCH_WEIGHTS` (a folder for each), else from the Hub's cache, else fetched: under a temporary
name, and renamed when its SHA-256 fits. A digest that no source states is pinned at first use, and refused when it changes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
from filelock import FileLock
from huggingface_hub.file_download import http_get

from sdbench.assets import catalogue
from sdbench.assets.catalogue import Asset, File
from sdbench.disk import write_bytes
from sdbench.errors import MissingError, UserError
from sdbench.models import hub

HOME = "SDBENCH_WEIGHTS"


@dataclass(frozen=True)
class RemoteFile:
    """A file that a model or a number needs, and whether it is on this disk."""

    repository: str
    revision: str | None
    name: str
    size_bytes: int
    cached: bool


def find(name: str) -> Path:
    """Where an asset lies, fetched if need be and checked against its digests => its file, or the folder where it has several.

    Raises:
        MissingError: it is neither here nor reachable; says which files, how large, and where to put them.
        UserError: no such asset, or a file whose digest is not the one stated or pinned.
    """
    asset = catalogue.named(name)
    place, _ = _checked(asset)
    return place / asset.files[0].name if len(asset.files) == 1 else place


def digest(name: str) -> str:
    """SHA-256 of an asset's file, or over those of all its files; what an evaluator's features are named by.

    Raises:
        MissingError, UserError: as `find`.
    """
    _, found = _checked(catalogue.named(name))
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def unverified(name: str) -> bool:
    """Whether some file's digest is only pinned, because no source states it."""
    return any(file.sha256 is None for file in catalogue.named(name).files)


def absent(wanted: Iterable[Asset]) -> list[RemoteFile]:
    """The files of those assets that are not on this disk; asks nobody."""
    return [
        RemoteFile(asset.source.partition(":")[2] if asset.hub else asset.source, None, file.name, file.size_bytes, cached=False)
        for asset in wanted
        if _place(asset) is None
        for file in asset.files
        if not (home() / asset.name / file.name).is_file()
    ]


def size_text(size_bytes: int) -> str:
    """A size in words, to two digits after the point."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e7 else f"{size_bytes / 1e6:.2f} MB"


def home() -> Path:
    """The folder of assets: `SDBENCH_WEIGHTS`, or one in the user's cache."""
    return Path(os.environ.get(HOME) or user_cache() / "weights")


def user_cache() -> Path:
    """The user's folder of what can be fetched or found out again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdbench"


def _checked(asset: Asset) -> tuple[Path, list[str]]:
    """An asset's folder, and the SHA-256 of each of its files."""
    place = _place(asset) or _fetched(asset)
    return place, [_digest(asset, file, place / file.name) for file in asset.files]


def _place(asset: Asset) -> Path | None:
    """The folder that holds all of an asset's files."""
    kept = hub.cached_snapshot(asset.hub[1], kind=asset.hub[0]) if asset.hub else None
    folders = [home() / asset.name, *([kept] if kept else [])]
    return next((folder for folder in folders if all((folder / file.name).is_file() for file in asset.files)), None)


def _fetched(asset: Asset) -> Path:
    """Fetch what is missing of an asset, in one process at a time => its folder."""
    try:
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / f".{asset.name}.lock"):
            return _place(asset) or _fetch_into(home() / asset.name, asset)
    except UserError:
        raise
    except Exception as error:  # the HTTP library's errors change with huggingface_hub's version
        raise _missing(asset, error) from error


def _fetch_into(place: Path, asset: Asset) -> Path:
    arriving = home() / f".arriving-{asset.name}"
    for file in asset.files:
        if (place / file.name).is_file():
            continue
        part = _download(asset, file, arriving)
        try:
            _digest(asset, file, part)
        except UserError:
            part.unlink()
            raise
        (place / file.name).parent.mkdir(parents=True, exist_ok=True)
        part.replace(place / file.name)
    shutil.rmtree(arriving, ignore_errors=True)
    return place


def _download(asset: Asset, file: File, folder: Path) -> Path:
    if asset.hub:
        kind, repository = asset.hub
        return Path(huggingface_hub.hf_hub_download(repository, file.name, repo_type=kind, local_dir=folder))
    if huggingface_hub.is_offline_mode():
        raise ConnectionError("offline mode is enabled (HF_HUB_OFFLINE)")
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size > file.size_bytes:  # of another answer, such as a proxy's; nobody serves what follows it
        path.unlink()
    with path.open("ab") as part:  # goes on where an earlier try was cut off
        http_get(f"{asset.source}/{file.name}", part, resume_size=part.tell(), expected_size=file.size_bytes)
    return path


def reason(error: Exception) -> str:
    """An error of another library in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"


def _missing(asset: Asset, error: Exception) -> MissingError:
    files = ", ".join(f"{file.name} ({size_text(file.size_bytes)})" for file in asset.files)
    command = (
        f"run `hf download {asset.hub[1]} --repo-type {asset.hub[0]} {' '.join(file.name for file in asset.files)}`, or "
        if asset.hub
        else ""
    )
    return MissingError(
        f"weights: {asset.name!r} is not on this disk and cannot be fetched ({reason(error)}). Needed of {asset.source}: {files}. Where there is "
        f"a network, {command}get the files there; put them into {home() / asset.name} (the environment's {HOME} names another folder than {home()})."
    )


def _digest(asset: Asset, file: File, path: Path) -> str:
    """SHA-256 of a file, which fits what its source states or what was pinned; pinned now where neither is known.

    Raises:
        UserError: it is another, or the notes are damaged.
    """
    book = home() / "digests" / f"{asset.name}.json"
    try:
        noted: dict[str, Any] = json.loads(book.read_text()) if book.is_file() else {}
    except ValueError as error:
        raise UserError(
            f"weights: {book} holds no notes on digests ({error}); delete it, and those of {asset.name!r} are taken anew"
        ) from error
    stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    kept = noted.get(file.name, {})
    # Hashing gigabytes takes longer than loading them.
    found = str(kept["sha256"]) if kept.get("seen") == stamp else _sha256(path, (stamp[0], stamp[1]))
    expected = file.sha256 or kept.get("sha256") or found
    if found != expected:
        how = "its source states" if file.sha256 else f"was pinned when it was first used; delete {book} to trust the new one"
        raise UserError(
            f"weights: {path} of {asset.name!r} has SHA-256 {found}, but {expected} {how}. Else delete the file and get it again."
        )
    if kept != (note := {"sha256": found, "seen": stamp}):
        with suppress(UserError):  # a folder that is only read keeps no notes; its files are hashed once a process
            write_bytes(book, json.dumps({**noted, file.name: note}, indent=1).encode() + b"\n")
    return found


@cache  # an encoder asks for its digest with each block of pictures
def _sha256(path: Path, stamp: tuple[int, int]) -> str:  # noqa: ARG001  # the stamp is part of what is remembered
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
