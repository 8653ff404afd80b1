"""Images as the full-size family trains on them, and a run on them with a tiny pipeline that has SDXL's text widths."""

import gc
import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, cast
from weakref import ref

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import save_tiny_pipeline, tiny_unet, with_unet
from torch import nn

from distillation import samples, train
from distillation.ablation.experiment import one_shot_recipe
from distillation.data.batches import SquareImages, crop_square, numbered_batches, open_square_images
from distillation.data.images import open_images
from distillation.recipe import Recipe
from distillation.run_plan import plan_run
from distillation.samples import StudentSampler
from distillation.taps import Tap
from distillation.train import distil
from sdbench.disk import read_json, write_json_lines
from sdbench.errors import UserError
from sdbench.training.diffusion import predict
from sdbench.training.latents import ENCODING, LatentPool
from sdbench.training.loop import fit

N, SIDE = 6, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Landscape images of 48 x 32, the left half red, the right half of another gray each."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(N):
        pixels = np.full((32, 48, 3), 40 * number, np.uint8)
        pixels[:, :24] = (255, 0, 0)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    rows = ({"file_name": f"{number}.png", "text": f"half red, half gray {number}"} for number in range(N))
    write_json_lines(folder / "metadata.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("sdxl") / "teacher", "sdxl", family="sdxl")


@pytest.fixture(scope="module")
def recipe(vega: Recipe) -> Recipe:
    changes = {"batch": 2, "accumulation": 1, "size_px": SIDE, "warmup": 1, "checkpointing": False, "dtype": "float32"}
    return vega.model_copy(update={"sdxl": vega.settings("sdxl").model_copy(update=changes)})


def test_a_square_is_central_with_its_micro_conditioning() -> None:
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, 8:40] = 255  # the middle square
    cut, conditioning = crop_square(Image.fromarray(pixels), 16)
    assert cut.shape == (16, 16, 3)
    assert cut.min() > 230  # Lanczos rings at the edges
    assert conditioning == (32, 48, 0, 4, 16, 16)
    tall, conditioning = crop_square(Image.fromarray(pixels.transpose(1, 0, 2)), 64)
    assert (tall.shape, conditioning) == ((64, 64, 3), (48, 32, 16, 0, 64, 64))


@pytest.mark.parametrize("side", [49, 98, 103, 107])  # 16 / side * side is less than 16
def test_a_square_is_whole_however_the_scale_is_rounded(side: int) -> None:
    cut, conditioning = crop_square(Image.new("RGB", (side + 9, side), "white"), 16)
    assert cut.min() == 255
    assert conditioning[2:] == (0, round((side + 9) * 16 / side - 16) // 2, 16, 16)


def test_squares_change_only_with_the_encoding_that_latents_are_kept_under() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8))
    cut, conditioning = crop_square(noise, 16)
    assert (ENCODING, hashlib.sha256(cut.tobytes()).hexdigest()[:8], conditioning) == (1, "6f15fc8f", (37, 53, 0, 3, 16, 16))


def test_squares_are_read_in_order(folder: Path) -> None:
    squares = SquareImages([open_images(str(folder))], SIDE)
    pixels, time_ids = squares.read(np.array([5, 0]))
    assert pixels.shape == (2, 3, SIDE, SIDE)
    assert pixels[0, 0, 0, -1].item() == pytest.approx(200 / 127.5 - 1)
    assert pixels[1, 0, 0, -1].item() == -1
    assert (pixels.dtype, time_ids.dtype) == (torch.float32, torch.float32)
    assert time_ids.tolist() == [[32, 48, 0, 4, SIDE, SIDE]] * 2
    assert squares.captions[5] == "half red, half gray 5"


