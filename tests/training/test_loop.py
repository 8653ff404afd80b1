"""The training loop: a killed run goes on as if nothing had happened, and a broken one keeps its last good state."""

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from processes import by_one, by_two
from safetensors.torch import load_file
from torch import Tensor, nn

from sdbench.errors import UserError
from sdbench.training.loop import Schedule, fit, max_even_processes

SCHEDULE = Schedule(steps=12, lr=1e-2, batch=8, warmup=3, ema=0.9, seed=4)
ALWAYS = -1.0  # seconds between saved states


def tiny_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


def noisy_loss(
    net: nn.Module, until: int = 1000, error: BaseException | None = None, again: int = 1000
) -> Callable[[int], dict[str, Tensor]]:
    """Data drawn anew each step; from step `until` on it throws, or is NaN, but not from `again` on."""

    def loss(step: int) -> dict[str, Tensor]:
        if step >= until and error is not None:
            raise error
        x = torch.randn(8, 3)
        square = (net(x) - x.sum(1, keepdim=True)).square().mean()
        return {"square": square * (torch.nan if until <= step < again else 1), "small": 1e-3 * net[0].weight.square().sum()}  # type: ignore[index]  # a Sequential

    return loss


def tensors(net: nn.Module) -> list[Tensor]:
    return [value.clone() for value in net.state_dict().values()]


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("killed_at", [1, 5, 11])
def test_a_killed_run_that_goes_on_ends_as_an_unbroken_one_bit_for_bit(ema: float | None, killed_at: int, tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, ema=ema)
    whole = tiny_net()
    kept = tensors(fit(whole, noisy_loss(whole), schedule, tmp_path / "whole", save_every_s=ALWAYS))
    broken = tiny_net()
    with pytest.raises(KeyboardInterrupt):
        fit(broken, noisy_loss(broken, killed_at, KeyboardInterrupt()), schedule, tmp_path / "broken", save_every_s=ALWAYS)
    resumed = tiny_net(seed=1)  # what a new process starts from does not matter
    torch.manual_seed(99)
    again = tensors(fit(resumed, noisy_loss(resumed), schedule, tmp_path / "broken", save_every_s=ALWAYS))
    assert all(map(torch.equal, again, kept))
    assert all(map(torch.equal, tensors(resumed), tensors(whole)))
    assert (tmp_path / "broken" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    assert {path.name for path in (tmp_path / "broken").glob("step-*")} == {"step-00000011", "step-00000012"}


@pytest.mark.parametrize("killed_at", [5, 12])
def test_a_killed_run_looks_at_what_it_goes_on_from(killed_at: int, tmp_path: Path) -> None:
    """Killed while it looked, or right after: what was seen of the checkpoint is in the log once."""

    def seen(folder: Path, taken: int | None = None) -> bytes:
        def evaluate(kept: nn.Module) -> tuple[npt.NDArray[np.uint8], dict[str, float]]:
            if taken is not None and (folder / f"step-{taken:08d}").exists():
                raise KeyboardInterrupt
            return np.zeros((2, 2, 3), np.uint8), {"norm": next(kept.parameters()).norm().item()}

        net = tiny_net()
        fit(net, noisy_loss(net), SCHEDULE, folder, evaluate=evaluate, evaluate_every=5, save_every_s=ALWAYS)
        return (folder / "log.jsonl").read_bytes()

    whole = seen(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        seen(tmp_path / "killed", killed_at)
    assert seen(tmp_path / "killed") == whole
    assert seen(tmp_path / "killed") == whole  # and once more, with no step left to take
    assert whole.count(b"norm") == 3 + 1  # gradient_norm of step 0, too


def killed(folder: Path) -> None:
    net = tiny_net()
    loss = noisy_loss(net)

    def deadly(number: int) -> dict[str, Tensor]:
        if number == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(number)

    fit(net, deadly, SCHEDULE, folder, save_every_s=ALWAYS)


def test_a_run_ended_by_sigkill_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    assert by_one(killed, tmp_path / "killed") == -signal.SIGKILL
    whole, resumed = tiny_net(), tiny_net(seed=1)
    kept = tensors(fit(whole, noisy_loss(whole), SCHEDULE, tmp_path / "whole"))
    assert all(map(torch.equal, tensors(fit(resumed, noisy_loss(resumed), SCHEDULE, tmp_path / "killed")), kept))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    net = tiny_net()
    kept = tensors(fit(net, noisy_loss(net), SCHEDULE, tmp_path))
    other = tiny_net(seed=1)
    again = fit(other, noisy_loss(other, 0, AssertionError("a step was taken")), SCHEDULE, tmp_path)
    assert all(map(torch.equal, tensors(again), kept))
    assert not again.training


def test_training_finds_what_there_is_to_find_and_logs_every_term(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 1))
    fit(net, noisy_loss(net), replace(SCHEDULE, steps=76, lr=0.1), tmp_path)
    torch.testing.assert_close(net[0].weight, torch.ones(1, 3), rtol=0, atol=0.05)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 25, 50, 75]
    assert all(line.keys() == {"step", "square", "small", "lr", "gradient_norm"} for line in lines)
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 1
    assert lines[-1]["square"] < 0.01 < lines[0]["square"]


