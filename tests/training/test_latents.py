"""Latents and embeddings match the stock pipeline and are computed once; a batch is determined by its seed and step."""

import gc
import itertools
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import by_two, is_locked
from safetensors.torch import load_file, save_file
from tiny import edit_json
from torch import distributed

from sdbench.disk import read_json, size_text
from sdbench.errors import UndecodableError, UserError
from sdbench.scenes.training.pool import Pool
from sdbench.training import latents as latents_module
from sdbench.training import row_files
from sdbench.training.diffusion import Batch, add_noise, predict, target
from sdbench.training.latents import LatentPool, encode, load_components
from sdbench.training.loop import draw_rows
from sdbench.training.row_files import RowFile


def squares_of(rows: np.ndarray) -> dict[str, torch.Tensor]:
    return {"squares": torch.from_numpy(rows**2)}


def refuse_damaged(damaged: set[int]) -> Callable[[np.ndarray], np.ndarray]:
    """Reads row numbers as images, of which those in `damaged` cannot be decoded."""

    def read(rows: np.ndarray) -> np.ndarray:
        if damaged & set(rows.tolist()):
            raise UndecodableError(f"{rows} is damaged")
        return rows

    return read


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[set[Path]]:
    """The files that each pool asks for; it is interrupted then."""
    asked: list[set[Path]] = []

    def note(*files: RowFile) -> None:
        asked.append({file.path for file in files})
        raise InterruptedError

    monkeypatch.setattr(latents_module, "fill_and_load", note)
    return asked


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def pool(work: Path) -> Pool:
    return Pool(work, 8)


@pytest.fixture(scope="module")
def latents(teacher_folder: Path, pool: Pool, work: Path) -> LatentPool:
    return LatentPool(teacher_folder, pool, work)


def test_embeddings_and_latents_match_the_stock_pipeline(latents: LatentPool, pool: Pool, teacher_folder: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(teacher_folder)
    batch = latents.batch(3, 4, seed=5, drop=0)
    rows = draw_rows(3, len(pool.captions), 4, 5)
    with torch.no_grad():
        prompt, _, pooled, _ = pipeline.encode_prompt([pool.scenes[row].caption for row in rows], do_classifier_free_guidance=False)
        encoded = pipeline.vae.encode(pool.pixels(rows)).latent_dist.mode() * pipeline.vae.config.scaling_factor
    for found, expected in ((batch.prompt_embeds, prompt), (batch.pooled, pooled), (batch.latents, encoded)):
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # kept as float16
    assert batch.time_ids.tolist() == [[64, 64, 0, 0, 64, 64]] * 4


def test_latents_are_scaled_as_the_vae_says(pool: Pool, teacher_folder: Path) -> None:
    vae, pixels = load_components(teacher_folder)["vae"], pool.pixels(np.arange(1))
    vae.register_to_config(scaling_factor=0.13025)  # SDXL's; the embedded family has 1
    with torch.no_grad():
        torch.testing.assert_close(encode(vae, pixels), vae.encode(pixels).latent_dist.mode() * 0.13025)


def test_batch_is_determined_by_seed_and_step(latents: LatentPool, teacher_folder: Path, pool: Pool, work: Path) -> None:
    again = LatentPool(teacher_folder, pool, work).batch(7, 4, seed=1)
    first = latents.batch(7, 4, seed=1)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in vars(first))
    assert not torch.equal(first.noise, latents.batch(8, 4, seed=1).noise)
    assert not torch.equal(first.noise, latents.batch(7, 4, seed=2).noise)


def test_batches_never_change(latents: LatentPool) -> None:
    """The shipped students were trained on these; with others they could not be made again."""
    batch = latents.batch(3, 4, seed=5)
    assert batch.timesteps.tolist() == [711, 350, 756, 22]
    assert batch.noise[:, 0, 0, 0].tolist() == pytest.approx([0.029487, -1.913416, -0.553895, -0.237564], abs=1e-5)
    assert batch.pooled.any(-1).tolist() == [True, True, False, True], "a tenth is dropped by default"
    assert latents.batch(3, 4, seed=5, drop=0.5).pooled.any(-1).tolist() == [False, False, False, True]
    assert [round(value.item(), 1) for value in torch.std_mean(latents.batch(0, 64, seed=0).noise)] == [1, 0]
    assert {*latents.batch_of_rows(np.arange(8), seed=0, least=100, most=102).timesteps.tolist()} == {100, 101}


