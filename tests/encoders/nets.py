"""Networks of full topology with random weights that keep a signal, saved as the published files are."""

from pathlib import Path

import torch
from torch import nn

from sdbench.encoders.inception import blank


def save_inception(path: Path, seed: int = 0) -> Path:
    """A state dict as pt_inception-2015-12-05-6726825d.pth has it, classifier included => its path."""
    torch.manual_seed(seed)
    made = blank()
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.6, 1.4)
    torch.save(made.state_dict(), path)
    return path
