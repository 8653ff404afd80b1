"""Each stage on its own does what the pipeline does at that point."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from tiny import SIZE_PX, tiny_unet

from sdbench.probes import setup
from sdbench.probes.setup import apply_setting, describe
from sdbench.probes.stages import Stages
from sdbench.settings import Sampling, Setting

SAMPLING = Sampling(steps=1, guidance_scale=3.0, size_px=SIZE_PX, dtype="float32", batch=1, negative_prompt="blue")


@pytest.fixture
def pipe(loaded_pipeline: Any) -> Any:
    return copy.deepcopy(loaded_pipeline)


def run(stages: Stages, stage: str) -> Any:
    """Call a stage; returns what diffusers or torch returns."""
    return stages.prepare(stage)()


def record_decoded(vae: Any) -> list[torch.Tensor]:
    """Let a VAE append the latents that it decodes to a list; returns the list."""
    seen: list[torch.Tensor] = []
    decode = vae.decode

    def recorded(latents: torch.Tensor, **named: Any) -> Any:
        seen.append(latents)
        return decode(latents, **named)

    vae.decode = recorded
    return seen


def record_unet_calls(pipe: Any, call: Any) -> tuple[Any, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Run a call; returns its result and the arguments of its UNet calls."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with torch.no_grad():
        hook = pipe.unet.register_forward_pre_hook(lambda _, given, named: seen.append((given, named)), with_kwargs=True)
        result = call()
        hook.remove()
    return result, seen


@pytest.mark.parametrize(
    ("sampling", "unet_changes", "latents"),
    [
        ({"guidance_scale": 3.0}, {}, (2, 4, 4, 4)),
        ({"guidance_scale": 1.0}, {}, (1, 4, 4, 4)),
        ({"guidance_scale": 3.0}, {"time_cond_proj_dim": 8}, (1, 4, 4, 4)),
        ({"guidance_scale": 1.0}, {"time_cond_proj_dim": 8}, (1, 4, 4, 4)),
        ({"height_px": 2 * SIZE_PX}, {}, (2, 4, 8, 4)),
    ],
)
def test_unet_step_gets_the_same_inputs_as_in_the_pipeline(
    pipe: Any, sampling: dict[str, Any], unet_changes: dict[str, Any], latents: tuple[int, ...]
) -> None:
    pipe.unet = tiny_unet(**unet_changes)  # latent consistency models embed the guidance scale
    stages = Stages(pipe, SAMPLING.model_copy(update=sampling))
    noise, [(given, named)] = record_unet_calls(pipe, stages.prepare("unet_step"))
    _, [(given_by_pipeline, named_by_pipeline)] = record_unet_calls(pipe, stages.prepare("pipeline"))
    assert given[0].shape == given_by_pipeline[0].shape == latents
    assert noise.shape == (1, *latents[1:])
    assert int(given[1]) == int(given_by_pipeline[1])
    assert torch.equal(named["encoder_hidden_states"], named_by_pipeline["encoder_hidden_states"])
    assert named.keys() == named_by_pipeline.keys(), "otherwise a compiled UNet would be compiled twice"
    assert named["return_dict"] == named_by_pipeline["return_dict"]
    torch.testing.assert_close(named["timestep_cond"], named_by_pipeline["timestep_cond"], rtol=0, atol=0)
    assert (named["timestep_cond"] is None) == (not unet_changes)
    for key in ("text_embeds", "time_ids"):
        assert torch.equal(named["added_cond_kwargs"][key], named_by_pipeline["added_cond_kwargs"][key])


def test_the_pipeline_runs_every_step(pipe: Any) -> None:
    images, calls = record_unet_calls(pipe, Stages(pipe, SAMPLING.model_copy(update={"steps": 3})).prepare("pipeline"))
    assert len(calls) == 3
    assert len(images.images) == 1


def test_short_call_runs_only_the_first_timestep(pipe: Any) -> None:
    stages = Stages(pipe, SAMPLING.model_copy(update={"steps": 2, "scheduler": "lcm", "timesteps": (999, 499)}))
    _, calls = record_unet_calls(pipe, stages.prepare("short"))
    assert [int(given[1]) for given, _ in calls] == [999]
    _, calls = record_unet_calls(pipe, stages.prepare("unet_step"))
    assert [int(given[1]) for given, _ in calls] == [999]


def test_guidance_extrapolates_from_the_negative_prompt_to_the_prompt(pipe: Any) -> None:
    call = Stages(pipe, SAMPLING).prepare("unet_step")
    guided, [(given, named)] = record_unet_calls(pipe, call)
    with torch.no_grad():
        negative, text = pipe.unet(*given, **named)[0].chunk(2)
    torch.testing.assert_close(guided, 3.0 * text - 2.0 * negative)


def test_vae_gets_latents_divided_by_its_scaling_factor(pipe: Any) -> None:
    call: Callable[[], Any] = Stages(pipe, SAMPLING).prepare("vae_decode")
    assert call().shape == (1, 3, SIZE_PX, SIZE_PX)
    pipe.vae.register_to_config(scaling_factor=0.5)
    seen = record_decoded(pipe.vae)
    call()
    run(Stages(pipe, SAMPLING), "vae_decode")
    torch.testing.assert_close(seen[1], 2 * seen[0])


def test_vae_that_overflows_in_half_precision_decodes_in_float32(pipe: Any) -> None:
    pipe.vae.register_to_config(force_upcast=True)
    pipe.vae.half()
    pixels = run(Stages(pipe, SAMPLING), "vae_decode")
    assert pixels.dtype == torch.float32
    assert pipe.vae.dtype == torch.float16, "its dtype is restored"


@pytest.mark.parametrize(
    ("scheduler", "changes"),
    [
        *(
            ("model", {}),
            ("euler", {}),
            ("dpmpp", {"timesteps": (999, 749, 499, 249)}),
            ("euler-ancestral", {"timestep_spacing": "trailing"}),
        ),
        *(("lcm", {"timesteps": (999, 749, 499, 249)}), ("tcd", {"eta": 0.5})),
    ],
)
def test_scheduler_stage_takes_every_step_on_every_call(pipe: Any, scheduler: str, changes: dict[str, Any]) -> None:
    call: Callable[[], Any] = Stages(pipe, SAMPLING.model_copy(update={"scheduler": scheduler, "steps": 4, **changes})).prepare("scheduler")
    one, other = call(), call()
    assert torch.equal(one, other)
    assert one.shape == (1, 4, 4, 4)
    taken: list[int] = []
    step = pipe.scheduler.step

    def recorded(noise: torch.Tensor, timestep: Any, *rest: Any, **named: Any) -> Any:
        taken.append(int(timestep))
        return step(noise, timestep, *rest, **named)

    pipe.scheduler.step = recorded
    call()
    assert taken == pipe.scheduler.timesteps.tolist()
    assert len(taken) == 4
    assert taken == list(changes.get("timesteps", taken))
    pipe.scheduler.index_for_timestep = None
    call()  # the call must not look up a step


def test_every_stage_uses_the_batch_size(pipe: Any) -> None:
    stages = Stages(pipe, SAMPLING, 3)
    assert len(run(stages, "pipeline").images) == 3
    assert run(stages, "text_encoders")[0].shape[0] == 3
    noise, [(given, named)] = record_unet_calls(pipe, stages.prepare("unet_step"))
    assert noise.shape[0] == 3
    assert given[0].shape[0] == named["encoder_hidden_states"].shape[0] == named["added_cond_kwargs"]["time_ids"].shape[0] == 6
    assert run(stages, "vae_decode").shape[0] == 3
    short: Callable[[], Any] = stages.short(2)
    assert len(torch.no_grad()(short)().images) == 2


def test_vae_stage_decodes_the_pipelines_latents(pipe: Any) -> None:
    stages = Stages(pipe, SAMPLING.model_copy(update={"steps": 1}))
    call = stages.prepare("vae_decode")
    seen = record_decoded(pipe.vae)
    call()
    run(stages, "pipeline")
    torch.testing.assert_close(seen[0], seen[1])


def test_setting_is_applied_to_the_pipeline(pipe: Any) -> None:
    full = pipe.vae
    apply_setting(pipe, Setting())
    assert pipe.vae is full
    apply_setting(pipe, Setting(channels_last=True, vae="tiny", compile="whole"))
    assert type(pipe.vae).__name__ == "AutoencoderTiny"
    for part in (pipe.unet, pipe.vae.decoder):
        kernels = [weight for weight in part.parameters() if weight.ndim == 4]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
        assert any(not weight.is_contiguous() for weight in kernels)
    assert pipe.unet._compiled_call_impl is not None
    assert pipe.vae.decoder._compiled_call_impl is not None
    assert describe(pipe)["configs"]["vae"]["_class_name"] == "AutoencoderTiny"


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", False), ("float16", True), ("bfloat16", True)])
def test_loading_on_a_card_allows_tf32_beside_sixteen_bits_only_and_frees_cached_memory(
    dtype: str, allowed: bool, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn = SimpleNamespace(allow_tf32=not allowed)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr(setup, "load_pipeline", lambda *_, **__: pipe)
    for device in ("cuda", "cuda:1"):
        request: Any = SimpleNamespace(device=device, spec=None, dtype=dtype, setting=Setting(), sampling=SAMPLING)
        setup.load(request)
    assert current == [0, 1], "the clock waits for the current device"
    assert cudnn.allow_tf32 is allowed
    assert emptied


def test_tiny_vae_decodes_to_images_of_the_same_size(pipe: Any) -> None:
    apply_setting(pipe, Setting(vae="tiny"))
    stages = Stages(pipe, SAMPLING)
    assert run(stages, "vae_decode").shape == (1, 3, SIZE_PX, SIZE_PX)
    assert run(stages, "pipeline").images.shape == (1, SIZE_PX, SIZE_PX, 3)


def test_text_encoders_encode_the_prompt_and_the_negative_prompt(pipe: Any) -> None:
    text, negative, _, _ = run(Stages(pipe, SAMPLING), "text_encoders")
    assert text.shape == negative.shape == (1, 20, 96)
    assert not torch.equal(text, negative)


def test_scheduler_is_the_one_in_the_sampling_settings(pipe: Any) -> None:
    own = type(pipe.scheduler)
    Stages(pipe, SAMPLING)
    assert type(pipe.scheduler) is own
    Stages(pipe, SAMPLING.model_copy(update={"scheduler": "euler"}))
    assert type(pipe.scheduler) is EulerDiscreteScheduler


def test_parameter_counts_match_the_weight_files(pipe: Any, tiny_pipeline: Path) -> None:
    from safetensors import safe_open

    def numbers(path: Path) -> int:
        with safe_open(path, "pt") as file:
            return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  # no mapping

    by_part = {path.parent.name: numbers(path) for path in tiny_pipeline.glob("*/*.safetensors")}
    assert set(by_part) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    before = describe(pipe)
    assert before["parameters"] == {"unet": by_part["unet"], "pipeline": sum(by_part.values())}
    pipe.vae.register_buffer("table", torch.zeros(1000, dtype=torch.float64))
    assert describe(pipe)["weights_bytes"] - before["weights_bytes"] == 8000


def test_restore_returns_a_vae_that_an_error_left_in_float32_to_its_dtype(pipe: Any) -> None:
    pipe.vae.to(torch.float16)
    stages = Stages(pipe, SAMPLING)
    pipe.vae.to(torch.float32)
    stages.restore()
    assert pipe.vae.dtype == torch.float16
