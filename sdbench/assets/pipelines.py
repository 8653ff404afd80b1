"""Whole pipelines of the Hub, fetched into huggingface_hub's cache: of a repository only the configurations and one copy of the weights."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub.constants import HF_HUB_CACHE
from tqdm import tqdm

from sdbench.assets.weights import RemoteFile, reason
from sdbench.errors import UserError
from sdbench.models import hub
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.files import STEMS, checkpoint_kind, choose_weight_files, read_header
from sdbench.models.locate import locate
from sdbench.models.spec import ModelSpec

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
    """Whether everything a model needs is on this disk; asks nobody.

    A 16-bit copy alone is not what a float32 run needs: whether the repository has another, only the Hub can say.
    """
    if spec.source in ("random", "rendered"):
        return True
    try:
        files = locate(spec).weights(sixteen_bit=dtype != "float32")
    except UserError:
        return False
    paths = [path for of_part in files.values() for path in of_part]
    lower = dtype == "float32" and any(".fp16" in path.name for path in paths) and bool(_jobs(spec))
    return all(path.is_file() for path in paths) and not lower


def absent(spec: ModelSpec, *, dtype: str) -> list[RemoteFile]:
    """What `fetch` would download; as there, nothing where the Hub cannot be reached and a float32 run takes the 16-bit copy that is here.

    Raises:
        UserError: as `fetch`.
    """
    if is_cached(spec, dtype=dtype):
        return []
    try:
        return [file for file in files_to_fetch(spec, dtype=dtype) if not file.cached]
    except UserError:
        if not is_cached(spec, dtype="float16"):
            raise
        return []


def fetch(spec: ModelSpec, *, dtype: str) -> None:
    """Download what a model needs and this disk lacks.

    Where the Hub cannot be reached, a float32 run takes the 16-bit copy that is here, and says so.

    Raises:
        UserError: the Hub cannot be reached, or the repository lacks something.
    """
    if is_cached(spec, dtype=dtype):
        return
    try:
        for job in _jobs(spec):
            _download(job, sixteen_bit=dtype != "float32")
    except UserError as error:
        if not is_cached(spec, dtype="float16"):
            raise
        tqdm.write(f"{spec.name}: its 16-bit copy alone is here, and is taken. {error}", file=sys.stderr)


def fetch_card(spec: ModelSpec) -> None:
    """Download the model card and the licence of a pipeline of the Hub where its weights alone are here, as `diffusers` caches them.

    Where the Hub cannot be reached, that is said.
    """
    folder = hub.cached_snapshot(spec.location, spec.revision) if spec.source == "hub" else None
    if folder is None or (folder / "README.md").is_file():
        return
    try:  # of the commit that the weights are of: a newer one would take their place, without them
        huggingface_hub.snapshot_download(spec.location, revision=folder.name, allow_patterns=list(_CARD))
    except Exception as error:  # noqa: BLE001  # whatever it was: a licence that is missing stops no run
        tqdm.write(f"{spec.name}: no README.md in {folder}, and so no licence ({reason(error)}); put it there", file=sys.stderr)


def _download(job: _Job, *, sixteen_bit: bool) -> None:
    names = [file.name for file in _list(job, sixteen_bit=sixteen_bit)]
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
    whole = spec.source == "file" and checkpoint_kind(Path(spec.location), read_header(Path(spec.location))) == "checkpoint"
    return () if whole else tuple(part for part in STEMS if part != "unet")


def _list(job: _Job, *, sixteen_bit: bool) -> list[RemoteFile]:
    try:
        siblings = huggingface_hub.HfApi().model_info(job.repository, revision=job.revision, files_metadata=True).siblings or []
    except Exception as error:  # as above
        raise _unreachable(job, error) from error
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in siblings}
    here = hub.cached_snapshot(job.repository, job.revision)
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
        choice = choose_weight_files(
            (name.removeprefix(folder) for name in names if name.startswith(folder)), STEMS[part], sixteen_bit=sixteen_bit
        )
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
        f"cannot fetch {job.repository!r} from the Hub ({reason(error)}). "
        f"Needed{size}: {needed.get(job.kind, '*.safetensors')}. Where there is a network, run `hf download {job.repository}"
        f"{f' --revision {job.revision}' if job.revision else ''}` and copy its folder into {HF_HUB_CACHE}; or put the files in a folder and name that folder."
    )
