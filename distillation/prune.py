"""Pruning: a smaller UNet whose every tensor is one of the teacher's."""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from distillation.plan import Plan
from sdbench.errors import UserError
from sdbench.models.architectures import TOPOLOGIES, Config, depths, resnet_counts, unet_config

Shape = tuple[dict[str, int], dict[str, int], str | None]  # transformer blocks of attentions, resnets of blocks, kind of middle


def prune(teacher: UNet2DConditionModel, plan: Plan, *, copy: bool = True) -> UNet2DConditionModel:
    """A UNet of the teacher's widths, dtype and device with the depths of the plan.

    Args:
        teacher: what to cut.
        plan: what to keep.
        copy: give the student tensors of its own; without, it shares the teacher's, which is enough to write it to disk.

    Raises:
        UserError: the teacher lacks a block that the plan keeps, or no diffusers config describes the result.
    """
    student = on_meta(student_config(teacher.config, plan))
    tensors = teacher.state_dict()
    sources = key_map(student.state_dict(), plan)
    if lacking := [source for source in sources.values() if source not in tensors]:
        raise UserError(f"the teacher has no {lacking[0]!r}, which the plan keeps; its attentions have {depths(teacher.config)} blocks")
    student.load_state_dict({key: tensors[source].clone() if copy else tensors[source] for key, source in sources.items()}, assign=True)
    return student.train(teacher.training)


def key_map(student_keys: Iterable[str], plan: Plan) -> dict[str, str]:
    """The teacher's tensor that each of the student's tensors is copied from."""
    return {key: _source(key, plan) for key in student_keys}


def _source(key: str, plan: Plan) -> str:
    path, divider, rest = plan.origin(key).partition(".transformer_blocks.")
    position, _, name = rest.partition(".")
    return f"{path}{divider}{plan.blocks[path][int(position)]}.{name}" if divider else path


def student_config(teacher: Config, plan: Plan) -> dict[str, Any]:
    """The teacher's config with the plan's depths; for a known architecture, spelt as its own config spells them.

    Raises:
        UserError: the depths cannot be said in a config, or the plan names an attention that the teacher does not have.
    """
    if unknown := sorted(set(plan.blocks) - set(depths(teacher))):
        raise UserError(f"the teacher has no attention {unknown[0]!r}, of which the plan keeps blocks")
    kept = {name: value for name, value in teacher.items() if not name.startswith("_")}
    layers = resnet_counts(teacher) | {block: len(numbers) for block, numbers in plan.resnets.items()}
    shape = plan.depths, layers, plan.mid_block_type
    config = kept | (_known_spelling(shape) or _spelling(teacher, shape))
    if resnet_counts(config) != layers:
        raise UserError(
            f"a diffusers config cannot say these numbers of resnets: {layers}; an up block has one more than the down block across from it, "
            "so shorten both in the same stage"
        )
    if depths(config) != plan.depths:
        raise UserError(
            f"a diffusers config cannot say these depths: {plan.depths}; it gives the middle the depth of the last down block's "
            "first attention, so remove the middle's attention in the same stage or before"
        )
    return config


def _known_spelling(shape: Shape) -> dict[str, Any]:
    """The fields of the architecture that has this shape; empty where none has."""
    for name in TOPOLOGIES:
        config = unet_config(name)
        if (depths(config), resnet_counts(config), config["mid_block_type"]) == shape:
            return TOPOLOGIES[name]
    return {}


def _spelling(teacher: Config, shape: Shape) -> dict[str, Any]:
    blocks, layers, middle = shape

    def side(prefix: str, kinds: Iterable[str]) -> list[list[int]]:
        each = [[depth for path, depth in blocks.items() if path.startswith(f"{prefix}.{index}.")] for index, _ in enumerate(kinds)]
        return [depth or [1] for depth in each]

    counts = [layers[f"down_blocks.{index}"] for index, _ in enumerate(teacher["down_block_types"])]
    return {
        "layers_per_block": counts if len(set(counts)) > 1 else counts[0],
        "transformer_layers_per_block": side("down_blocks", teacher["down_block_types"]),
        "reverse_transformer_layers_per_block": side("up_blocks", teacher["up_block_types"]),
        "mid_block_type": middle,
    }


def on_meta(config: Config) -> UNet2DConditionModel:
    """A UNet without storage."""
    with torch.device("meta"):
        return UNet2DConditionModel(**{name: value for name, value in config.items() if not name.startswith("_")})
