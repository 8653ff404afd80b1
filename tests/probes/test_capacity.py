"""What fits, tried on a card that is a stand-in: an allocator with a cap, and a pipeline whose need grows with its batch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdbench.probes import capacity

GIB, MIB = 2**30, 2**20


class Allocator:
    """Of a card of so many bytes; a picture needs 3 GiB beside 7 GiB of weights."""

    def __init__(self, total: int) -> None:
        self.total, self.fraction, self.batch, self.vae = total, 1.0, 1, "float16"
        self.lack: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    def short(self, batch: int) -> Any:
        def call() -> None:
            assert not torch.is_grad_enabled()
            assert self.vae == "float16"
            self.vae = "float32"  # the pipeline's detour, which an error leaves on its way
            if 7 * GIB + batch * 3 * GIB > self.fraction * self.total:
                raise self.lack
            self.vae = "float16"

        return call

    def restore(self) -> None:
        self.vae = "float16"

    def cap(self, fraction: float, device: int | None) -> None:
        assert 0.0 <= fraction <= 1.0
        assert device is None or torch.cuda._utils._get_device_index(device) >= 0, "as torch asks, which takes no cuda without a number"
        self.fraction = fraction


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    def made(total: int) -> Any:
        allocator = Allocator(total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", allocator.cap)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        return allocator

    return made


@pytest.mark.parametrize(
    ("total", "batch", "context_mib", "smallest"),
    [
        (80 * GIB, 1, 500, 12),
        (80 * GIB, 1, 2100, 16),  # 10 GiB and this context are more than 12
        (80 * GIB, 3, 500, 24),
        (80 * GIB, 6, 500, 32),
        (80 * GIB, 24, 500, 80),
        (80 * GIB, 30, 500, None),
        (48 * GIB, 15, 500, None),
        (int(11.8 * GIB), 1, 500, 12),  # a card of 12 GB shows a little less
        (8 * GIB, 1, 500, None),
    ],
)
def test_the_smallest_card_is_the_first_whose_memory_less_the_context_suffices(
    card: Any, total: int, batch: int, context_mib: float, smallest: int | None
) -> None:
    allocator = card(total)
    allocator.batch = batch
    assert capacity.smallest_card(allocator, "cuda", context_mib) == smallest
    assert allocator.fraction == 1.0, "the cap is lifted"


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_card_needs_no_number(card: Any, device: str) -> None:
    assert capacity.smallest_card(card(80 * GIB), device, 500) == 12


@pytest.mark.parametrize(
    "words",
    [
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
        "InductorError: OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB",
    ],
)
def test_libraries_that_lack_memory_say_so_in_words_of_their_own(card: Any, words: str) -> None:
    allocator = card(80 * GIB)
    allocator.lack = RuntimeError(words)
    assert capacity.smallest_card(allocator, "cuda", 500) == 12
    allocator.lack = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        capacity.smallest_card(allocator, "cuda", 500)
    assert allocator.fraction == 1.0, "the cap is lifted then, too"


@pytest.mark.parametrize(("batch", "total", "largest"), [(16, 80 * GIB, 8), (16, 20 * GIB, 4), (16, 9 * GIB, 0), (1, 9 * GIB, 0)])
def test_the_largest_batch_that_fits_is_found_by_halving(card: Any, batch: int, total: int, largest: int) -> None:
    allocator = card(total)
    allocator.batch = batch
    assert capacity.largest_batch(allocator) == largest


def test_the_context_is_what_the_process_holds_beside_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 9 * GIB)
    assert capacity.context_mib("cuda", 9.5 * 1024) == 512
    assert capacity.context_mib("cuda", None) == 1024, "alone on the card, all that is used is this process's"
