"""Networks are freed after scoring, so that a training loop that evaluates gets its GPU memory back."""

import weakref
from pathlib import Path

import pytest
import torch

from sdbench.encoders import inception, inference


def test_release_frees_the_network(inception_file: Path) -> None:
    network = weakref.ref(inception.network(inception_file))
    assert network() is inception.network(inception_file)
    inference.release_evaluators()
    assert network() is None


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1"])
def test_evaluators_run_on_the_requested_device_and_are_released_even_after_an_error(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(inference, "release_evaluators", lambda: events.append("released"))
    with inference.evaluators_on(device):
        events.append(inference.device())
    with pytest.raises(ZeroDivisionError), inference.evaluators_on(device):
        1 / 0  # noqa: B018
    assert events == ["released", torch.device(device), "released", "released", "released"]
    assert inference.device() == torch.device("cuda")


def test_release_on_a_gpu_that_has_failed_does_not_hide_the_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def empty_cache() -> None:
        tried.append(1)
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    inference.release_evaluators()
    assert tried
