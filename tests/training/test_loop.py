"""The training loop: a killed run resumes bit for bit, and a failed one keeps its last good checkpoint."""

import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from processes import by_one, by_two
from safetensors.torch import load_file, save_model
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from torch import Tensor, nn
from tqdm import tqdm

from sdbench.arrays import U8
from sdbench.disk import read_json_lines
from sdbench.errors import UserError
from sdbench.notes import progress
from sdbench.training import checkpoints
from sdbench.training.checkpoints import DIGESTS, Checkpoints, read_newest_network
from sdbench.training.interruption import Interruption
from sdbench.training.journal import Journal
from sdbench.training.loop import Schedule, draw_rows, fit, max_even_processes

SCHEDULE = Schedule(steps=12, lr=1e-2, batch=8, warmup=3, ema=0.9, seed=4)
ALWAYS = -1.0  # seconds between saved states
Evaluation = tuple[U8, dict[str, float]]
BLANK = np.zeros((2, 2, 3), np.uint8)


def tiny_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


def noisy_loss(
    net: nn.Module, until: int = 1000, error: BaseException | None = None, again: int = 1000
) -> Callable[[int], dict[str, Tensor]]:
    """A loss on new random data each step; from step `until` on it raises `error` or, before step `again`, is NaN."""

    def loss(step: int) -> dict[str, Tensor]:
        if step >= until and error is not None:
            raise error
        x = torch.randn(8, 3)
        square = (net(x) - x.sum(1, keepdim=True)).square().mean()
        return {
            "square": square * (torch.nan if until <= step < again else 1),
            "small": 1e-3 * net.get_parameter("0.weight").square().sum(),
        }

    return loss


def tensors(net: nn.Module) -> list[Tensor]:
    return [value.clone() for value in net.state_dict().values()]


def train_until(step: int, folder: Path, schedule: Schedule = SCHEDULE, **options: Any) -> None:
    """Train a tiny network with a checkpoint after each step, and interrupt the run at a step."""
    net = tiny_net()
    with pytest.raises(KeyboardInterrupt):
        fit(net, noisy_loss(net, step, KeyboardInterrupt()), schedule, folder, save_every_s=ALWAYS, **options)


def read_log(folder: Path) -> list[dict[str, float]]:
    return [*read_json_lines(folder / "log.jsonl")]


def checkpoints_of_a_layer(folder: Path, every_s: float = 0) -> Checkpoints:
    net = nn.Linear(2, 1)
    return Checkpoints(folder, net, torch.optim.SGD(net.parameters()), None, every_s)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("killed_at", [1, 5, 11])
