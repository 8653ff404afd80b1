"""Published values are reproduced on the path of their source, and a wrong one is detected."""

import hashlib
from dataclasses import replace

import open_clip
import pytest
import torch
from clips import Adapted, for_transformers, processor
from torchmetrics.functional.multimodal import clip_score

from sdbench.doctor import checks, published
from sdbench.encoders import clip, resize
from sdbench.encoders.towers import Towers
from sdbench.errors import MissingError, UserError

CONFIG = {**open_clip.get_model_config(clip.BACKBONES[published.BACKBONE])}


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    torch.manual_seed(0)
    model = clip.build(CONFIG)
    model.text_projection.data.neg_()  # else the first cosine is negative with these weights, and the source clips it to 0
    return model


@pytest.fixture(scope="module")
def towers(model: open_clip.CLIP) -> Towers:
    return clip.towers(model, "random")


def compute_by_source(model: open_clip.CLIP) -> list[float]:
    """The values that the source's own code gives for its inputs with these weights."""
    network = Adapted(for_transformers(model, CONFIG)), processor(224)
    first, second = (torch.randint(255, (3, 224, 224), generator=torch.Generator().manual_seed(seed)) for seed in (42, 43))
    pairs = ((first, "a photo of a cat"), (first, second), published.CAPTIONS)
    return [float(clip_score(source, target, lambda: network).detach()) for source, target in pairs]


def test_values_match_the_original_implementation(model: open_clip.CLIP, towers: Towers) -> None:
    found = [float(value.compute(towers)[0]) for value in published.PUBLISHED_VALUES]
    assert found == pytest.approx(compute_by_source(model), abs=1e-3)


def test_noise_images_are_frozen() -> None:
    digests = [hashlib.sha256(published.noise_image(seed).tobytes()).hexdigest()[:16] for seed in (42, 43)]
    assert digests == ["76caf68b8b454c8b", "19c2e5887955f10b"]


def test_doctor_compares_with_the_published_values(towers: Towers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "load", lambda _: towers)
    matching = [replace(value, expected=round(float(value.compute(towers)[0]), 3)) for value in published.PUBLISHED_VALUES]
    monkeypatch.setattr(published, "PUBLISHED_VALUES", matching)
    assert [finding.is_ok for finding in checks._published_values()] == [True] * 3
    monkeypatch.setattr(published, "PUBLISHED_VALUES", [*matching[:2], replace(matching[2], expected=matching[2].expected + 0.02)])
    *good, bad = checks._published_values()
    assert [finding.is_ok for finding in good] == [True] * 2
    assert bad.is_fatal
    assert not bad.is_ok
    assert f"published {matching[2].expected + 0.02:.3f} (torchmetrics 1.9.0" in bad.text


def test_damaged_weights_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(_: str) -> Towers:
        raise UserError("weights: clip.safetensors is torn; fetch it again")

    monkeypatch.setattr(clip, "load", damaged)
    (finding,) = checks._published_values()
    assert finding.is_fatal
    assert not finding.is_ok
    assert finding.text == "known values of CLIP vit-b-16: weights: clip.safetensors is torn; fetch it again"


def test_missing_weights_are_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Towers:
        raise MissingError("missing")

    monkeypatch.setattr(clip, "load", missing)
    (finding,) = checks._published_values()
    assert not finding.is_fatal
    assert "not checked, because its weights are not on this machine" in finding.text
    assert "open_clip_model.safetensors (599 MB)" in finding.text
    assert "`hf download timm/vit_base_patch16_clip_224.openai --repo-type model open_clip_model.safetensors`" in finding.text


def test_resize_is_compared_with_cleanfid(monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = checks._resize()
    assert finding.is_ok
    monkeypatch.setattr(resize, "clean", resize.torchmetrics)  # bilinear
    (finding,) = checks._resize()
    assert (finding.is_ok, finding.is_fatal) == (False, True)
    assert "fid.clean would not be comparable with clean-fid's" in finding.text
