"""ImageReward against its authors' code, on random weights.

The expected rewards and tokens are those of zai-org/ImageReward at c1392c6, with transformers 4.27.4, timm 0.6.13 and torch 2.15.0, for the
state dict, the images and the captions of this file.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import CAPTIONS
from PIL import Image
from subjects import make_subject
from synthetic_images import noises
from torch import Tensor

from sdbench import cli
from sdbench.arrays import F64, U8
from sdbench.assets import weights
from sdbench.assets.catalogue import get_asset
from sdbench.encoders import imagereward
from sdbench.encoders.imagereward import ImageReward
from sdbench.errors import UserError
from sdbench.metrics.imagereward import reward
from sdbench.score import score

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = [
    "large",
    "red",
    "circle",
    "of",
    "photo",
    "two",
    "cats",
    "dog",
    "in",
    "the",
    "rain",
    "very",
    "detail",
    "city",
    "night",
    "at",
    *"&'(),.-!",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *CHARACTERS, *(f"##{each}" for each in CHARACTERS), "##ed", "##雨"]
# Numbers of heads, the patch, the activation and the norms' epsilons stay as in the published network.
VISION = imagereward.VISION | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "image_size": 32}
TEXT = imagereward.TEXT | {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "encoder_hidden_size": 64, "vocab_size": len(VOCABULARY) + 2,
}  # fmt: skip  # a table
REWARDS = {  # of `images(height, width)` with `CAPTIONS`, by (height, width); the last size is cropped by 1.5 px
    (97, 160): [-1.8827598, -1.4969549, 1.1136584, 1.4499266, 0.7260230],
    (160, 97): [-2.0777969, -2.0067821, 0.8467755, 1.8830522, 0.7246810],
    (64, 70): [-2.0243869, -1.5465113, 0.7293386, 1.4571903, 0.7117587],
}
FULL_SIZE_REWARDS = [-3.1161098, -2.0189524]  # of the first two of `images(97, 160)`, with the state dict of the published size
Shapes = dict[str, tuple[int, ...]]  # of tensors, by their published names


def published_shapes(vision: dict[str, Any], text: dict[str, Any]) -> Shapes:
    """The shapes of the tensors in `ImageReward.pt`, by their published names."""
    width, seen = text["hidden_size"], vision["hidden_size"]

    def linear(name: str, n_in: int, n_out: int) -> Shapes:
        return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}

    def norm(name: str, n: int) -> Shapes:
        return {f"{name}.weight": (n,), f"{name}.bias": (n,)}

    def attention(name: str, n_in: int) -> Shapes:
        parts = (linear(f"{name}.self.{part}", width if part == "query" else n_in, width) for part in ("query", "key", "value"))
        output = linear(f"{name}.output.dense", width, width) | norm(f"{name}.output.LayerNorm", width)
        return {key: shape for part in (*parts, output) for key, shape in part.items()}

    eye, reader = "blip.visual_encoder", "blip.text_encoder"
    tokens, patch = 1 + (vision["image_size"] // vision["patch_size"]) ** 2, vision["patch_size"]
    shapes: Shapes = {f"{eye}.cls_token": (1, 1, seen), f"{eye}.pos_embed": (1, tokens, seen)}
    shapes |= {f"{eye}.patch_embed.proj.weight": (seen, 3, patch, patch), f"{eye}.patch_embed.proj.bias": (seen,)}
    for block in (f"{eye}.blocks.{index}" for index in range(vision["num_hidden_layers"])):
        shapes |= norm(f"{block}.norm1", seen) | linear(f"{block}.attn.qkv", seen, 3 * seen) | linear(f"{block}.attn.proj", seen, seen)
        shapes |= norm(f"{block}.norm2", seen) | linear(f"{block}.mlp.fc1", seen, vision["intermediate_size"])
        shapes |= linear(f"{block}.mlp.fc2", vision["intermediate_size"], seen)
    shapes |= norm(f"{eye}.norm", seen)
    shapes |= {f"{reader}.embeddings.{part}_embeddings.weight": (n, width) for part, n in (("word", text["vocab_size"]), ("position", 512))}
    shapes |= {f"{reader}.embeddings.position_ids": (1, 512)} | norm(f"{reader}.embeddings.LayerNorm", width)
    for layer in (f"{reader}.encoder.layer.{index}" for index in range(text["num_hidden_layers"])):
        shapes |= attention(f"{layer}.attention", width) | attention(f"{layer}.crossattention", seen)
        shapes |= linear(f"{layer}.intermediate.dense", width, text["intermediate_size"]) | linear(
            f"{layer}.output.dense", text["intermediate_size"], width
        )
        shapes |= norm(f"{layer}.output.LayerNorm", width)
    shapes |= linear("blip.vision_proj", seen, 256) | linear("blip.text_proj", width, 256)
    for place, n_in, n_out in ((0, width, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1)):
        shapes |= linear(f"mlp.layers.{place}", n_in, n_out)
    return shapes


def published_state(vision: dict[str, Any], text: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict as the authors publish it, with weights that are random, but the same everywhere."""
    return {name: random_tensor(name, shape) for name, shape in published_shapes(vision, text).items()}


