"""Golden pictures find metrics that are turned round, blind, or not the same twice, and the shipped ones are none of these."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, is_offline_mode
from torch import Tensor

from sdbench import cli
from sdbench.assets import weights
from sdbench.doctor import checks, golden
from sdbench.encoders import scenes
from sdbench.encoders.catalogue import TOWERS
from sdbench.protocols.base import Protocol, Result, Subject
from sdbench.records import Value
from sdbench.score import PROTOCOLS

EMBEDDED = {"scene_accuracy", "fd.scenes", "clip_score.scenes", "preference.scenes", "win_rate.preference.scenes"}
NAMES = (*golden.pictures(), "twice")
CLIP = scenes.clip()


def test_every_embedded_metric_behaves() -> None:
    found = {judged.name: judged for judged in golden.judge_metrics()}
    assert found.keys() == PROTOCOLS.keys()
    assert {name for name, judged in found.items() if judged.values is not None} >= EMBEDDED
    assert {name: judged.complaints for name, judged in found.items() if judged.complaints} == {}
    assert found["win_rate.preference.scenes"].values
    assert found["win_rate.preference.scenes"].values["twice"].value == 0.5


def complaints_of(monkeypatch: pytest.MonkeyPatch, name: str = "clip_score.scenes") -> tuple[str, ...]:
    monkeypatch.setattr(golden, "PROTOCOLS", {name: PROTOCOLS[name]})
    (judged,) = golden.judge_metrics()
    return judged.complaints


def instead(monkeypatch: pytest.MonkeyPatch, picture: Callable[[Tensor], Tensor]) -> None:
    """Another tower of pictures in the scenes' CLIP."""
    monkeypatch.setitem(TOWERS, "clip.scenes", lambda: replace(CLIP, picture=picture))


@pytest.mark.parametrize(
    ("sabotage", "says"),
    [
        (lambda pixels: CLIP.picture(-pixels), "inverted pictures get"),
        (lambda pixels: torch.ones(len(pixels), 64), "black pictures get"),
        (lambda pixels: torch.full((len(pixels), 64), torch.nan), "healthy pictures are failed: ValueError"),
    ],
    ids=["inverted on the way in", "blind", "no numbers"],
)
def test_a_metric_that_is_broken_is_found(sabotage: Callable[[Tensor], Tensor], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, sabotage)
    assert any(says in complaint for complaint in complaints_of(monkeypatch))


def test_a_metric_that_is_not_the_same_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    instead(monkeypatch, lambda pixels: CLIP.picture(pixels) + 2 * torch.randn(len(pixels), 64, generator=random))
    (complaint,) = complaints_of(monkeypatch)
    assert "a second time" in complaint


