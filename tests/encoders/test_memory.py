"""Networks are forgotten when a run is scored: whoever evaluates in the middle of a training loop has the GPU back."""

import weakref
from pathlib import Path
from types import ModuleType

from sdbench.encoders import clip, inception, memory, perceptual, preference, vit


def loaders(module: ModuleType) -> set[object]:
    return {found for found in vars(module).values() if hasattr(found, "cache_clear") and found.__module__ == module.__name__}


def test_every_full_size_network_is_among_them() -> None:
    assert set(memory.LOADERS) == set().union(*map(loaders, (clip, inception, perceptual, preference, vit)))


def test_a_network_is_gone(inception_file: Path) -> None:
    network = weakref.ref(inception.network(inception_file))
    assert network() is inception.network(inception_file)
    memory.release()
    assert network() is None