def test_images_for_validation_are_spread_evenly_and_never_drawn(teacher_folder: Path, work: Path) -> None:
    images = Pool(work, 40)
    latents = LatentPool(teacher_folder, images, work, validation=100)
    held_out = torch.from_numpy(latents.latents[[0, 10, 20, 30]]).float()
    assert (len(latents), len(latents.validation_rows)) == (36, 4), "a tenth at most"
    assert torch.equal(latents.batch_of_rows(latents.validation_rows, 0).latents, held_out)
    drawn = latents.batch(0, 1000, seed=0).latents
    assert len({image.numpy().tobytes() for image in drawn}) == len(latents)
    assert not (drawn[:, None] == held_out).flatten(2).all(-1).any()
    assert len(LatentPool(teacher_folder, images, work, validation=2).validation_rows) == 2


def test_lower_precision_keeps_timesteps_and_sizes(latents: LatentPool) -> None:
    batch = replace(latents.batch(0, 1, seed=0), timesteps=torch.tensor([999]), time_ids=torch.tensor([[769.0, 1365, 0, 171, 1024, 1024]]))
    lower = batch.to(torch.bfloat16)
    assert torch.equal(lower.timesteps, batch.timesteps)
    assert torch.equal(lower.time_ids, batch.time_ids)
    assert {lower.latents.dtype, lower.noise.dtype, lower.prompt_embeds.dtype, lower.pooled.dtype} == {torch.bfloat16}


def test_dropped_captions_are_zeros(latents: LatentPool) -> None:
    dropped, kept = latents.batch(0, 4, seed=0, drop=1), latents.batch(0, 4, seed=0, drop=0)
    assert not dropped.prompt_embeds.any()
    assert not dropped.pooled.any()
    assert kept.prompt_embeds.any(-1).all()
    some = ~latents.batch(0, 64, seed=0, drop=0.1).pooled.any(-1)
    assert some.nonzero().flatten().tolist() == [1, 3, 42, 47, 53, 61]


def test_dropped_captions_are_the_empty_prompt_if_the_pipeline_says_so(
    latents: LatentPool, pool: Pool, teacher_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    edit_json(tmp_path / "teacher" / "model_index.json", force_zeros_for_empty_prompt=False)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "teacher")
    with torch.no_grad():
        _, unconditional, _, unconditional_pooled = pipeline.encode_prompt("a circle")
    assert unconditional.any()
    own = LatentPool(tmp_path / "teacher", pool, tmp_path / "work")
    dropped, kept, some = (own.batch(0, 8, seed=0, drop=drop) for drop in (1, 0, 0.5))
    torch.testing.assert_close(dropped.prompt_embeds, unconditional.expand(8, -1, -1), atol=2e-3, rtol=2e-3)  # kept as float16
    torch.testing.assert_close(dropped.pooled, unconditional_pooled.expand(8, -1), atol=2e-3, rtol=2e-3)
    assert torch.equal(kept.pooled, latents.batch(0, 8, seed=0, drop=0).pooled)
    expected = [kept.pooled[row] if torch.equal(some.pooled[row], kept.pooled[row]) else dropped.pooled[row] for row in range(8)]
    assert torch.equal(some.pooled, torch.stack(expected))


def test_the_unconditional_embedding_is_zeros_unless_the_index_says_otherwise(tmp_path: Path) -> None:
    assert latents_module._has_zero_unconditional(tmp_path)
    for content, zeros in (({}, True), ({"force_zeros_for_empty_prompt": False}, False)):
        (tmp_path / "model_index.json").write_text(json.dumps(content), encoding="utf-8")
        assert latents_module._has_zero_unconditional(tmp_path) is zeros


def test_noise_and_targets_match_their_closed_forms(latents: LatentPool) -> None:
    batch, scheduler = latents.batch(2, 4, seed=0), latents.scheduler
    alpha = scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    mixed = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
    assert torch.allclose(add_noise(scheduler, batch), mixed, atol=1e-6)
    velocity = alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * batch.latents
    assert torch.allclose(target(scheduler, batch), velocity, atol=1e-6)
    epsilon = type(scheduler).from_config(scheduler.config, prediction_type="epsilon")
    assert torch.equal(target(epsilon, batch), batch.noise)
    with pytest.raises(UserError, match="prediction type of a scheduler 'sample'"):
        target(type(scheduler).from_config(scheduler.config, prediction_type="sample"), batch)


