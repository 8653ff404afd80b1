"""Fetches the assets of the catalogue and checks their digests.

An asset is taken from `SDBENCH_WEIGHTS` (one folder for each), else from the Hub's cache, else downloaded: under a temporary
name, and renamed if its SHA-256 is right. If no source states a digest, it is pinned at first use, and a change is an error.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from filelock import FileLock
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import http_get

from sdbench.assets import catalogue
from sdbench.assets.catalogue import Asset, File
from sdbench.disk import file_digest, size_text, write_json
from sdbench.errors import MissingError, UserError, describe_error
from sdbench.models import hub

HOME = "SDBENCH_WEIGHTS"
PATIENCE_S = 600  # for which a host out of reach is not tried again: huggingface_hub tries for 24 s, and a suite has a dozen evaluators
_out_of_reach: dict[str, tuple[float, str]] = {}  # host, "" for the Hub -> time of the last try, and why it failed


@dataclass(frozen=True)
class RemoteFile:
    """A file that a model or a metric needs, and whether it is on this disk."""

    repository: str
    revision: str | None
    name: str
    size_bytes: int
    cached: bool


def find(name: str) -> Path:
    """Find an asset, fetch it if needed, check its digests, and return its file, or its folder if it has several files.

    Raises:
        MissingError: it is neither on this disk nor reachable; the message names the files, their sizes, and where to put them.
        UserError: there is no such asset, a file does not have the stated or pinned digest, or the file of pinned digests is damaged.
    """
    asset = catalogue.get_asset(name)
    folder, _ = _find_verified(asset)
    return folder / asset.files[0].name if len(asset.files) == 1 else folder


def digest(name: str) -> str:
    """The SHA-256 of an asset's file, or over the SHA-256 of all its files; it identifies an evaluator's features.

    Raises:
        MissingError, UserError: see `find`.
    """
    _, digests = _find_verified(catalogue.get_asset(name))
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def is_unverified(name: str) -> bool:
    """Whether the digest of any of an asset's files is only pinned, because no source states it.

    Raises:
        UserError: there is no such asset.
    """
    return any(file.sha256 is None for file in catalogue.get_asset(name).files)


def missing_files(wanted: Iterable[Asset]) -> list[RemoteFile]:
    """The files of these assets that are not on this disk; does not use the network."""
    return [
        RemoteFile(asset.hub[1] if asset.hub else asset.source, None, file.name, file.size_bytes, cached=False)
        for asset in wanted
        if _local_folder(asset) is None
        for file in asset.files
        if not (weights_folder() / asset.name / file.name).is_file()
    ]


def weights_folder() -> Path:
    """The folder of assets: `SDBENCH_WEIGHTS`, by default one in the user's cache."""
    return Path(os.environ.get(HOME) or user_cache() / "weights")


