"""Fetches pipelines from the Hub into huggingface_hub's cache: only the configurations and one copy of the weights."""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from sdbench.assets.weights import RemoteFile
from sdbench.errors import UserError, describe_error
from sdbench.models import hub
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.files import (
    LORA_FILE,
    PICKLES,
    PIPELINE_CLASS,
    SHARED_PARTS,
    STEMS,
    checkpoint_kind,
    choose_lora_file,
    choose_weight_files,
    read_part_config,
    unet_folder,
)
from sdbench.models.headers import read_header
from sdbench.models.locate import check_pipeline, locate
from sdbench.models.spec import ModelSpec
from sdbench.notes import print_note

_SHOWN_FILES = 12
_CARD = ("README.md", "LICENSE*")
_CONFIGS = (
    "model_index.json",
    *_CARD,
    "scheduler/*.json",
    "tokenizer*/*.json",
    "tokenizer*/*.txt",
    *(f"{part}/config.json" for part in STEMS),
)


@dataclass(frozen=True)
class _Download:
    """What to download from one repository: configurations and the weights of some parts, or a LoRA."""

    repository: str
    revision: str | None
    kind: Literal["pipeline", "unet", "lora"]
    parts: tuple[str, ...] = ()


class _UnreachableError(UserError):
    """The Hub gave no list of files: those on this disk may have to do."""


def required_files(spec: ModelSpec, *, dtype: str) -> list[RemoteFile]:
    """The files that a model needs from the Hub, including those already on this disk; none for models from elsewhere.

    Args:
        dtype: precision of the run: a 16-bit run takes the 16-bit copy of the weights, if there is one.

    Raises:
        UserError: the Hub cannot be reached, or the repository lacks something.
    """
    return [file for download in _downloads(spec) for file in _list_files(download, sixteen_bit=dtype != "float32")]


def is_here(spec: ModelSpec, *, dtype: str) -> bool:
    """Whether a model can be loaded from this disk, though maybe not from the files that the Hub would have; does not ask the Hub."""
    if spec.source in ("random", "rendered"):
        return True
    try:
        files = locate(spec).weights(sixteen_bit=dtype != "float32")
    except UserError:
        return False
    return all(path.is_file() for part_files in files.values() for path in part_files)


def is_cached(spec: ModelSpec, *, dtype: str) -> bool:
    """Whether all files that a model needs are on this disk; does not ask the Hub.

    False where only the Hub knows: for a float32 run if only a 16-bit copy is here, whether there is a 32-bit copy too, and for a LoRA
    without diffusers' own name, whether its repository has others.
    """
    return is_here(spec, dtype=dtype) and not _doubtful_files(spec, dtype=dtype)


def _doubtful_files(spec: ModelSpec, *, dtype: str) -> list[str]:
    """Those files of a model on this disk in whose place the Hub may have others, in words; none where the model cannot be loaded."""
    if is_local(spec) or not is_here(spec, dtype=dtype):
        return []
    paths, doubtful = locate(spec), []
    files = [path for part_files in paths.weights(sixteen_bit=dtype != "float32").values() for path in part_files]
    if dtype == "float32" and any(".fp16" in path.name for path in files):
        doubtful.append("its 16-bit copy")
    if paths.lora and _hub_lora(spec) and paths.lora.name != LORA_FILE:
        doubtful.append(paths.lora.name)
    return doubtful


def is_local(spec: ModelSpec) -> bool:
    """Whether no part of a model comes from the Hub."""
    return not _downloads(spec)


def missing_files(spec: ModelSpec, *, dtype: str) -> list[RemoteFile]:
    """The files that `fetch` would download; none if the Hub cannot be reached and the run falls back to what is here.

    Raises:
        UserError: see `fetch`.
    """
    if is_cached(spec, dtype=dtype):
        return []
    try:
        return [file for file in required_files(spec, dtype=dtype) if not file.cached]
    except _UnreachableError:
        if not _doubtful_files(spec, dtype=dtype):
            raise
        return []


def fetch(spec: ModelSpec, *, dtype: str) -> None:
    """Download the files that a model needs and this disk lacks.

    If the Hub cannot be reached, a run falls back to what is on this disk, with a message: a float32 run to a 16-bit copy, and any run to a
    LoRA that may not be the only one of its repository.

    Raises:
        UserError: the Hub cannot be reached, or the repository lacks something.
    """
    if is_cached(spec, dtype=dtype):
        return
    try:
        for download in _downloads(spec):
            _fetch(download, sixteen_bit=dtype != "float32")
    except _UnreachableError as error:
        if not (doubtful := _doubtful_files(spec, dtype=dtype)):
            raise
        print_note(f"{spec.name}: using {' and '.join(doubtful)}, the only one on this disk. {error}")