def test_a_prediction_is_that_of_the_stock_pipeline_under_the_same_conditions(teacher_folder: Path) -> None:
    pipeline, called = StableDiffusionXLPipeline.from_pretrained(teacher_folder), list[Any]()
    pipeline.unet.register_forward_hook(lambda *call: called.append(call[1:]), with_kwargs=True)
    sizes = {"original_size": (48, 32), "crops_coords_top_left": (8, 4), "target_size": (64, 56)}
    pipeline("a circle", num_inference_steps=1, guidance_scale=1, output_type="latent", **sizes)
    ((noised, timestep), given, (expected,)) = called.pop()
    pooled, time_ids = given["added_cond_kwargs"]["text_embeds"], torch.tensor([[48.0, 32, 8, 4, 64, 56]])
    batch = Batch(noised, given["encoder_hidden_states"], pooled, time_ids, noised, timestep[None])
    with torch.no_grad():
        assert torch.equal(predict(pipeline.unet, noised, batch), expected)


def test_latents_and_embeddings_are_computed_once_for_the_same_networks_and_images(
    latents: LatentPool, teacher_folder: Path, pool: Pool, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_if_called(*_: object) -> None:
        raise AssertionError("encoded again")

    other = Pool(work, 8, seed=1)
    monkeypatch.setattr(latents_module, "encode", fail_if_called)
    monkeypatch.setattr(LatentPool, "embed_captions", fail_if_called)
    assert np.array_equal(LatentPool(teacher_folder, pool, work).latents, latents.latents)
    with pytest.raises(AssertionError, match="encoded again"):
        LatentPool(teacher_folder, other, work)


def test_latents_of_another_kind_of_device_are_not_reused(teacher_folder: Path, pool: Pool, tmp_path: Path, asked: list[set[Path]]) -> None:
    for device in ("cpu", "cuda", "cuda:1"):
        with pytest.raises(InterruptedError):
            LatentPool(teacher_folder, pool, tmp_path, device)
    assert asked[0].isdisjoint(asked[1])
    assert asked[1] == asked[2]


def test_all_is_computed_again_once_it_is_computed_in_another_way(
    teacher_folder: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[set[Path]]
) -> None:
    for encoding in (1, 2, 1):
        monkeypatch.setattr(latents_module, "ENCODING", encoding)
        with pytest.raises(InterruptedError):
            LatentPool(teacher_folder, pool, tmp_path)
    assert asked[0] == asked[2]
    assert not asked[0] & asked[1]


@pytest.mark.parametrize(
    ("changed", "recomputed"), [("vae", "latents"), ("text_encoder", "captions"), ("text_encoder_2", "captions"), ("tokenizer", "captions")]
)
def test_only_what_a_changed_part_made_is_computed_again(
    changed: str, recomputed: str, teacher_folder: Path, pool: Pool, tmp_path: Path, asked: list[set[Path]]
) -> None:
    part = Path(shutil.copytree(teacher_folder, tmp_path / "teacher")) / changed
    for _ in range(2):
        with pytest.raises(InterruptedError):
            LatentPool(tmp_path / "teacher", pool, tmp_path)
        for file in part.glob("*.safetensors"):
            save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
        for file in part.glob("tokenizer*.json"):
            file.write_text(file.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert [path.name.partition("-")[0] for path in asked[1] - asked[0]] == [recomputed]


def test_an_image_larger_than_a_pass_is_encoded_alone(teacher_folder: Path, pool: Pool, tmp_path: Path) -> None:
    assert len(LatentPool(teacher_folder, DamagedPool(pool, 2, set(), size_px=1024), tmp_path)) == 2


def test_networks_are_freed_once_all_is_encoded(teacher_folder: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count() -> int:
        gc.collect()
        return sum(type(thing) is AutoencoderKL for thing in gc.get_objects())

    before, returned = count(), list[int]()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: returned.append(count()))
    found = LatentPool(teacher_folder, pool, tmp_path)
    assert (count(), returned) == (before, [before]), "their memory goes back to the device"
    assert len(found) == 8


def test_non_finite_weights_are_reported_before_any_encoding(teacher_folder: Path, pool: Pool, tmp_path: Path) -> None:
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    weights = tmp_path / "teacher" / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["encoder.conv_in.bias"][0] = torch.nan
    save_file(tensors, weights)
    with pytest.raises(UserError, match=r"tensor 'encoder.conv_in.bias' has 1 values that are NaN"):
        LatentPool(tmp_path / "teacher", pool, tmp_path / "work")
    assert [each.name for each in (tmp_path / "work").iterdir()] == [".lock"]


def test_incomplete_folder_is_rejected(tmp_path: Path, pool: Pool) -> None:
    (tmp_path / "vae").mkdir()
    with pytest.raises(UserError, match=r"no text_encoder, text_encoder_2, tokenizer, tokenizer_2, scheduler; expected"):
        LatentPool(tmp_path, pool, tmp_path)


class InterruptingPool:
    """Captioned images that record which rows are read, and interrupt the run at row `stop`."""

    def __init__(self, pool: Pool, stop: int | None) -> None:
        self.digest, self.captions, self.size_px = pool.digest, pool.captions, 256  # so large that only few are encoded at once
        self.max_undecodable, self.image_digests = 0.0, pool.image_digests
        self._pool, self._stop, self.rows_read = pool, stop, list[int]()

    def read(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        if self._stop in rows:
            raise KeyboardInterrupt
        self.rows_read += rows.tolist()
        return self._pool.read(rows)


def test_images_are_read_while_others_are_encoded(
    teacher_folder: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, read, encoded = latents_module.encode, threading.Event(), list[int]()

    class SignallingPool(InterruptingPool):
        def read(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            if 7 in rows:
                read.set()
            return super().read(rows)

    def encode_after_the_last_is_read(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels))
        assert len(encoded) == 1 or read.wait(60)  # the first is encoded before, to find the file's size
        return encode(vae, pixels)

    monkeypatch.setattr(latents_module, "encode", encode_after_the_last_is_read)
    images = SignallingPool(pool, None)
    images.size_px = 512  # so large that each is encoded alone
    assert len(LatentPool(teacher_folder, images, tmp_path)) == 8
    assert encoded == [1] * 9


def test_rows_are_filled_by_one_run_at_a_time(tmp_path: Path) -> None:
    held = []

    def squares(rows: np.ndarray) -> dict[str, torch.Tensor]:
        held.append(is_locked(tmp_path / ".lock"))
        return squares_of(rows)

    for _ in range(2):  # the second finds the rows of the first
        (kept,) = row_files.fill_and_load(RowFile(tmp_path / "kept.npy", 4, 2, squares))
        assert kept["squares"].tolist() == [0, 1, 4, 9]
    assert held == [True] * 3, "the first row gives the size; then two chunks"
    assert not is_locked(tmp_path / ".lock")


def test_interrupted_encoding_resumes(latents: LatentPool, teacher_folder: Path, pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        LatentPool(teacher_folder, InterruptingPool(pool, 5), tmp_path)
    again = InterruptingPool(pool, None)
    resumed = LatentPool(teacher_folder, again, tmp_path)
    assert again.rows_read == [4, 5, 6, 7]
    np.testing.assert_allclose(resumed.latents, latents.latents, atol=2e-3, rtol=2e-3)
    assert sorted(path.suffix for path in tmp_path.glob("*-*")) == [".keys", ".keys", ".npy", ".npy"]


def test_progress_marks_without_their_file_are_ignored(teacher_folder: Path, pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        LatentPool(teacher_folder, InterruptingPool(pool, 5), tmp_path)
    for part in tmp_path.glob("*.part"):
        part.unlink()
    with pytest.raises(KeyboardInterrupt):
        LatentPool(teacher_folder, InterruptingPool(pool, 1), tmp_path)
    again = InterruptingPool(pool, None)
    LatentPool(teacher_folder, again, tmp_path)
    assert sorted(set(again.rows_read)) == list(range(8))


def test_marks_of_a_deleted_file_do_not_survive_a_crash_while_the_next_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = np.lib.format.open_memmap
    file = RowFile(tmp_path / "kept.npy", 4, 2, squares_of)
    file.marks_path.write_bytes(b"\1" * 4)

    def create_and_crash(*arguments: Any) -> None:
        create(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "open_memmap", create_and_crash)
        with pytest.raises(KeyboardInterrupt):
            row_files.fill_and_load(file)
    (kept,) = row_files.fill_and_load(file)
    assert kept["squares"].tolist() == [0, 1, 4, 9]


def test_a_run_killed_just_before_its_file_is_complete_computes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = list[int]()

    def squares(rows: np.ndarray) -> dict[str, torch.Tensor]:
        computed.extend(rows.tolist())
        return squares_of(rows)

    file = RowFile(tmp_path / "kept.npy", 4, 2, squares)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            row_files.fill_and_load(file)
    computed.clear()
    (kept,) = row_files.fill_and_load(file)
    assert (computed, kept["squares"].tolist()) == ([], [0, 1, 4, 9])


def test_rows_are_marked_every_half_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed loses no more than that."""
    clock, marked = [0.0], list[int]()

    def squares(rows: np.ndarray) -> dict[str, torch.Tensor]:
        marked.append(sum(file.marks_path.read_bytes()) if file.marks_path.exists() else 0)
        clock[0] += 20
        return squares_of(rows)

    monkeypatch.setattr(row_files, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    file = RowFile(tmp_path / "kept.npy", 10, 2, squares)
    row_files.fill_and_load(file)
    assert marked == [0, 0, 2, 2, 6, 6]  # the first row gives the size; then five chunks of two rows, each in 20 seconds


def test_an_image_that_can_be_decoded_again_is_left_out_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = {7}
    file = RowFile(tmp_path / "kept.npy", 100, 10, squares_of, refuse_damaged(damaged), 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            row_files.fill_and_load(file)
    assert file.undecodable_rows().tolist() == [7]
    damaged.clear()
    (kept,) = row_files.fill_and_load(file)
    assert (kept["squares"][7], file.undecodable_rows().tolist()) == (49, [])


def test_marks_that_a_crash_left_incomplete_are_ignored(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "kept.npy", 4, 2, squares_of)
    np.save(tmp_path / "kept", np.zeros(4, [("squares", np.int64)]))
    file.path.rename(file.part_path)
    file.marks_path.write_bytes(b"\1\1")
    (kept,) = row_files.fill_and_load(file)
    assert kept["squares"].tolist() == [0, 1, 4, 9]


def test_insufficient_disk_space_is_reported_before_encoding(
    latents: LatentPool, teacher_folder: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    needed = size_text(latents._images.nbytes + latents._captions.nbytes)
    with pytest.raises(
        UserError, match=rf"100 bytes free; {needed} are needed for latents, time_ids, prompt_embeds, pooled of 8 images. Make room"
    ):
        LatentPool(teacher_folder, pool, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [".lock"]


def test_where_the_disk_is_full_files_of_other_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kept-a.npy", "kept-b.part", "kept-c.npy", "kept-a.left-out.npy", "other-a.npy"):
        (tmp_path / name).write_bytes(bytes(2000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    files = [RowFile(tmp_path / f"kept-{name}.npy", 4, 2, squares_of) for name in ("c", "d")]
    listed = f"{tmp_path / 'kept-a.npy'} (2 kB), {tmp_path / 'kept-b.part'} (2 kB)"
    with pytest.raises(UserError, match=re.escape(f"with --work. Made for other images or models: {listed}") + "$"):
        row_files.fill_and_load(*files)


def fill_shared_file(folder: Path, fails_at: int | None = None) -> None:
    """In one of two processes, write squares of 0..9 in chunks of 3; the second process ends at row `fails_at`."""
    distributed.init_process_group("gloo")
    rank, computed = distributed.get_rank(), list[int]()

    def squares(rows: np.ndarray) -> dict[str, torch.Tensor]:
        if fails_at in rows and rank:
            os._exit(9)
        computed.extend(rows.tolist())
        (folder / f"computed.{rank}").write_text(json.dumps(computed), encoding="utf-8")
        return squares_of(rows)

    row_files.fill_and_load(RowFile(folder / "kept.npy", 10, 3, squares))


def test_two_processes_share_the_encoding(tmp_path: Path) -> None:
    assert by_two(fill_shared_file, tmp_path) == [0, 0]
    computed = [read_json(tmp_path / f"computed.{rank}") for rank in range(2)]
    assert computed == [[0, 0, 1, 2, 6, 7, 8], [3, 4, 5, 9]]  # the main process computes row 0 alone, to find the file's size
    assert np.load(tmp_path / "kept.npy")["squares"].tolist() == [row**2 for row in range(10)]
    assert sorted(path.name for path in tmp_path.glob("kept*")) == ["kept.npy"]


def fill_file_by_two_machines(folder: Path) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    fill_shared_file(folder)


def test_processes_of_another_machine_leave_the_encoding_to_the_first(tmp_path: Path) -> None:
    """They may not see what it maps into memory."""
    assert by_two(fill_file_by_two_machines, tmp_path) == [0, 0]
    assert [path.name for path in tmp_path.glob("computed.*")] == ["computed.0"]
    assert np.load(tmp_path / "kept.npy")["squares"].tolist() == [row**2 for row in range(10)]


def fill_file_of_damaged_images(folder: Path, damaged: set[int]) -> None:
    distributed.init_process_group("gloo")
    try:
        row_files.fill_and_load(RowFile(folder / "kept.npy", 200, 1, squares_of, refuse_damaged(damaged), 0.01))
    except UserError as error:
        (folder / f"error.{distributed.get_rank()}").write_text(str(error), encoding="utf-8")
        raise


@pytest.mark.parametrize("damaged", [{10, 11}, {10, 12}])
def test_two_processes_together_leave_out_one_image_in_a_hundred(tmp_path: Path, damaged: set[int]) -> None:
    """Whichever of them reads those."""
    assert by_two(fill_file_of_damaged_images, tmp_path, damaged) == [0, 0]
    assert np.load(tmp_path / "kept.left-out.npy").tolist() == sorted(damaged)


def test_two_processes_together_leave_out_no_more_though_each_alone_might(tmp_path: Path) -> None:
    assert all(by_two(fill_file_of_damaged_images, tmp_path, {10, 11, 12}))
    (error,) = tmp_path.glob("error.*")
    assert error.read_text(encoding="utf-8").startswith("3 of 200 images cannot be decoded")
    assert sorted(path.suffix for path in tmp_path.glob("kept.*")) == [".done", ".part"]


def test_one_process_resumes_where_two_were_stopped(tmp_path: Path) -> None:
    exits = by_two(fill_shared_file, tmp_path, 9)
    assert exits[0]
    assert exits[1] == 9
    computed: list[int] = []

    def squares(rows: np.ndarray) -> dict[str, torch.Tensor]:
        computed.extend(rows.tolist())
        return squares_of(rows)

    (kept,) = row_files.fill_and_load(RowFile(tmp_path / "kept.npy", 10, 3, squares))
    assert computed == [9]
    assert kept["squares"].tolist() == [row**2 for row in range(10)]


def test_of_more_images_only_the_new_ones_are_encoded(teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bytes that all have when they are encoded at once."""
    more, embedded, embed = InterruptingPool(Pool(tmp_path, 70), None), list[int](), LatentPool._embed

    def noted(pool: LatentPool, captions: list[str]) -> dict[str, torch.Tensor]:
        embedded.append(len(captions))
        return embed(pool, captions)

    LatentPool(teacher_folder, more, tmp_path / "at once")
    LatentPool(teacher_folder, InterruptingPool(Pool(tmp_path, 66), None), tmp_path / "by two")
    more.rows_read.clear()
    monkeypatch.setattr(LatentPool, "_embed", noted)
    LatentPool(teacher_folder, more, tmp_path / "by two")
    assert sorted(more.rows_read) == [0, *range(64, 70)], "the first for the file's size; then, in chunks of four, those of new chunks"
    assert embedded == [1, 6]
    at_once = list((tmp_path / "at once").glob("*.npy"))
    assert len(at_once) == 2
    for path in at_once:
        assert (tmp_path / "by two" / path.name).read_bytes() == path.read_bytes()


def test_after_a_corrected_caption_no_image_is_encoded_again(teacher_folder: Path, pool: Pool, tmp_path: Path) -> None:
    images = InterruptingPool(pool, None)
    LatentPool(teacher_folder, images, tmp_path)
    images.rows_read.clear()
    images.digest, images.captions = "corrected", ["corrected", *pool.captions[1:]]
    corrected = LatentPool(teacher_folder, images, tmp_path)
    assert images.rows_read == [0], "for the file's size"
    with torch.no_grad():
        expected = corrected._embed(["corrected"])["pooled"]
    torch.testing.assert_close(corrected.batch_of_rows(np.arange(1), seed=0).pooled, expected.float(), atol=2e-3, rtol=2e-3)


def test_nothing_is_copied_from_what_other_networks_made(teacher_folder: Path, pool: Pool, tmp_path: Path) -> None:
    other = Path(shutil.copytree(teacher_folder, tmp_path / "other"))
    for part in ("vae", "text_encoder"):
        (weights,) = (other / part).glob("*.safetensors")
        save_file({name: tensor + 0.1 for name, tensor in load_file(weights).items()}, weights)
    beside, alone = tmp_path / "beside", tmp_path / "alone"
    LatentPool(teacher_folder, pool, beside)
    for work in (beside, alone):
        LatentPool(other, pool, work)
    for path in alone.glob("*.npy"):
        assert (beside / path.name).read_bytes() == path.read_bytes()


def file_of(folder: Path, values: list[int], chunk_size: int, damaged: int | None = None, computed: list[int] | None = None) -> RowFile:
    """A file whose rows depend on the whole chunk, as the last bits of latents do."""

    def read(rows: np.ndarray) -> list[int]:
        if damaged in (chosen := [values[row] for row in rows]):
            raise UndecodableError(f"{damaged} is damaged")
        return chosen

    def compute(chunk: list[int]) -> dict[str, torch.Tensor]:
        if computed is not None:
            computed.extend(chunk)
        return {"sums": torch.tensor([int("".join(map(str, [*chunk, 9, place]))) for place in range(len(chunk))])}

    path = folder / f"kept-{'-'.join(map(str, values))}.npy"
    return RowFile(path, len(values), chunk_size, compute, read, 0.9, lambda: [bytes([value]) for value in values])


few = st.lists(st.integers(0, 4), min_size=1, max_size=9).filter(any)


@settings(max_examples=30, deadline=None)
@given(earlier=few, later=few, chunk_size=st.integers(1, 4), damaged=st.sampled_from([None, 0]))
def test_copied_rows_have_the_bytes_that_they_have_when_computed(
    earlier: list[int], later: list[int], chunk_size: int, damaged: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    beside, alone = (tmp_path_factory.mktemp("rows") for _ in "12")
    row_files.fill_and_load(file_of(beside, earlier, chunk_size, damaged))
    files = [file_of(folder, later, chunk_size, damaged) for folder in (beside, alone)]
    for file in files:
        row_files.fill_and_load(file)
    assert files[0].path.read_bytes() == files[1].path.read_bytes()
    assert files[0].undecodable_rows().tolist() == files[1].undecodable_rows().tolist()


@pytest.mark.parametrize(
    ("chunk_size", "values", "computed"),
    [
        (1, [5, 2, 0, 1, 3, 4], [5]),  # one by one, a row is copied from anywhere
        (2, [0, 1, 5, 2, 3, 4], [5, 2, 3, 4]),  # in twos, only what is together again
        (2, [4, 0, 1, 2, 3], [4, 0, 1, 2, 3]),
        (2, [2, 3, 0, 1, 4], []),
    ],
)  # fmt: skip
def test_rows_are_copied_if_their_whole_chunk_is_the_same(
    chunk_size: int, values: list[int], computed: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row_files.fill_and_load(file_of(tmp_path, [0, 1, 2, 3, 4], chunk_size))
    found = list[int]()
    row_files.fill_and_load(file_of(tmp_path, values, chunk_size, computed=found))
    assert found == [values[0], *computed], "the first row gives the size"
    assert ("copying from kept-0-1-2-3-4" in capsys.readouterr().err) is (computed != values)


def test_rows_of_an_incomplete_file_are_copied_and_left_out_ones_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(row_files, "_finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            row_files.fill_and_load(file_of(tmp_path, [0, 1, 2, 3], 1, damaged=2))
    assert sorted(path.suffix for path in tmp_path.glob("kept*")) == [".done", ".keys", ".part"]
    found = list[int]()
    row_files.fill_and_load(file_of(tmp_path, [0, 1, 2, 3, 4], 1, computed=found))
    assert found == [0, 2, 4]


def test_a_run_killed_while_rows_are_copied_copies_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row_files.fill_and_load(file_of(tmp_path, [0, 1, 2, 3], 1))
    monkeypatch.setattr(row_files, "COPIED_AT_ONCE", 1)
    with monkeypatch.context() as patch:
        patch.setattr(row_files, "progress", lambda pieces, **_: itertools.chain(pieces[:2], iter(interrupt, None)))
        with pytest.raises(KeyboardInterrupt):
            row_files.fill_and_load(file_of(tmp_path, [3, 2, 1, 0, 4], 1))
    found = list[int]()
    (rows,) = row_files.fill_and_load(file_of(tmp_path, [3, 2, 1, 0, 4], 1, computed=found))
    assert (found, rows["sums"].tolist()) == ([3, 4], [390, 290, 190, 90, 490])


def fill_beside_an_earlier_file(folder: Path) -> None:
    distributed.init_process_group("gloo")
    found = list[int]()
    row_files.fill_and_load(file_of(folder, [9, 0, 1, 2, 3, 8, 7], 1, computed=found))
    (folder / f"computed.{distributed.get_rank()}").write_text(json.dumps(found), encoding="utf-8")


def test_two_processes_share_what_is_left_after_copying(tmp_path: Path) -> None:
    row_files.fill_and_load(file_of(tmp_path, [0, 1, 2, 3], 1))
    assert by_two(fill_beside_an_earlier_file, tmp_path) == [0, 0]
    assert [read_json(tmp_path / f"computed.{rank}") for rank in range(2)] == [[9, 9, 7], [8]]
    assert np.load(tmp_path / "kept-9-0-1-2-3-8-7.npy")["sums"].tolist() == [990, 90, 190, 290, 390, 890, 790]


class DamagedPool:
    """The pool's captioned images, repeated up to `n`; the rows in `damaged` cannot be decoded."""

    def __init__(self, pool: Pool, n: int, damaged: set[int], size_px: int = 256, max_undecodable: float = 0.01) -> None:
        self.digest, self.size_px, self._pool, self._damaged = f"damaged {damaged}", size_px, pool, damaged
        self.max_undecodable = max_undecodable
        self.captions = [pool.captions[row % 8] for row in range(n)]
        self.image_digests = [str(row).encode() for row in range(n)]

    def read(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        if damaged := self._damaged & set(rows.tolist()):
            raise UndecodableError(f"row {min(damaged)} is damaged")
        return self._pool.read(rows % 8)


def test_a_few_undecodable_images_are_left_out_and_reported(
    teacher_folder: Path, pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = LatentPool(teacher_folder, DamagedPool(pool, 200, {0, 77}), tmp_path)
    assert len(found) == 198
    assert [line for line in capsys.readouterr().err.splitlines() if "damaged" in line] == [
        f"left out: row {row} is damaged" for row in (0, 77)
    ]
    assert torch.equal(found.batch_of_rows(np.array([0, 76]), seed=0).latents, torch.from_numpy(found.latents[[1, 78]]).float())
    assert found.batch(0, 2000, seed=0).latents.flatten(1).any(1).all(), "undecodable images are never sampled"
    again = LatentPool(teacher_folder, DamagedPool(pool, 200, {0, 77}), tmp_path)
    assert len(again) == 198
    assert capsys.readouterr().err == ""


def test_many_undecodable_images_are_an_error_that_keeps_progress(teacher_folder: Path, pool: Pool, tmp_path: Path) -> None:
    damaged = {5, 7, 9}
    for _ in range(2):
        with pytest.raises(UndecodableError, match=r"row 9 is damaged\. At most 1 % of the images may be left out\. .* --max-undecodable"):
            LatentPool(teacher_folder, DamagedPool(pool, 200, damaged), tmp_path)
    (marks,) = tmp_path.glob("latents-*.done")
    assert np.flatnonzero(np.fromfile(marks, np.uint8) == 1).tolist() == [0, 1, 2, 3, 4, 6, 8]


def test_a_higher_limit_goes_on_where_the_lower_one_ended(tmp_path: Path) -> None:
    computed = list[int]()

    def squares(rows: np.ndarray) -> dict[str, torch.Tensor]:
        computed.extend(rows.tolist())
        return squares_of(rows)

    low = RowFile(tmp_path / "kept-a.npy", 100, 1, squares, refuse_damaged({30, 40, 60}), 0.02)
    high = replace(low, max_undecodable=0.03)
    with pytest.raises(UndecodableError) as caught:
        row_files.fill_and_load(low)
    size = size_text(low.part_path.stat().st_size)
    assert str(caught.value).endswith(f"are of no use after that: {low.part_path} ({size})")
    computed.clear()
    row_files.fill_and_load(high)
    assert computed == list(range(61, 100))
    assert high.undecodable_rows().tolist() == [30, 40, 60]
    with pytest.raises(UndecodableError, match=r"3 of 100 images cannot be decoded, those reported as left out\. At most 2 %"):
        row_files.fill_and_load(low)


def test_if_all_images_are_damaged_only_the_first_few_are_read(teacher_folder: Path, pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(UndecodableError, match="row 2 is damaged"):
        LatentPool(teacher_folder, DamagedPool(pool, 200, set(range(200))), tmp_path)