def test_resumed_run_is_bit_identical_to_an_uninterrupted_one(ema: float | None, killed_at: int, tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, ema=ema)
    uninterrupted = tiny_net()
    kept = tensors(fit(uninterrupted, noisy_loss(uninterrupted), schedule, tmp_path / "whole", save_every_s=ALWAYS))
    train_until(killed_at, tmp_path / "interrupted", schedule)
    resumed = tiny_net(seed=1)  # a new process may start from other weights
    torch.manual_seed(99)
    again = tensors(fit(resumed, noisy_loss(resumed), schedule, tmp_path / "interrupted", save_every_s=ALWAYS))
    assert all(map(torch.equal, again, kept))
    assert all(map(torch.equal, tensors(resumed), tensors(uninterrupted)))
    assert (tmp_path / "interrupted" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    assert {path.name for path in (tmp_path / "interrupted").glob("step-*")} == {"step-00000011", "step-00000012"}


@pytest.fixture
def _signals_interrupt() -> Iterator[None]:
    """As under the command line; a shell's background jobs ignore SIGINT."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals_interrupt")
@pytest.mark.parametrize(
    ("number", "saved_at_two"), [(signal.SIGINT, []), (signal.SIGTERM, ["step-00000006"]), (signal.SIGHUP, ["step-00000006"])]
)
def test_an_interrupted_step_is_finished_and_saved_unless_a_person_insists(
    number: signal.Signals, saved_at_two: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def train(folder: Path, times: int) -> list[Tensor]:
        net = tiny_net()
        loss = noisy_loss(net)

        def interrupted(step: int) -> dict[str, Tensor]:
            for _ in range(times if step == 5 else 0):
                signal.raise_signal(number)
            return loss(step)

        return tensors(fit(net, interrupted, SCHEDULE, folder, save_every_s=1e6))

    for times, saved in ((1, ["step-00000006"]), (2, saved_at_two)):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / str(times), times)
        assert [path.name for path in (tmp_path / str(times)).glob("step-*")] == saved
        assert signal.getsignal(number) is signal.default_int_handler
        assert capfd.readouterr().err.count("ending after this step, with a checkpoint; Ctrl-C ends at once\n") == 1
    assert all(map(torch.equal, train(tmp_path / "1", 1), train(tmp_path / "whole", 0)))


@pytest.mark.usefixtures("_signals_interrupt")
def test_under_torchrun_no_ctrl_c_is_promised(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err == "\nending after this step, with a checkpoint\n"


@pytest.mark.usefixtures("_signals_interrupt")
def test_an_interrupted_step_is_saved_though_nobody_reads_the_notes_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `2>&1 | tee log`, where Ctrl-C ends tee first."""

    def gone(*_: object) -> None:
        raise BrokenPipeError

    def interrupted(step: int) -> dict[str, Tensor]:
        if step == 5:
            monkeypatch.setattr("sdbench.training.interruption.os", SimpleNamespace(write=gone))
            monkeypatch.setattr(tqdm, "refresh", gone)
            monkeypatch.setattr(tqdm, "update", gone)
            signal.raise_signal(signal.SIGINT)
        return loss(step)

    net = tiny_net()
    loss = noisy_loss(net)
    with pytest.raises((KeyboardInterrupt, BrokenPipeError)):
        fit(net, interrupted, SCHEDULE, tmp_path, save_every_s=1e6)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000006"]


@pytest.mark.usefixtures("_signals_interrupt")
def test_an_interruption_after_the_last_step_is_not_lost(tmp_path: Path) -> None:
    def interrupt(_: nn.Module) -> Evaluation:
        signal.raise_signal(signal.SIGINT)
        return BLANK, {}

    net = tiny_net()
    with pytest.raises(KeyboardInterrupt):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path, evaluate=interrupt)
    assert (tmp_path / "samples").is_dir(), "the evaluation was finished"


