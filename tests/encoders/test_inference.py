"""Precision settings of a training loop do not affect encoders or images, and are restored."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_images import photographs

from sdbench.arrays import U8
from sdbench.encoders import inference, scenes
from sdbench.encoders.inference import evaluators_on
from sdbench.encoders.pixels import resize_shortest_edge

BACKENDS: Any = torch.backends  # sparsely typed


def set_legacy_flags() -> None:
    torch.set_float32_matmul_precision("medium")
    BACKENDS.cudnn.allow_tf32 = True


def set_fp32_precisions() -> None:
    """Afterwards torch raises when `allow_tf32` or `get_float32_matmul_precision` are read."""
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    BACKENDS.cudnn.rnn.fp32_precision = "ieee"
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"


def keep_defaults() -> None:
    """Leave torch as it starts."""


def fp32_precisions() -> list[str]:
    cuda, cudnn, mkldnn = BACKENDS.cuda, BACKENDS.cudnn, BACKENDS.mkldnn
    return [kind.fp32_precision for kind in (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)]


def legacy_flags() -> tuple[Any, ...]:
    return torch.get_float32_matmul_precision(), BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32


@pytest.fixture
def _restore_precision() -> Iterator[None]:
    yield
    BACKENDS.cudnn.benchmark = False
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for kind, start in ((BACKENDS.cuda.matmul, "none"), (BACKENDS.mkldnn.matmul, "none")):
        kind.fp32_precision = start


@pytest.mark.usefixtures("_restore_precision")
@pytest.mark.parametrize("configure", [keep_defaults, set_legacy_flags, set_fp32_precisions])
def test_exact_inference_disables_rounding_and_restores_the_settings_even_after_an_error(configure: Callable[[], None]) -> None:
    configure()
    BACKENDS.cudnn.benchmark = True
    before, flags_before = fp32_precisions(), None if configure is set_fp32_precisions else legacy_flags()
    assert before != ["ieee"] * 5
    with inference.exact_inference():
        assert fp32_precisions() == ["ieee"] * 5
        assert legacy_flags() == ("highest", False, False)  # torch must not raise here, as every matrix product on a GPU reads them
        assert not BACKENDS.cudnn.benchmark
        assert torch.is_inference_mode_enabled()
    with pytest.raises(ZeroDivisionError), inference.exact_inference():
        1 / 0  # noqa: B018
    assert fp32_precisions() == before
    assert flags_before is None or legacy_flags() == flags_before
    assert BACKENDS.cudnn.benchmark
    assert not torch.is_inference_mode_enabled()


@pytest.mark.usefixtures("_restore_precision")
def test_precisions_inherited_from_the_global_setting_stay_inherited() -> None:
    try:
        BACKENDS.fp32_precision = "tf32"
        with inference.exact_inference():
            assert fp32_precisions() == ["ieee"] * 5
        assert fp32_precisions()[0] == "tf32"
        BACKENDS.fp32_precision = "ieee"
        assert fp32_precisions()[0] == "ieee"
    finally:
        BACKENDS.fp32_precision = "none"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_a_training_loop_does_not_affect_encoders(dtype: torch.dtype) -> None:
    images, layer = photographs(2, 64, 64), torch.nn.Conv2d(3, 4, 5)

    def encoder(batch: U8) -> torch.Tensor:
        found: torch.Tensor = layer(torch.from_numpy(batch).permute(0, 3, 1, 2).float())
        return found.flatten(1)

    def encode_all() -> list[Any]:
        return [inference.encode(images, encoder, 2), scenes.features(images), scenes.preference().texts(["a small red star"])]

    plain = encode_all()
    with torch.autocast("cpu", dtype):
        for found, expected in zip(encode_all(), plain, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_default_dtype_of_a_training_loop_does_not_affect_encoders(dtype: torch.dtype) -> None:
    images = photographs(2, 64, 64)

    def encode_all() -> list[Any]:
        inputs = resize_shortest_edge(images, 32, torch.device("cpu")).numpy()
        return [inputs, scenes.clip.__wrapped__().texts(["a small red star"])]  # loaded anew

    plain = encode_all()
    torch.set_default_dtype(dtype)
    try:
        with evaluators_on("cpu"):
            found = encode_all()
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    for one, expected in zip(found, plain, strict=True):
        np.testing.assert_array_equal(one, expected)
