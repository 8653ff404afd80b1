"""The three losses of layer-level distillation, each a mean squared error in float32 (distill_sdxl.py of segmind/SSD-1B)."""

from collections.abc import MutableMapping, Sequence
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from distillation.recipe_tables import LossWeights
from distillation.taps import Tap


def weighted_terms(
    weights: LossWeights,
    taps: Sequence[Tap],
    *,
    sample_weights: Tensor,
    target: Tensor,
    student: Tensor,
    teacher: Tensor,
    student_features: MutableMapping[str, Tensor],
    teacher_features: MutableMapping[str, Tensor],
) -> dict[str, Tensor]:
    """The weighted loss terms; training minimises their sum.

    task = |student - target|^2, output = |student - teacher|^2, feature = sum over taps of |student tap - teacher tap|^2,
    each a mean over its elements; with `weights.scale` "teacher", each tap's error is divided by |teacher tap|^2.

    Args:
        sample_weights: N, weight of each image in the task term, which is a mean over N (arXiv 2303.09556).
        target: N x 4 x H x W, noise or velocity, according to the scheduler's prediction type.
        student, teacher: their predictions, of the same shape.
        student_features, teacher_features: outputs of the taps by path; each is removed once compared, which frees its memory.
    """
    squared_errors = (student.float() - target.float()).square()
    return {
        "task": weights.task * (sample_weights * squared_errors.flatten(1).mean(1)).mean(),
        "output": weights.output * mse(student, teacher),
        "feature": weights.feature * feature_loss(taps, student_features, teacher_features, weights.scale),
    }


def feature_loss(
    taps: Sequence[Tap], student: MutableMapping[str, Tensor], teacher: MutableMapping[str, Tensor], scale: Literal["none", "teacher"]
) -> Tensor:
    """Sum of the taps' mean squared errors; with scale "teacher", each is divided by the mean square of the teacher's output.

    Outputs are removed from the mappings as they are compared.
    """

    def error(student_output: Tensor, teacher_output: Tensor) -> Tensor:
        return mse(student_output, teacher_output) / (teacher_output.float().square().mean() if scale == "teacher" else 1)

    return torch.stack([error(student.pop(tap.student), teacher.pop(tap.teacher)) for tap in taps]).sum()


def min_snr_weights(scheduler: DDIMScheduler, timesteps: Tensor, snr_gamma: float | None) -> Tensor:
    """The Min-SNR weights (arXiv 2303.09556) of N timesteps, N; ones if `snr_gamma` is None.

    With snr = a / (1 - a) and a from `alphas_cumprod`: min(snr, gamma) / snr if the UNet predicts noise, min(snr, gamma) / (snr + 1) if it
    predicts velocities.
    """
    if snr_gamma is None:
        return torch.ones(len(timesteps), device=timesteps.device)
    signal: Tensor = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = signal / (1 - signal)
    clamped = snr.clamp(max=snr_gamma)
    if scheduler.config.prediction_type == "v_prediction":
        return clamped / (snr + 1)
    return torch.where(snr > 0, clamped / snr, 1.0)


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error in float32; only x has a gradient."""
    error: Tensor = _MeanSquaredError.apply(x, y)
    return error


class _MeanSquaredError(torch.autograd.Function):
    """Saves the difference for the backward pass in x's dtype, where autograd would save it in float32.

    The gradient is rounded to that dtype anyway. In bfloat16, a tap then takes no more memory than the teacher's output.
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
