"""Trains the attribute reader, which decides whether an image shows what its caption asks for, and the feature network.

Both learn to predict the attributes of rendered scenes. The reader also sees shifted, blurred and noisy ones, because it has
to read generated images.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sdbench.scenes.attributes import attribute_loss, labels, read_layouts
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.training.pool import Pool
from sdbench.training.loop import Schedule, fit

READER_WIDTH, FEATURES_WIDTH = 128, 64
READER = Schedule(steps=2000, lr=3e-3, batch=96, ema=0.99, seed=10)
FEATURES = Schedule(steps=1000, lr=3e-3, batch=96, ema=0.99, seed=20)


def train(work: Path, name: str, pool: Pool, width: int, schedule: Schedule, *, augment: bool, device: str = "cpu") -> SceneNet:
    """Train a `SceneNet` on the pool's scenes, degraded if `augment`, and return it in evaluation mode."""
    torch.manual_seed(schedule.seed)
    net = SceneNet(width).to(device).to(memory_format=torch.channels_last)
    truth = labels([scene.layout for scene in pool.scenes])

    def loss(step: int) -> dict[str, Tensor]:
        rows = pool.rows(step, schedule.batch, schedule.seed)
        pixels = pool.pixels(rows).to(device)
        return {
            "attributes": attribute_loss(
                net(degrade(pixels) if augment else pixels), {name: values[rows] for name, values in truth.items()}
            )
        }

    return fit(net, loss, schedule, work / name)


def degrade(pixels: Tensor) -> Tensor:
    """Shift images, N x 3 x 64 x 64 in -1..1, by up to 3 px; add blur and noise, change contrast and brightness; all at random."""
    dy, dx = (int(v) for v in torch.randint(-3, 4, (2,)))
    pixels = F.pad(pixels, (3, 3, 3, 3), "replicate")[:, :, 3 + dy : 67 + dy, 3 + dx : 67 + dx]
    n = len(pixels)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), "replicate"), 3, 1)
    amount = torch.rand(4, n, 1, 1, 1, device=pixels.device)
    pixels = torch.lerp(pixels, blurred, amount[0])
    pixels = pixels * (0.9 + 0.2 * amount[1]) + 0.1 * (amount[2] - 0.5)
    return (pixels + 0.15 * amount[3].square() * torch.randn_like(pixels)).clamp(-1, 1)


@torch.no_grad()
def accuracy(net: SceneNet, pool: Pool) -> float:
    """The share of the pool's images whose whole layout is read correctly."""
    right = 0
    for start in range(0, pool.n, 256):
        rows = torch.arange(start, min(start + 256, pool.n)).numpy()
        layouts = read_layouts(net(pool.pixels(rows)))
        right += sum(layout == pool.scenes[row].layout for layout, row in zip(layouts, rows, strict=True))
    return right / pool.n
