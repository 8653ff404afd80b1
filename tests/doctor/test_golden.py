"""Golden images detect metrics that are inverted, blind or not deterministic, and find no fault with the shipped ones."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants, is_offline_mode

from sdbench import cli
from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.doctor import checks, golden
from sdbench.encoders import scenes
from sdbench.encoders.catalogue import TOWERS
from sdbench.protocols.base import Protocol, Result, Subject
from sdbench.records import Value
from sdbench.score import PROTOCOLS

EMBEDDED = {"scene_accuracy", "fd.scenes", "clip_score.scenes", "preference.scenes", "win_rate.preference.scenes"}
NAMES = (*golden.images(), "twice")
CLIP = scenes.clip()


def test_every_embedded_metric_behaves_as_expected() -> None:
    found = {judgement.name: judgement for judgement in golden.judge_metrics()}
    assert found.keys() == PROTOCOLS.keys()
    assert {name for name, judgement in found.items() if judgement.values is not None} >= EMBEDDED
    assert {name: judgement.complaints for name, judgement in found.items() if judgement.complaints} == {}
    assert found["win_rate.preference.scenes"].values
    assert found["win_rate.preference.scenes"].values["twice"].value == 0.5


def complaints_about(monkeypatch: pytest.MonkeyPatch, name: str = "clip_score.scenes") -> tuple[str, ...]:
    monkeypatch.setattr(golden, "PROTOCOLS", {name: PROTOCOLS[name]})
    (judgement,) = golden.judge_metrics()
    return judgement.complaints


def replace_image_tower(monkeypatch: pytest.MonkeyPatch, images: Callable[[U8], Any]) -> None:
    """Replace the image tower of the scenes' CLIP."""
    monkeypatch.setitem(TOWERS, "clip.scenes", lambda: replace(CLIP, images=images))


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        (lambda images: CLIP.images(255 - images), "inverted images get"),
        (lambda images: np.ones((len(images), 64)), "black images get"),
        (lambda images: np.full((len(images), 64), np.nan), "healthy images are failed: ValueError"),
    ],
    ids=["inverted on the way in", "blind", "no numbers"],
)
def test_broken_metric_is_detected(sabotage: Callable[[U8], Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_image_tower(monkeypatch, sabotage)
    assert any(message in complaint for complaint in complaints_about(monkeypatch))


def test_nondeterministic_metric_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    replace_image_tower(monkeypatch, lambda images: CLIP.images(images) + 2 * random.standard_normal((len(images), 64)))
    (complaint,) = complaints_about(monkeypatch)
    assert "a second time" in complaint


@pytest.mark.parametrize("gpu", [False, True])
def test_full_size_networks_are_tried_on_a_gpu_only(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def load() -> Path:
        loads.append(1)
        return weights.find("nothing of the kind")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setitem(TOWERS, "clip.vit-b-32", load)
    monkeypatch.setattr(golden, "PROTOCOLS", {"clip_score.vit-b-32": PROTOCOLS["clip_score.vit-b-32"]})
    (judgement,) = golden.judge_metrics()
    assert bool(loads) == gpu
    assert (judgement.values is None) == (not gpu)


def test_the_hub_is_offline_during_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    before, modes = is_offline_mode(), []

    def images(given: U8) -> F32:
        modes.append(is_offline_mode())
        return CLIP.images(given)

    replace_image_tower(monkeypatch, images)
    assert complaints_about(monkeypatch) == ()
    assert set(modes) == {True}
    assert is_offline_mode() == constants.HF_HUB_OFFLINE == before


def never_called(_: Subject, protocol: Protocol) -> Result:
    raise AssertionError(protocol)


def complaints_for(name: str, direction: Any, **numbers: float | None) -> list[str]:
    def value(number: float | None) -> Value:
        state = {"value": number} if number is not None else {"state": "failed", "reason": "a row of zeros has no direction"}
        return Value.model_validate({"name": name, "kind": "set", "direction": direction, "unit": "", **state})

    protocol = Protocol(name, "set", direction, "", never_called)
    return list(golden.complaints(protocol, {what: value(number) for what, number in numbers.items()}))


LOW = {"black": 0.1, "gray": 0.1, "noise": 0.0, "inverted": 0.1}


@pytest.mark.parametrize(
    ("name", "direction", "numbers", "expected"),
    [
        ("prdc.recall", "higher", {"healthy": 0.8, **LOW, "collapsed": 0.0, "twice": 0.8}, []),
        ("prdc.recall", "higher", {"healthy": 0.8, **LOW, "collapsed": 0.9, "twice": 0.8}, ["collapsed images get 0.9"]),
        ("prdc.precision", "higher", {"healthy": 0.8, **LOW, "collapsed": 0.9, "twice": 0.8}, []),
        ("prdc.precision", "higher", {"healthy": 0.8, **LOW, "collapsed": 0.1, "twice": 0.8}, ["over and over get 0.1"]),
        ("kid", "lower", {"healthy": 0.1, "black": 3, "collapsed": 2, "twice": 0.1}, []),
        ("kid", "lower", {"healthy": 0.1, "black": 0.1, "collapsed": 2, "twice": 0.1}, ["black images get 0.1"]),
        ("agreement.ssim", "higher", {"healthy": 0.6, **LOW, "collapsed": 0.2, "twice": 1.0}, []),
        ("agreement.ssim", "higher", {"healthy": 0.6, **LOW, "collapsed": 0.2, "twice": 0.6}, ["expected 1"]),
        ("agreement.lpips", "lower", {"healthy": 0.2, "black": 0.9, "collapsed": 0.6, "twice": 0.0}, []),
        ("fd_to_teacher.scenes", "lower", {"healthy": 90, "black": 900, "collapsed": 600, "twice": 0.3}, ["expected 0"]),
        ("win_rate.kind", "higher", {"healthy": 0.45, **LOW, "collapsed": 0.2, "twice": 0.45}, ["expected 0.5"]),
        ("clip_score.x", "higher", {"healthy": 30, "black": None, "collapsed": 20, "twice": 30}, []),
        ("clip_score.x", "higher", {"healthy": 30, "black": 20, "collapsed": 20, "twice": None}, ["a second time get nan"]),
    ],
)  # fmt: skip  # a table
def test_complaints_about_golden_values(name: str, direction: str, numbers: dict[str, float | None], expected: list[str]) -> None:
    found = complaints_for(name, direction, **numbers)
    assert len(found) == len(expected)
    assert all(part in complaint for part, complaint in zip(expected, found, strict=True))


def test_doctor_reports_which_metrics_behave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {name: Value(name="kid", kind="set", direction="lower", unit="", value=1.0) for name in NAMES}
    values["gray"] = values["gray"].model_copy(update={"value": -2.2e-16})
    judgements = [
        golden.Judgement("kid", values),
        golden.Judgement("fid.clean", None),
        golden.Judgement("cmmd", values, ("black images get 1",)),
    ]
    monkeypatch.setattr(golden, "judge_metrics", lambda: judgements)
    assert cli.main(["doctor"]) == 2
    text = capsys.readouterr().out
    assert "ok  metric kid behaves on golden images: healthy 1.000, black 1.000, gray 0, noise 1.000" in text
    assert "BAD metric cmmd misbehaves on golden images: black images get 1" in text
    assert "--  metrics not tried, because weights or a GPU are missing: fid.clean" in text
    assert cli.main(["doctor", "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)
    text = "metric cmmd misbehaves on golden images: black images get 1"
    assert [finding for finding in findings if "cmmd" in finding["text"]] == [{"ok": False, "fatal": True, "text": text}]
    monkeypatch.setattr(golden, "judge_metrics", lambda: judgements[:2])
    assert not any(finding.is_fatal and not finding.is_ok for finding in checks.examine(tmp_path, tmp_path) if "metric" in finding.text)
