"""The shipped weights. All tests but the first also pass with untrained placeholder weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from sdbench.disk import file_digest
from sdbench.doctor import checks
from sdbench.encoders import scenes as encoders
from sdbench.errors import UserError
from sdbench.models.architectures import PARTS, unet_config
from sdbench.scenes import embedded
from sdbench.scenes.embedded import WEIGHTS
from sdbench.scenes.grammar import scene_at
from sdbench.scenes.render import render

MAX_BYTES = 32_000_000
LAYER = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", *(f"self_attn.{name}_proj" for name in "qkv"), "self_attn.out_proj")


@pytest.mark.skipif("parts" not in embedded.read_manifest(), reason="placeholder weights: the manifest names no trained parts")
def test_reader_reads_heldout_images_correctly() -> None:
    scenes = [scene_at(index, "heldout", seed=5) for index in range(1024)]
    read = encoders.layouts(render(scenes, range(1024), seed=5))
    correct = [found == scene.layout for found, scene in zip(read, scenes, strict=True)]
    assert np.mean(correct) >= 0.995


def test_manifest_lists_every_file_with_its_digest() -> None:
    assert embedded.changed_files() == []
    files = {path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("*") if path.is_file()}
    assert files == set(embedded.read_manifest()["files"]) | {"manifest.json"}


def test_weights_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < MAX_BYTES


def test_pipeline_loads_every_tensor_with_the_stock_class() -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        WEIGHTS / "pipeline", use_safetensors=True, local_files_only=True, add_watermarker=False
    )
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (file,) = (WEIGHTS / "pipeline" / part).glob("*.safetensors")
        stored = {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
        loaded = {name.removeprefix("text_model."): tensor for name, tensor in getattr(pipeline, part).state_dict().items()}
        assert stored.keys() == loaded.keys()
        for name, tensor in stored.items():
            torch.testing.assert_close(loaded[name].float(), tensor.float(), rtol=0, atol=0)


@pytest.mark.parametrize("part", [*PARTS["scenes"], "unet"])
def test_random_pipelines_have_the_shipped_architecture(part: str) -> None:
    (file,) = (WEIGHTS / "pipeline" / part).glob("*config.json")
    expected = PARTS["scenes"][part] if part in PARTS["scenes"] else unet_config("sdxl", "scenes")
    tokenizer_keys = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
    assert {name: value for name, value in expected.items() if name not in tokenizer_keys}.items() <= json.loads(
        file.read_text(encoding="utf-8")
    ).items()


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_text_encoder_files_use_the_hubs_tensor_names(name: str) -> None:
    folder = WEIGHTS / "pipeline" / name
    modules = [
        f"encoder.layers.{k}.{part}"
        for k in range(json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"])
        for part in LAYER
    ]
    expected = {f"text_model.{module}.{kind}" for module in [*modules, "final_layer_norm"] for kind in ("weight", "bias")}
    expected |= {f"text_model.embeddings.{kind}_embedding.weight" for kind in ("token", "position")}
    expected |= {"text_projection.weight"} if name == "text_encoder_2" else set()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == expected


def test_both_text_encoders_have_the_same_vocabulary() -> None:
    one, other = (CLIPTokenizer.from_pretrained(WEIGHTS / "pipeline" / name) for name in ("tokenizer", "tokenizer_2"))
    assert one.get_vocab() == other.get_vocab()


def test_every_evaluator_accepts_any_uint8_image() -> None:
    rng = np.random.default_rng(0)
    images = np.stack([np.zeros((64, 64, 3)), np.full((64, 64, 3), 255), rng.integers(0, 256, (64, 64, 3))]).astype(np.uint8)
    for encode in (encoders.features, encoders.clip().images, encoders.preference().images):
        features = encode(images)
        assert features.shape == (3, 64)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
        assert len(np.unique(features, axis=0)) == 3
    assert len(encoders.layouts(images)) == 3
    for towers in (encoders.clip(), encoders.preference()):
        assert towers.texts(["", "a small blue star on a gray background"]).shape == (2, 64)
        assert towers.scale > 0


def test_changed_or_missing_file_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unets").mkdir()
    for name in ("unets/one.bin", "two.bin"):
        (tmp_path / name).write_bytes(b"weights")
    digests = {name: file_digest(tmp_path / name) for name in ("unets/one.bin", "two.bin")}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": digests}), encoding="utf-8")
    monkeypatch.setattr(embedded, "WEIGHTS", tmp_path)
    monkeypatch.setattr(embedded, "MANIFEST", tmp_path / "manifest.json")
    assert embedded.changed_files() == []
    assert embedded.verified_path("unets") == tmp_path / "unets"
    (tmp_path / "unets" / "one.bin").write_bytes(b"changed")
    assert embedded.changed_files() == ["unets/one.bin"]
    for name in ("unets", "unets/one.bin"):
        with pytest.raises(UserError, match=r"unets/one\.bin are missing or changed.*reinstall"):
            embedded.verified_path(name)
    assert embedded.verified_path("two.bin") == tmp_path / "two.bin"
    (tmp_path / "two.bin").unlink()
    with pytest.raises(UserError, match=r"two\.bin are missing"):
        embedded.verified_path("two.bin")
    for manifest in ("", "[]", "{}"):
        (tmp_path / "manifest.json").write_text(manifest, encoding="utf-8")
        with pytest.raises(UserError, match=r"manifest\.json is not a manifest .*; reinstall"):
            embedded.verified_path("two.bin")
        (finding,) = checks._embedded()
        assert (finding.is_ok, finding.is_fatal) == (False, True)