def test_several_sources_are_concatenated(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "blue.png")
    write_json_lines(tmp_path / "metadata.jsonl", [{"file_name": "blue.png", "prompt": "blue"}])
    squares = open_square_images([str(tmp_path), str(folder), str(tmp_path)], None, SIDE)
    assert [squares.captions[row] for row in (0, 1, N, N + 1)] == ["blue", "half red, half gray 0", f"half red, half gray {N - 1}", "blue"]
    pixels, _ = squares.read(np.array([0, 1, N, N + 1]))
    assert torch.equal(pixels[0], pixels[3])
    assert pixels[:3, :, 0, -1].tolist() == [[-1, -1, 1], [-1] * 3, pytest.approx([200 / 127.5 - 1] * 3)]
    own, (other, *_) = squares.image_digests, open_square_images([str(tmp_path)], None, 2 * SIDE).image_digests
    assert (len(own), len({*own}), own[0] == own[N + 1], other in own) == (N + 2, N + 1, True, False)
    blue, gray = (open_images(str(source)).digest for source in (tmp_path, folder))
    assert squares.digest == hashlib.sha256(f"{blue} {gray} {blue} {SIDE}".encode()).hexdigest()
    with pytest.raises(UserError, match=r"unknown column of .* 'title'"):
        open_square_images([str(folder)], "title", SIDE)


def test_first_images_are_those_of_the_source_and_some_to_spare(folder: Path) -> None:
    sources = [str(folder)] * 40
    squares, first = (open_square_images(sources, None, SIDE, n, 0.01) for n in (None, 198))
    assert first.captions == squares.captions[:200]
    assert torch.equal(first.read(np.array([3]))[0], squares.read(np.array([3]))[0])
    assert first.image_digests == squares.image_digests[:200]
    assert first.digest == hashlib.sha256(f"{squares.digest} 200".encode()).hexdigest()
    enough = open_square_images(sources, None, SIDE, 40 * N)
    assert (enough.captions, enough.digest) == (squares.captions, squares.digest), "encoded once, for a run too"


