"""DINOv2 and CLIP against the preprocessing of dgm-eval and CMMD, on tiny networks of the same architecture."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import on_gpu_and_cpu
from PIL import Image
from synthetic_images import photograph
from torchvision import transforms
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from sdbench.arrays import F32, U8
from sdbench.assets import catalogue, weights
from sdbench.encoders import vit
from sdbench.errors import UserError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14}
VISION = {**SMALL, "image_size": 336, "intermediate_size": 64, "projection_dim": 16}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 16}
IMAGES = np.stack([photograph(seed, 260, 380) for seed in range(3)])


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    dinov2 = Dinov2Model(Dinov2Config(**SMALL, image_size=518, layerscale_value=0.5))
    torch.nn.init.normal_(dinov2.embeddings.position_embeddings)
    dinov2.save_pretrained(folder / vit.DINOV2)
    towers = CLIPModel(CLIPConfig(projection_dim=16, vision_config=VISION, text_config=TEXT))
    towers.config.save_pretrained(folder / vit.CLIP)
    torch.save(towers.state_dict(), folder / vit.CLIP / "pytorch_model.bin")  # both towers in one file, as in OpenAI's repository
    return folder


@pytest.fixture(autouse=True)
def _weights(weights_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find", weights_folder.joinpath)


def test_dinov2_is_the_class_token_with_dgm_evals_preprocessing(weights_folder: Path) -> None:
    prepare = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    model = Dinov2Model.from_pretrained(weights_folder / vit.DINOV2).eval()
    trained = model.embeddings.position_embeddings
    model.embeddings.position_embeddings = torch.nn.Parameter(vit.interpolate_positions(trained, 16))
    with torch.inference_mode():
        pixels = torch.stack([prepare(Image.fromarray(image)) for image in IMAGES])
        expected = model(pixel_values=pixels).last_hidden_state[:, 0].numpy()
    found = vit.dinov2(IMAGES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_positions_are_interpolated_as_in_dinov2_not_as_in_transformers() -> None:
    """A ramp along the columns stays a ramp except at its ends; its step grows by a factor of n / (side + 0.1), not n / side."""
    ramp = torch.arange(37.0).expand(37, 37).reshape(1, 37 * 37, 1)
    grid = vit.interpolate_positions(torch.cat([torch.full((1, 1, 1), -9.0), ramp], dim=1), 16)
    assert grid[0, 0, 0] == -9
    row = grid[0, 1:].reshape(16, 16)[5, 2:-2]
    torch.testing.assert_close(row.diff(), torch.full((11,), 37 / 16.1), rtol=0, atol=0.1)
    assert float(row[-1] - row[0]) == pytest.approx(11 * 37 / 16.1, abs=0.08)
    unchanged = torch.rand(1, 1 + 16 * 16, 4)
    assert torch.equal(vit.interpolate_positions(unchanged, 16), unchanged)


def test_clip_is_normalised_with_cmmds_preprocessing(weights_folder: Path) -> None:
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    squares = [Image.fromarray(image).crop((60, 0, 320, 260)).resize((336, 336), Image.Resampling.BICUBIC) for image in IMAGES]
    pixels = (np.stack([np.asarray(square) for square in squares]) / 255.0 - mean) / deviation
    model = CLIPVisionModelWithProjection.from_pretrained(weights_folder / vit.CLIP).eval()
    with torch.inference_mode():
        expected = model(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)).image_embeds.numpy()
    np.testing.assert_allclose(vit.clip(IMAGES), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("encode", [vit.dinov2, vit.clip])
def test_result_does_not_depend_on_other_images_in_the_batch(encode: Callable[[U8], np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    together = encode(IMAGES)
    monkeypatch.setattr(vit, "BATCH", 2)
    np.testing.assert_allclose(encode(IMAGES), together, atol=1e-5)
    assert len(np.unique(together.round(4), axis=0)) == 3


def test_missing_weights_are_an_error(weights_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(weights_folder / vit.CLIP, tmp_path / vit.CLIP)
    file = tmp_path / vit.CLIP / "pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    del state["visual_projection.weight"]
    torch.save(state, file)
    monkeypatch.setattr(weights, "find", tmp_path.joinpath)
    with pytest.raises(UserError, match=r"lacks 1 tensors of CLIPVisionModelWithProjection, such as 'visual_projection\.weight'; fetch"):
        vit.clip(IMAGES)


@pytest.mark.parametrize(
    ("encode", "name", "file", "other"),
    [(vit.dinov2, vit.DINOV2, "model.safetensors", "pytorch_model.bin"), (vit.clip, vit.CLIP, "pytorch_model.bin", "model.safetensors")],
)
def test_only_the_file_with_a_checked_digest_is_read(
    encode: Callable[[U8], np.ndarray],
    name: str,
    file: str,
    other: str,
    weights_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [one.name for one in catalogue.get_asset(name).files][1:] == [file]
    expected = encode(IMAGES)
    for kind in ("extra", "damaged"):
        shutil.copytree(weights_folder / name, tmp_path / kind / name)
        (tmp_path / kind / name / other).write_bytes(b"unverified content")
    monkeypatch.setattr(weights, "find", (tmp_path / "extra").joinpath)
    np.testing.assert_array_equal(encode(IMAGES), expected)
    damaged = tmp_path / "damaged" / name / file
    damaged.write_bytes(damaged.read_bytes()[:1000])
    monkeypatch.setattr(weights, "find", (tmp_path / "damaged").joinpath)
    with pytest.raises(UserError, match=r"in transformers' layout \(\w+: .*fetch it again"):
        encode(IMAGES)


@pytest.mark.gpu
@pytest.mark.parametrize("encode", [vit.dinov2, vit.clip])
def test_gpu_features_match_the_cpu(encode: Callable[[U8], F32]) -> None:
    on_gpu, on_cpu = on_gpu_and_cpu(lambda: encode(IMAGES))
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=1e-4 * np.abs(on_cpu).max())