@pytest.mark.parametrize("killed_at", [5, 12])
def test_resumed_run_evaluates_every_checkpoint_once(killed_at: int, tmp_path: Path) -> None:
    """Killed during an evaluation or right after it: the log has each evaluation once."""

    def train_and_read_log(folder: Path, kill_at: int | None = None) -> bytes:
        def evaluate(kept: nn.Module) -> Evaluation:
            if kill_at is not None and (folder / f"step-{kill_at:08d}").exists():
                raise KeyboardInterrupt
            return BLANK, {"norm": next(kept.parameters()).norm().item()}

        net = tiny_net()
        fit(net, noisy_loss(net), SCHEDULE, folder, evaluate=evaluate, evaluate_every=5, save_every_s=ALWAYS)
        return (folder / "log.jsonl").read_bytes()

    uninterrupted = train_and_read_log(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_and_read_log(tmp_path / "killed", killed_at)
    assert train_and_read_log(tmp_path / "killed") == uninterrupted
    assert train_and_read_log(tmp_path / "killed") == uninterrupted  # once more, with no step left
    assert uninterrupted.count(b"norm") == 3 + 1  # one is the gradient_norm of step 0


@pytest.mark.usefixtures("_signals_interrupt")
def test_no_step_goes_by_unseen_though_the_run_is_interrupted_and_killed(tmp_path: Path) -> None:
    seen = list[int]()

    def see(taken: int, kept: nn.Module) -> None:
        seen.append(taken)
        if taken:
            saved = load_file(tmp_path / f"step-{taken:08d}" / "average.safetensors")
            assert all(torch.equal(tensor, saved[name]) for name, tensor in kept.state_dict().items())

    def interrupted(number: int) -> dict[str, Tensor]:
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        return loss(number)

    net = tiny_net()
    loss = noisy_loss(net)
    with pytest.raises(KeyboardInterrupt):
        fit(net, interrupted, SCHEDULE, tmp_path, save_every_s=ALWAYS, after_step=see)
    assert seen == [0, 1, 2], "an interrupted step is only saved"
    train_until(7, tmp_path, after_step=see)
    assert seen[3:] == [3, 4, 5, 6, 7]
    train_until(12, tmp_path, replace(SCHEDULE, steps=13), after_step=see)
    assert seen[8:] == [7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("entry", ["{}", "[1]", '{"step": "1"}'])
def test_damaged_entry_of_the_log_is_named(entry: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(f'{{"step": 0}}\n{entry}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2 of .*log\.jsonl is damaged \(expected an object with a step\); remove that line"):
        Journal(tmp_path, 5, 10, None, 5, quiet=False)


def train_until_killed(folder: Path) -> None:
    net = tiny_net()
    loss = noisy_loss(net)

    def loss_or_kill(number: int) -> dict[str, Tensor]:
        if number == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(number)

    fit(net, loss_or_kill, SCHEDULE, folder, save_every_s=ALWAYS)


def test_run_killed_by_sigkill_resumes_bit_for_bit(tmp_path: Path) -> None:
    assert by_one(train_until_killed, tmp_path / "killed") == -signal.SIGKILL
    uninterrupted, resumed = tiny_net(), tiny_net(seed=1)
    kept = tensors(fit(uninterrupted, noisy_loss(uninterrupted), SCHEDULE, tmp_path / "whole"))
    assert all(map(torch.equal, tensors(fit(resumed, noisy_loss(resumed), SCHEDULE, tmp_path / "killed")), kept))


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    net = tiny_net()
    kept = tensors(fit(net, noisy_loss(net), SCHEDULE, tmp_path))
    other = tiny_net(seed=1)
    again = fit(other, noisy_loss(other, 0, AssertionError("trained again")), SCHEDULE, tmp_path)
    assert all(map(torch.equal, tensors(again), kept))
    assert not again.training


def test_training_converges_and_logs_every_term(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 1))
    fit(net, noisy_loss(net), replace(SCHEDULE, steps=76, lr=0.1), tmp_path)
    torch.testing.assert_close(net[0].weight, torch.ones(1, 3), rtol=0, atol=0.05)
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [0, 25, 50, 75]
    assert all(line.keys() == {"step", "square", "small", "lr", "gradient_norm"} for line in lines)
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 1
    assert lines[-1]["square"] < 0.01 < lines[0]["square"]


def test_non_finite_loss_is_an_error_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    net = tiny_net()
    with pytest.raises(
        UserError,
        match=r"not finite at step 7 \(square nan, small [0-9.e-]+\); the last good checkpoint is .*step-00000007\. Running it again "
        r"repeats the same steps",
    ):
        fit(net, noisy_loss(net, 6), SCHEDULE, tmp_path, save_every_s=ALWAYS)
    for name in ("model", "average"):
        assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "step-00000007" / f"{name}.safetensors").values())
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_network_to_keep_of_the_newest_checkpoint_can_be_read(ema: float | None, tmp_path: Path) -> None:
    assert read_newest_network(tmp_path) is None
    train_until(7, tmp_path, replace(SCHEDULE, ema=ema))
    found = read_newest_network(tmp_path)
    assert found is not None
    step, is_average, read = found
    assert (step, is_average) == (7, ema is not None)
    expected = load_file(tmp_path / "step-00000007" / ("average.safetensors" if ema else "model.safetensors"))
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in expected.items())


def test_a_checkpoint_that_is_removed_while_it_is_read_gives_way_to_one_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until(7, tmp_path)

    def goes_on(*_: object) -> None:
        monkeypatch.undo()
        for step in (6, 7):
            (tmp_path / f"step-{step:08d}").rename(tmp_path / f"step-{step + 2:08d}")
        raise FileNotFoundError

    monkeypatch.setattr(checkpoints, "load_file", goes_on)
    found = read_newest_network(tmp_path)
    assert found is not None
    assert found[:2] == (9, True)


def test_single_non_finite_step_is_skipped_and_logged(tmp_path: Path) -> None:
    net, weights, averages = tiny_net(), list[list[Tensor]](), list[list[Tensor]]()

    def evaluate(kept: nn.Module) -> Evaluation:
        for noted, network in ((weights, net), (averages, kept)):
            noted.append([parameter.detach().clone() for parameter in network.parameters()])
        return BLANK, {}

    fit(net, noisy_loss(net, 6, again=7), SCHEDULE, tmp_path, evaluate=evaluate, evaluate_every=1)
    for noted in (weights, averages):
        moved = [not all(map(torch.equal, one, other)) for one, other in itertools.pairwise(noted)]
        assert moved == [step != 6 for step in range(1, 12)]
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())
    assert {"step": 6, "skipped": 1.0} in read_log(tmp_path)


def test_non_finite_steps_apart_from_each_other_are_all_skipped(tmp_path: Path) -> None:
    net = tiny_net()
    loss = noisy_loss(net)
    fit(
        net,
        lambda number: {"all": sum(loss(number).values(), torch.zeros(())) * (torch.nan if number in (3, 6) else 1)},
        SCHEDULE,
        tmp_path,
    )
    assert [line["step"] for line in read_log(tmp_path) if "skipped" in line] == [3, 6]