def test_a_loss_that_is_not_finite_is_an_error_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    net = tiny_net()
    with pytest.raises(
        UserError,
        match=r"not finite at step 7 \(square nan, small [0-9.e-]+\); the last good checkpoint is .*step-00000007\. Running it again repeats the same steps",
    ):
        fit(net, noisy_loss(net, 6), SCHEDULE, tmp_path, save_every_s=ALWAYS)
    for name in ("model", "average"):
        assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "step-00000007" / f"{name}.safetensors").values())
    assert not list(tmp_path.glob("*.part"))


def test_a_lone_step_that_is_not_finite_is_skipped_and_logged(tmp_path: Path) -> None:
    net, weights = tiny_net(), list[list[Tensor]]()

    def evaluate(_: nn.Module) -> tuple[npt.NDArray[np.uint8], dict[str, float]]:
        weights.append([parameter.detach().clone() for parameter in net.parameters()])
        return np.zeros((2, 2, 3), np.uint8), {}

    fit(net, noisy_loss(net, 6, again=7), SCHEDULE, tmp_path, evaluate=evaluate, evaluate_every=1)
    moved = [not all(map(torch.equal, one, other)) for one, other in itertools.pairwise(weights)]
    assert moved == [step != 6 for step in range(1, 12)]
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    assert '{"step": 6, "skipped": 1.0}' in (tmp_path / "log.jsonl").read_text().splitlines()


def test_the_last_step_has_to_be_finite(tmp_path: Path) -> None:
    net = tiny_net()
    with pytest.raises(UserError, match="not finite at step 11"):
        fit(net, noisy_loss(net, 11), SCHEDULE, tmp_path)


def test_a_gradient_that_is_not_finite_is_an_error_though_the_loss_is_fine(tmp_path: Path) -> None:
    net = nn.Linear(2, 1)

    def loss(_: int) -> dict[str, Tensor]:
        return {"root": (net.weight - net.weight.detach()).square().sum().sqrt()}  # 0, with a gradient of 0 / 0

    with pytest.raises(UserError, match=r"not finite at step 1 \(root 0\); there was no checkpoint yet"):
        fit(net, loss, SCHEDULE, tmp_path)


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_the_one_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net()
    with pytest.raises(KeyboardInterrupt):
        fit(net, noisy_loss(net, 5, KeyboardInterrupt()), SCHEDULE, tmp_path, save_every_s=ALWAYS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "step-00000005").iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sdbench.training.checkpoints.save_model", full)
    with pytest.raises(UserError, match=r"No space left on device; the last good checkpoint is .*step-00000005\. Make room and run again"):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path, save_every_s=ALWAYS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "step-00000005").iterdir()} == before
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ["log.jsonl", "samples"])
def test_a_log_or_picture_that_cannot_be_written_is_an_error_that_names_the_checkpoint(name: str, tmp_path: Path) -> None:
    net, in_the_way = tiny_net(), tmp_path / name

    def evaluate(_: nn.Module) -> tuple[npt.NDArray[np.uint8], dict[str, float]]:
        return np.zeros((2, 2, 3), np.uint8), {}

    with pytest.raises(KeyboardInterrupt):
        fit(net, noisy_loss(net, 5, KeyboardInterrupt()), SCHEDULE, tmp_path, save_every_s=ALWAYS)
    in_the_way.unlink(missing_ok=True)
    in_the_way.mkdir() if name == "log.jsonl" else in_the_way.write_text("")
    with pytest.raises(UserError, match=rf"cannot write .*{name}.*; the last good checkpoint is .*step-000000.*\. Make room and run again"):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path, evaluate=evaluate)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    net = tiny_net()
    with pytest.raises(UserError, match=r"cannot write a run to .*; there was no checkpoint yet"):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path / "file" / "run")


