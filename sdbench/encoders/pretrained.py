"""Loads networks in transformers' layout, only from the weight file whose digest was checked."""

from pathlib import Path
from typing import Any

import torch

from sdbench.encoders.inference import device
from sdbench.errors import UserError, describe_error
from sdbench.models.checks import check_finite
from sdbench.models.stock import silence_libraries


def load_network(kind: Any, folder: Path, *, safetensors: bool) -> Any:
    """Load a network in float32 and evaluation mode, on the encoders' device.

    Args:
        folder: holds `config.json` and the weights.
        safetensors: read `model.safetensors`, otherwise `pytorch_model.bin` (weights only); never the other one.

    Raises:
        UserError: the file is missing or damaged, or weights are missing (transformers would draw them at random) or not finite.
    """
    silence_libraries()
    name = kind.__name__
    try:
        model, report = kind.from_pretrained(
            folder, use_safetensors=safetensors, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers passes on whatever its readers raise
        raise UserError(f"{folder} holds no {name} in transformers' layout ({describe_error(error)}); fetch it again") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{folder} lacks {len(missing)} tensors of {name}, such as {missing[0]!r}; fetch it again")
    check_finite(model, name, folder)
    return model.to(device()).eval()
