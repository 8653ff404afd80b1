from types import SimpleNamespace

import pytest
import torch

from sdbench.probes import ceilings, meters


def test_rate_is_that_of_the_named_device_whichever_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host takes 1 ms to launch 2 s of work on the second card; the first, the current one, has nothing to do."""
    host, done = [0.0], {"cuda:0": 0.0, "cuda:1": 0.0}

    def launch() -> None:
        host[0] += 0.001
        done["cuda:1"] = max(done["cuda:1"], host[0]) + 2

    def synchronize(device: str | None = None) -> None:
        host[0] = max(host[0], done[device or "cuda:0"])

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(meters, "time", SimpleNamespace(perf_counter=lambda: host[0]))
    monkeypatch.setattr(ceilings, "prepare", lambda *_: launch)
    assert ceilings.measure("matmul", "cuda:1", "bfloat16") == pytest.approx(8 * 2 * 8192**3 / 2, rel=1e-3)


def test_work_of_a_product_is_two_flops_for_each_multiply_accumulate_and_a_copy_both_reads_and_writes() -> None:
    assert ceilings.work_per_call("matmul", "cuda", "bfloat16") == 8 * 2 * 8192**3
    assert ceilings.work_per_call("copy", "cuda", "bfloat16") == ceilings.work_per_call("copy", "cuda", "float32") == 8 * 2 * 2**30


def test_work_of_a_call_is_that_of_all_its_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ceilings.REPEATS, "cpu", 3)
    monkeypatch.setitem(ceilings.MATMUL_SIDE, "cpu", 2)
    done: list[int] = []
    monkeypatch.setattr(torch, "matmul", lambda a, b, out: done.append(2 * len(a) * len(b) * out.shape[1]))
    ceilings.prepare("matmul", "cpu", "float32")()
    assert len(done) == 3
    assert sum(done) == ceilings.work_per_call("matmul", "cpu", "float32")