def fetch_card(spec: ModelSpec) -> None:
    """Download the model card and the licence of a Hub pipeline whose snapshot lacks them, as `diffusers` leaves it.

    If the Hub cannot be reached, print a message and go on.
    """
    folder = hub.cached_snapshot(spec.location, spec.revision) if spec.source == "hub" else None
    if folder is None or (folder / "README.md").is_file():
        return
    try:  # at the commit of the weights: a newer snapshot would replace theirs, and lack the weights
        huggingface_hub.snapshot_download(spec.location, revision=folder.name, allow_patterns=list(_CARD))
    except Exception as error:  # noqa: BLE001  # whatever it was, a missing licence must not stop a run
        print_note(f"{spec.name}: no README.md in {folder}, and so no licence ({describe_error(error)}); put it there")


def _fetch(download: _Download, *, sixteen_bit: bool) -> None:
    names = [file.name for file in _list_files(download, sixteen_bit=sixteen_bit)]
    if download.kind != "lora":
        folder = _fetch_files(download, [name for name in names if not name.endswith(".safetensors")])
        _check_configs(download, folder)  # before the gigabytes
        download = replace(download, revision=folder.name)
    _fetch_files(download, names)


def _check_configs(download: _Download, folder: Path) -> None:
    if download.kind == "pipeline":
        check_pipeline(folder)
    for part in download.parts:
        read_part_config(folder / part if download.kind == "pipeline" else unet_folder(folder))


def _fetch_files(download: _Download, names: list[str]) -> Path:
    """Download files of a repository, and return the folder of its snapshot."""
    try:
        return Path(huggingface_hub.snapshot_download(download.repository, revision=download.revision, allow_patterns=names))
    except Exception as error:  # the HTTP library beneath, and so its errors, change with huggingface_hub's version
        raise _fetch_error(download, error) from error


def _downloads(spec: ModelSpec) -> list[_Download]:
    downloads = []
    if spec.source == "hub":
        downloads.append(
            _Download(spec.location, spec.revision, "unet" if spec.base else "pipeline", ("unet",) if spec.base else tuple(STEMS))
        )
    if spec.base and spec.base.source == "hub":
        downloads.append(_Download(spec.base.location, spec.base.revision, "pipeline", _parts_from_base(spec)))
    if lora := _hub_lora(spec):
        downloads.append(_Download(lora, None, "lora"))
    return [*map(_at_cached_commit, downloads)]


def _at_cached_commit(download: _Download) -> _Download:
    """The same of the commit that is on this disk, if one is: a newer one would take its place, without the copies that it has."""
    snapshot = hub.cached_snapshot(download.repository, download.revision)
    return replace(download, revision=snapshot.name) if snapshot else download


def _hub_lora(spec: ModelSpec) -> str | None:
    """The Hub repository of a model's LoRA; None if it has none, or one from elsewhere."""
    return spec.lora if spec.lora and not Path(spec.lora).is_absolute() else None


def _parts_from_base(spec: ModelSpec) -> tuple[str, ...]:
    """The parts whose weights come from the base."""
    has_all_parts = spec.source == "file" and checkpoint_kind(Path(spec.location), read_header(Path(spec.location))) == "checkpoint"
    return () if has_all_parts else SHARED_PARTS


def _list_files(download: _Download, *, sixteen_bit: bool) -> list[RemoteFile]:
    try:
        info = huggingface_hub.HfApi().model_info(download.repository, revision=download.revision, files_metadata=True)
    except Exception as error:  # see `_fetch_files`
        raise _fetch_error(download, error) from error
    kind = (info.config or {}).get("diffusers", {}).get("_class_name", PIPELINE_CLASS)  # the Hub reads it from model_index.json
    if download.kind == "pipeline" and kind != PIPELINE_CLASS:
        raise UserError(
            f"repository {download.repository!r} is a {kind!r}, expected {PIPELINE_CLASS!r}; only SDXL pipelines and their students are "
            "measured"
        )
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    snapshot = hub.cached_snapshot(download.repository, download.revision)
    wanted = sorted(set(_select(download, sizes, sixteen_bit=sixteen_bit)))
    return [
        RemoteFile(download.repository, download.revision, name, sizes[name], snapshot is not None and (snapshot / name).is_file())
        for name in wanted
    ]


