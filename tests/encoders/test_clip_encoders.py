"""CLIP scores against the reference implementations, on the same random networks and images."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clips import CAPTIONS, TINY, Adapted, for_transformers, processor, tiny
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file
from synthetic_images import golden, noises, photographs, photographs_and_noise
from torchmetrics.multimodal import CLIPScore

from sdbench.arrays import U8
from sdbench.assets import weights
from sdbench.encoders import clip, preference
from sdbench.encoders.towers import Towers
from sdbench.metrics.cosine import caption_score

SIZES = [(64, 64), (256, 256), (96, 160), (24, 24), (64, 70)]  # the last is cropped by 1.5 px, which open_clip rounds up
SIDE = TINY["vision_cfg"]["image_size"]


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    return tiny()


@pytest.fixture(scope="module")
def towers(model: open_clip.CLIP) -> Towers:
    return clip.towers(model, "tiny")


def scores(towers: Towers, images: U8, captions: list[str]) -> Any:
    return caption_score(towers.images(images), towers.texts(captions), towers.scale)


def open_clip_scores(model: open_clip.CLIP, images: U8, captions: list[str]) -> Any:
    """Scores by open_clip's pipeline, an image at a time: also MLPerf's `CLIPEncoder.get_clip_score` times 100."""
    transform, found = image_transform(SIDE, is_train=False), []
    with torch.no_grad():
        for image, caption in zip(images, captions, strict=True):
            image_features = model.encode_image(transform(Image.fromarray(image)).unsqueeze(0)).float()
            text_features = model.encode_text(open_clip.tokenize([caption])).float()
            image_features, text_features = (
                image_features / image_features.norm(dim=-1, keepdim=True),
                text_features / text_features.norm(dim=-1, keepdim=True),
            )
            found.append(100 * (image_features @ text_features.T).item())
    return np.array(found)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_scores_match_open_clip_and_mlperfs_formula(model: open_clip.CLIP, towers: Towers, height: int, width: int) -> None:
    images = photographs_and_noise(height, width)
    found = scores(towers, images, CAPTIONS)
    np.testing.assert_allclose(found, open_clip_scores(model, images, CAPTIONS), rtol=0, atol=1e-5 * 100)
    assert found.std() > 1  # the scores differ


@pytest.mark.parametrize(("height", "width"), SIZES[:2])
def test_scores_match_torchmetrics_for_captions_of_supported_length(model: open_clip.CLIP, towers: Towers, height: int, width: int) -> None:
    images, captions = photographs_and_noise(height, width)[:4], [CAPTIONS[row] for row in (0, 1, 2, 4)]
    peer = for_transformers(model, TINY)
    metric = CLIPScore(model_name_or_path=lambda: (Adapted(peer), processor(SIDE)))
    found = scores(towers, images, captions)
    for image, caption, ours in zip(images, captions, found, strict=True):
        metric.reset()
        metric.update(torch.from_numpy(image).permute(2, 0, 1), caption)
        assert metric.score.item() == pytest.approx(ours, abs=1e-5 * 100)


def test_long_caption_keeps_its_end_of_text(towers: Towers) -> None:
    """Truncation without it, as in torchmetrics (#2883), reads the wrong position."""
    long = CAPTIONS[3]
    tokens = clip.tokenize([long, "x"])
    assert tokens.shape == (2, 77)
    assert tokens[0, 76] == tokens.max() == 49407
    assert tokens[1].tolist()[:4] == [49406, 343, 49407, 0]
    cut = towers.texts([long, long + " once more"])
    np.testing.assert_array_equal(cut[0], cut[1])
    assert np.abs(cut - towers.texts(["a very detailed city at night"])).max() > 1e-3


@pytest.mark.gpu
def test_gpu_scores_match_the_cpu(towers: Towers) -> None:
    images = photographs_and_noise(64, 64)  # square images are resized on the GPU, too
    on_gpu = clip.towers(tiny().cuda(), "tiny")
    np.testing.assert_allclose(scores(on_gpu, images, CAPTIONS), scores(towers, images, CAPTIONS), rtol=0, atol=1e-3)


def test_leaving_out_padding_does_not_change_text_features(model: open_clip.CLIP, towers: Towers) -> None:
    with torch.no_grad():
        padded = model.encode_text(clip.tokenize(CAPTIONS)).numpy()
    np.testing.assert_allclose(towers.texts(CAPTIONS), padded, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([towers.texts([caption]) for caption in CAPTIONS]), padded, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: clip.towers(tiny().to(dtype), "tiny"),
        lambda dtype: preference.towers(for_transformers(tiny(), TINY).to(dtype), "tiny"),
    ],
    ids=["CLIP", "PickScore"],
)
def test_batch_size_does_not_affect_scores_in_float64_and_hardly_in_float32(
    make: Callable[[torch.dtype], Towers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds on the scale 100 cos. A suite always runs with one batch size anyhow."""
    images, captions = np.concatenate([photographs(40, 40, 40), noises(24, 40, 40)]), CAPTIONS * 12 + CAPTIONS[:4]
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        towers, found = make(dtype), []
        for batch in (64, 1, 7):
            monkeypatch.setattr(clip, "BATCH", batch)
            monkeypatch.setattr(clip, "CAPTIONS_BATCH", batch)
            found.append(scores(towers, images, captions))
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], rtol=0, atol=bound)


def test_golden_images_have_distinct_scores(towers: Towers) -> None:
    found = {name: scores(towers, image, ["a photograph of a city"])[0] for name, image in golden().items()}
    assert np.isfinite(list(found.values())).all()
    assert len({round(value, 3) for value in found.values()}) == len(found)


# ---- weights ----


def save(state: dict[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "own.pt"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_load_from_every_file_format(name: str, wrapped: bool, model: open_clip.CLIP, tmp_path: Path) -> None:
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    path = save({"state_dict": state} if wrapped and not name.endswith("safetensors") else state, tmp_path / name)
    torch.manual_seed(1)
    filled = clip.load_weights(clip.build(TINY), path)
    assert all(torch.equal(tensor, filled.state_dict()[key].cpu()) for key, tensor in state.items())


def test_backbone_is_loaded_by_name_and_identified_by_its_digest(
    model: open_clip.CLIP, towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(model.state_dict(), tmp_path / "weights.safetensors")
    requested = []

    def find(name: str) -> Path:
        requested.append(name)
        return path

    def get_model_config(name: str) -> dict[str, Any]:
        requested.append(name)
        return TINY

    monkeypatch.setattr(weights, "find", find)
    monkeypatch.setattr(weights, "digest", lambda name: f"{len(name):064}")
    monkeypatch.setattr(open_clip, "get_model_config", get_model_config)
    clip.load.cache_clear()
    loaded = clip.load("vit-l-14")
    clip.load.cache_clear()
    assert requested == ["clip-vit-l-14", "ViT-L-14-quickgelu"]
    assert loaded.name == f"clip.vit-l-14-{0:012}"
    np.testing.assert_allclose(loaded.texts(CAPTIONS), towers.texts(CAPTIONS), atol=1e-6)


def test_missing_or_mismatched_weights_are_an_error(model: open_clip.CLIP, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    incomplete = save({key: tensor for key, tensor in state.items() if key != "visual.proj"}, tmp_path / "incomplete.safetensors")
    other = save({**state, "text_projection": torch.zeros(32, 31)}, tmp_path / "other.safetensors")
    for path, message in ((incomplete, 'Missing key.*"visual.proj"'), (other, "size mismatch for text_projection")):
        with pytest.raises(RuntimeError, match=message):
            clip.load_weights(clip.build(TINY), path)


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("sprung"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    torch.save({"state_dict": Trap()}, tmp_path / "zipped.pt")
    for name in ("trap.pt", "zipped.pt"):
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            clip.load_weights(clip.build(TINY), tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_backbones_exist_in_open_clip_and_openais_use_quick_gelu() -> None:
    for backbone, architecture in clip.BACKBONES.items():
        config = open_clip.get_model_config(architecture)
        assert config.get("quick_gelu", False) == (backbone != "vit-h-14")
        tag = "laion2b_s32b_b79k" if backbone == "vit-h-14" else "openai"
        known = open_clip.get_pretrained_cfg(architecture.removesuffix("-quickgelu"), tag)
        assert known["quick_gelu" if backbone != "vit-h-14" else "hf_hub"]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit-b-32", "vit-l-14"])
def test_real_architectures_match_open_clip_and_transformers(backbone: str) -> None:
    config = open_clip.get_model_config(clip.BACKBONES[backbone])
    torch.manual_seed(0)
    model = clip.build(config)
    towers, images = clip.towers(model, backbone), np.concatenate([photographs(1, 512, 512), noises(1, 512, 512)])
    ours = scores(towers, images, CAPTIONS[:2])
    transform = image_transform(224, is_train=False)
    with torch.no_grad():
        image_features = model.encode_image(torch.stack([transform(Image.fromarray(image)) for image in images]))
        text_features = model.encode_text(open_clip.tokenize(CAPTIONS[:2]))
        np.testing.assert_allclose(ours, 100 * torch.cosine_similarity(image_features, text_features).numpy(), atol=1e-3)
        inputs = processor(224)(text=CAPTIONS[:2], images=list(images), return_tensors="pt", padding=True)
        out = for_transformers(model, config)(**inputs)
    np.testing.assert_allclose(ours, 100 * torch.cosine_similarity(out.image_embeds, out.text_embeds).numpy(), atol=1e-3)
