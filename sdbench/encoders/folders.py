"""Networks in transformers' layout, from the one file of a folder whose digest was checked."""

from pathlib import Path
from typing import Any

import torch

from sdbench.encoders.pixels import device
from sdbench.errors import UserError
from sdbench.models.checks import check_finite
from sdbench.models.stock import silence_libraries


def read(kind: Any, folder: Path, *, safetensors: bool) -> Any:
    """A network with all its weights, float32, for evaluation, where encoders run.

    Args:
        kind: its class in transformers.
        folder: with `config.json` and the weights.
        safetensors: which file is read, whatever lies beside it: `model.safetensors`, else `pytorch_model.bin`, as data only.

    Raises:
        UserError: the file is damaged, lacks some of the weights (which transformers would draw at random), or they are not finite.
    """
    silence_libraries()
    name = kind.__name__
    try:
        model, report = kind.from_pretrained(
            folder, use_safetensors=safetensors, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers passes on what the reader beneath it raised
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise UserError(f"{folder} holds no {name} in transformers' layout ({type(error).__name__}: {reason}); fetch it again") from error
    if lacking := sorted(report["missing_keys"]):
        raise UserError(f"{folder} lacks {len(lacking)} tensors of {name}, such as {lacking[0]!r}; fetch it again")
    check_finite(model, name, folder)
    return model.to(device()).eval()