def test_progress_counts_images_from_where_the_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = list[Any]()

    def noted(*arguments: Any, **chosen: Any) -> Any:
        bars.append(progress(*arguments, **chosen))
        return bars[-1]

    monkeypatch.setattr("sdbench.training.loop.progress", noted)
    net, schedule = tiny_net(), replace(SCHEDULE, accumulation=2)
    train_until(10, tmp_path, schedule)
    fit(net, noisy_loss(net), schedule, tmp_path)
    fit(net, noisy_loss(net), schedule, tmp_path)
    at_killed, whole = 5 * 16, 12 * 16
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(0, at_killed, whole), (at_killed, whole, whole), (whole, whole, whole)]
    assert [bar.leave for bar in bars] == [True, True, False], "the bar of a finished run vanishes"


def test_progress_shows_the_losses_and_the_last_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = list[dict[str, float]]()
    monkeypatch.setattr(tqdm, "set_postfix", lambda _, values, **__: shown.append(values))
    net, schedule = tiny_net(), replace(SCHEDULE, steps=51)
    evaluations = iter([{"validation/square": 3.0}, {"validation/square": 2.0}])
    fit(net, noisy_loss(net), schedule, tmp_path, evaluate=lambda _: (BLANK, next(evaluations)), evaluate_every=40)
    assert [set(values) for values in shown] == [{"square", "small"}] * 2 + [{"square", "small", "validation/square"}]
    assert shown[-1]["validation/square"] == 3.0
    assert [(line["step"], line["validation/square"]) for line in read_log(tmp_path) if "validation/square" in line] == [
        (40, 3.0),
        (51, 2.0),
    ]


def test_last_step_must_be_finite(tmp_path: Path) -> None:
    net = tiny_net()
    with pytest.raises(UserError, match="not finite at step 11"):
        fit(net, noisy_loss(net, 11), SCHEDULE, tmp_path)


def test_non_finite_gradient_is_an_error_even_if_the_loss_is_finite(tmp_path: Path) -> None:
    net = nn.Linear(2, 1)

    def loss(_: int) -> dict[str, Tensor]:
        return {"root": (net.weight - net.weight.detach()).square().sum().sqrt()}  # 0, with a gradient of 0 / 0

    with pytest.raises(UserError, match=r"not finite at step 1 \(root 0\); there was no checkpoint yet"):
        fit(net, loss, SCHEDULE, tmp_path)


def test_training_on_windows_opens_no_folder_and_flushes_only_what_is_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writable, flushed, closed = set[int](), list[int](), list[int]()

    def open_file(path: Path, flags: int) -> int:
        if path.is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")
        descriptor = os.open(path, flags)
        if flags & os.O_RDWR:
            writable.add(descriptor)
        return descriptor

    def flush(descriptor: int) -> None:
        if descriptor not in writable:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(descriptor)

    def close(descriptor: int) -> None:
        closed.append(descriptor)
        os.close(descriptor)

    windows = SimpleNamespace(name="nt", open=open_file, fsync=flush, close=close, O_RDONLY=os.O_RDONLY, O_RDWR=os.O_RDWR)
    monkeypatch.setattr("sdbench.training.checkpoints.os", windows)
    net = tiny_net()
    fit(net, noisy_loss(net), SCHEDULE, tmp_path)
    assert len(flushed) == len(list((tmp_path / "step-00000012").iterdir())) == 4
    assert closed == flushed


def test_a_checkpoint_is_flushed_before_it_gets_its_name_and_its_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, flush = list[tuple[str, bool]](), checkpoints._fsync

    def noted(path: Path) -> None:
        flush(path)
        flushed.append((path.name, (tmp_path / "step").exists()))

    monkeypatch.setattr(checkpoints, "_fsync", noted)
    with checkpoints.atomic_folder("step", tmp_path) as temporary:
        (temporary / "model").touch()
    assert flushed == [("model", False), (temporary.name, False), (tmp_path.name, True)]