def _select(download: _Download, names: dict[str, int], *, sixteen_bit: bool) -> Iterator[str]:
    if download.kind == "lora":
        yield _select_lora(download.repository, [name for name in names if "/" not in name])
        return
    is_pipeline = "model_index.json" in names
    if download.kind == "unet" and is_pipeline:
        raise UserError(f"{download.repository!r} is already a complete pipeline; leave --base out, it only completes a bare UNet")
    if download.kind == "pipeline" and not is_pipeline:
        raise _layout_error(download, "model_index.json, which a pipeline has (a UNet alone needs --base)", names)
    of_unet = "" if download.kind == "unet" and "config.json" in names else "unet/"  # see `unet_folder`
    patterns = (f"{of_unet}config.json",) if download.kind == "unet" else _CONFIGS
    yield from (name for name in names if any(fnmatch(name, pattern) for pattern in patterns))
    for part in download.parts:
        folder = of_unet if part == "unet" else f"{part}/"
        choice = choose_weight_files(
            (name.removeprefix(folder) for name in names if name.startswith(folder)), STEMS[part], sixteen_bit=sixteen_bit
        )
        if choice is None:
            raise _layout_error(download, f"{folder}{STEMS[part]}.safetensors", names)
        yield from (f"{folder}{name}" for name in choice.names)


def _layout_error(download: _Download, missing: str, names: Iterable[str]) -> UserError:
    """An error on a repository that is not in diffusers layout, which may hold checkpoints in single files instead."""
    weights = sorted(name for name in names if name.endswith((".safetensors", *PICKLES)))
    found = ", ".join(weights[:_SHOWN_FILES]) or "no weights"
    more = f" and {len(weights) - _SHOWN_FILES} more" if len(weights) > _SHOWN_FILES else ""
    return UserError(
        f"repository {download.repository!r} has no {missing}; only safetensors in diffusers layout are read from the Hub. It holds "
        f"{found}{more}. To measure one of its files, fetch that, `hf download {download.repository} FILE --local-dir .`, with the "
        "config.json beside it if there is one, and name it"
    )


def _select_lora(repository: str, names: list[str]) -> str:
    """The LoRA among the files in the root of a repository, which may also hold gigabytes of others."""
    chosen = choose_lora_file(names)
    if chosen is None:
        found = ", ".join(sorted(name for name in names if name.endswith(".safetensors"))) or "none"
        raise UserError(
            f"LoRA {repository!r}: expected {LORA_FILE} or a single .safetensors file in its root, found {found}. Fetch the one that "
            f"you mean, `hf download {repository} FILE --local-dir .`, and name it with --lora FILE"
        )
    return chosen


def _fetch_error(download: _Download, error: Exception) -> _UnreachableError:
    repository = download.repository
    match error:  # a gated repository is also one that is not found
        case GatedRepoError():
            return _UnreachableError(
                f"{repository!r} is gated: accept its terms at {constants.ENDPOINT}/{repository}, then `hf auth login`"
            )
        case RevisionNotFoundError():
            return _UnreachableError(f"{repository!r} has no revision {download.revision!r} on the Hub")
        case RepositoryNotFoundError():
            return _UnreachableError(f"there is no {repository!r} on the Hub, or it is private: check the name, or `hf auth login`")
    entry = next((entry for entry in CATALOGUE.values() if entry.location == repository), None)
    size = f" (about {entry.download_gb} GB in 16 bits)" if entry and download.kind == "pipeline" and download.parts else ""
    patterns = {
        "pipeline": ("*.json", "*.txt", *_CARD, *(f"{part}/{STEMS[part]}*.safetensors" for part in download.parts)),
        "unet": tuple(f"{place}{name}" for place in ("", "unet/") for name in ("config.json", f"{STEMS['unet']}*.safetensors*")),
        "lora": (LORA_FILE,),
    }
    revision = ["--revision", download.revision] if download.revision else []
    command = shlex.join(["hf", "download", repository, *revision, *(f"--include={pattern}" for pattern in patterns[download.kind])])
    return _UnreachableError(
        f"cannot fetch {repository!r} from the Hub ({describe_error(error)}). Needed{size} is what `{command}` fetches"
        f"{', or the only .safetensors file' if download.kind == 'lora' else ''}: run that where there is a network, and copy its folder "
        f"into {constants.HF_HUB_CACHE}; or put the files in a folder and name that folder."
    )
