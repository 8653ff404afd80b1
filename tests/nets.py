"""Networks of full topology with random weights that keep a signal, saved as the published files are."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from sdbench.arrays import F32
from sdbench.encoders.inception import build
from sdbench.encoders.inference import evaluators_on


def on_gpu_and_cpu(evaluate: Callable[[], F32]) -> tuple[F32, F32]:
    """Call it with the evaluators on the GPU, then on the CPU; returns both results."""
    with evaluators_on("cuda"):
        on_gpu = evaluate()
    with evaluators_on("cpu"):
        return on_gpu, evaluate()


def save_inception(path: Path, seed: int = 0) -> Path:
    """Save random weights with the keys of pt_inception-2015-12-05-6726825d.pth, classifier included; returns the path."""
    torch.manual_seed(seed)
    network = build()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.6, 1.4)
    torch.save(network.state_dict(), path)
    return path
