"""The headers of safetensors files, read without torch.

Format: 8 bytes (little-endian) with the length of the header, a JSON header, then the raw tensors.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sdbench.errors import UserError

COPY_AGAIN = "Copy or download it again"
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


@dataclass(frozen=True)
class Tensor:
    """A tensor on disk: bytes `start` to `stop` of `path`."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    stop: int

    @property
    def n_elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file and return its tensors by name.

    Raises:
        UserError: the file is missing, is not a safetensors file, or was cut short.
    """
    header, offset = _read_header(path)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, offset, entry) for name, entry in header.items()}
    end, size = max((tensor.stop for tensor in tensors.values()), default=offset), path.stat().st_size
    if end != size:
        cut = next((name for name, tensor in tensors.items() if tensor.stop > size), "none")
        raise UserError(
            f"{path} was cut short or is damaged: {size} bytes, its header promises {end} (first tensor beyond the end: {cut}). "
            f"{COPY_AGAIN}."
        )
    try:
        with safe_open(path, "numpy"):  # the library's own checks of sizes and offsets
            return tensors
    except SafetensorError as error:
        raise UserError(f"{path} has a damaged safetensors header ({error}). {COPY_AGAIN}.") from error


def read_headers(files: Iterable[Path]) -> dict[str, Tensor]:
    """Read the headers of several safetensors files and return all their tensors by name.

    Raises:
        UserError: see `read_header`.
    """
    return {name: tensor for path in files for name, tensor in read_header(path).items()}


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the free text, by its keys, that a safetensors file holds beside its tensors; empty if it holds none.

    Raises:
        UserError: see `read_header`.
    """
    metadata = _read_header(path)[0].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def stated_prediction(path: Path) -> dict[str, Any]:
    """The prediction that a weight file states it was trained for, as settings of a scheduler; empty where it states none, or epsilon.

    Kohya's scripts write `modelspec.prediction_type` beside the tensors, "v" or "epsilon". Other checkpoints, such as NoobAI's, have empty
    tensors called `v_pred` and `ztsnr`, after which ComfyUI goes too (comfy/supported_models.py).

    Raises:
        UserError: see `read_header`.
    """
    names = read_header(path)
    if "v_pred" not in names and read_metadata(path).get("modelspec.prediction_type") not in ("v", "v_prediction"):
        return {}
    return {"prediction_type": "v_prediction"} | ({"rescale_betas_zero_snr": True} if "ztsnr" in names else {})


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the offset of the tensors behind it."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= min(path.stat().st_size - 8, _MAX_HEADER_BYTES) else None
    except OSError as error:
        raise UserError(f"cannot read weights {path}: {error.strerror}. {COPY_AGAIN}.") from error
    except (ValueError, RecursionError):  # the latter of deep nesting
        header = None
    if not isinstance(header, dict):
        raise UserError(
            f"{path} is not a safetensors file ({_describe_content(path)}), or was cut short. {COPY_AGAIN}; "
            "with git-lfs, `git lfs pull` it."
        )
    return header, 8 + length


def _tensor(path: Path, offset: int, entry: Any) -> Tensor:
    try:
        start, stop = entry["data_offsets"]
        return Tensor(entry["dtype"], tuple(entry["shape"]), path, offset + start, offset + stop)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has a damaged safetensors header. {COPY_AGAIN}.") from error


def _describe_content(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(60)
    return "a git-lfs pointer" if start.startswith(b"version https://git-lfs") else f"{path.stat().st_size} bytes"
