"""LoRAs, checked before diffusers fuses them: it silently skips tensors that it does not know, and draws missing ones at random."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from torch import nn

from sdbench.errors import UserError
from sdbench.models.files import MERGE_ADAPTER
from sdbench.models.headers import read_header
from sdbench.models.stock import PIPELINE
from sdbench.models.text_encoders import PREFIX

_PARTS = ("unet", "text_encoder", "text_encoder_2")  # parts that diffusers loads LoRAs into
_ADVICE = "Name a LoRA that was made for this model, saved with the tensor names of diffusers or of Kohya's scripts."


def fuse(pipeline: Any, file: Path) -> None:
    """Fuse a LoRA into the networks of a pipeline, in place.

    Raises:
        UserError: it does not fit the pipeline, or is damaged.
    """
    check(pipeline.components, file)
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        pipeline.fuse_lora()
    except Exception as error:  # diffusers and peft raise whatever the settings beside the tensors lead to
        raise UserError(f"LoRA {file} cannot be fused ({_on_one_line(error)}). {_ADVICE}") from error
    pipeline.unload_lora_weights()


def check(parts: Mapping[str, Any], file: Path) -> None:
    """Check that a LoRA's tensors fit layers of a pipeline's networks, which may be on the meta device.

    Raises:
        UserError: they do not, or the file is damaged.
    """
    names = read_header(file)
    if all(name.startswith("base_model.model.") for name in names):
        raise UserError(f"LoRA {file} cannot be fused. {MERGE_ADAPTER}")
    if any("dora_scale" in name for name in names):
        raise UserError(f"LoRA {file} is a DoRA, whose magnitudes diffusers ignores; merge it where it was trained, and name the result")
    try:
        state, _, settings = PIPELINE.lora_state_dict(
            str(file.parent), weight_name=file.name, unet_config=parts["unet"].config, return_lora_metadata=True
        )
        layers = _read_layers(parts, state)
    except Exception as error:  # diffusers' converters raise whatever they meet
        raise UserError(f"LoRA {file} has a format that diffusers does not read ({_on_one_line(error)}). {_ADVICE}") from error
    if damaged := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise UserError(f"LoRA {file}: tensor {damaged[0]!r} holds NaN or infinity; the file is damaged, export it again")
    networks = [(part, name, module) for part in _PARTS for name, module in parts[part].named_modules()]
    weights = {f"{part}.{name}": module.weight for part, name, module in networks if isinstance(module, nn.Linear | nn.Conv2d)}
    if surplus := sorted(layers.keys() - weights.keys()):
        raise UserError(
            f"LoRA {file} has {len(surplus)} layers that the model lacks, such as {surplus[0]!r}; it was made for another architecture, "
            f"or saved with other names. {_ADVICE}"
        )
    for layer, found in layers.items():
        if found != (expected := _expected_shapes(tuple(weights[layer].shape), found)):
            raise UserError(
                f"LoRA {file} does not fit {layer!r} of the model: its tensors have shapes {found}, expected are {expected}; "
                f"it was made for another width, or is damaged. {_ADVICE}"
            )
    _check_ranks(settings, max(found["lora_A.weight"][0] for found in layers.values()), file)


def _on_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _read_layers(parts: Mapping[str, Any], state: dict[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of a LoRA's tensors by the module that they change, all names converted as diffusers does while loading."""
    named = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(f"{part}." for part in _PARTS))}
    for part in _PARTS:
        own = {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")}
        if part == "unet":
            own = convert_unet_state_dict_to_peft(own)
        elif own:
            own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
        prefix = "" if part == "unet" or hasattr(parts[part], "text_model") else PREFIX
        named |= {f"{part}.{name.removeprefix(prefix)}": tensor for name, tensor in own.items()}
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in named.items():
        layer, _, rest = name.partition(".lora")
        layers.setdefault(layer, {})[f"lora{rest}"] = tuple(tensor.shape)
    return layers


def _expected_shapes(weight: tuple[int, ...], found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes that a LoRA's tensors must have for a layer with this weight, in the rank of those found."""
    rank = next(iter(found.get("lora_A.weight", ())), 0) or 1
    shapes = {"lora_A.weight": (rank, *weight[1:]), "lora_B.weight": (weight[0], rank, *(1 for _ in weight[2:]))}
    return shapes | ({"lora_B.bias": weight[:1]} if "lora_B.bias" in found else {})


def _check_ranks(settings: Any, largest: int, file: Path) -> None:
    """Check that the settings beside a LoRA's tensors give no larger rank: layers of that rank would be built before any tensor is read."""
    for key, given in settings.items() if isinstance(settings, dict) else ():
        ranks = given.values() if isinstance(given, dict) else [given]
        if key.endswith((".r", ".rank_pattern")) and any(isinstance(rank, int) and rank > largest for rank in ranks):
            raise UserError(f"LoRA {file}: its setting {key!r} is {given}, but its tensors have at most rank {largest}. {_ADVICE}")