def random_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("position_ids"):
        return torch.arange(shape[1])[None]
    values = 3**0.5 * (2 * np.random.default_rng(zlib.crc32(name.encode())).random(shape) - 1)  # deviation 1
    if "norm" in name.lower():
        values = 0.2 * values + name.endswith("weight")
    elif "embed" in name or "token" in name or name.endswith("bias"):
        values *= 0.01  # so small that the norms' epsilons matter
    else:
        values *= (2 if ".query" in name or ".key" in name or "qkv" in name else 1) / shape[1] ** 0.5  # attention that looks somewhere
    return torch.from_numpy(values.astype(np.float32))


def images(height: int, width: int) -> U8:
    """Five images, from bright to dark and differently coloured, of random bytes."""
    divisors = np.array([[1, 1, 1], [1, 3, 9], [9, 1, 3], [3, 9, 1], [9, 9, 9]], np.uint8)
    return noises(5, height, width) // divisors[:, None, None]


def rewards(judge: ImageReward, some: U8, captions: list[str]) -> F64:
    return reward(judge.features(some, captions), judge.head.weight, judge.head.bias)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """A tiny network and a small vocabulary in place of the published ones."""
    found = {imagereward.ASSET: tmp_path / "ImageReward.pt", imagereward.VOCABULARY: tmp_path / "vocab.txt"}
    torch.save(published_state(VISION, TEXT), found[imagereward.ASSET])
    found[imagereward.VOCABULARY].write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    monkeypatch.setattr(imagereward, "VISION", VISION)
    monkeypatch.setattr(imagereward, "TEXT", TEXT)
    monkeypatch.setattr(weights, "find", found.__getitem__)
    monkeypatch.setattr(weights, "digest", lambda _: "a" * 64)
    imagereward.load.cache_clear()
    yield found
    imagereward.load.cache_clear()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("height", "width"), REWARDS)
def test_reward_matches_the_authors_code(height: int, width: int) -> None:
    found = rewards(imagereward.load(), images(height, width), CAPTIONS)
    np.testing.assert_allclose(found, REWARDS[height, width], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("files")
def test_reward_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, some = imagereward.load(), images(40, 56)
    together = rewards(judge, some, CAPTIONS)
    monkeypatch.setattr(imagereward, "BATCH", 2)
    np.testing.assert_allclose(rewards(judge, some, CAPTIONS), together, rtol=0, atol=1e-5)
    alone = [rewards(judge, some[row : row + 1], CAPTIONS[row : row + 1])[0] for row in range(5)]
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)
    assert np.ptp(together) > 0.1


def test_tokens_match_the_authors_code(files: dict[str, Path]) -> None:
    """Accents, case, Chinese characters, invisible ones, special tokens and an unknown token."""
    found = imagereward.tokenizer(files[imagereward.VOCABULARY]).encode("x雨 Café\tNAÏVE [ENC] x\u200bx [MASK]dogs")
    expected = [2, 52, 1, 31, 65, 70, 69, 42, 65, 73, 86, 69, 104, 52, 88, 4, 12, 83, 3]
    assert found.ids == expected + [0] * 16


def test_long_captions_keep_their_last_token_and_short_ones_are_padded(files: dict[str, Path]) -> None:
    long, short = imagereward.tokenizer(files[imagereward.VOCABULARY]).encode_batch([CAPTIONS[3], "a red dog"])
    assert len(long.ids) == len(short.ids) == 35
    assert (long.tokens[0], long.tokens[-1], sum(long.attention_mask)) == ("[CLS]", "[SEP]", 35)
    assert short.tokens[:6] == ["[CLS]", "a", "red", "dog", "[SEP]", "[PAD]"]
    assert short.attention_mask == [1] * 5 + [0] * 30


@pytest.mark.usefixtures("files")
def test_words_after_the_35th_token_do_not_matter_and_those_before_do() -> None:
    judge, some = imagereward.load(), images(40, 56)[:1]
    long = " ".join(["city"] * 33)
    expected = rewards(judge, some, [long])
    assert rewards(judge, some, [f"{long} at night"]) == expected
    assert rewards(judge, some, [long.removesuffix("city") + "night"]) != expected


