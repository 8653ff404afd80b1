"""Counted work against counts by hand and known counts of full-size networks."""

from typing import Any

import pytest
import torch
from torch import nn

from sdbench.models.architectures import PARTS, unet_config
from sdbench.models.loading import build_on_meta, count_parameters, read_part
from sdbench.models.resolve import resolve
from sdbench.probes import work
from sdbench.scenes.embedded import WEIGHTS
from sdbench.settings import Sampling

# One forward, 1024 px, batch 1, computed once with diffusers 0.42.1 on the meta device (TMACs).
TMACS = {"sdxl": 3.3806, "ssd-1b": 2.1039, "vega": 1.4112, "koala-1b": 1.7159, "koala-700m": 1.3508}
SAMPLING = Sampling(steps=12, guidance_scale=3.0, size_px=64, dtype="float32", batch=1)


@pytest.mark.parametrize("shape", [(3,), (1, 3)], ids=["rows", "sequences"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_memory_traffic_is_inputs_weights_and_outputs(shape: tuple[int, ...], bias: bool) -> None:
    with torch.device("meta"):
        layer = nn.Linear(10, 20, bias=bias)
    found = work._count(layer, lambda network: network(torch.empty(*shape, 10)))
    weights = 200 + 20 * bias
    assert (found.macs, found.weights, found.others) == (3 * 10 * 20, weights, 3 * 10 + 3 * 20)
    assert found.batched(4) == work.Work(4 * found.macs, weights, 4 * found.others)


def test_of_a_table_of_embeddings_only_the_rows_of_the_tokens_are_read() -> None:
    with torch.device("meta"):
        table = nn.Embedding(1000, 10)
    found = work._count(table, lambda network: network(torch.empty(2, 3, dtype=torch.long)))
    assert (found.macs, found.weights, found.others) == (0, 0, 2 * 3 + 2 * (2 * 3 * 10))


def test_attention_traffic_excludes_the_score_matrix() -> None:
    def attend(_: nn.Module) -> torch.Tensor:
        q, k, v = (torch.empty(1, 2, 50, 8) for _ in range(3))
        return nn.functional.scaled_dot_product_attention(q, k, v)

    found = work._count(nn.Module(), attend)
    assert found.macs == 2 * 2 * 50 * 50 * 8
    assert found.others == 4 * (2 * 50 * 8)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_counted_on_the_meta_device_is_what_a_processor_runs(part: str) -> None:
    config = {"unet": unet_config("vega", "scenes"), **PARTS["scenes"]}[part]
    on_meta, on_cpu = build_on_meta(part, config), build_on_meta(part, config).to_empty(device="cpu")
    for buffer in on_cpu.buffers():
        buffer.zero_()  # positions are indices

    def call(network: nn.Module) -> None:
        with torch.device(next(network.parameters()).device):
            if part == "unet":
                network(**work.empty_input(config, (8, 8), 8))
            elif part == "vae":
                network.get_submodule("decoder")(torch.empty(1, config["latent_channels"], 8, 8))
            else:
                network(torch.zeros(1, 8, dtype=torch.long), output_hidden_states=True)

    counted = work._count(on_meta, call)
    assert (counted.macs, counted.others) > (0, 0)
    assert counted == work._count(on_cpu, call)


@pytest.mark.parametrize("architecture", TMACS)
def test_full_size_unet_macs_match_known_counts(architecture: str) -> None:
    assert work.unet_macs(unet_config(architecture), *work.input_sizes(PARTS["sdxl"], 1024)) / 1e12 == pytest.approx(
        TMACS[architecture], abs=5e-5
    )


def test_convolutions_and_linear_layers_by_hand() -> None:
    pooled, side, width = 6, 8, 4
    times = 4 * width  # width of the time embedding
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [width],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "mid_block_type": None,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "cross_attention_dim": 3,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 2,
        "projection_class_embeddings_input_dim": pooled + 6 * 2,
    }
    pixels = side * side

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return pixels * inputs * outputs * kernel**2

    embeddings = (width * times + times * times) + ((pooled + 12) * times + times * times)
    down = conv(width, width) + times * width + conv(width, width)
    up = 2 * (conv(2 * width, width) + times * width + conv(width, width) + conv(2 * width, width, kernel=1))  # two resnets, each on a skip
    assert work.unet_macs(config, latent_size=side, tokens=5) == embeddings + conv(4, width) + down + up + conv(width, 4)


def test_work_of_a_network_loaded_from_a_folder_is_that_of_its_architecture() -> None:
    loaded: Any = read_part("unet", WEIGHTS / "unets" / "vega", torch.float32)
    found, expected = (work.unet_macs(config, latent_size=16, tokens=20) for config in (loaded.config, unet_config("vega", "scenes")))
    assert found == expected


def test_attention_is_counted() -> None:
    """A longer text adds to each cross-attention its keys and values, and two products with the queries."""
    config = {**unet_config("vega", "scenes"), "transformer_layers_per_block": [1, 1, 1]}
    longer = work.unet_macs(config, latent_size=16, tokens=21) - work.unet_macs(config, latent_size=16, tokens=20)
    # width, queries of each block: 2 attentions down and 3 up at each of the two lower resolutions; no transformer in the middle
    assert longer == sum(5 * (2 * 96 * width + 2 * queries * width) for width, queries in ((32, 8 * 8), (64, 4 * 4)))


@pytest.fixture(scope="module")
def work_with_negative() -> dict[str, work.Work]:
    """Work of a small model that encodes its negative prompt too."""
    return work.by_stage(work.random_configs(resolve("scenes-vega", random=True)), SAMPLING, zero_negative=False)


def test_work_by_stage_of_the_embedded_family(work_with_negative: dict[str, work.Work]) -> None:
    configs = work.random_configs(resolve("scenes-vega", random=True))
    found = work.by_stage(configs, SAMPLING, zero_negative=True)
    forward = work.unet_macs(unet_config("vega", "scenes"), latent_size=16, tokens=20)
    assert found["unet_step"].macs == 2 * forward
    assert work_with_negative["text_encoders"].macs == 2 * found["text_encoders"].macs
    encoders = [work._work(part, configs[part], (16, 16), 20) for part in ("text_encoder", "text_encoder_2")]
    assert found["text_encoders"].numbers == sum(encoder.numbers for encoder in encoders)
    assert work_with_negative["vae_decode"] == found["vae_decode"]


def test_unet_that_embeds_the_guidance_scale_runs_once_per_step(work_with_negative: dict[str, work.Work]) -> None:
    configs = work.random_configs(resolve("scenes-vega", random=True))
    embedded = work.by_stage({**configs, "unet": {**configs["unet"], "time_cond_proj_dim": 8}}, SAMPLING, zero_negative=False)
    embedding = 8 * configs["unet"]["block_out_channels"][0]
    assert embedded["unet_step"].macs == work_with_negative["unet_step"].macs // 2 + embedding
    assert embedded["text_encoders"].macs == work_with_negative["text_encoders"].macs // 2


def test_work_of_images_that_are_not_square() -> None:
    configs = work.random_configs(resolve("scenes-vega", random=True))
    sides = ({"size_px": 64}, {"size_px": 128, "height_px": 64}, {"size_px": 64, "height_px": 128}, {"size_px": 128})
    small, wide, tall, large = (work.by_stage(configs, SAMPLING.model_copy(update=size), zero_negative=True) for size in sides)
    assert wide == tall
    assert small["text_encoders"] == wide["text_encoders"]
    for stage in ("unet_step", "vae_decode"):  # attention grows with the square of the pixels, all else with the pixels
        assert 2 * small[stage].macs < wide[stage].macs < large[stage].macs / 2


def test_a_network_is_counted_once(work_with_negative: dict[str, work.Work], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "build_on_meta", lambda *_: pytest.fail("built again"))
    assert work.by_stage(work.random_configs(resolve("scenes-vega", random=True)), SAMPLING, zero_negative=False) == work_with_negative


def test_full_size_decoding_takes_five_teramacs() -> None:
    """5.24 TMAC at 1024 px, computed once with independent code."""
    config = work.random_configs(resolve("sdxl", random=True))["vae"]
    assert work._work("vae", config, (128, 128), 77).macs / 1e12 == pytest.approx(5.24, abs=5e-3)


def test_decoding_reads_no_weights_of_the_encoder() -> None:
    config = work.random_configs(resolve("scenes-vega", random=True))["vae"]
    vae = build_on_meta("vae", config)
    read = count_parameters(vae) - count_parameters(vae.encoder) - count_parameters(vae.quant_conv)
    assert work._work("vae", config, (16, 16), 20).weights == read


def test_loads_are_in_flops_and_bytes_and_the_pipeline_is_the_sum_of_its_stages() -> None:
    works = {"text_encoders": work.Work(1, 10, 1), "unet_step": work.Work(5, 100, 7), "vae_decode": work.Work(3, 20, 2)}
    dtypes = {"text_encoders": "float16", "unet_step": "float16", "vae_decode": "float32"}
    found = work.loads(works, steps=10, batch=3, dtypes=dtypes)
    assert found["unet_step"] == (2 * 5 * 3, 2 * (100 + 3 * 7))
    assert found["vae_decode"] == (2 * 3 * 3, 4 * (20 + 3 * 2))
    assert found["pipeline"] == tuple(
        found["text_encoders"][place] + 10 * found["unet_step"][place] + found["vae_decode"][place] for place in (0, 1)
    )
