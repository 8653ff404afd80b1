"""The weights that evaluators load, found on this disk or fetched by the library that knows them."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import open_clip
import torch
from huggingface_hub import hf_hub_download, snapshot_download

from sdbench.errors import MissingError, unknown


def _of_open_clip(model: str, tag: str) -> Callable[[], str | Path]:
    return lambda: open_clip.download_pretrained(open_clip.get_pretrained_cfg(model, tag))


def _alexnet() -> Path:
    return (Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth").resolve(strict=True)


_SOURCES: dict[str, Callable[[], str | Path]] = {
    "clip-vit-b-32": _of_open_clip("ViT-B-32", "openai"),
    "clip-vit-b-16": _of_open_clip("ViT-B-16", "openai"),
    "clip-vit-l-14": _of_open_clip("ViT-L-14", "openai"),
    "clip-vit-h-14": _of_open_clip("ViT-H-14", "laion2b_s32b_b79k"),
    "pickscore-v1": lambda: snapshot_download("yuvalkirstain/PickScore_v1", allow_patterns=["config.json", "model.safetensors"]),
    "hps-v2.1": lambda: hf_hub_download("xswu/HPSv2", "HPS_v2.1_compressed.pt"),
    "lpips-alex": _alexnet,
}


def find(name: str) -> Path:
    """File or folder of an evaluator's weights.

    Raises:
        MissingError: they are neither here nor reachable.
    """
    if name not in _SOURCES:
        raise unknown("evaluator", name, _SOURCES)
    try:
        return Path(_SOURCES[name]())
    except Exception as error:
        raise MissingError(
            f"weights of {name} are neither cached nor reachable ({type(error).__name__}); go online once, or copy them into the cache"
        ) from error


def weight_file(found: Path) -> Path:
    """The file of tensors: what was found, or the one in that folder, safetensors before a state dict."""
    if found.is_file():
        return found
    files = [path for ending in (".safetensors", ".bin", ".pt", ".pth") for path in sorted(found.glob(f"*{ending}"))]
    if not files:
        raise MissingError(f"{found} holds no weights (*.safetensors, or a state dict *.bin, *.pt, *.pth)")
    return files[0]


@cache
def digest(file: Path) -> str:
    """SHA-256 of a file of weights, 12 hex digits: features are kept under it."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:12]