@pytest.mark.parametrize("gpu", [False, True])
def test_full_size_networks_are_tried_on_a_gpu_only(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setitem(TOWERS, "clip.vit-b-32", lambda: asked.append(1) or weights.find("nothing of the kind"))
    monkeypatch.setattr(golden, "PROTOCOLS", {"clip_score.vit-b-32": PROTOCOLS["clip_score.vit-b-32"]})
    (judged,) = golden.judge_metrics()
    assert bool(asked) == gpu
    assert (judged.values is None) == (not gpu)


def test_nothing_is_fetched_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    before, met = is_offline_mode(), []

    instead(monkeypatch, lambda pixels: met.append(is_offline_mode()) or CLIP.picture(pixels))
    assert complaints_of(monkeypatch) == ()
    assert set(met) == {True}
    assert is_offline_mode() == constants.HF_HUB_OFFLINE == before


def nothing(_: Subject, protocol: Protocol) -> Result:
    raise AssertionError(protocol)


def complained(name: str, direction: Any, **numbers: float | None) -> list[str]:
    def value(number: float | None) -> Value:
        state = {"value": number} if number is not None else {"state": "failed", "reason": "a row of zeros has no direction"}
        return Value.model_validate({"name": name, "kind": "set", "direction": direction, "unit": "", **state})

    protocol = Protocol(name, "set", direction, "", nothing)
    return list(golden.complaints(protocol, {what: value(number) for what, number in numbers.items()}))


LOW = {"black": 0.1, "gray": 0.1, "noise": 0.0, "inverted": 0.1}


@pytest.mark.parametrize(
    ("name", "direction", "numbers", "wrong"),
    [
        ("prdc.recall", "higher", {"healthy": 0.8, **LOW, "collapsed": 0.0, "twice": 0.8}, []),
        ("prdc.recall", "higher", {"healthy": 0.8, **LOW, "collapsed": 0.9, "twice": 0.8}, ["collapsed pictures get 0.9"]),
        ("prdc.precision", "higher", {"healthy": 0.8, **LOW, "collapsed": 0.9, "twice": 0.8}, []),
        ("prdc.precision", "higher", {"healthy": 0.8, **LOW, "collapsed": 0.1, "twice": 0.8}, ["over and over get 0.1"]),
        ("kid", "lower", {"healthy": 0.1, "black": 3, "collapsed": 2, "twice": 0.1}, []),
        ("kid", "lower", {"healthy": 0.1, "black": 0.1, "collapsed": 2, "twice": 0.1}, ["black pictures get 0.1"]),
        ("agreement.ssim", "higher", {"healthy": 0.6, **LOW, "collapsed": 0.2, "twice": 1.0}, []),
        ("agreement.ssim", "higher", {"healthy": 0.6, **LOW, "collapsed": 0.2, "twice": 0.6}, ["expected 1"]),
        ("agreement.lpips", "lower", {"healthy": 0.2, "black": 0.9, "collapsed": 0.6, "twice": 0.0}, []),
        ("fd_to_teacher.scenes", "lower", {"healthy": 90, "black": 900, "collapsed": 600, "twice": 0.3}, ["expected 0"]),
        ("win_rate.kind", "higher", {"healthy": 0.45, **LOW, "collapsed": 0.2, "twice": 0.45}, ["expected 0.5"]),
        ("clip_score.x", "higher", {"healthy": 30, "black": None, "collapsed": 20, "twice": 30}, []),
        ("clip_score.x", "higher", {"healthy": 30, "black": 20, "collapsed": 20, "twice": None}, ["a second time get nan"]),
    ],
)  # fmt: skip  # a table
def test_what_is_expected(name: str, direction: str, numbers: dict[str, float | None], wrong: list[str]) -> None:
    found = complained(name, direction, **numbers)
    assert len(found) == len(wrong)
    assert all(part in complaint for part, complaint in zip(wrong, found, strict=True))


def test_the_doctor_says_which_metrics_behave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = {name: Value(name="kid", kind="set", direction="lower", unit="", value=1.0) for name in NAMES}
    judged = [golden.Judgement("kid", seen), golden.Judgement("fid.clean", None), golden.Judgement("cmmd", seen, ("black pictures get 1",))]
    monkeypatch.setattr(golden, "judge_metrics", lambda: judged)
    assert cli.main(["doctor"]) == 2
    text = capsys.readouterr().out
    assert "ok  metric kid behaves on golden pictures: healthy 1, black 1" in text
    assert "BAD metric cmmd misbehaves on golden pictures: black pictures get 1" in text
    assert "--  metrics not tried, for want of weights or of a GPU: fid.clean" in text
    assert cli.main(["doctor", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    text = "metric cmmd misbehaves on golden pictures: black pictures get 1"
    assert [finding for finding in told if "cmmd" in finding["text"]] == [{"fine": False, "fatal": True, "text": text}]
    monkeypatch.setattr(golden, "judge_metrics", lambda: judged[:2])
    assert not any(finding.is_fatal and not finding.is_ok for finding in checks.examine(tmp_path, tmp_path) if "metric" in finding.text)