def test_a_checkpoint_that_the_disk_lost_costs_the_steps_since_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tiny_net()
    kept = tensors(fit(whole, noisy_loss(whole), SCHEDULE, tmp_path / "whole"))
    broken, folder = tiny_net(), tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        fit(broken, noisy_loss(broken, 12 - 1, KeyboardInterrupt()), SCHEDULE, folder, save_every_s=ALWAYS)
    (folder / "step-00000011" / "optimiser.pt").write_bytes(b"")
    resumed = tiny_net(seed=1)
    assert all(map(torch.equal, tensors(fit(resumed, noisy_loss(resumed), SCHEDULE, folder, save_every_s=ALWAYS)), kept))
    said = capsys.readouterr().err
    assert re.search(r"cannot continue from checkpoint .*step-00000011: .*\. Continuing from the one before: .*step-00000010", said)
    assert {path.name for path in folder.glob("step-*")} == {"step-00000011", "step-00000012"}


def test_a_device_that_is_full_is_no_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net()
    fit(net, noisy_loss(net), SCHEDULE, tmp_path)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sdbench.training.checkpoints.load_model", full)
    with pytest.raises(torch.OutOfMemoryError):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "average.safetensors", "optimiser.pt"])
def test_a_damaged_checkpoint_is_named(file: str, tmp_path: Path) -> None:
    net = tiny_net()
    fit(net, noisy_loss(net), SCHEDULE, tmp_path)
    assert len(list(tmp_path.glob("step-*"))) == 1
    damaged = tmp_path / "step-00000012" / file
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(UserError, match=r"cannot continue from checkpoint .*step-00000012.*Remove it to start again"):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    data = torch.randn(12 * 4, 3, generator=torch.Generator().manual_seed(0))

    def trained(batch: int, accumulation: int) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Linear(3, 1)

        def loss(number: int) -> dict[str, Tensor]:
            x = data[batch * number : batch * (number + 1)]
            return {"square": (net(x) - x.sum(1, keepdim=True)).square().mean()}

        schedule = replace(SCHEDULE, batch=batch, accumulation=accumulation)
        return tensors(fit(net, loss, schedule, tmp_path / f"{batch}"))

    for one, other in zip(trained(4, 1), trained(1, 4), strict=True):
        torch.testing.assert_close(one, other)


def test_the_weights_to_keep_are_watched_on_the_way_and_at_the_end(tmp_path: Path) -> None:
    net, seen = tiny_net(), []

    def evaluate(kept: nn.Module) -> tuple[npt.NDArray[np.uint8], dict[str, float]]:
        assert not kept.training
        seen.append(tensors(kept))
        return np.full((4, 6, 3), 9, np.uint8), {"accuracy": 0.5}

    final = fit(net, noisy_loss(net), SCHEDULE, tmp_path, evaluate=evaluate, evaluate_every=5)
    assert len(seen) == 3
    assert all(map(torch.equal, seen[-1], tensors(final)))
    assert net.training
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [f"step-{step:08d}.png" for step in (5, 10, 12)]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["accuracy"]) for line in lines if "accuracy" in line] == [(5, 0.5), (10, 0.5), (12, 0.5)]
    unwatched = tiny_net()
    assert all(map(torch.equal, tensors(fit(unwatched, noisy_loss(unwatched), SCHEDULE, tmp_path / "unwatched")), tensors(final)))


