"""What a training loop has set reaches neither encoders nor pictures, and is put back."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from clips import photographs

from sdbench.encoders import pixels, scenes


def in_older_words() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True


def in_newer_words() -> None:
    """After which torch raises where `allow_tf32` or `get_float32_matmul_precision` are asked."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def nothing() -> None:
    """As torch starts."""


def newer() -> list[str]:
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    return [kind.fp32_precision for kind in (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)]


def older() -> tuple[Any, ...]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    yield
    torch.backends.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for kind, start in ((torch.backends.cuda.matmul, "none"), (torch.backends.mkldnn.matmul, "none")):
        kind.fp32_precision = start


@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.parametrize("asked", [nothing, in_older_words, in_newer_words])
def test_nothing_is_rounded_inside_and_the_settings_are_put_back_even_after_an_error(asked: Callable[[], None]) -> None:
    asked()
    torch.backends.cudnn.benchmark = True
    before, told = newer(), None if asked is in_newer_words else older()
    assert before != ["ieee"] * 5
    with pixels.exact_inference():
        assert newer() == ["ieee"] * 5
        assert older() == ("highest", False, False)  # and torch does not raise, as it would in every product of matrices of a GPU
        assert not torch.backends.cudnn.benchmark
        assert torch.is_inference_mode_enabled()
    with pytest.raises(ZeroDivisionError), pixels.exact_inference():
        1 / 0  # noqa: B018
    assert newer() == before
    assert told is None or older() == told
    assert torch.backends.cudnn.benchmark
    assert not torch.is_inference_mode_enabled()


@pytest.mark.usefixtures("_as_it_was")
def test_what_follows_the_setting_of_all_goes_on_following_it() -> None:
    try:
        torch.backends.fp32_precision = "tf32"
        with pixels.exact_inference():
            assert newer() == ["ieee"] * 5
        assert newer()[0] == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert newer()[0] == "ieee"
    finally:
        torch.backends.fp32_precision = "none"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_training_loop_s_autocast_does_not_reach_an_encoder(dtype: torch.dtype) -> None:
    pictures, layer = photographs(2, 64, 64), torch.nn.Conv2d(3, 4, 5)

    def encoder(batch: pixels.U8) -> torch.Tensor:
        return layer(torch.from_numpy(batch).permute(0, 3, 1, 2).float()).flatten(1)

    def encoded() -> list[Any]:
        return [pixels.encode(pictures, encoder, 2), scenes.features(pictures), scenes.preference().texts(["a small red star"])]

    plain = encoded()
    with torch.autocast("cpu", dtype):
        for found, expected in zip(encoded(), plain, strict=True):
            np.testing.assert_array_equal(found, expected)
