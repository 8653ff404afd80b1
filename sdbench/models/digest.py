"""The digest of a model's weights: models with equal digests draw equal images. Needs no torch."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdbench.errors import UserError
from sdbench.models.files import PART_CLASSES, read_model_json
from sdbench.models.headers import COPY_AGAIN, Tensor, read_headers, read_metadata
from sdbench.models.locate import ModelPaths, locate
from sdbench.models.spec import ModelSpec

RANDOM_SEED = 0
_CHUNK = 1 << 24
_LORA_SETTINGS = "lora_adapter_metadata"  # where diffusers keeps rank and alpha, with which it scales a LoRA
_IGNORED_KEYS = frozenset(
    {"_diffusers_version", "_name_or_path", "_commit_hash", "transformers_version", "torch_dtype", "dtype"}
)  # of configurations; they do not describe the model


def weights_digest(spec: ModelSpec, *, dtype: str = "float32") -> str | None:
    """The SHA-256 (hex) over every tensor, configuration and tokenizer of a model, with its base and LoRA.

    It does not depend on how tensors are spread over files, nor on the versions that wrote them. For random weights it is
    the digest of architecture and seed, for a pipeline in memory see `in_memory.digest`; None for images without a model.

    Args:
        dtype: precision of the run: a 16-bit run takes the 16-bit copy of the weights, if there is one.

    Raises:
        UserError: its files are missing or damaged.
    """
    if spec.source == "rendered":
        return None
    if spec.source == "memory":
        return spec.location  # `in_memory.describe` puts the digest there
    if spec.source == "random":
        return hashlib.sha256(f"random weights: {spec.family}/{spec.architecture}, seed {RANDOM_SEED}, calibrated".encode()).hexdigest()
    paths = locate(spec)
    sha256 = hashlib.sha256()
    for part, files in sorted(paths.weights(sixteen_bit=dtype != "float32").items()):
        _add_tensors(sha256, part, read_headers(files))
    if paths.lora:
        _add_tensors(sha256, "lora", read_headers([paths.lora]))
        if settings := read_metadata(paths.lora).get(_LORA_SETTINGS):
            sha256.update(f"lora settings\0{settings}\0".encode())
    for label, path in sorted(_configs(paths).items()):
        sha256.update(f"{label}\0{_canonical(path)}\0".encode())
    return sha256.hexdigest()


def _add_tensors(sha256: "hashlib._Hash", part: str, tensors: dict[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{part}\0{name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
        for chunk in _read_chunks(tensor):
            sha256.update(chunk)


def _read_chunks(tensor: Tensor) -> Iterable[bytes]:
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        left = tensor.stop - tensor.start
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise UserError(f"{tensor.path} was cut short while it was read. {COPY_AGAIN}.")
            left -= len(chunk)
            yield chunk


def _configs(paths: ModelPaths) -> dict[str, Path]:
    """The configuration and vocabulary files of a pipeline by label; that of the UNet comes from the UNet's own folder."""
    configs = {"model_index": paths.pipeline / "model_index.json"}
    for part in ("scheduler", *PART_CLASSES.keys() - {"unet"}):
        files = (path for path in (paths.pipeline / part).glob("*") if path.suffix in (".json", ".txt") and ".index." not in path.name)
        configs |= {f"{part}/{path.name}": path for path in files}
    return configs | {"unet": paths.unet_config}


def _canonical(path: Path) -> str:
    if path.suffix != ".json":
        return path.read_text(encoding="utf-8")
    content: dict[str, Any] = read_model_json(path)
    return json.dumps({key: value for key, value in content.items() if key not in _IGNORED_KEYS}, sort_keys=True)
