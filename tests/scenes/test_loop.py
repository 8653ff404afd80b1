"""The training loop: a killed run goes on as if nothing had happened, and a broken one keeps its last good state."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sdbench.errors import UserError
from sdbench.scenes.training.loop import Schedule, fit

SCHEDULE = Schedule(steps=12, lr=1e-2, batch=8, warmup=3, ema=0.9, seed=4)
ALWAYS = -1.0  # seconds between saved states


def tiny_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


def noisy_loss(net: nn.Module, until: int = 1000, error: BaseException | None = None) -> Callable[[int], dict[str, Tensor]]:
    """Data drawn anew each step; from step `until` on it throws, or is NaN."""

    def loss(step: int) -> dict[str, Tensor]:
        if step >= until and error is not None:
            raise error
        x = torch.randn(8, 3)
        square = (net(x) - x.sum(1, keepdim=True)).square().mean()
        return {"square": square * (torch.nan if step >= until else 1), "small": 1e-3 * net[0].weight.square().sum()}  # type: ignore[index]  # a Sequential

    return loss


def tensors(net: nn.Module) -> list[Tensor]:
    return [value.clone() for value in net.state_dict().values()]


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("killed_at", [1, 5, 11])
def test_a_killed_run_that_goes_on_ends_as_an_unbroken_one_bit_for_bit(ema: float | None, killed_at: int, tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, ema=ema)
    whole = tiny_net()
    kept = tensors(fit(whole, noisy_loss(whole), schedule, tmp_path / "whole", ALWAYS))
    broken = tiny_net()
    with pytest.raises(KeyboardInterrupt):
        fit(broken, noisy_loss(broken, killed_at, KeyboardInterrupt()), schedule, tmp_path / "broken", ALWAYS)
    resumed = tiny_net(seed=1)  # what a new process starts from does not matter
    torch.manual_seed(99)
    again = tensors(fit(resumed, noisy_loss(resumed), schedule, tmp_path / "broken", ALWAYS))
    assert all(map(torch.equal, again, kept))
    assert all(map(torch.equal, tensors(resumed), tensors(whole)))


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
    assert all(line.keys() == {"step", "square", "small"} for line in lines)
    assert lines[-1]["square"] < 0.01 < lines[0]["square"]


def test_a_loss_that_is_not_finite_is_an_error_and_the_last_good_state_stays(tmp_path: Path) -> None:
    net = tiny_net()
    with pytest.raises(UserError, match=r"a loss of nan at step 6; the last good state is kept in .*state\.pt"):
        fit(net, noisy_loss(net, 6), SCHEDULE, tmp_path, ALWAYS)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 6
    assert all(torch.isfinite(value).all() for part in ("model", "average") for value in state[part].values())
    assert not list(tmp_path.glob("*.part"))


def test_without_an_average_the_last_weights_are_kept_with_one_their_running_mean(tmp_path: Path) -> None:
    net = tiny_net()
    assert fit(net, noisy_loss(net), replace(SCHEDULE, ema=None), tmp_path / "last") is net
    net = tiny_net()
    average = fit(net, noisy_loss(net), SCHEDULE, tmp_path / "average")
    assert average is not net
    differs = [not torch.equal(kept, last) for kept, last in zip(average.parameters(), net.parameters(), strict=True)]
    assert all(differs)