@pytest.mark.parametrize(("decay", "half", "last"), [("cosine", 0.5, 0.0), ("none", 1.0, 1.0)])
def test_the_learning_rate_rises_and_then_goes_down_or_stays(decay: Literal["cosine", "none"], half: float, last: float) -> None:
    schedule = Schedule(steps=110, lr=2.0, batch=1, warmup=10, lr_decay=decay)
    assert [schedule.lr_at(step) for step in (0, 4, 9, 10)] == [0.2, 1.0, 2.0, 2.0]
    assert schedule.lr_at(60) == pytest.approx(2 * half)
    assert schedule.lr_at(110) == pytest.approx(2 * last)


def summed_up(folder: Path, spoilt: int | None = None) -> Path:
    """Train a network whose every step sums up four batches, of which number `spoilt` is NaN => its folder."""
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)])
    torch.manual_seed(0)
    net = accelerator.prepare(nn.Linear(3, 1))
    data = torch.randn(24, 4, 3, generator=torch.Generator().manual_seed(0))

    def loss(number: int) -> dict[str, Tensor]:
        square = (net(data[number]) - data[number].sum(1, keepdim=True)).square().mean()
        return {"square": square * (torch.nan if number % 4 == spoilt else 1)}

    fit(net, loss, Schedule(steps=6, lr=1e-2, batch=4, warmup=2, accumulation=4), folder, accelerator=accelerator)
    if accelerator.num_processes > 1:  # kept once, in a bucket, through all of an accumulation
        assert len({parameter.grad.untyped_storage().data_ptr() for parameter in net.parameters()}) == 1
    return folder


def together(folder: Path) -> None:
    summed_up(folder)
    with pytest.raises(UserError, match="square nan"):  # of the second process's batches
        summed_up(folder / "spoilt", spoilt=1)


def test_two_processes_share_out_the_batches_of_the_steps_that_one_takes(tmp_path: Path) -> None:
    assert by_two(together, tmp_path / "by-2") == [0, 0]
    folders = tmp_path / "by-2", summed_up(tmp_path / "by-1")
    one, other = (load_file(folder / "step-00000006" / "model.safetensors") for folder in folders)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name])
    one_said, other_said = (json.loads((folder / "log.jsonl").read_text()) for folder in folders)
    assert one_said == pytest.approx(other_said, rel=1e-4)  # of step 0


# The time limit of training is set to a second; what one does for all may take longer.
PATIENT = f"""
import sys, time
from datetime import timedelta
from pathlib import Path
sys.path += {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}
from test_loop import summed_up
from torch.distributed.distributed_c10d import _set_pg_timeout
from sdbench.training.processes import broadcast_from_main, rank_and_local_size
summed_up(Path(sys.argv[1]))
_set_pg_timeout(timedelta(seconds=1), None)
told = broadcast_from_main(lambda: time.sleep(2) or "made")
Path(sys.argv[1], f"told-{{rank_and_local_size()[0]}}").write_text(told)
"""


@pytest.mark.slow
def test_what_one_process_does_for_all_may_take_longer_than_a_step_of_training(tmp_path: Path) -> None:
    (script := tmp_path / "patient.py").write_text(PATIENT)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(tmp_path / "by-2")]
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / "by-2" / f"told-{process}").read_text() for process in (0, 1)] == ["made", "made"]


def test_batches_that_cannot_be_shared_out_evenly_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 4)
    net = tiny_net()
    with pytest.raises(UserError, match="6 batches a step cannot be shared evenly by 4 processes; start 3, or change"):
        fit(net, noisy_loss(net), replace(SCHEDULE, accumulation=6), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert [max_even_processes(8, processes) for processes in (1, 3, 7, 8, 9)] == [1, 2, 4, 8, 8]


def test_without_an_average_the_last_weights_are_kept_with_one_their_running_mean(tmp_path: Path) -> None:
    net = tiny_net()
    assert fit(net, noisy_loss(net), replace(SCHEDULE, ema=None), tmp_path / "last") is net
    net = tiny_net()
    average = fit(net, noisy_loss(net), SCHEDULE, tmp_path / "average")
    assert average is not net
    differs = [not torch.equal(kept, last) for kept, last in zip(average.parameters(), net.parameters(), strict=True)]
    assert all(differs)
