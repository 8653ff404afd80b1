"""Taps: pairs of student and teacher modules whose outputs the feature loss compares, and the hooks that collect the outputs."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from distillation.cut import Cut, matches
from sdbench.errors import UserError, unknown_name
from sdbench.models.architectures import Config
from sdbench.models.loading import build_on_meta, config_key
from sdbench.probes.work import empty_input


@dataclass(frozen=True)
class Tap:
    """The paths of two modules, and the shape of both outputs for one image (1 x channels x height x width)."""

    student: str
    teacher: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.student} <- {self.teacher} {' x '.join(map(str, self.shape[1:]))}"


def resolve_taps(student: Config, teacher: Config, cut: Cut, patterns: Sequence[str]) -> list[Tap]:
    """The taps that the patterns name in two UNets, given by their configs, checked by a forward pass on the meta device.

    Modules that the cut removed with their whole layer or block get no tap.

    Args:
        patterns: module paths in the teacher; `*` matches any one part.

    Raises:
        UserError: a pattern matches no module, the student lacks a module, or the outputs of a pair differ in shape.
    """
    student_shapes, teacher_shapes = (_output_shapes(config_key(config)) for config in (student, teacher))
    pairs = {path: own for path in _expand_patterns(patterns, teacher_shapes) if (own := cut.student_path(path))}
    if missing := [path for path, own in pairs.items() if own not in student_shapes]:
        raise UserError(f"tap {missing[0]}: the teacher has it, the student does not; remove it from the recipe's taps or keep the module")
    for path, own in pairs.items():
        if student_shapes[own] != teacher_shapes[path]:
            raise UserError(
                f"tap {path}: the student's output is {student_shapes[own]}, the teacher's {teacher_shapes[path]}; expected equal shapes"
            )
    return [Tap(own, path, student_shapes[own]) for path, own in pairs.items()]


@contextmanager
def collect_outputs(network: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """While open, each forward pass stores the outputs of the modules at `paths` in the yielded mapping; it is empty afterwards."""
    outputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.callback(outputs.clear)
        for path in paths:
            stack.enter_context(network.get_submodule(path).register_forward_hook(_store_output(outputs, path)))
        yield outputs


def _store_output(outputs: dict[str, Tensor], path: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[path] = output if isinstance(output, Tensor) else output[0]  # attentions return a tuple

    return hook


def _expand_patterns(patterns: Sequence[str], modules: Collection[str]) -> list[str]:
    for pattern in patterns:
        if not any(matches(pattern, path) for path in modules):
            same_depth = {path for path in modules if path.count(".") == pattern.count(".")}
            raise unknown_name("tap (no such module in the teacher)", pattern, same_depth)
    return [path for path in modules if any(matches(pattern, path) for pattern in patterns)]


@cache  # all stages share the teacher's
@torch.no_grad()
def _output_shapes(config_json: str) -> dict[str, tuple[int, ...]]:
    """Output shape of each module that a forward pass calls, in the network's own order."""
    network = build_on_meta("unet", json.loads(config_json))
    paths = [path for path, _ in network.named_modules() if path]
    for module in network.modules():
        if isinstance(module, Transformer2DModel):
            del module.transformer_blocks[1:]  # their outputs have the shapes of the first one's: all of SDXL's would take a second
    with torch.device("meta"), collect_outputs(network, [path for path, _ in network.named_modules() if path]) as outputs:
        network(**empty_input(network.config, network.config.sample_size, tokens=1))
        firsts = {path: re.sub(r"(?<=\.transformer_blocks)\.\d+", ".0", path) for path in paths}
        return {path: tuple(outputs[first].shape) for path, first in firsts.items() if first in outputs}
