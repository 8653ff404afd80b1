"""Checks on weights: diffusers only warns about a missing tensor, and fills it with random numbers."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from sdbench.errors import UserError
from sdbench.models.files import LDM_PREFIXES
from sdbench.models.headers import Tensor
from sdbench.models.resolve import OWN_BASE, example_base
from sdbench.models.text_encoders import hub_key

Shapes = Mapping[str, tuple[int, ...]]  # of the tensors of a network, by name
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}  # of attention in VAEs before 2023
_IGNORED = ("position_ids", "logit_scale")  # counters and remains of training that text encoders do not use
_ADVICE = "Put the config.json that it was saved with beside it, or save the model again with `save_pretrained`."


def check_tensors(shapes: Shapes, part: str, found: Mapping[str, Tensor], where: Path) -> None:
    """Check that files hold exactly the tensors of a model, in the same shapes.

    Args:
        shapes: of the model's tensors.
        part: "unet", "vae", "text_encoder" or "text_encoder_2".

    Raises:
        UserError: a tensor is missing, unexpected, or of another shape.
    """
    expected = {_canonical_name(name, part): shape for name, shape in shapes.items()}
    present = {_canonical_name(name, part): tensor for name, tensor in found.items() if not name.endswith(_IGNORED)}
    missing, surplus = sorted(expected.keys() - present.keys()), sorted(present.keys() - expected.keys())
    if missing:
        raise UserError(
            f"{where} lacks {len(missing)} of the {len(expected)} tensors that its configuration asks for, such as {missing[0]!r}. "
            f"{_ADVICE}"
        )
    if surplus:
        raise UserError(
            f"{where} holds {len(surplus)} of {len(present)} tensors that are not in its configuration, such as {surplus[0]!r}. {_ADVICE}"
        )
    for name, shape in expected.items():
        if present[name].shape != shape:
            raise UserError(
                f"{present[name].path}: {name!r} has shape {list(present[name].shape)}, its configuration asks for {list(shape)}. {_ADVICE}"
            )


def _canonical_name(name: str, part: str) -> str:
    if part.startswith("text_encoder"):
        return hub_key(name)
    if part == "vae":
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)
    return name


def check_checkpoint(shapes: Mapping[str, Shapes], found: Mapping[str, Tensor], where: Path) -> None:
    """Check that a checkpoint in the original (LDM) layout holds as many numbers for each part as the part has.

    Args:
        shapes: of the tensors of each part.

    Raises:
        UserError: it holds more or fewer for a part.
    """
    for part, shapes_of_part in shapes.items():
        expected = sum(map(math.prod, shapes_of_part.values()))
        present = {name: tensor for name, tensor in found.items() if name.startswith(LDM_PREFIXES[part]) and not name.endswith(_IGNORED)}
        total = sum(tensor.n_elements for tensor in present.values())
        if total != expected:
            base = "; ".join(filter(None, [example_base(found), OWN_BASE])) if part == "unet" else "one of the same architecture"
            raise UserError(
                f"{where} holds {total:,} numbers for the {part} ({LDM_PREFIXES[part]}*), the base pipeline's configuration asks for "
                f"{expected:,}; name another pipeline with --base: {base}"
            )


def check_finite(model: nn.Module, part: str, where: Path) -> None:
    """Check that every weight is a finite number.

    Raises:
        UserError: a tensor holds NaN or infinity.
    """
    for name, tensor in model.state_dict().items():
        # A NaN makes both bounds NaN; `isfinite` of the whole tensor would take a copy.
        if tensor.is_floating_point() and not all(map(torch.isfinite, tensor.aminmax())):
            count = int((~torch.isfinite(tensor)).sum())
            raise UserError(
                f"{part} of {where}: tensor {name!r} has {count} values that are NaN or infinite as {tensor.dtype}; the weights are "
                "damaged, or too large for that dtype (try bfloat16)"
            )
