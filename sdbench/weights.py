"""What is fetched from outside: whole pipelines into huggingface_hub's cache, and the assets of `assets.py` by digest.

An asset is taken from `SDBENCH_WEIGHTS` (a folder for each), else from the Hub's cache, else fetched: under a temporary
name, and renamed when its SHA-256 fits. A digest that no source states is pinned at first use, and refused when it changes.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from filelock import FileLock
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import http_get

from sdbench import assets
from sdbench.assets import Asset, File
from sdbench.errors import MissingError, UserError
from sdbench.models import hub
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.files import STEMS, choose, kind_of, read_header
from sdbench.models.locate import locate
from sdbench.models.spec import ModelSpec

HOME = "SDBENCH_WEIGHTS"
_CONFIGS = ("model_index.json", "scheduler/*.json", "tokenizer*/*.json", "tokenizer*/*.txt", *(f"{part}/config.json" for part in STEMS))


@dataclass(frozen=True)
class RemoteFile:
    """A file of a Hub repository that a model needs."""

    repository: str
    revision: str | None
    name: str
    size_bytes: int
    cached: bool


@dataclass(frozen=True)
class _Job:
    """What to take of a repository: configurations, and the weights of some parts; or a LoRA."""

    repository: str
    revision: str | None
    kind: Literal["pipeline", "unet", "lora"]
    parts: tuple[str, ...] = ()


def files_to_fetch(spec: ModelSpec, *, dtype: str) -> list[RemoteFile]:
    """The files of the Hub that a model needs, those that are here already included; none for models that are not of the Hub.

    Args:
        spec: the model.
        dtype: what the run computes in: a 16-bit run takes the 16-bit copy of the weights, if there is one.

    Raises:
        UserError: the Hub cannot be reached, or the repository lacks something.
    """
    return [file for job in _jobs(spec) for file in _list(job, sixteen_bit=dtype != "float32")]


def is_cached(spec: ModelSpec, *, dtype: str) -> bool:
    """Whether everything a model needs is on this disk; asks nobody."""
    if spec.source in ("random", "rendered"):
        return True
    try:
        files = locate(spec).weights(sixteen_bit=dtype != "float32")
    except UserError:
        return False
    return all(path.is_file() for paths in files.values() for path in paths)


def fetch(spec: ModelSpec, *, dtype: str) -> None:
    """Download what a model needs and this disk lacks.

    Raises:
        UserError: the Hub cannot be reached, or the repository lacks something.
    """
    jobs = _jobs(spec)
    if not jobs or is_cached(spec, dtype=dtype):
        return
    for job in jobs:
        names = [file.name for file in _list(job, sixteen_bit=dtype != "float32")]
        try:
            huggingface_hub.snapshot_download(job.repository, revision=job.revision, allow_patterns=names)
        except Exception as error:  # the HTTP library beneath, and so its errors, change with huggingface_hub's version
            raise _unreachable(job, error) from error


def _jobs(spec: ModelSpec) -> list[_Job]:
    jobs = []
    if spec.source == "hub":
        jobs.append(_Job(spec.location, spec.revision, "unet" if spec.base else "pipeline", ("unet",) if spec.base else tuple(STEMS)))
    if spec.base and spec.base.source == "hub":
        jobs.append(_Job(spec.base.location, spec.base.revision, "pipeline", _lent(spec)))
    if spec.lora and not Path(spec.lora).is_absolute():
        jobs.append(_Job(spec.lora, None, "lora"))
    return jobs


def _lent(spec: ModelSpec) -> tuple[str, ...]:
    """Parts whose weights come from the base."""
    whole = spec.source == "file" and kind_of(Path(spec.location), read_header(Path(spec.location))) == "checkpoint"
    return () if whole else tuple(part for part in STEMS if part != "unet")


def _list(job: _Job, *, sixteen_bit: bool) -> list[RemoteFile]:
    try:
        siblings = huggingface_hub.HfApi().model_info(job.repository, revision=job.revision, files_metadata=True).siblings or []
    except Exception as error:  # as above
        raise _unreachable(job, error) from error
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in siblings}
    here = hub.cached(job.repository, job.revision)
    wanted = sorted(set(_wanted(job, sizes, sixteen_bit=sixteen_bit)))
    return [RemoteFile(job.repository, job.revision, name, sizes[name], here is not None and (here / name).is_file()) for name in wanted]


def _wanted(job: _Job, names: dict[str, int], *, sixteen_bit: bool) -> Iterator[str]:
    if job.kind == "lora":
        yield from (name for name in names if fnmatch(name, "*.safetensors") and "/" not in name)
        return
    patterns = ("config.json",) if job.kind == "unet" else _CONFIGS
    yield from (name for name in names if any(fnmatch(name, pattern) for pattern in patterns))
    for part in job.parts:
        folder = "" if job.kind == "unet" else f"{part}/"
        choice = choose((name.removeprefix(folder) for name in names if name.startswith(folder)), STEMS[part], sixteen_bit=sixteen_bit)
        if choice is None:
            raise UserError(
                f"repository {job.repository!r} has no {folder}{STEMS[part]}.safetensors; only safetensors in diffusers layout are read"
            )
        yield from (f"{folder}{name}" for name in choice.names)


def _unreachable(job: _Job, error: Exception) -> UserError:
    entry = next((entry for entry in CATALOGUE.values() if entry.location == job.repository), None)
    size = f" (about {entry.download_gb} GB)" if entry and job.kind == "pipeline" and job.parts else ""
    needed = {
        "pipeline": ", ".join((*_CONFIGS, *(f"{part}/{STEMS[part]}*.safetensors" for part in job.parts))),
        "unet": f"config.json, {STEMS['unet']}*.safetensors",
    }
    return UserError(
        f"cannot fetch {job.repository!r} from the Hub ({_reason(error)}). "
        f"Needed{size}: {needed.get(job.kind, '*.safetensors')}. Where there is a network, run `hf download {job.repository}"
        f"{f' --revision {job.revision}' if job.revision else ''}` and copy its folder into {HF_HUB_CACHE}; or put the files in a folder and name that folder."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"


def find(name: str) -> Path:
    """Where an asset lies, fetched if need be and checked against its digests => its file, or the folder where it has several.

    Raises:
        MissingError: it is neither here nor reachable; says which files, how large, and where to put them.
        UserError: no such asset, or a file whose digest is not the one stated or pinned.
    """
    asset = assets.named(name)
    place, _ = _checked(asset)
    return place / asset.files[0].name if len(asset.files) == 1 else place


def digest(name: str) -> str:
    """SHA-256 of an asset's file, or over those of all its files; what an evaluator's features are named by.

    Raises:
        MissingError, UserError: as `find`.
    """
    _, found = _checked(assets.named(name))
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def unverified(name: str) -> bool:
    """Whether some file's digest is only pinned, because no source states it."""
    return any(file.sha256 is None for file in assets.named(name).files)


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
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(HOME) or Path(caches) / "sdbench" / "weights")


