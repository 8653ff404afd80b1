"""The identity of a model's weights: equal digests, equal pictures. Needs no torch."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdbench.models.files import Tensor, read_headers, read_json
from sdbench.models.locate import Layout, locate
from sdbench.models.spec import ModelSpec

RANDOM_SEED = 0
_CHUNK = 1 << 24
_NOTES = frozenset(
    {"_diffusers_version", "_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype"}
)  # say nothing about the model


def weights_digest(spec: ModelSpec, *, dtype: str = "float32") -> str | None:
    """SHA-256 (hex) over every tensor, configuration and tokenizer of a model, with its base and LoRA.

    It does not depend on how tensors are spread over files, nor on the versions that wrote them. Random weights have
    the digest of their architecture and seed, a pipeline in memory that of `memory.digest`; pictures without a model have none.

    Args:
        spec: the model.
        dtype: what the run computes in: a 16-bit run takes the 16-bit copy of the weights, if there is one.

    Raises:
        UserError: its files are missing or damaged.
    """
    if spec.source == "rendered":
        return None
    if spec.source == "memory":
        return spec.location  # its digest, since it lies nowhere
    if spec.source == "random":
        return hashlib.sha256(f"random weights: {spec.family}/{spec.architecture}, seed {RANDOM_SEED}, calibrated".encode()).hexdigest()
    layout = locate(spec)
    whole = hashlib.sha256()
    for part, files in sorted(layout.weights(sixteen_bit=dtype != "float32").items()):
        _add_tensors(whole, part, read_headers(files))
    if layout.lora:
        _add_tensors(whole, "lora", read_headers([layout.lora]))
    for label, path in sorted(_configs(layout).items()):
        whole.update(f"{label}\0{_canonical(path)}\0".encode())
    return whole.hexdigest()


def _add_tensors(whole: "hashlib._Hash", part: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{part}\0{name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
        for chunk in _chunks(tensor):
            whole.update(chunk)


def _chunks(tensor: Tensor) -> Iterable[bytes]:
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.stop - tensor.start
        while left:
            chunk = file.read(min(left, _CHUNK))
            left -= len(chunk)
            yield chunk


def _configs(layout: Layout) -> dict[str, Path]:
    """Configuration and vocabulary files of a pipeline, the UNet's from where the UNet lies."""
    parts = [part for part, value in read_json(layout.pipeline / "model_index.json").items() if isinstance(value, list) and part != "unet"]
    found = {"model_index": layout.pipeline / "model_index.json"}
    for part in parts:
        kept = (path for path in (layout.pipeline / part).glob("*") if path.suffix in (".json", ".txt") and ".index." not in path.name)
        found |= {f"{part}/{path.name}": path for path in kept}
    return found | {"unet": layout.unet_config}


def _canonical(path: Path) -> str:
    if path.suffix != ".json":
        return path.read_text()
    content: dict[str, Any] = read_json(path)
    return json.dumps({key: value for key, value in content.items() if key not in _NOTES}, sort_keys=True)
