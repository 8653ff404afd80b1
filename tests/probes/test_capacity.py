"""What fits on a card, on a fake one: an allocator with a cap, and a pipeline whose memory grows with its batch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdbench.probes import capacity

GIB, MIB = 2**30, 2**20


class FakeCard:
    """A card of `total` bytes, and a pipeline with 7 GiB of weights that needs 3 GiB for each image."""

    def __init__(self, total: int) -> None:
        self.total, self.fraction, self.batch, self.vae = total, 1.0, 1, "float16"
        self.error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    def short(self, batch: int) -> Any:
        def call() -> None:
            assert not torch.is_grad_enabled()
            assert self.vae == "float16"
            self.vae = "float32"  # the pipeline decodes in float32; an error leaves the VAE there
            if 7 * GIB + batch * 3 * GIB > self.fraction * self.total:
                raise self.error
            self.vae = "float16"

        return call

    def restore(self) -> None:
        self.vae = "float16"

    def cap(self, fraction: float, device: int | None) -> None:
        assert 0.0 <= fraction <= 1.0
        assert device is None or torch.cuda._utils._get_device_index(device) >= 0, "torch accepts no CUDA device without an index"
        self.fraction = fraction


@pytest.fixture
def make_card(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(total: int) -> Any:
        fake = FakeCard(total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fake.cap)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        return fake

    return make


@pytest.mark.parametrize(
    ("total", "batch", "context_mib", "smallest"),
    [
        (80 * GIB, 1, 500, 12),
        (80 * GIB, 1, 2100, 16),  # 10 GiB and this context are more than 12
        (80 * GIB, 3, 500, 20),
        (80 * GIB, 4, 500, 24),
        (80 * GIB, 6, 500, 32),
        (80 * GIB, 2, 2300, 20),  # 15.3 GiB in all: less than the 16 that are sold, more than the 14.56 that a T4 shows
        (80 * GIB, 21, 500, 80),
        (80 * GIB, 30, 500, None),
        (48 * GIB, 15, 500, None),
        (int(11.75 * GIB), 1, 500, 12),  # what cards show that are sold with 12, 16, 24, 32 and 48 GB: RTX 3060, T4, L4, RTX 5090, L40
        (int(14.56 * GIB), 2, 300, 16),
        (int(22.05 * GIB), 4, 500, 24),
        (int(31.36 * GIB), 7, 200, 32),
        (int(44.40 * GIB), 11, 500, 48),
        (8 * GIB, 1, 500, None),
    ],
)
def test_smallest_card_is_the_first_with_enough_memory_beside_the_context(
    make_card: Any, total: int, batch: int, context_mib: float, smallest: int | None
) -> None:
    fake = make_card(total)
    fake.batch = batch
    assert capacity.smallest_card(fake, "cuda", context_mib) == smallest
    assert fake.fraction == 1.0, "the cap is lifted"


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_device_index_may_be_omitted(make_card: Any, device: str) -> None:
    assert capacity.smallest_card(make_card(80 * GIB), device, 500) == 12


@pytest.mark.parametrize(
    "message",
    [
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
        "InductorError: OutOfMemoryError: CUDA out of memory. Tried to allocate 3.00 GiB",
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nLast error:\nFailed to CUDA calloc async 4 bytes",
        "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nLast error:\nFailed to CUDA malloc 4 bytes",
    ],
)
def test_out_of_memory_errors_of_other_libraries_are_recognised(make_card: Any, message: str) -> None:
    fake = make_card(80 * GIB)
    fake.error = RuntimeError(message)
    assert capacity.smallest_card(fake, "cuda", 500) == 12
    fake.error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        capacity.smallest_card(fake, "cuda", 500)
    assert fake.fraction == 1.0, "the cap is lifted after an error, too"


@pytest.mark.parametrize(("batch", "total", "fitting"), [(16, 80 * GIB, 8), (16, 20 * GIB, 4), (16, 9 * GIB, 0), (1, 9 * GIB, 0)])
def test_batch_that_fits_is_found_by_halving(make_card: Any, batch: int, total: int, fitting: int) -> None:
    fake = make_card(total)
    fake.batch = batch
    assert capacity.fitting_batch(fake) == fitting


def test_context_is_the_process_memory_outside_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 9 * GIB)
    assert capacity.context_mib("cuda", 9.5 * 1024) == 512
    assert capacity.context_mib("cuda", None) == 1024, "alone on the card, all used memory is this process's"
    assert capacity.context_mib("cuda", 8 * 1024) == 0, "what was measured by growth may fall short of what the allocator holds"
