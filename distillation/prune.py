"""Pruning: a smaller UNet, all of whose tensors come from the teacher."""

from collections.abc import Iterable
from typing import Any

from diffusers import UNet2DConditionModel

from distillation.cut import Cut
from sdbench.errors import UserError
from sdbench.models.architectures import TOPOLOGIES, Config, Shape, depths, resnet_counts, shape_of, unet_config
from sdbench.models.loading import build_on_meta


def prune(teacher: UNet2DConditionModel, cut: Cut, *, copy: bool = True) -> UNet2DConditionModel:
    """Cut a student out of a teacher, and return a UNet of the teacher's widths, dtype and device with the depths of the cut.

    Args:
        copy: give the student its own tensors. Otherwise it shares the teacher's, which is enough to write it to disk.

    Raises:
        UserError: the teacher lacks a block that the cut keeps, a kept resnet is of other widths than the student's at its new place, or
            no diffusers config describes the result.
    """
    student: UNet2DConditionModel = build_on_meta("unet", student_config(teacher.config, cut))
    tensors, places = teacher.state_dict(), student.state_dict()
    sources = key_map(places, cut)
    if missing := [source for source in sources.values() if source not in tensors]:
        raise UserError(f"the teacher has no {missing[0]!r}, which the cut keeps; its attentions have {depths(teacher.config)} blocks")
    if misfit := next((key for key, source in sources.items() if tensors[source].shape != places[key].shape), None):
        raise UserError(
            f"the cut puts the teacher's {sources[misfit]!r} of shape {list(tensors[sources[misfit]].shape)} at the student's {misfit!r}, "
            f"whose shape is {list(places[misfit].shape)}; keep another resnet of this block"
        )
    student.load_state_dict({key: tensors[source].clone() if copy else tensors[source] for key, source in sources.items()}, assign=True)
    return student.train(teacher.training)


def key_map(student_keys: Iterable[str], cut: Cut) -> dict[str, str]:
    """The state-dict key of the teacher's tensor to copy, by that of each student tensor."""
    return {key: _teacher_key(key, cut) for key in student_keys}


def _teacher_key(key: str, cut: Cut) -> str:
    path, divider, rest = cut.teacher_path(key).partition(".transformer_blocks.")
    position, _, name = rest.partition(".")
    return f"{path}{divider}{cut.blocks[path][int(position)]}.{name}" if divider else path


def student_config(teacher: Config, cut: Cut) -> dict[str, Any]:
    """The teacher's config with the cut's depths; those of a known architecture are written as in its released config.

    Raises:
        UserError: a config cannot express the depths or numbers of resnets, or the cut names an attention that the teacher lacks.
    """
    if missing := sorted(set(cut.blocks) - set(depths(teacher))):
        raise UserError(f"the teacher has no attention {missing[0]!r}, but the cut keeps blocks of it")
    fields = {name: value for name, value in teacher.items() if not name.startswith("_")}
    shape = cut.shape(teacher)
    config = fields | (_known_depth_fields(shape) or _depth_fields(teacher, shape))
    if resnet_counts(config) != shape.resnets:
        raise UserError(
            f"a diffusers config cannot express these numbers of resnets: {shape.resnets}; an up block has one more than the down block "
            "across from it, so shorten both in the same stage"
        )
    if depths(config) != shape.blocks:
        raise UserError(
            f"a diffusers config cannot express these depths: {shape.blocks}; it gives the middle the depth of the last down block's "
            "first attention, so remove the middle's attention in the same stage or before"
        )
    return config


def _known_depth_fields(shape: Shape) -> dict[str, Any]:
    """The config fields of the known architecture with this shape; empty if there is none."""
    return next((fields for name, fields in TOPOLOGIES.items() if shape_of(unet_config(name)) == shape), {})


def _depth_fields(teacher: Config, shape: Shape) -> dict[str, Any]:
    def attention_depths(prefix: str, block_types: Iterable[str]) -> list[list[int]]:
        by_block = [[depth for path, depth in shape.blocks.items() if path.startswith(f"{prefix}.{i}.")] for i, _ in enumerate(block_types)]
        return [block_depths or [1] for block_depths in by_block]

    counts = [shape.resnets[f"down_blocks.{index}"] for index, _ in enumerate(teacher["down_block_types"])]
    return {
        "layers_per_block": counts if len(set(counts)) > 1 else counts[0],
        "transformer_layers_per_block": attention_depths("down_blocks", teacher["down_block_types"]),
        "reverse_transformer_layers_per_block": attention_depths("up_blocks", teacher["up_block_types"]),
        "mid_block_type": shape.middle,
    }
