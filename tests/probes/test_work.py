"""Counted work against counts by hand and those of the full-size networks."""

import pytest
import torch
from torch import nn

from sdbench.models.spec import resolve
from sdbench.probes import work
from sdbench.probes.flops import random_unet_input, unet_macs
from sdbench.settings import Sampling

SAMPLING = Sampling(steps=12, guidance_scale=3.0, size_px=64, dtype="float32", batch=1)


def test_numbers_moved_are_inputs_weights_and_outputs() -> None:
    with torch.device("meta"):
        layer = nn.Linear(10, 20)
    found = work._counted(layer, lambda network: network(torch.empty(3, 10)))
    assert (found.macs, found.weights, found.others) == (3 * 10 * 20, 220, 3 * 10 + 3 * 20)
    assert found.batched(4) == work.Work(4 * found.macs, 220, 4 * found.others)


def test_attention_moves_no_score_matrix() -> None:
    def attend(_: nn.Module) -> torch.Tensor:
        q, k, v = (torch.empty(1, 2, 50, 8) for _ in range(3))
        return nn.functional.scaled_dot_product_attention(q, k, v)

    found = work._counted(nn.Module(), attend)
    assert found.macs == 2 * 2 * 50 * 50 * 8
    assert found.others == 4 * (2 * 50 * 8)


@pytest.fixture(scope="module")
def both() -> dict[str, work.Work]:
    """Of a small model whose negative prompt is encoded too."""
    return work.of(work.of_random(resolve("scenes-vega", random=True)), SAMPLING, zero_negative=False)


def test_stages_of_the_embedded_family(both: dict[str, work.Work]) -> None:
    found = work.of(work.of_random(resolve("scenes-vega", random=True)), SAMPLING, zero_negative=True)
    forward = unet_macs(**random_unet_input("vega", "scenes", 64))
    assert found["unet_step"].macs == 2 * forward
    assert both["text_encoders"].macs == 2 * found["text_encoders"].macs
    assert both["vae_decode"] == found["vae_decode"]


def test_a_unet_that_is_told_the_guidance_scale_runs_once_a_step(both: dict[str, work.Work]) -> None:
    configs = work.of_random(resolve("scenes-vega", random=True))
    told = work.of({**configs, "unet": {**configs["unet"], "time_cond_proj_dim": 8}}, SAMPLING, zero_negative=False)
    embedding = 8 * configs["unet"]["block_out_channels"][0]
    assert told["unet_step"].macs == both["unet_step"].macs // 2 + embedding
    assert told["text_encoders"].macs == both["text_encoders"].macs // 2


def test_full_size_decoding_is_five_teramacs() -> None:
    """5.24 TMAC at 1024 px: computed for the facts, once, with other code."""
    config = work.of_random(resolve("sdxl", random=True))["vae"]
    with torch.device("meta"):
        vae = work._network("vae", config)
    assert work._counted(vae, lambda network: network.decode(torch.empty(1, 4, 128, 128))).macs / 1e12 == pytest.approx(5.24, abs=5e-3)


def test_loads_are_in_flops_and_bytes_and_the_pipeline_is_their_sum() -> None:
    works = {"text_encoders": work.Work(1, 10, 1), "unet_step": work.Work(5, 100, 7), "vae_decode": work.Work(3, 20, 2)}
    dtypes = {"text_encoders": "float16", "unet_step": "float16", "vae_decode": "float32"}
    found = work.loads(works, steps=10, batch=3, dtypes=dtypes)
    assert found["unet_step"] == (2 * 5 * 3, 2 * (100 + 3 * 7))
    assert found["vae_decode"] == (2 * 3 * 3, 4 * (20 + 3 * 2))
    assert found["pipeline"] == tuple(
        found["text_encoders"][place] + 10 * found["unet_step"][place] + found["vae_decode"][place] for place in (0, 1)
    )
