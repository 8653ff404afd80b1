"""Teachers in succession: do later ones share the first one's text encoders and VAE?

All are given the first one's embeddings and latents.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillation.teacher import STORED_DTYPES, Teacher
from sdbench.models.files import SHARED_PARTS, weight_files
from sdbench.models.headers import read_headers
from sdbench.models.text_encoders import PREFIX
from sdbench.notes import print_note

COMPARED_VALUES = 64  # first values of each tensor; fine-tuning changes all of them
LeadingValues = dict[str, tuple[tuple[int, ...], Tensor]]  # shape and first values, by tensor name
_FLOATS = {stored: getattr(torch, dtype) for stored, dtype in STORED_DTYPES.items()}


def warn_of_different_parts(teachers: Sequence[Teacher]) -> None:
    """Warn of teachers whose text encoders or VAE differ from the first one's: they get inputs that they were not trained on.

    Raises:
        UserError: weights of a teacher are missing or damaged.
    """
    for teacher in teachers[1:]:
        if parts := different_parts(teachers[0].folder, teacher.folder):
            print_note(
                f"the teacher in {teacher.folder} differs from the first one, in {teachers[0].folder}, in its {' and '.join(parts)}, but "
                "is given the embeddings and latents of the first one, whose parts the student keeps. Choose or tune a teacher with the "
                "same parts, or expect it to teach less well",
            )


def different_parts(one: Path, other: Path) -> list[str]:
    """Names of the parts, UNets aside, whose weights differ between two pipelines by more than the precision they are stored in.

    Compares names and shapes of all tensors, and the first values of each in the coarser dtype of the two. That avoids reading gigabytes.

    Raises:
        UserError: weights of a pipeline are missing or damaged.
    """
    return [part for part in SHARED_PARTS if not _are_equal(_leading_values(one, part), _leading_values(other, part))]


def _leading_values(pipeline: Path, part: str) -> LeadingValues:
    """Shape and first values of each floating-point tensor."""
    values = {}
    for name, tensor in read_headers(weight_files(pipeline / part, part, sixteen_bit=False)[1]).items():
        if dtype := _FLOATS.get(tensor.dtype):
            with tensor.path.open("rb") as file:
                file.seek(tensor.start)
                content = bytearray(file.read(min(COMPARED_VALUES * dtype.itemsize, tensor.stop - tensor.start)))
            values[name.removeprefix(PREFIX)] = tensor.shape, torch.frombuffer(content, dtype=dtype)
    return values


def _are_equal(one: LeadingValues, other: LeadingValues) -> bool:
    return one.keys() == other.keys() and all(
        shape == other[name][0] and torch.equal(*_in_coarser_dtype(values, other[name][1])) for name, (shape, values) in one.items()
    )


def _in_coarser_dtype(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    dtype = max(one.dtype, other.dtype, key=lambda candidate: torch.finfo(candidate).eps)
    return one.to(dtype), other.to(dtype)
