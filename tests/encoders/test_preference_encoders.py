"""Preference models against their published code, on the same random networks and images."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clips import CAPTIONS, TINY, for_transformers, hps_transform, processor, tiny
from PIL import Image
from safetensors.torch import load_file, save_file
from synthetic_images import noises, photographs, photographs_and_noise
from transformers import CLIPModel

from sdbench.assets import weights
from sdbench.encoders import clip, pixels, preference, pretrained
from sdbench.errors import UserError
from sdbench.metrics.cosine import caption_score

SIZES = [(256, 256), (97, 160), (160, 97), (24, 24), (64, 70)]  # the last is cropped by 1.5 px, which transformers rounds down
SIDE = TINY["vision_cfg"]["image_size"]


@pytest.fixture(scope="module")
def pickscore_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny PickScore in the layout of the published one."""
    folder = tmp_path_factory.mktemp("pickscore")
    for_transformers(tiny(), TINY).save_pretrained(folder)
    return folder


def published_pickscore(model: Any, prompt: str, images: list[Image.Image]) -> Any:
    """The code in PickScore's README: normalised features, the model's logit scale; the processor uses Pillow, as in 2023."""
    prepare = processor(SIDE)
    image_inputs = prepare(images=images, return_tensors="pt")
    text_inputs = prepare(text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        image = model.get_image_features(**image_inputs).pooler_output
        text = model.get_text_features(**text_inputs).pooler_output
        image, text = image / torch.norm(image, dim=-1, keepdim=True), text / torch.norm(text, dim=-1, keepdim=True)
        return (model.logit_scale.exp() * (text @ image.T)[0]).numpy()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pickscore_matches_its_published_code(pickscore_folder: Path, height: int, width: int) -> None:
    model, images = pretrained.load_network(CLIPModel, pickscore_folder, safetensors=True), photographs_and_noise(height, width)
    judge = preference.towers(model, "tiny")
    captions = [*CAPTIONS[:-1], "the dog\u2019s \uff22owl: R&amp;B"]  # open_clip would clean the last
    found = caption_score(judge.images(images), judge.texts(captions), judge.scale)
    expected = [published_pickscore(model, caption, [Image.fromarray(image)])[0] for image, caption in zip(images, captions, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * model.logit_scale.exp().item())


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_score_matches_hpsv2(height: int, width: int) -> None:
    """100 x the cosine, as in `evaluate_benchmark`; images are resized by the longer edge as floats."""
    model, images = tiny(), photographs_and_noise(height, width)
    judge = clip.towers(model, "hps", pixels.resize_longest_edge)
    found = caption_score(judge.images(images), judge.texts(CAPTIONS), judge.scale)
    with torch.no_grad():
        image_features = model.encode_image(torch.stack([hps_transform(Image.fromarray(image), SIDE) for image in images]), normalize=True)
        text_features = model.encode_text(open_clip.tokenize(CAPTIONS), normalize=True)
        expected = torch.diagonal(image_features @ text_features.T * 100).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * 100)


def test_names_identify_the_weights(pickscore_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"epoch": 1, "state_dict": tiny().state_dict()}, tmp_path / "HPS_v2.1_compressed.pt")
    found = {"pickscore-v1": pickscore_folder, "hps-v2.1": tmp_path / "HPS_v2.1_compressed.pt"}
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
    wide, as_published = photographs(1, 40, 64), clip.towers(tiny(), "", pixels.resize_longest_edge)
    np.testing.assert_allclose(judges[1].images(wide), as_published.images(wide), rtol=0, atol=1e-5)


def test_missing_nan_or_damaged_weights_are_rejected(pickscore_folder: Path, tmp_path: Path) -> None:
    state = load_file(pickscore_folder / "model.safetensors")
    (tmp_path / "config.json").write_bytes((pickscore_folder / "config.json").read_bytes())
    incomplete = {name: tensor for name, tensor in state.items() if name != "visual_projection.weight"}
    broken = {**state, "logit_scale": torch.tensor(math.nan)}
    for content, message in ((incomplete, "lacks 1 tensors of CLIPModel, such as 'visual_projection.weight'"), (broken, "NaN or infinite")):
        save_file(content, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message):
            pretrained.load_network(CLIPModel, tmp_path, safetensors=True)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"holds no CLIPModel in transformers' layout \(SafetensorError: .*fetch it again"):
        pretrained.load_network(CLIPModel, tmp_path, safetensors=True)


@pytest.mark.slow
def test_real_architecture_matches_hpsv2() -> None:
    config = open_clip.get_model_config(preference.HPS_ARCHITECTURE)
    torch.manual_seed(0)
    model, images = clip.build(config), np.concatenate([photographs(1, 300, 400), noises(1, 300, 400)])
    judge = clip.towers(model, "hps", pixels.resize_longest_edge)
    with torch.no_grad():
        image_features = model.encode_image(torch.stack([hps_transform(Image.fromarray(image), 224) for image in images]), normalize=True)
        text_features = model.encode_text(open_clip.tokenize(CAPTIONS[:2]), normalize=True)
        expected = torch.diagonal(image_features @ text_features.T * 100).numpy()
    np.testing.assert_allclose(caption_score(judge.images(images), judge.texts(CAPTIONS[:2])), expected, rtol=0, atol=1e-3)
