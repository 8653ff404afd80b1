"""Teachers in succession: whether later ones have the text encoders and the VAE of the first, whose embeddings and latents all of them are given."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from distillation.teacher import Teacher
from sdbench.models.files import STEMS, read_headers, weight_files
from sdbench.models.text_encoders import PREFIX

HEAD = 64  # numbers of each tensor that are compared; tuning moves all of them
Heads = dict[str, tuple[tuple[int, ...], Tensor]]
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def warn_of_others(teachers: Sequence[Teacher]) -> None:
    """Say which teachers have text encoders or a VAE of their own: they answer embeddings or latents that they were not trained on.

    Raises:
        UserError: weights of one are missing or damaged.
    """
    for teacher in teachers[1:]:
        if parts := other_parts(teachers[0].folder, teacher.folder):
            tqdm.write(
                f"the teacher in {teacher.folder} has another {' and '.join(parts)} than the first one in {teachers[0].folder}, but answers what the first one's embeds and encodes, as its student will have them. Tune or choose it with the same, or expect it to teach less well",
                file=sys.stderr,
            )


def other_parts(one: Path, other: Path) -> list[str]:
    """Names of the parts of two pipelines, UNets aside, that differ in weights by more than the precision they are stored in.

    Compared are the names and shapes of all tensors, and the first numbers of each in the coarser precision of both: gigabytes are not read.
    """
    return [part for part in STEMS if part != "unet" and not _alike(_heads(one, part), _heads(other, part))]


def _heads(pipeline: Path, part: str) -> Heads:
    """Shape and first numbers of each tensor of floats."""
    found = {}
    for name, tensor in read_headers(weight_files(pipeline / part, part, sixteen_bit=False)[1]).items():
        if dtype := _FLOATS.get(tensor.dtype):
            with tensor.path.open("rb") as file:
                file.seek(tensor.start)
                numbers = bytearray(file.read(min(HEAD * dtype.itemsize, tensor.stop - tensor.start)))
            found[name.removeprefix(PREFIX)] = tensor.shape, torch.frombuffer(numbers, dtype=dtype)
    return found


def _alike(one: Heads, other: Heads) -> bool:
    return one.keys() == other.keys() and all(
        shape == other[name][0] and torch.equal(*_coarser(numbers, other[name][1])) for name, (shape, numbers) in one.items()
    )


def _coarser(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    dtype = max(one.dtype, other.dtype, key=lambda kind: torch.finfo(kind).eps)
    return one.to(dtype), other.to(dtype)
