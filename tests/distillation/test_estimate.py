"""Estimates against closed forms and against counts of the full-size architectures."""

import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from distillation.cli import main
from distillation.cut import Cut
from distillation.describe import describe_recipe
from distillation.estimate import (
    FORWARD_EQUIVALENTS,
    Memory,
    activation_bytes,
    estimate_memory,
    gpu_hours,
    step_flops,
    track_saved_bytes,
    unet_on_fake_gpu,
)
from distillation.losses import feature_loss, mse
from distillation.recipe import load_recipe
from distillation.taps import collect_outputs, resolve_taps
from distillation.teacher import EMBEDDED, check_named_teacher
from sdbench.disk import size_text
from sdbench.errors import UserError
from sdbench.models.architectures import depths, unet_config
from sdbench.models.loading import build_on_meta
from sdbench.probes.work import empty_input

SHALLOW = {**unet_config("vega", "scenes"), "transformer_layers_per_block": [1, 1, 1]}
BLOCKS = {32: 5, 64: 5}  # width: transformer blocks, in 2 attentions down and 3 up
TEXT = 96  # its width
# Activations of one image at 1024 px in bfloat16 without autocast, attention as matrices; computed once with diffusers 0.42.1 (GB).
MATRICES_GB = {"ssd-1b": 12.3, "vega": 7.0}


def test_each_storage_is_counted_once_and_no_parameter() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).to("meta")
    with track_saved_bytes(network) as total:
        output = network(torch.empty(7, 3, device="meta"))
        assert total() == 4 * 7 * (3 + 5)  # both linear layers' inputs; the second is what ReLU keeps too
        del output
        assert total() == 0


@pytest.mark.parametrize("name", MATRICES_GB)
def test_full_size_activations(name: str) -> None:
    config = unet_config(name)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        unet = build_on_meta("unet", config)
        with torch.device("meta"), track_saved_bytes(unet) as total:
            output = unet(**empty_input(config, 128, 77))
            assert total() / 1e9 == pytest.approx(MATRICES_GB[name], abs=0.05)
            del output
    finally:
        torch.set_default_dtype(before)


ONE_TOKEN = {
    # every block keeps its keys and values; the text itself is there once
    "float32": ("float32", False, 4 * (TEXT + sum(2 * width * n for width, n in BLOCKS.items()))),
    # autocast casts the text anew for each linear layer
    "bfloat16": ("bfloat16", False, 2 * sum((2 * TEXT + 2 * width) * n for width, n in BLOCKS.items())),
    # every block keeps its inputs, and the text is the same for all
    "checkpointing": ("bfloat16", True, 4 * TEXT),
}


@pytest.mark.parametrize(("dtype", "checkpointing", "expected"), ONE_TOKEN.values(), ids=ONE_TOKEN)
def test_one_more_token_adds_its_activations(dtype: str, checkpointing: bool, expected: int) -> None:
    short, long = (
        activation_bytes(SHALLOW, latent_size=16, tokens=tokens, dtype=dtype, checkpointing=checkpointing)[0] for tokens in (20, 21)
    )
    assert long - short == expected
    assert not torch.is_autocast_enabled("cuda")
    assert torch.get_autocast_dtype("cuda") == torch.float16  # torch's own default


def test_attention_saves_no_matrix() -> None:
    """Doubling the side quadruples the pixels; nothing grows with their square, and the time embedding does not grow at all."""
    small, large, larger = (
        activation_bytes(SHALLOW, latent_size=side, tokens=20, dtype="bfloat16", checkpointing=False)[0] for side in (16, 32, 64)
    )
    assert larger - large == pytest.approx(4 * (large - small), rel=0.001)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_taps_add_the_size_of_the_teachers_outputs(checkpointing: bool) -> None:
    """The layer-level loss, at 1024 px in bfloat16, saves at most 0.2 GB per image more for the backward pass."""
    recipe, config = load_recipe("vega"), unet_config("vega")
    taps = resolve_taps(config, unet_config("sdxl"), recipe.cuts[-1], recipe.taps)
    with (
        unet_on_fake_gpu(config, "bfloat16", checkpointing=checkpointing) as (unet, kept),
        collect_outputs(unet, [tap.student for tap in taps]) as learned,
    ):
        taught = {tap.teacher: torch.empty(tap.shape, dtype=torch.bfloat16) for tap in taps}
        of_the_teacher = sum(output.nbytes for output in taught.values())
        output = unet(**empty_input(config, 128, 77))
        alone = kept()
        error = feature_loss(taps, learned, taught, "none")
        added = kept() - alone
        del output, error
    assert added == pytest.approx(of_the_teacher, rel=1e-3)  # and each tap's error, a number
    assert added <= 0.2e9


