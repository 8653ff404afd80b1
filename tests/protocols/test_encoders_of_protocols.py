"""Each metric of images uses the encoder that its name promises."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import colours, replace_towers
from subjects import make_subject
from synthetic_images import noises

from sdbench.arrays import F32, U8
from sdbench.encoders import aesthetic
from sdbench.encoders.catalogue import ENCODERS, TOWERS
from sdbench.protocols import agreement, captions, diversity
from sdbench.records.names import judge_of
from sdbench.score import score

ENCODER_OF = {
    "clip_score.scenes": "clip.scenes",
    "clip_score.vit-b-32": "clip.vit-b-32",
    "clip_score.vit-b-16": "clip.vit-b-16",
    "clip_score.vit-l-14": "clip.vit-l-14",
    "clip_score.vit-h-14": "clip.vit-h-14",
    "clip_score.mlperf": "clip.vit-b-32",
    "preference.scenes": "preference.scenes",
    "pickscore.v1": "pickscore.v1",
    "hpsv2.1": "hpsv2.1",
    "aesthetic.laion-v2": "clip.vit-l-14",
    "agreement.clip.scenes": "clip.scenes",
    "agreement.features.scenes": "scenes.features",
    "agreement.clip.vit-l-14": "clip.vit-l-14",
    "agreement.dinov2": "dinov2.vit-l-14",
    "fd_to_teacher.scenes": "scenes.features",
    "fd_to_teacher.clean": "inception.clean",
    "diversity.clip.scenes": "clip.scenes",
    "diversity.features.scenes": "scenes.features",
    "diversity.clip.vit-l-14": "clip.vit-l-14",
    "diversity.dinov2": "dinov2.vit-l-14",
}


@pytest.mark.parametrize("name", ENCODER_OF)
def test_metric_of_images_uses_the_encoder_of_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()

    def fake_features(encoder: str) -> Callable[[U8], F32]:
        def features(images: U8) -> F32:
            used.add(encoder)
            return colours(images)

        return features

    for each in [*TOWERS]:
        replace_towers(monkeypatch, each, images=fake_features(each))
    for each in [*ENCODERS]:
        monkeypatch.setitem(ENCODERS, each, replace(ENCODERS[each], id=f"{each}.fake".__str__, features=fake_features(each)))
    monkeypatch.setattr(aesthetic, "head", lambda: aesthetic.Head(np.ones(6), 0.0))
    several: dict[str, Any] = {"prompt_ids": ["p0", "p0", "p1", "p1"], "samples": [0, 1, 0, 1]}
    teacher = make_subject(tmp_path, noises(4, 8, 8, seed=9), name="teacher", **several)
    (value,), _ = score(make_subject(tmp_path, noises(4, 8, 8), teacher_images=teacher, **several), [name])
    assert value.state == "ok", value.reason
    assert used == {ENCODER_OF[name]}


def test_every_metric_of_images_that_has_an_encoder_is_tested_here() -> None:
    """Win rates count the scores of another metric, two metrics compare pixels, and ImageReward's network gives no features."""
    names = {protocol.name for module in (agreement, captions, diversity) for protocol in module.PROTOCOLS}
    assert {name for name in names if not judge_of(name)} == {*ENCODER_OF, "agreement.ssim", "agreement.lpips", "imagereward.v1"}