@pytest.mark.usefixtures("files")
def test_score_and_win_rate_of_stored_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """70 images are two blocks, each with its own prompts. Features are kept, and another prompt has others."""
    prompts = [f"{CAPTIONS[row % 3]} {row}" for row in range(70)]
    some = np.concatenate([images(40, 56)] * 14)
    subject = make_subject(tmp_path, some, prompts)
    (value,), scores = score(subject, ["imagereward.v1"])
    expected = rewards(imagereward.load(), some, prompts)
    assert (value.state, value.n, value.unit, value.direction) == ("ok", 70, "reward", "higher")
    np.testing.assert_allclose(scores.columns["imagereward.v1"], expected, rtol=0, atol=1e-5)

    others = make_subject(tmp_path, some, prompts[::-1], teacher_scores=scores)
    (_, won), found = score(others, ["imagereward.v1", "win_rate.imagereward.v1"])
    np.testing.assert_allclose(found.columns["imagereward.v1"], rewards(imagereward.load(), some, prompts[::-1]), rtol=0, atol=1e-5)
    assert won.value == pytest.approx(np.mean(found.columns["imagereward.v1"] > expected))

    monkeypatch.setattr(ImageReward, "features", None)
    _, again = score(replace(subject, columns={}), ["imagereward.v1"])
    np.testing.assert_array_equal(again.columns["imagereward.v1"], scores.columns["imagereward.v1"])


@pytest.mark.usefixtures("files")
def test_command_scores_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some, folder = images(40, 56), tmp_path / "images"
    folder.mkdir()
    for row, (image, caption) in enumerate(zip(some, CAPTIONS, strict=True)):
        Image.fromarray(image).save(folder / f"{row}.png")
        (folder / f"{row}.txt").write_text(caption, encoding="utf-8")
    arguments = ["score", "--images", folder, "--metrics", "imagereward.v1", "--results", tmp_path / "results", "--json"]
    assert cli.main([*map(str, arguments)]) == 0
    (value,) = json.loads(capsys.readouterr().out)["values"]
    assert value["value"] == pytest.approx(rewards(imagereward.load(), some, CAPTIONS).mean(), abs=1e-5)


DAMAGED = {
    "missing": ("blip.visual_encoder.norm.bias", None, r"1 tensors .* such as 'vision.post_layernorm.bias'"),
    "unknown": ("blip.text_encoder.pooler.dense.bias", torch.ones(48), r"1 tensors .* such as 'text.pooler.dense.bias'"),
    "other shape": ("blip.visual_encoder.pos_embed", torch.ones(1, 9, 64), r"1 tensors .* such as 'vision.embeddings.position_embedding'"),
    "not finite": ("blip.text_encoder.embeddings.LayerNorm.bias", torch.full((48,), torch.nan), "imagereward-v1 of .* NaN or infinite"),
    "head lacks a layer": ("mlp.layers.6.bias", None, r"imagereward-v1 does not hold the five linear layers .*layers\.6\.bias"),
    "head with another layer": ("mlp.layers.8.bias", torch.ones(1), r"1 tensors .* such as 'mlp.layers.8.bias'"),
}


@pytest.mark.parametrize(("name", "tensor", "message"), DAMAGED.values(), ids=DAMAGED)
def test_file_with_other_tensors_is_rejected(name: str, tensor: Tensor | None, message: str, files: dict[str, Path]) -> None:
    state = published_state(VISION, TEXT) | {name: tensor}
    torch.save({key: value for key, value in state.items() if value is not None}, files[imagereward.ASSET])
    with pytest.raises(UserError, match=message):
        imagereward.load()


def test_asset_has_the_size_of_the_published_tensors() -> None:
    shapes = published_shapes(imagereward.VISION, imagereward.TEXT)
    size = sum((8 if name.endswith("position_ids") else 4) * prod(shape) for name, shape in shapes.items())
    assert get_asset(imagereward.ASSET).files[0].size_bytes == size


@pytest.mark.slow
def test_real_architecture_matches_the_authors_code(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is the small one; its tokens are the first of the real one's 30,524."""
    monkeypatch.undo()
    vision, text, head = imagereward.build(published_state(imagereward.VISION, imagereward.TEXT), files[imagereward.ASSET])
    judge = ImageReward(vision, text, head, imagereward.tokenizer(files[imagereward.VOCABULARY]), "random")
    np.testing.assert_allclose(rewards(judge, images(97, 160)[:2], CAPTIONS[:2]), FULL_SIZE_REWARDS, rtol=0, atol=1e-4)
