"""Trains the VAE: 64 px images to 16 x 16 latents of 4 channels, each with zero mean and unit variance.

It downsamples by 4: by 8, as in SDXL, small shapes became unreadable at this size (under 20 dB). Its GroupNorm groups have at
least four channels: groups of a single channel erase colour.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from sdbench.models.architectures import PARTS
from sdbench.scenes.training.pool import Pool
from sdbench.training.loop import Schedule, fit

SCHEDULE = Schedule(steps=3000, lr=2e-3, batch=16, ema=0.995)


def train(work: Path, pool: Pool, device: str) -> AutoencoderKL:
    """Train the VAE, standardise its latents, and return it."""
    torch.manual_seed(SCHEDULE.seed)
    vae = AutoencoderKL(**PARTS["scenes"]["vae"]).to(device).to(memory_format=torch.channels_last)  # a fifth faster on CPUs

    def loss(step: int) -> dict[str, Tensor]:
        pixels = pool.pixels(pool.rows(step, SCHEDULE.batch)).to(device)
        posterior = vae.encode(pixels).latent_dist
        restored = vae.decode(posterior.sample()).sample
        return {
            "mse": F.mse_loss(restored, pixels),
            "l1": 0.1 * F.l1_loss(restored, pixels),
            "kl": 2e-5 * posterior.kl().mean() / posterior.mean[0].numel(),
        }

    vae = fit(vae, loss, SCHEDULE, work / "vae")
    standardise(vae, pool, device)
    return vae


@torch.no_grad()
def standardise(vae: AutoencoderKL, pool: Pool, device: str) -> None:
    """Fold the latents' mean and standard deviation into the two 1 x 1 convolutions around them, so that `scaling_factor` is 1."""
    latents = torch.cat([vae.encode(pool.pixels(pool.rows(step, 64, seed=1)).to(device)).latent_dist.mean for step in range(16)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = mean.numel()
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]


@torch.no_grad()
def psnr_db(vae: AutoencoderKL, pool: Pool) -> float:
    """The peak signal-to-noise ratio of 128 reconstructed images of the pool, in dB."""
    pixels = pool.pixels(pool.rows(0, 128))
    error = F.mse_loss(vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1), pixels)
    return float(10 * torch.log10(4 / error))