def test_full_size_memory() -> None:
    student = build_on_meta("unet", unet_config("ssd-1b"))
    found = estimate_memory(student, 2_567_463_684, [], latent_size=128, tokens=77, dtype="bfloat16", ema=True)
    n = 1_331_334_404
    assert (found.weights, found.gradients, found.moments, found.ema) == (4 * n, 4 * n, 8 * n, 4 * n)
    assert (found.autocast_copies, found.teacher) == (2 * n, 2 * 2_567_463_684)
    assert found.checkpointed + found.recomputed <= 0.5 * found.activations


class AllocationTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """While open, tracks storages created meanwhile; `peak_bytes` is the most that they took at once, after any operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.known, self.bytes, self.peak_bytes = set[int](), 0, 0

    def __torch_dispatch__(self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        made = function(*args, **(kwargs or {}))
        before = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for storage in (tensor.untyped_storage() for tensor in tree_leaves(made) if isinstance(tensor, Tensor)):
            if storage._cdata not in before | self.known:
                self.known.add(storage._cdata)
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        return made

    def free(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.bytes -= size


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_on_the_cpu_takes_the_estimated_memory(checkpointing: bool) -> None:
    """Two accumulated batches, so that all gradients exist at the peak, in the backward pass of the second."""
    side, n = 64, 2
    unet = UNet2DConditionModel(**SHALLOW).train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    taps = resolve_taps(
        SHALLOW, SHALLOW, Cut({path: tuple(range(depth)) for path, depth in depths(SHALLOW).items()}, 0), load_recipe("vega").taps
    )
    inputs = tree_map_only(Tensor, lambda like: torch.randn(n, *like.shape[1:]), empty_input(SHALLOW, side, 20))
    with AllocationTracker() as living:
        for _ in range(2):
            with collect_outputs(unet, [tap.student for tap in taps]) as learned:
                scale = side // SHALLOW["sample_size"]
                taught = {tap.teacher: torch.zeros(n, tap.shape[1], scale * tap.shape[2], scale * tap.shape[3]) for tap in taps}
                (output,) = unet(**inputs, return_dict=False)
                loss = feature_loss(taps, learned, taught, "none") + mse(output, torch.zeros_like(output))
                del output
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            del loss
    found = estimate_memory(unet, 0, taps, latent_size=side, tokens=20, dtype="float32", ema=False)
    lasting = found.weights + found.moments  # made before, or by the optimiser
    assert 0.96 <= (found.total(n, checkpointing=checkpointing) - lasting) / living.peak_bytes <= 1.12


def test_memory_adds_up() -> None:
    found = Memory(
        weights=1,
        gradients=10,
        moments=100,
        ema=1000,
        autocast_copies=10**4,
        teacher=10**5,
        activations=10**6,
        checkpointed=10**9,
        recomputed=10**8,
        taps=10**7,
    )
    assert found.total(3, checkpointing=False) == 33_111_111
    assert found.total(3, checkpointing=True) == 3_330_111_111


def test_step_flops_and_gpu_hours() -> None:
    assert step_flops(5, 8, 3, checkpointing=False) == 3 * 2 * (5 + 24)
    assert step_flops(5, 8, 3, checkpointing=True) == 3 * 2 * (5 + 30)
    assert gpu_hours(7200 * 10**12, 2.0) == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_equivalents_match_counted_flops(checkpointing: bool) -> None:
    config = unet_config("vega")
    unet = build_on_meta("unet", config).train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        (output,) = unet(**empty_input(config, 128, 77), return_dict=False)
        forward = counter.get_total_flops()
        output.sum().backward()
    assert counter.get_total_flops() / forward == pytest.approx(FORWARD_EQUIVALENTS[checkpointing], abs=0.05)


@pytest.fixture
def images(datasets_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two images, for `datasets` with an empty cache."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(2):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    (folder / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "{number}.png", "text": "black"}}\n' for number in range(2)), encoding="utf-8"
    )
    assert not datasets_cache.exists()
    return folder


def test_a_full_size_run_is_estimated_without_weights(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distillation.teacher.is_cached", lambda *_, **__: False)
    monkeypatch.setattr("distillation.estimate.activation_bytes", lambda *_, **__: (0, 0))  # takes seconds; tested above
    words = ["run", "vega", "--family", "sdxl", "--out", str(tmp_path / "out"), "--dry-run", "--steps", "1000"]
    words += ["--teacher", "sdxl", "--data", str(images), "--data", str(images)]
    assert main([*words, "--tflops", "500", "--usd-per-hour", "3"]) == 0
    said = capsys.readouterr().out
    assert "this run: teachers sdxl (100% of the steps)\n" in said
    assert said.endswith("\nteacher sdxl: not on this disk, not checked\n")
    assert "this run: 4 images, each seen 32,000.0 times on average\n" in said
    assert "ZavyChromaXL" not in said
    assert "GRIT" not in said
    assert "teacher: 2,567,463,684 parameters" in said
    assert "stage depth: 900 steps, 745,225,604 parameters" in said
    assert "estimate at 1024 px" in said
    assert "teacher 3,380.6 GMAC" in said
    # 4 x 128^2 and 77 x 2048 + 1280 numbers of 2 bytes; three times 12 bytes for each parameter of the first stage
    assert re.search(r"this run: .* of finished stages, and \d+ bytes in the cache of `datasets`\n", said)
    assert "disk: 449 MB for latents and embeddings of 1,000 images; 41.1 GB for checkpoints" in said
    steps = [float(number) for number in re.findall(r"([\d.e+]+) FLOP a step", said)]
    assert steps[1] == pytest.approx(2 * (3.3806 + 3.75 * 1.4112) * 1e12 * 16 * 8, rel=1e-3)
    work = 100 * steps[0] + 900 * steps[1]
    assert float(re.findall(r"work: ([\d.e+]+) FLOP", said)[0]) == pytest.approx(work, rel=1e-3)
    hours, cost = (
        float(re.findall(pattern, said)[0])
        for pattern in (r"time: ([\d.]+) GPU hours at 500 TFLOP/s\n", r"cost: ([\d.]+) USD at 3 an hour")
    )
    assert hours == pytest.approx(work / 500e12 / 3600, rel=5e-3)  # printed with three digits
    assert cost == pytest.approx(3 * work / 500e12 / 3600, rel=5e-3)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fake_estimates")
def test_a_run_states_the_disk_that_it_takes() -> None:
    recipe = load_recipe("ssd-1b")
    described = describe_recipe(recipe, "sdxl", teachers=["a", "b", "c"], n_images=1_000_000, copied_bytes=2 * 10**12)
    first, last = (4 * stage["parameters"] for stage in described["stages"])
    # 4 x 128^2 and 77 x 2048 + 1280 numbers of 2 bytes an image; three checkpoints of weights, moments and average, here 1 GB each; the
    # students that the first teacher leaves after each stage, and the others after the last
    needed = 2 * (4 * 128**2 + 77 * 2048 + 1280) * 10**6 + 9 * 10**9 + first + 3 * last
    said = f"{size_text(needed)} of disk for latents, embeddings, checkpoints and the students of finished stages"
    assert f"\nthis run: {said}, and 2 TB in the cache of `datasets`\n" in described["text"]
    uncopied = describe_recipe(recipe, "sdxl", teachers=["a", "b", "c"], n_images=1_000_000)["text"]
    assert f"\nthis run: {said}\n" in uncopied


@pytest.mark.usefixtures("fake_estimates")
def test_the_plan_of_the_embedded_family_is_for_the_images_that_its_recipe_renders() -> None:
    needed = size_text(12_288 * 2 * (4 * 16**2 + 20 * TEXT + 64))
    assert f"disk: {needed} for latents and embeddings of 12,288 images; " in describe_recipe(load_recipe("vega"), "scenes")["text"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--teacher", "sdxl"], "needs images to train on; name them with --data"),
        (["--teacher", "sdxl", "--data", "/nowhere"], "nothing to read at '/nowhere'"),
        (["--teacher", "sdlx"], "unknown model 'sdlx'; did you mean 'sdxl'"),
        (["--teacher", "sdxl", "--teacher", "a/b"], "2 teachers for recipe 'vega', which names 3"),
        ([], "belongs to family 'scenes', but the family to train is 'sdxl'"),
        (
            ["--teacher", "sdxl", "--teacher", "a/b", "--teacher", str(EMBEDDED)],
            "pipeline belongs to family 'scenes', but the family to train is",
        ),
    ],
)
def test_a_dry_run_refuses_what_a_run_refuses(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distillation.teacher.is_cached", lambda *_, **__: False)
    assert main(["run", "vega", "--family", "sdxl", "--out", str(tmp_path / "out"), "--dry-run", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_teacher_of_another_family_is_refused_before_it_is_fetched(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distillation.teacher.is_cached", lambda *_, **__: False)
    monkeypatch.setattr("distillation.teacher.fetch", lambda *_, **__: pytest.fail("fetched"))
    assert main(["run", "vega", "--teacher", "sdxl", "--device", "cpu", "--out", str(tmp_path / "out"), *more]) == 2
    expected = "the teacher 'sdxl' belongs to family 'sdxl', but the family to train is 'scenes'; "
    expected += "name another teacher with --teacher, such as scenes-teacher, or train its family: distillation run --family sdxl"
    assert expected in capsys.readouterr().err
    assert main(["run", "vega", "--teacher", "scenes-teacher", "--family", "sdxl", "--out", str(tmp_path / "out"), *more]) == 2
    assert "such as sdxl, or train its family: distillation run --family scenes" in capsys.readouterr().err
    only_sdxl = load_recipe("vega").model_copy(update={"scenes": None})
    with pytest.raises(UserError, match=r"name another teacher with --teacher, such as sdxl$"):
        check_named_teacher("scenes-teacher", only_sdxl, "sdxl")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_other_commands_refuse_before_they_fetch(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "sdxl")
    monkeypatch.chdir(tmp_path)  # a name of the catalogue comes before a folder or file of that name, as in `sdbench run`
    monkeypatch.setattr("distillation.teacher.is_cached", lambda *_, **__: False)
    monkeypatch.setattr("distillation.teacher.fetch", lambda *_, **__: pytest.fail("fetched"))
    for command, said in (
        (["ablate", "vega"], "the teacher 'sdxl' belongs to family 'sdxl', but the family to train is 'scenes'"),
        (["sensitivity"], "the teacher 'sdxl' belongs to family 'sdxl'; name images to measure on with --data"),
        (["run", "vega", "--family", "sdxl"], "needs images to train on; name them with --data"),
    ):
        assert main([*command, "--teacher", "sdxl", "--device", "cpu"]) == 2
        assert said in capsys.readouterr().err


def test_a_dry_run_reports_a_taken_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    assert main(["run", "vega", "--family", "sdxl", "--dry-run", "--out", str(tmp_path)]) == 2
    assert "exists; expected a new or empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "fast"])
def test_a_speed_or_price_must_be_positive(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--tflops", "--usd-per-hour"):
        with pytest.raises(SystemExit) as stopped:
            main(["plan", "vega", f"{option}={number}"])
        assert stopped.value.code == 2
        assert f"argument {option}: '{number}' is not a number of at least 1e-06" in capsys.readouterr().err
