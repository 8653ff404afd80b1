"""Published values are made again by the path that their source takes, and a wrong one is found."""

import hashlib
from dataclasses import replace

import open_clip
import pytest
import torch
from clips import Adapted, for_transformers, processor
from torchmetrics.functional.multimodal import clip_score

from sdbench.doctor import checks, published
from sdbench.encoders import clip
from sdbench.encoders.clip import Clip
from sdbench.errors import MissingError, UserError

CONFIG = {**open_clip.get_model_config(clip.BACKBONES[published.BACKBONE])}


@pytest.fixture(scope="module")
def towers() -> Clip:
    torch.manual_seed(0)
    model = clip.build(CONFIG)
    model.text_projection.data.neg_()  # with these weights the first cosine is below 0 otherwise, which the source shows as 0
    return Clip(model, "random")


def source_values(towers: Clip) -> list[float]:
    """What the code of the source says of its inputs with these weights."""

    def network() -> tuple[Adapted, object]:
        return Adapted(for_transformers(towers.model, CONFIG)), processor(224)

    first, second = (torch.randint(255, (3, 224, 224), generator=torch.Generator().manual_seed(seed)) for seed in (42, 43))
    pairs = ((first, "a photo of a cat"), (first, second), published.CAPTIONS)
    return [float(clip_score(*pair, network).detach()) for pair in pairs]


def test_it_is_made_as_its_source_makes_it(towers: Clip) -> None:
    found = [float(one.make(towers)[0]) for one in published.KNOWN]
    assert found == pytest.approx(source_values(towers), abs=1e-3)


def test_the_pictures_stay_what_they_are() -> None:
    digests = [hashlib.sha256(published.noise(seed).tobytes()).hexdigest()[:16] for seed in (42, 43)]
    assert digests == ["76caf68b8b454c8b", "19c2e5887955f10b"]


def test_the_doctor_compares(towers: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "load", lambda _: towers)
    fitting = [replace(one, expected=round(float(one.make(towers)[0]), 3)) for one in published.KNOWN]
    monkeypatch.setattr(published, "KNOWN", fitting)
    assert [finding.fine for finding in checks._known()] == [True] * 3
    monkeypatch.setattr(published, "KNOWN", [*fitting[:2], replace(fitting[2], expected=fitting[2].expected + 0.02)])
    *fine, bad = checks._known()
    assert [finding.fine for finding in fine] == [True] * 2
    assert bad.fatal
    assert not bad.fine
    assert f"published {fitting[2].expected + 0.02:.3f} (torchmetrics 1.9.0" in bad.text


def test_damaged_weights_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(_: str) -> Clip:
        raise UserError("weights: clip.safetensors is torn; fetch it again")

    monkeypatch.setattr(clip, "load", damaged)
    (finding,) = checks._known()
    assert finding.fatal
    assert not finding.fine
    assert finding.text == "known values of CLIP vit-b-16: weights: clip.safetensors is torn; fetch it again"


def test_without_weights_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(_: str) -> Clip:
        raise MissingError("nowhere")

    monkeypatch.setattr(clip, "load", nowhere)
    (finding,) = checks._known()
    assert not finding.fatal
    assert "not checked, its weights are not at hand" in finding.text