def _checked(asset: Asset) -> tuple[Path, list[str]]:
    """An asset's folder, and the SHA-256 of each of its files."""
    place = _place(asset) or _fetched(asset)
    return place, [_digest(asset, file, place / file.name) for file in asset.files]


def _place(asset: Asset) -> Path | None:
    """The folder that holds all of an asset's files."""
    kept = hub.cached(asset.hub[1], kind=asset.hub[0]) if asset.hub else None
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
    except Exception as error:  # as above
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


def _missing(asset: Asset, error: Exception) -> MissingError:
    files = ", ".join(f"{file.name} ({size_text(file.size_bytes)})" for file in asset.files)
    command = (
        f"run `hf download {asset.hub[1]} --repo-type {asset.hub[0]} {' '.join(file.name for file in asset.files)}`, or "
        if asset.hub
        else ""
    )
    return MissingError(
        f"weights: {asset.name!r} is not on this disk and cannot be fetched ({_reason(error)}). Needed of {asset.source}: {files}. Where there is "
        f"a network, {command}get the files there; put them into {home() / asset.name} (the environment's {HOME} names another folder than {home()})."
    )


def _digest(asset: Asset, file: File, path: Path) -> str:
    """SHA-256 of a file, which fits what its source states or what was pinned; pinned now where neither is known.

    Raises:
        UserError: it is another.
    """
    book = home() / "digests" / f"{asset.name}.json"
    noted: dict[str, Any] = json.loads(book.read_text()) if book.is_file() else {}
    stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    kept = noted.get(file.name, {})
    if kept.get("seen") == stamp:  # hashing gigabytes takes longer than loading them
        found = str(kept["sha256"])
    else:
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    expected = file.sha256 or kept.get("sha256") or found
    if found != expected:
        how = "its source states" if file.sha256 else f"was pinned when it was first used; delete {book} to trust the new one"
        raise UserError(
            f"weights: {path} of {asset.name!r} has SHA-256 {found}, but {expected} {how}. Else delete the file and get it again."
        )
    if kept != (note := {"sha256": found, "seen": stamp}):
        with suppress(OSError):  # a folder that is only read keeps no notes; its files are hashed each time
            book.parent.mkdir(parents=True, exist_ok=True)
            beside = book.with_name(f".{book.name}.{os.getpid()}")
            beside.write_text(json.dumps({**noted, file.name: note}, indent=1) + "\n")
            beside.replace(book)
    return found