def user_cache() -> Path:
    """The folder of sdbench in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdbench"


def _find_verified(asset: Asset) -> tuple[Path, list[str]]:
    """The folder of an asset, and the verified SHA-256 of each of its files."""
    folder = _local_folder(asset) or _fetch(asset)
    return folder, [_verify(asset, file, folder / file.name) for file in asset.files]


def _local_folder(asset: Asset) -> Path | None:
    """The folder on this disk that holds all files of an asset; None if there is none."""
    snapshot = hub.cached_snapshot(asset.hub[1], kind=asset.hub[0]) if asset.hub else None
    folders = [weights_folder() / asset.name, *([snapshot] if snapshot else [])]
    return next((folder for folder in folders if all((folder / file.name).is_file() for file in asset.files)), None)


def _fetch(asset: Asset) -> Path:
    """Download the missing files of an asset, one process at a time, and return its folder."""
    host = urlsplit(asset.source).netloc
    tried, reason = _out_of_reach.get(host, (-PATIENCE_S, ""))
    if time.monotonic() < tried + PATIENCE_S:
        raise _missing_error(asset, reason)
    try:
        weights_folder().mkdir(parents=True, exist_ok=True)
        with FileLock(weights_folder() / f".{asset.name}.lock"):
            return _local_folder(asset) or _fetch_into(weights_folder() / asset.name, asset)
    except UserError:
        raise
    except Exception as error:  # the HTTP library's errors change with huggingface_hub's version
        reason = describe_error(error)
        if not huggingface_hub.is_offline_mode() and _is_out_of_reach(error):
            _out_of_reach[host] = time.monotonic(), reason
        raise _missing_error(asset, reason) from error


def _is_out_of_reach(error: Exception) -> bool:
    """Whether an error is neither an answer of the host nor one of this disk."""
    return isinstance(error, LocalEntryNotFoundError) or not isinstance(error, HfHubHTTPError | OSError)


def _fetch_into(folder: Path, asset: Asset) -> Path:
    arriving = weights_folder() / f".arriving-{asset.name}"
    for file in asset.files:
        if (folder / file.name).is_file():
            continue
        part = _download(asset, file, arriving)
        try:
            _verify(asset, file, part)
        except UserError:
            part.unlink()
            raise
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        part.replace(folder / file.name)
    shutil.rmtree(arriving, ignore_errors=True)
    return folder


def _download(asset: Asset, file: File, folder: Path) -> Path:
    if asset.hub:
        kind, repository = asset.hub
        return Path(huggingface_hub.hf_hub_download(repository, file.name, repo_type=kind, local_dir=folder))
    if huggingface_hub.is_offline_mode():
        raise ConnectionError("offline mode is enabled (HF_HUB_OFFLINE)")
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size > file.size_bytes:  # something else, such as a proxy's error page, which cannot be continued
        path.unlink()
    with path.open("ab") as part:  # continues an interrupted download
        http_get(f"{asset.source}/{file.name}", part, resume_size=part.tell(), expected_size=file.size_bytes)
    return path


def _missing_error(asset: Asset, reason: str) -> MissingError:
    return MissingError(f"weights: {asset.name!r} is not on this disk and cannot be fetched ({reason}). {how_to_get(asset)}")


def how_to_get(asset: Asset) -> str:
    """The files of an asset with their sizes, where to get them and where to put them, for messages."""
    files = ", ".join(f"{file.name} ({size_text(file.size_bytes)})" for file in asset.files)
    command = (
        f"run `hf download {asset.hub[1]} --repo-type {asset.hub[0]} {' '.join(file.name for file in asset.files)}`, or "
        if asset.hub
        else ""
    )
    return (
        f"Needed of {asset.source}: {files}. Where there is a network, {command}get the files there; put them into "
        f"{weights_folder() / asset.name} (to use another folder than {weights_folder()}, name it in the environment variable {HOME})."
    )


def _verify(asset: Asset, file: File, path: Path) -> str:
    """Check the SHA-256 of a file against the one that its source states or that was pinned, pin it if there is neither, and return it."""
    pins_file = weights_folder() / "digests" / f"{asset.name}.json"
    try:
        pins: dict[str, Any] = json.loads(pins_file.read_text(encoding="utf-8")) if pins_file.is_file() else {}
    except ValueError as error:
        raise UserError(
            f"weights: {pins_file} holds no digests ({error}); delete it, and the digests of {asset.name!r} are computed again"
        ) from error
    stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    pin = pins.get(file.name, {})
    # An unchanged file is not hashed again: hashing gigabytes takes longer than loading them.
    actual = str(pin["sha256"]) if pin.get("seen") == stamp else _sha256(path, (stamp[0], stamp[1]))
    expected = file.sha256 or pin.get("sha256") or actual
    if actual != expected:
        how = "its source states" if file.sha256 else f"was pinned when it was first used; delete {pins_file} to trust the new one"
        raise UserError(
            f"weights: {path} of {asset.name!r} has SHA-256 {actual}, but {expected} {how}. Otherwise delete the file and get it again."
        )
    if pin != (new_pin := {"sha256": actual, "seen": stamp}):
        with suppress(UserError):  # in a read-only folder nothing is pinned; its files are hashed once in each process
            write_json(pins_file, {**pins, file.name: new_pin})
    return actual


@cache  # an encoder asks for its digest with each block of images
def _sha256(path: Path, stamp: tuple[int, int]) -> str:  # noqa: ARG001  # the stamp is part of the cache key
    return file_digest(path)