def test_captions_may_be_missing_up_to_a_share_of_all_images(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    captions = [" ", "black", None, "black"]
    write_json_lines(tmp_path / "metadata.jsonl", [{"file_name": "black.png", "text": caption} for caption in captions])
    both = [str(tmp_path), str(folder)]  # 10 images
    assert len(open_square_images(both, None, SIDE, max_undecodable=0.2).captions) == 4 + N
    said = rf"no caption in rows 0, 2 of {tmp_path.name}\. At most 19 % of 10 images may be left out"
    with pytest.raises(UserError, match=said):
        open_square_images(both, None, SIDE, max_undecodable=0.19)
    with pytest.raises(UserError, match=rf"no caption in row 0 of {tmp_path.name}\. At most 0 % of 2 images"):
        open_square_images(both, None, SIDE, 2)


def test_an_epoch_is_as_many_images_as_there_are(recipe: Recipe) -> None:
    assert recipe.settings("sdxl").model_copy(update={"batch": 2, "accumulation": 3}).epochs(N, 5) == 5


def test_on_a_gpu_the_batch_that_a_process_needs_next_is_made_meanwhile(recipe: Recipe) -> None:
    made = SimpleQueue[int]()

    def draw(number: int, *_: object) -> SimpleNamespace:
        if number == 7:
            raise OSError("gone")
        made.put(number)
        return SimpleNamespace(to=lambda device: f"{number} on {device}")

    batch: Callable[[int], object] = numbered_batches(cast("LatentPool", SimpleNamespace(batch=draw)), recipe.settings("sdxl"), "cuda", 2)
    assert batch(1) == "1 on cuda"
    assert [made.get(timeout=60) for _ in "12"] == [1, 3]
    assert batch(3) == "3 on cuda"
    assert made.get(timeout=60) == 5
    assert batch(4) == "4 on cuda", "also one that was not expected"
    assert batch(5) == "5 on cuda"
    assert [made.get(timeout=60) for _ in "123"] == [4, 6, 5]
    with pytest.raises(OSError, match="gone"):
        batch(7)


def test_a_run_of_the_full_size_family(
    recipe: Recipe, teacher: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode, at_once = AutoencoderKL._decode, []

    def counted(vae: AutoencoderKL, latents: torch.Tensor, **chosen: Any) -> Any:
        at_once.append(len(latents))
        return decode(vae, latents, **chosen)

    monkeypatch.setattr(AutoencoderKL, "_decode", counted)
    squares = SquareImages([open_images(str(folder))], SIDE)
    out = distil(plan_run(one_shot_recipe(recipe), "sdxl", [teacher], 2), tmp_path / "work", tmp_path / "out", images=squares)
    pipeline = StableDiffusionXLPipeline.from_pretrained(out)
    assert pipeline.unet.config.cross_attention_dim == 2048
    noted = read_json(out / "provenance.json")
    assert noted["data_digest"] == squares.digest
    assert (noted["images"], noted["passes"]) == (N, 2 * 2 / N)
    assert f"on {N} images, each seen 0.7 times on average," in (out / "README.md").read_text(encoding="utf-8")
    said = capsys.readouterr().err
    assert f"training on {N} images, each seen 0.7 times on average\n" in said
    assert f"teacher: the float32 weights in {teacher}\n" in said
    assert [(stage["name"], stage["steps"]) for stage in noted["stages"]] == [("all", 2)]
    (sheet,) = (tmp_path / "work").glob("vega-*/1-all/samples/*.png")
    with Image.open(sheet) as image:
        assert image.size == (4 * SIDE, SIDE)
    assert at_once == [1] * 4  # images after the stage: at 1024 px a decoder takes gigabytes for each


def test_samples_are_drawn_one_by_one_each_from_its_own_noise(teacher: Path, folder: Path, tmp_path: Path) -> None:
    pool = LatentPool(teacher, SquareImages([open_images(str(folder))], SIDE), tmp_path)
    unet, sizes = UNet2DConditionModel.from_pretrained(teacher / "unet"), list[int]()
    unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    draw = StudentSampler(pool, teacher, nullcontext)
    sheet, values = draw(unet)
    assert (sizes, values) == ([2] * 4, {}), "with guidance, a call of the UNet has two halves"
    pipeline = StableDiffusionXLPipeline.from_pretrained(teacher)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    batch, unconditional = (pool.batch_of_rows(np.arange(4), samples.SEED, drop) for drop in (0, 1))
    together = pipeline(
        prompt_embeds=batch.prompt_embeds,
        pooled_prompt_embeds=batch.pooled,
        negative_prompt_embeds=unconditional.prompt_embeds,
        negative_pooled_prompt_embeds=unconditional.pooled,
        latents=batch.noise,
        height=SIDE,
        width=SIDE,
        num_inference_steps=samples.STEPS,
        guidance_scale=samples.GUIDANCE_SCALE,
    ).images
    np.testing.assert_allclose(sheet, np.concatenate([np.asarray(image) for image in together], 1), atol=1)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    unet.register_forward_pre_hook(full)
    with pytest.raises(UserError, match=r"too little memory on cpu to draw samples \(CUDA out of memory\); use a device with more$"):
        draw(unet)


def test_teachers_teach_in_succession(
    recipe: Recipe, teacher: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [with_unet(teacher, tmp_path / f"teacher-{seed}", tiny_unet("sdxl", seed, "sdxl")) for seed in (1, 2)]
    folders, of_step = [teacher, *others], train.batch_loss_terms
    vae = others[-1] / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(vae).items()}, vae)
    encoders = list[Path]()

    def encoding(folder: Path, *arguments: Any) -> LatentPool:
        encoders.append(folder)
        return LatentPool(folder, *arguments)

    monkeypatch.setattr(train, "LatentPool", encoding)
    starts = [load_file(each / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.bias"] for each in folders]
    taught = []

    def noted(context: train.StepContext, student: nn.Module, taps: list[Tap], number: int) -> dict[str, torch.Tensor]:
        (by,) = (index for index, start in enumerate(starts) if torch.equal(context.teacher.conv_in.bias, start))
        taught.append((number, by))
        return of_step(context, student, taps, number)

    monkeypatch.setattr(train, "batch_loss_terms", noted)
    monkeypatch.setattr(train, "FINAL_BATCHES", 2)
    squares = SquareImages([open_images(str(folder))], SIDE)
    out = distil(plan_run(recipe, "sdxl", folders, 6), tmp_path / "work", tmp_path / "out", images=squares)
    stages = read_json(out / "provenance.json")["stages"]
    # stages of 2 and 4 steps, teachers of 3, 1 and 2; after each piece two batches more, for its final losses
    assert [(stage["name"], stage["steps"]) for stage in stages] == [("half", 2), ("depth", 1), ("depth", 1), ("depth", 2)]
    pieces = {(0, 2): 0, (2, 3): 0, (3, 4): 1, (4, 6): 2}
    assert taught == [(number, by) for (start, end), by in pieces.items() for number in range(start, end + 2)]
    assert encoders == [teacher]
    assert (out / "vae" / vae.name).read_bytes() == (teacher / "vae" / vae.name).read_bytes() != vae.read_bytes()
    digests = [stage["teacher_digest"] for stage in stages]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    said = capsys.readouterr().err
    assert f"training on {N} images, each seen {6 * 2 / N:.1f} times on average\n" in said, "in all stages"
    assert said.count(f"the teacher in {others[-1]} differs from the first one") == said.count("differs from the first one") == 1


def test_with_bfloat16_only_the_teacher_is_stored_in_it(
    recipe: Recipe, teacher: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    gc.disable()  # by chance, it may free what the run should
    request.addfinalizer(gc.enable)
    AcceleratorState._reset_state(reset_partial_state=True)  # one process has one precision
    lower = recipe.model_copy(update={"sdxl": recipe.settings("sdxl").model_copy(update={"dtype": "bfloat16", "checkpointing": True})})
    starts, modes, students = [], set[tuple[torch.dtype, bool]](), list[ref[UNet2DConditionModel]]()

    def fit_and_note(model: UNet2DConditionModel, *arguments: Any, **chosen: Any) -> UNet2DConditionModel:
        starts.append(model.conv_in.weight.detach().clone())
        assert not any(student() for student in students), "those of earlier stages are freed"
        students.append(ref(model))
        return fit(model, *arguments, **chosen)

    def predict_and_note(unet: UNet2DConditionModel, *arguments: Any) -> torch.Tensor:
        modes.add((unet.dtype, torch.is_autocast_enabled("cpu")))
        return predict(unet, *arguments)

    monkeypatch.setattr(train, "fit", fit_and_note)
    monkeypatch.setattr(train, "predict", predict_and_note)
    squares = SquareImages([open_images(str(folder))], SIDE)
    out = distil(plan_run(lower, "sdxl", [teacher], 2), tmp_path / "work", tmp_path / "out", images=squares)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert (torch.float32, True) in modes, "the student computes in it"
    assert {mode for mode in modes if mode[0] == torch.bfloat16} == {(torch.bfloat16, False)}, "the teacher's weights are in it already"
    assert torch.equal(starts[0], UNet2DConditionModel.from_pretrained(teacher / "unet").conv_in.weight)  # not rounded on the way
    (checkpoint,) = (tmp_path / "work").glob("vega-*/2-depth/student")
    assert UNet2DConditionModel.from_pretrained(checkpoint).dtype == torch.float32
    assert np.isfinite(read_json(out / "provenance.json")["stages"][-1]["losses"]["feature"])


def test_the_full_size_family_needs_images(recipe: Recipe, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs images to train on; name them with --data"):
        distil(plan_run(recipe, "sdxl", [teacher]), tmp_path / "work", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
