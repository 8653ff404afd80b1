"""The three losses of layer-level distillation, each a mean squared error in float32 (distill_sdxl.py of segmind/SSD-1B)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from distillation.recipe import Loss
from distillation.taps import Tap


def terms(
    weights: Loss,
    taps: Sequence[Tap],
    *,
    target: Tensor,
    student: Tensor,
    teacher: Tensor,
    student_features: Mapping[str, Tensor],
    teacher_features: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The weighted terms, whose sum is minimised.

    task = |student - target|^2, output = |student - teacher|^2, feature = sum over taps of |student tap - teacher tap|^2,
    each a mean over its elements; with `weights.scale` "teacher", each tap's is divided by |teacher tap|^2.

    Args:
        weights: of each term.
        taps: the pairs to compare.
        target: N x 4 x H x W, noise or velocity, as the scheduler's prediction type says.
        student: like `target`, what the student predicts.
        teacher: like `target`, what the teacher predicts.
        student_features: outputs of the student's taps, by path.
        teacher_features: outputs of the teacher's taps, by path.
    """
    return {
        "task": weights.task * mse(student, target),
        "output": weights.output * mse(student, teacher),
        "feature": weights.feature * features(taps, student_features, teacher_features, weights.scale),
    }


def features(
    taps: Sequence[Tap], student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], scale: Literal["none", "teacher"]
) -> Tensor:
    """Sum of the taps' mean squared errors, each over the mean square of the teacher's output where `scale` says so."""
    errors = [mse(student[tap.student], teacher[tap.teacher]) for tap in taps]
    if scale == "teacher":
        errors = [error / teacher[tap.teacher].float().square().mean() for tap, error in zip(taps, errors, strict=True)]
    return torch.stack(errors).sum()


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error in float32, whatever the inputs' precision."""
    return mse_loss(x.float(), y.float())