def test_unwritable_checkpoint_is_an_error_and_keeps_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net()
    train_until(5, tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "step-00000005").iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sdbench.training.checkpoints.save_model", full)
    monkeypatch.setattr(SummaryWriter, "close", full)
    with pytest.raises(UserError, match=r"No space left on device; the last good checkpoint is .*step-00000005\. Make room and run again"):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path, save_every_s=ALWAYS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "step-00000005").iterdir()} == before
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ["log.jsonl", "samples"])
def test_unwritable_log_or_image_is_an_error_that_names_the_checkpoint(name: str, tmp_path: Path) -> None:
    net, obstacle = tiny_net(), tmp_path / name

    def evaluate(_: nn.Module) -> Evaluation:
        return BLANK, {}

    train_until(5, tmp_path)
    obstacle.unlink(missing_ok=True)
    obstacle.mkdir() if name == "log.jsonl" else obstacle.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=rf"cannot write .*{name}.*; the last good checkpoint is .*step-000000.*\. Make room and run again"):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path, evaluate=evaluate)


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    net = tiny_net()
    with pytest.raises(UserError, match=r"cannot write a run to .*; there was no checkpoint yet"):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("file", "damage"),
    [("optimiser.pt", lambda _: b""), ("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1]))],
    ids=["empty", "a bit flipped in a tensor"],
)
def test_run_resumes_from_the_previous_checkpoint_if_the_last_is_damaged(
    file: str, damage: Callable[[bytes], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uninterrupted = tiny_net()
    kept = tensors(fit(uninterrupted, noisy_loss(uninterrupted), SCHEDULE, tmp_path / "whole"))
    folder = tmp_path / "interrupted"
    train_until(11, folder)
    damaged = folder / "step-00000011" / file
    damaged.write_bytes(damage(damaged.read_bytes()))
    (folder / "unfinished.part").mkdir()  # left by a run that was killed while it saved
    resumed = tiny_net(seed=1)
    assert all(map(torch.equal, tensors(fit(resumed, noisy_loss(resumed), SCHEDULE, folder, save_every_s=ALWAYS)), kept))
    warning = capsys.readouterr().err
    assert re.search(rf"checkpoint .*step-00000011: ValueError: {file} is not as it was written\. Continuing .*: .*step-00000010", warning)
    assert {path.name for path in folder.glob("step-*")} == {"step-00000011", "step-00000012"}


def test_a_damaged_checkpoint_goes_with_the_next_one_that_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = checkpoints_of_a_layer(tmp_path)
    for step in (5, 9):
        saved.save_if_due(step, last=True)
    (tmp_path / "step-00000009" / "optimiser.pt").write_bytes(b"")
    assert saved.resume() == 5
    assert "Continuing from the one before" in capsys.readouterr().err
    saved.save_if_due(6, last=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]
    for step in (5, 6):
        (tmp_path / f"step-{step:08d}" / "optimiser.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"step-00000006: .*\. To start again, remove it and any other step-\* beside it"):
        saved.resume()


@pytest.mark.parametrize(("seconds", "starts"), [(1, [11, 23]), (3, [11, 40]), (600, [11, 4212])])
def test_slow_checkpoints_are_saved_less_often(seconds: int, starts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Due more than 10 s after the one before, or 25 s if saving takes 3 s, and always after an hour; asked each second."""
    now, began = [0], list[int]()

    def save(*_: object) -> None:
        began.append(now[0])
        now[0] += seconds

    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Checkpoints, "_save", save)
    saved = checkpoints_of_a_layer(tmp_path, every_s=10)
    while len(began) < 2:
        saved.save_if_due(1, last=False)
        now[0] += 1
    assert began == starts


@pytest.mark.parametrize(("lacking", "left"), [(0, 2), (1, 1)])
def test_the_older_checkpoint_makes_room_on_a_full_disk(lacking: int, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list[int]()

    def noted(*arguments: Any) -> None:
        found.append(len(list(tmp_path.glob("step-*"))))
        save_model(*arguments)

    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=sum(path.stat().st_size for path in (folder / "step-00000002").iterdir()) - lacking)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(checkpoints, "save_model", noted)
    saved = checkpoints_of_a_layer(tmp_path)
    for step in (1, 2, 3):
        saved.save_if_due(step, last=True)
    assert found == [0, 1, left]


def test_out_of_memory_is_not_reported_as_a_damaged_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net()
    fit(net, noisy_loss(net), SCHEDULE, tmp_path)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sdbench.training.checkpoints.load_model", full)
    with pytest.raises(torch.OutOfMemoryError):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "average.safetensors", "optimiser.pt", DIGESTS])
def test_damaged_checkpoint_is_named(file: str, tmp_path: Path) -> None:
    net = tiny_net()
    fit(net, noisy_loss(net), SCHEDULE, tmp_path)
    assert len(list(tmp_path.glob("step-*"))) == 1
    damaged = tmp_path / "step-00000012" / file
    damaged.write_bytes(damaged.read_bytes()[:40])
    with pytest.raises(UserError, match=r"cannot continue from checkpoint .*step-00000012: \w+Error: .*To start again, remove it"):
        fit(net, noisy_loss(net), SCHEDULE, tmp_path)


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    data = torch.randn(12 * 4, 3, generator=torch.Generator().manual_seed(0))

    def train(batch: int, accumulation: int) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Linear(3, 1)

        def loss(number: int) -> dict[str, Tensor]:
            x = data[batch * number : batch * (number + 1)]
            return {"square": (net(x) - x.sum(1, keepdim=True)).square().mean()}

        schedule = replace(SCHEDULE, batch=batch, accumulation=accumulation)
        return tensors(fit(net, loss, schedule, tmp_path / f"{batch}"))

    for one, other in zip(train(4, 1), train(1, 4), strict=True):
        torch.testing.assert_close(one, other)


def test_evaluating_the_network_that_is_trained_changes_no_step(tmp_path: Path) -> None:
    found = []
    for name, evaluate in (("plain", None), ("evaluated", lambda _: (BLANK, {}))):
        net = tiny_net()
        fit(net, noisy_loss(net), replace(SCHEDULE, ema=None), tmp_path / name, evaluate=evaluate, evaluate_every=2)
        found.append(tensors(net))
    assert all(map(torch.equal, *found)), "with batch normalisation, steps of a network in evaluation mode are others"


def test_tensorboard_has_each_value_and_image_and_drops_the_steps_that_a_resumed_run_repeats(tmp_path: Path) -> None:
    def evaluate(_: nn.Module) -> Evaluation:
        return BLANK, {"accuracy": 0.5}

    def read_board() -> list[tuple[int, str]]:
        (file,) = (tmp_path / "tensorboard").iterdir()
        content, found = file.read_bytes(), []
        while content:  # for each event its size, a checksum of that, the event, a checksum of that
            end = 12 + int.from_bytes(content[:8], "little")
            event, content = Event.FromString(content[12:end]), content[end + 4 :]
            found += [(event.step, "repeated from here")] if event.HasField("session_log") else []
            found += [(event.step, value.tag) for value in event.summary.value]
        file.unlink()
        return found

    net = tiny_net()
    train_until(7, tmp_path, evaluate=evaluate, evaluate_every=5)
    of_step = [(0, name) for name in ("repeated from here", "square", "small", "lr", "gradient_norm")]
    assert read_board() == [*of_step, (5, "accuracy"), (5, "samples")]
    fit(net, noisy_loss(net), SCHEDULE, tmp_path, evaluate=evaluate, evaluate_every=5)
    assert read_board() == [(7, "repeated from here"), *((step, name) for step in (10, 12) for name in ("accuracy", "samples"))]


def test_kept_weights_are_evaluated_during_training_and_at_the_end(tmp_path: Path) -> None:
    net, evaluated = tiny_net().eval(), []

    def evaluate(kept: nn.Module) -> Evaluation:
        assert not kept.training
        evaluated.append(tensors(kept))
        return np.full((4, 6, 3), 9, np.uint8), {"accuracy": 0.5}

    final = fit(net, noisy_loss(net), SCHEDULE, tmp_path, evaluate=evaluate, evaluate_every=5)
    assert len(evaluated) == 3
    assert all(map(torch.equal, evaluated[-1], tensors(final)))
    assert net.training
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [f"step-{step:08d}.png" for step in (5, 10, 12)]
    logged = [(line["step"], line["accuracy"]) for line in read_log(tmp_path) if "accuracy" in line]
    assert logged == [(5, 0.5), (10, 0.5), (12, 0.5)]
    not_evaluated = tiny_net()
    assert all(
        map(torch.equal, tensors(fit(not_evaluated, noisy_loss(not_evaluated), SCHEDULE, tmp_path / "not-evaluated")), tensors(final))
    )


@pytest.mark.parametrize("ema", [0.5, 0.25])
def test_running_average_follows_the_weights_with_a_decay_that_rises_to_its_own(ema: float, tmp_path: Path) -> None:
    net, expected, steps = tiny_net(), [parameter.detach().clone() for parameter in tiny_net().parameters()], list[int]()

    def evaluate(kept: nn.Module) -> Evaluation:
        decay = min(ema, (len(steps) + 1) / (len(steps) + 10))
        steps.append(len(steps))
        for average, weights, found in zip(expected, net.parameters(), kept.parameters(), strict=True):
            average.mul_(decay).add_(weights.detach(), alpha=1 - decay)
            torch.testing.assert_close(found, average)
        assert all(map(torch.equal, kept.buffers(), net.buffers())), "those of batch normalisation are not averaged"
        return BLANK, {}

    fit(net, noisy_loss(net), replace(SCHEDULE, ema=ema), tmp_path, evaluate=evaluate, evaluate_every=1)
    assert len(steps) == SCHEDULE.steps


def test_seed_decides_what_a_loss_draws(tmp_path: Path) -> None:
    drawn = dict[int, list[float]]()
    for seed in (0, 1):
        net, drawn[seed] = nn.Linear(1, 1), []

        def loss(_: int, net: nn.Module = net, seen: list[float] = drawn[seed]) -> dict[str, Tensor]:
            seen.append(torch.rand(()).item())
            return {"output": net(torch.ones(1)).sum()}

        fit(net, loss, replace(SCHEDULE, seed=seed, accumulation=3), tmp_path / f"{seed}")
    assert len({*drawn[0], *drawn[1]}) == 2 * 3 * SCHEDULE.steps, "also in the batches of one step"
    of_seed_1 = torch.Generator().manual_seed(1_000_003 + 7)
    assert drawn[1][7] == torch.rand((), generator=of_seed_1).item(), "the shipped networks could not be made again"


def test_loss_is_computed_in_the_accelerators_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "autocast", lambda _: torch.autocast("cpu", torch.bfloat16))
    net, dtypes = nn.Linear(3, 1), set[torch.dtype]()

    def loss(_: int) -> dict[str, Tensor]:
        dtypes.add((found := net(torch.ones(1, 3))).dtype)
        return {"mean": found.mean()}

    fit(net, loss, SCHEDULE, tmp_path)
    assert dtypes == {torch.bfloat16}


def test_steps_are_those_of_adamw_with_clipped_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the algorithm of arXiv 1711.05101, for a single weight."""
    monkeypatch.setattr("sdbench.training.loop.LOG_EVERY", 1)
    gradients, net = (0.5, -3.0, 0.25, 8.0), nn.Linear(1, 1, bias=False)
    weight, first, second = net.weight.item(), 0.0, 0.0
    schedule = Schedule(steps=4, lr=0.1, batch=1, warmup=2, weight_decay=0.3, clip_norm=2.0, betas=(0.6, 0.7), lr_decay="none")
    fit(net, lambda number: {"slope": gradients[number] * net.weight.sum()}, schedule, tmp_path)
    for step, (lr, clipped) in enumerate(zip((0.05, 0.1, 0.1, 0.1), (0.5, -2.0, 0.25, 2.0), strict=True), 1):
        first, second = 0.6 * first + 0.4 * clipped, 0.7 * second + 0.3 * clipped**2
        weight -= lr * (0.3 * weight + first / (1 - 0.6**step) / np.sqrt(second / (1 - 0.7**step)))
    assert net.weight.item() == pytest.approx(weight, rel=1e-5)
    logged = [(line["lr"], line["gradient_norm"]) for line in read_log(tmp_path)]
    assert logged == [(0.05, 0.5), (0.1, 3.0), (0.1, 0.25), (0.1, 8.0)], "before clipping"


def test_rows_of_a_batch_depend_on_seed_and_number_and_never_change() -> None:
    assert {*draw_rows(0, 5, 1000, seed=0).tolist()} == {*range(5)}
    assert draw_rows(1, 10**9, 4, seed=0).tolist() != draw_rows(0, 10**9, 4, seed=1).tolist()
    assert draw_rows(3, 1000, 4, seed=5).tolist() == [971, 711, 285, 44], "the shipped students could not be made again"


@pytest.mark.parametrize(("decay", "quarter", "half", "last"), [("cosine", 0.853553, 0.5, 0.0), ("none", 1.0, 1.0, 1.0)])
def test_learning_rate_warms_up_and_then_decays_or_stays(
    decay: Literal["cosine", "none"], quarter: float, half: float, last: float
) -> None:
    schedule = Schedule(steps=110, lr=2.0, batch=1, warmup=10, lr_decay=decay)
    assert [schedule.lr_at(step) for step in (0, 4, 9, 10)] == [0.2, 1.0, 2.0, 2.0]
    assert schedule.lr_at(35) == pytest.approx(2 * quarter)
    assert schedule.lr_at(60) == pytest.approx(2 * half)
    assert schedule.lr_at(110) == pytest.approx(2 * last)


def train_with_accumulation(
    folder: Path, nan_at: int | None = None, stop_at: int | None = None, interrupted_batch: int | None = None
) -> Path:
    """Train with four accumulated batches a step, of which number `nan_at` is NaN, up to step `stop_at`; returns the training's folder."""
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)])
    torch.manual_seed(0)
    net = accelerator.prepare(nn.Linear(3, 1))
    data = torch.randn(24, 4, 3, generator=torch.Generator().manual_seed(0))

    def loss(number: int) -> dict[str, Tensor]:
        if number // 4 == stop_at:
            raise KeyboardInterrupt
        if number == interrupted_batch:
            signal.raise_signal(signal.SIGINT)
        if accelerator.num_processes > 1:  # gradients stay in one shared bucket throughout an accumulation, that of the first step too
            gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
            assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) <= 1
        square = (net(data[number]) - data[number].sum(1, keepdim=True)).square().mean()
        return {"square": square * (torch.nan if number % 4 == nan_at else 1)}

    def see(_: int, __: nn.Module) -> None:
        assert accelerator.is_main_process

    schedule = Schedule(steps=6, lr=1e-2, batch=4, warmup=2, accumulation=4)
    fit(net, loss, schedule, folder, accelerator=accelerator, save_every_s=ALWAYS, after_step=see)
    return folder


def train_stopped_and_with_nan(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_with_accumulation(folder, stop_at=3)
    train_with_accumulation(folder)
    with pytest.raises(UserError, match="square nan"):  # in a batch of the second process
        train_with_accumulation(folder / "nan", nan_at=1)


def train_interrupted(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        train_with_accumulation(folder, interrupted_batch=13)  # of step 3, and of the second process
    assert (folder / "step-00000004").exists()
    assert not (folder / "step-00000005").exists()


def test_where_one_process_is_interrupted_all_finish_the_step_and_end(tmp_path: Path) -> None:
    assert by_two(train_interrupted, tmp_path) == [0, 0]


def test_two_processes_that_share_the_batches_and_resume_match_one_process(tmp_path: Path) -> None:
    assert by_two(train_stopped_and_with_nan, tmp_path / "by-2") == [0, 0]
    folders = tmp_path / "by-2", train_with_accumulation(tmp_path / "by-1")
    one, other = (load_file(folder / "step-00000006" / "model.safetensors") for folder in folders)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name])
    (one_log,), (other_log,) = map(read_log, folders)  # only step 0 is logged
    assert one_log == pytest.approx(other_log, rel=1e-4)


# The time limit of training is set to a second; work of the main process for all may take longer.
SLOW_BROADCAST = f"""
import sys, time
from datetime import timedelta
from pathlib import Path
sys.path += {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}
from test_loop import train_with_accumulation
from torch.distributed.distributed_c10d import _set_pg_timeout
from sdbench.training.processes import broadcast_from_main, rank_and_local_size
train_with_accumulation(Path(sys.argv[1]))
_set_pg_timeout(timedelta(seconds=1), None)
result = broadcast_from_main(lambda: time.sleep(2) or "done")
Path(sys.argv[1], f"result-{{rank_and_local_size()[0]}}").write_text(result)
"""


@pytest.mark.slow
def test_work_of_one_process_for_all_may_exceed_the_time_limit_of_training(tmp_path: Path) -> None:
    (script := tmp_path / "slow_broadcast.py").write_text(SLOW_BROADCAST, encoding="utf-8")
    args = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(tmp_path / "by-2")]
    process = subprocess.run(
        [sys.executable, *args], check=False, capture_output=True, encoding="utf-8", env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.returncode == 0, process.stderr
    assert [(tmp_path / "by-2" / f"result-{rank}").read_text(encoding="utf-8") for rank in (0, 1)] == ["done", "done"]


def test_batches_that_cannot_be_shared_evenly_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 4)
    net = tiny_net()
    with pytest.raises(UserError, match=r"6 batches per step cannot be shared evenly by 4 processes; start 3, or change .* and its batch"):
        fit(net, noisy_loss(net), replace(SCHEDULE, accumulation=6), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert [max_even_processes(8, processes) for processes in (1, 3, 7, 8, 9)] == [1, 2, 4, 8, 8]


def test_fit_without_a_running_average_returns_the_model(tmp_path: Path) -> None:
    net = tiny_net()
    assert fit(net, noisy_loss(net), replace(SCHEDULE, ema=None), tmp_path / "new" / "run") is net
