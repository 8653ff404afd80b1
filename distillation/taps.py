"""Taps: pairs of modules, student and teacher, whose outputs the feature loss compares, and the hooks that collect them."""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from distillation.plan import Plan, matches
from distillation.prune import on_meta
from sdbench.errors import UserError, unknown_name
from sdbench.models.architectures import Config


@dataclass(frozen=True)
class Tap:
    """A pair of module paths, and the shape of both outputs for one image (1 x channels x height x width)."""

    student: str
    teacher: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.student} <- {self.teacher} {' x '.join(map(str, self.shape[1:]))}"


def resolve(student: Config, teacher: Config, plan: Plan, patterns: Sequence[str]) -> list[Tap]:
    """The pairs that the patterns name in two UNets, given by their configs; checked by a forward pass without storage.

    What the plan took out with its whole block or layer has no pair.

    Raises:
        UserError: a pattern names no module, a module is missing in the student, or the outputs of a pair differ in shape.
    """
    student_shapes, teacher_shapes = (_shapes(_plain(config)) for config in (student, teacher))
    pairs = {path: place for path in _expand(patterns, teacher_shapes) if (place := plan.place(path))}
    if missing := [path for path, place in pairs.items() if place not in student_shapes]:
        raise UserError(f"tap {missing[0]}: the teacher has it, the student does not; take it out of the recipe's taps or keep the module")
    for path, place in pairs.items():
        if student_shapes[place] != teacher_shapes[path]:
            raise UserError(
                f"tap {path}: the student's output is {student_shapes[place]}, the teacher's {teacher_shapes[path]}; expected equal shapes"
            )
    return [Tap(place, path, student_shapes[place]) for path, place in pairs.items()]


@contextmanager
def collect(network: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """While open, each forward pass leaves the outputs of the modules at `paths` in the mapping; nothing stays afterwards."""
    outputs: dict[str, Tensor] = {}
    handles = [network.get_submodule(path).register_forward_hook(_keep(outputs, path)) for path in paths]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
        outputs.clear()


def _keep(outputs: dict[str, Tensor], path: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[path] = output if isinstance(output, Tensor) else output[0]  # attentions answer with a tuple

    return hook


def _expand(patterns: Sequence[str], modules: Collection[str]) -> list[str]:
    for pattern in patterns:
        if not any(matches(pattern, path) for path in modules):
            same_depth = {path for path in modules if path.count(".") == pattern.count(".")}
            raise unknown_name("tap (no such module in the teacher)", pattern, same_depth)
    return [path for path in modules if any(matches(pattern, path) for pattern in patterns)]


def _plain(config: Config) -> str:
    """What of a UNet's config makes the network, as a key; not where it lay."""
    return json.dumps({name: value for name, value in config.items() if not name.startswith("_")}, sort_keys=True)


@cache  # it takes a second, and a teacher's are the same for each stage
@torch.no_grad()
def _shapes(config_json: str) -> dict[str, tuple[int, ...]]:
    """Of the outputs of all modules that a forward pass calls, in the network's own order."""
    network = on_meta(json.loads(config_json))
    paths = [path for path, _ in network.named_modules() if path]
    config = network.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    conditions = {"text_embeds": empty(1, pooled), "time_ids": empty(1, 6)}
    with collect(network, paths) as outputs:
        latents = empty(1, config.in_channels, config.sample_size, config.sample_size)
        network(latents, empty(1), empty(1, 1, config.cross_attention_dim), added_cond_kwargs=conditions)
        return {path: tuple(outputs[path].shape) for path in paths if path in outputs}
