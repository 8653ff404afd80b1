"""The three losses of layer-level distillation, each a mean squared error in float32 (distill_sdxl.py of segmind/SSD-1B)."""

from collections.abc import MutableMapping, Sequence
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from distillation.recipe_tables import Loss
from distillation.taps import Tap


def terms(
    weights: Loss,
    taps: Sequence[Tap],
    *,
    of_task: Tensor,
    target: Tensor,
    student: Tensor,
    teacher: Tensor,
    student_features: MutableMapping[str, Tensor],
    teacher_features: MutableMapping[str, Tensor],
) -> dict[str, Tensor]:
    """The weighted terms, whose sum is minimised.

    task = |student - target|^2, output = |student - teacher|^2, feature = sum over taps of |student tap - teacher tap|^2,
    each a mean over its elements; with `weights.scale` "teacher", each tap's is divided by |teacher tap|^2.

    Args:
        weights: of each term.
        of_task: N, what each picture counts for in the task term; its mean is taken over N (arXiv 2303.09556).
        taps: the pairs to compare.
        target: N x 4 x H x W, noise or velocity, as the scheduler's prediction type says.
        student: like `target`, what the student predicts.
        teacher: like `target`, what the teacher predicts.
        student_features: outputs of the student's taps, by path; taken out as they are compared, which frees their memory.
        teacher_features: outputs of the teacher's taps, likewise.
    """
    return {
        "task": weights.task * (of_task * squares(student, target).flatten(1).mean(1)).mean(),
        "output": weights.output * mse(student, teacher),
        "feature": weights.feature * features(taps, student_features, teacher_features, weights.scale),
    }


def features(
    taps: Sequence[Tap], student: MutableMapping[str, Tensor], teacher: MutableMapping[str, Tensor], scale: Literal["none", "teacher"]
) -> Tensor:
    """Sum of the taps' mean squared errors, each over the mean square of the teacher's output where `scale` says so.

    The outputs are taken out of the mappings as they are compared.
    """

    def error(learned: Tensor, taught: Tensor) -> Tensor:
        return mse(learned, taught) / (taught.float().square().mean() if scale == "teacher" else 1)

    return torch.stack([error(student.pop(tap.student), teacher.pop(tap.teacher)) for tap in taps]).sum()


def task_weights(scheduler: DDIMScheduler, timesteps: Tensor, snr_gamma: float | None) -> Tensor:
    """Min-SNR weights of the task term (arXiv 2303.09556) => N; ones where `snr_gamma` is None.

    With snr = a / (1 - a): min(snr, gamma) / snr where the UNet says noise, min(snr, gamma) / (snr + 1) where it says velocities.
    """
    if snr_gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    signal: Tensor = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = signal / (1 - signal)
    least = snr.clamp(max=snr_gamma)
    if scheduler.config.prediction_type == "v_prediction":
        return least / (snr + 1)
    return torch.where(snr > 0, least / snr, 1.0)


def squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared differences in float32, whatever the inputs' precision."""
    return (x.float() - y.float()).square()


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error in float32; only x has a gradient."""
    error: Tensor = _MeanSquaredError.apply(x, y)
    return error


class _MeanSquaredError(torch.autograd.Function):
    """Keeps the difference for the backward pass in x's precision, where autograd would keep it in float32.

    The gradient is rounded to that precision anyhow. In bfloat16 a tap then costs what the teacher's output takes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        difference = x.float() - y.float()
        ctx.save_for_backward(difference.to(x.dtype))
        return difference.square().mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return (grad / difference.numel() * (2 * difference.float())).to(difference.dtype), None
