"""Preference proxies against what their authors published, on the same random networks and pictures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clips import CAPTIONS, TINY, for_transformers, noise, photographs, processor, tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from test_pixels import hps_transform
from transformers import CLIPModel

from sdbench.assets import weights
from sdbench.encoders import clip, folders, pixels, preference
from sdbench.encoders.preference import PickScore
from sdbench.errors import UserError
from sdbench.metrics.cosine import caption_score

SIZES = [(256, 256), (97, 160), (160, 97), (24, 24)]
SIDE = TINY["vision_cfg"]["image_size"]


def pictures(height: int, width: int) -> clip.U8:
    return np.concatenate([photographs(3, height, width), noise(2, height, width)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PickScore of a size that a test can afford, in the layout of the published one."""
    folder = tmp_path_factory.mktemp("pickscore")
    for_transformers(tiny(), TINY).save_pretrained(folder)
    return folder


def as_published(model: Any, prompt: str, images: list[Image.Image]) -> Any:
    """PickScore's README: normalised features, the model's own logit scale; the processor on Pillow, as it was in 2023."""
    prepare = processor(SIDE)
    seen = prepare(images=images, return_tensors="pt")
    said = prepare(text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        image = model.get_image_features(**seen).pooler_output
        text = model.get_text_features(**said).pooler_output
        image, text = image / torch.norm(image, dim=-1, keepdim=True), text / torch.norm(text, dim=-1, keepdim=True)
        return (model.logit_scale.exp() * (text @ image.T)[0]).numpy()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pickscore_s_published_snippet(saved: Path, height: int, width: int) -> None:
    judge, images = PickScore(folders.load_network(CLIPModel, saved, safetensors=True), "tiny"), pictures(height, width)
    found = caption_score(judge.images(images), judge.texts(CAPTIONS), judge.scale)
    expected = [as_published(judge.model, caption, [Image.fromarray(image)])[0] for image, caption in zip(images, CAPTIONS, strict=True)]
    scale = judge.model.logit_scale.exp().item()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_hpsv2_s_own_score(height: int, width: int) -> None:
    """100 x the cosine, as `evaluate_benchmark` has it; pictures resized to the longer edge as floats."""
    model, images = tiny(), pictures(height, width)
    judge = clip.Clip(model, "hps", pixels.resize_longest_edge)
    found = caption_score(judge.images(images), judge.texts(CAPTIONS), judge.scale)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([hps_transform(Image.fromarray(image), SIDE) for image in images]), normalize=True)
        said = model.encode_text(open_clip.tokenize(CAPTIONS), normalize=True)
        expected = torch.diagonal(seen @ said.T * 100).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * 100)


def test_the_batch_size_is_no_matter_in_float64_and_little_in_float32() -> None:
    """The bound in float32: 1e-6 of the logit scale."""
    images, captions = np.concatenate([photographs(40, 40, 40), noise(24, 40, 40)]), CAPTIONS * 12 + CAPTIONS[:4]
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        judge = PickScore(for_transformers(tiny(), TINY).to(dtype), "tiny")
        one, seven, whole = (caption_score(judge.images(images, n), judge.texts(captions, n), judge.scale) for n in (1, 7, 64))
        np.testing.assert_allclose(one, whole, rtol=0, atol=bound)
        np.testing.assert_allclose(seven, whole, rtol=0, atol=bound)


def test_their_names_tell_the_weights(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"epoch": 1, "state_dict": tiny().state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    found = {"pickscore-v1": saved, "hps-v2.1": tmp_path / "HPS_v2.1_compressed.pt"}
    monkeypatch.setattr(weights, "find", found.__getitem__)
    monkeypatch.setattr(weights, "digest", {"pickscore-v1": "a" * 64, "hps-v2.1": "b" * 64}.__getitem__)
    monkeypatch.setattr(open_clip, "get_model_config", {"ViT-H-14": TINY}.__getitem__)
    for loader in (preference.pickscore, preference.hps):
        loader.cache_clear()
    judges = preference.pickscore(), preference.hps()
    for loader in (preference.pickscore, preference.hps):
        loader.cache_clear()
    assert judges[0].name == f"pickscore.v1-{'a' * 12}"
    assert judges[1].name == f"hpsv2.1-{'b' * 12}"
    assert judges[1].prepare is pixels.resize_longest_edge


def test_weights_that_are_not_numbers_or_lacking_are_refused(saved: Path, tmp_path: Path) -> None:
    state = load_file(saved / "model.safetensors")
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    lacking = {name: tensor for name, tensor in state.items() if name != "visual_projection.weight"}
    broken = {**state, "logit_scale": torch.tensor(math.nan)}
    for content, message in ((lacking, "lacks 1 tensors of CLIPModel, such as 'visual_projection.weight'"), (broken, "NaN or infinite")):
        save_file(content, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message):
            folders.load_network(CLIPModel, tmp_path, safetensors=True)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"holds no CLIPModel in transformers' layout \(SafetensorError: .*fetch it again"):
        folders.load_network(CLIPModel, tmp_path, safetensors=True)


@pytest.mark.slow
def test_the_real_architecture_of_hpsv2() -> None:
    config = open_clip.get_model_config(preference.HPS_ARCHITECTURE)
    torch.manual_seed(0)
    model, images = clip.build(config), np.concatenate([photographs(1, 300, 400), noise(1, 300, 400)])
    judge = clip.Clip(model, "hps", pixels.resize_longest_edge)
    with torch.no_grad():
        seen = model.encode_image(torch.stack([hps_transform(Image.fromarray(image), 224) for image in images]), normalize=True)
        said = model.encode_text(open_clip.tokenize(CAPTIONS[:2]), normalize=True)
        expected = torch.diagonal(seen @ said.T * 100).numpy()
    np.testing.assert_allclose(caption_score(judge.images(images), judge.texts(CAPTIONS[:2])), expected, rtol=0, atol=1e-3)
