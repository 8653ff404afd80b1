"""Pictures are the same whoever makes them, in what order, in how many pieces."""

import copy
import errno
import inspect
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler, StableDiffusionXLPipeline
from tiny import SIZE_PX

from sdbench import store as module
from sdbench.disk import digest, write_bytes
from sdbench.errors import UserError
from sdbench.generate import DTYPES, SCHEDULERS, Job, call_arguments, generate, initial_noise, list_jobs, make_sampler, render_scenes
from sdbench.models.architectures import PARTS
from sdbench.models.spec import ModelSpec, resolve
from sdbench.scenes.grammar import parse
from sdbench.schedulers import describe
from sdbench.settings import SUPPORTED_SETTINGS, Sampling, Scheduler
from sdbench.store import U8, Store
from sdbench.suites import Noise, Prompts, Suite

SAMPLING = Sampling(steps=1, guidance_scale=2.0, size_px=SIZE_PX, dtype="float32", batch=3)
SHAPE = (4, 4, 4)
FROZEN_NOISE = [-0.3573163, -1.0943444, 2.4288666]


def suite(n: int = 7, **noise: Any) -> Suite:
    return Suite(name="own", version=1, family="scenes", description="", prompts=Prompts(n=n), sampling=SAMPLING, noise=Noise(**noise))


def todo(n: int = 7) -> list[Job]:
    return list_jobs(suite(n), SAMPLING, "weights")


def of_the_whole_batch(group: list[Job]) -> U8:
    """Pictures that depend on every job of their batch and on their place in it, as a real model's last digits may."""
    seed = int(digest([job.image for job in group]), 16)
    return np.random.default_rng(seed).integers(0, 256, (len(group), 4, 4, 3), dtype=np.uint8)


def counted(make: Callable[[list[Job]], U8], groups: list[list[Job]]) -> Callable[[list[Job]], U8]:
    def call(group: list[Job]) -> U8:
        groups.append(group)
        return make(group)

    return call


def content(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store.folder / "images").iterdir())}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", {"model": "tiny"})


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """The pictures of an unbroken run."""
    unbroken = Store(tmp_path / "unbroken", {})
    generate(todo(), unbroken, 3, of_the_whole_batch, "whole")
    return content(unbroken)


def test_every_batch_is_full_and_holds_its_prompts_in_order(store: Store) -> None:
    groups: list[list[Job]] = []
    generate(todo(), store, 3, counted(of_the_whole_batch, groups), "full")
    wanted = todo()
    assert groups == [wanted[:3], wanted[3:6], [wanted[6]] * 3]
    assert set(content(store)) == {f"{job.image}.png" for job in wanted}


def test_what_was_made_before_a_batch_that_cannot_be_is_kept(store: Store) -> None:
    groups: list[list[Job]] = []

    def make(group: list[Job]) -> U8:
        if groups:
            raise UserError("NaN")
        return counted(of_the_whole_batch, groups)(group)

    with pytest.raises(UserError, match="NaN"):
        generate(todo(), store, 3, make, "broken")
    assert content(store).keys() == {f"{job.image}.png" for job in todo()[:3]}


@pytest.mark.parametrize("gone", [[0], [1, 5], [2, 3, 6], list(range(7))])
def test_a_resumed_run_makes_what_is_missing_and_the_same_bytes(gone: list[int], store: Store, whole: dict[str, bytes]) -> None:
    generate(todo(), store, 3, of_the_whole_batch, "first")
    before = {path: path.stat().st_mtime_ns for path in (store.folder / "images").iterdir()}
    for place in gone:
        store.path(todo()[place].image).unlink()
    groups: list[list[Job]] = []
    generate(todo(), store, 3, counted(of_the_whole_batch, groups), "again")
    assert content(store) == whole
    assert len(groups) == len({place // 3 for place in gone})
    kept = [store.path(job.image) for place, job in enumerate(todo()) if place not in gone]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_a_finished_run_makes_nothing(store: Store) -> None:
    def never(_: list[Job]) -> U8:
        raise AssertionError("called")

    generate(todo(), store, 3, of_the_whole_batch, "first")
    generate(todo(), store, 3, never, "again")


def test_a_batch_is_written_while_the_next_is_made_and_no_later(
    store: Store, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, groups = threading.Event(), list[list[Job]]()

    def make(group: list[Job]) -> U8:
        if len(groups) == 1:
            begun.set()
        if len(groups) == 2:
            assert not store.missing([job.image for job in groups[0]]), "or pictures would pile up"
        return counted(of_the_whole_batch, groups)(group)

    def write(path: Path, content: bytes) -> None:
        assert begun.wait(60), "the first batch is not waited for"
        write_bytes(path, content)

    monkeypatch.setattr(module, "write_bytes", write)
    generate(todo(), store, 3, make, "overlapping")
    assert content(store) == whole


@pytest.mark.parametrize("broken", [None, 2])
def test_a_disk_that_is_full_ends_the_run_with_what_is_whole(broken: int | None, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the second batch's pictures one fits; it is the first to fail, whether the third can be made or not."""
    groups: list[list[Job]] = []

    def make(group: list[Job]) -> U8:
        if len(groups) == broken:
            raise UserError("NaN")
        return counted(of_the_whole_batch, groups)(group)

    def write(path: Path, content: bytes) -> None:
        if len(list(store.folder.glob("images/*.png"))) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_bytes(path, content)

    monkeypatch.setattr(module, "write_bytes", write)
    with pytest.raises(OSError, match="No space left on device"):
        generate(todo(12), store, 3, make, "full")
    assert content(store).keys() == {f"{job.image}.png" for job in todo()[:4]}
    assert len(groups) == (broken or 3)


def killed_in_the_middle(store: Store) -> None:
    """Never returns: dies in the second batch, half a file written."""
    written = []

    def write(path: Path, content: bytes) -> None:
        if len(written) == 5:  # the manifest and four pictures
            path.with_name(f".{path.name}.part").write_bytes(content[:9])
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(path)
        write_bytes(path, content)

    module.write_bytes = write
    generate(todo(), store, 3, of_the_whole_batch, "killed")


def test_a_killed_process_goes_on_where_it_stood(store: Store, whole: dict[str, bytes]) -> None:
    child = os.fork()
    if child == 0:
        try:
            killed_in_the_middle(store)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list((store.folder / "images").glob("*.png"))) == 4
    groups: list[list[Job]] = []
    generate(todo(), store, 3, counted(of_the_whole_batch, groups), "resumed")
    assert groups == [todo()[3:6], [todo()[6]] * 3]
    assert {name: found for name, found in content(store).items() if not name.endswith(".part")} == whole
    assert store.missing([job.image for job in todo()]) == []


def test_what_a_picture_is_of_decides_its_name_and_nothing_else_does() -> None:
    wanted = todo()
    assert len({job.image for job in wanted}) == 7
    assert todo(3) == wanted[:3]
    assert list_jobs(suite(), SAMPLING.model_copy(update={"batch": 5}), "weights") == wanted
    changed = [
        list_jobs(suite(), SAMPLING, "other weights"),
        list_jobs(suite(seed=1), SAMPLING, "weights"),
        list_jobs(suite(kind="fixed"), SAMPLING, "weights"),
        *(
            list_jobs(suite(), SAMPLING.model_copy(update={name: value}), "weights")
            for name, value in (
                ("steps", 2),
                ("guidance_scale", 2.5),
                ("size_px", 24),
                ("scheduler", "euler"),
                ("negative_prompt", ""),
                ("dtype", "float16"),
            )
        ),
    ]
    names = [job.image for made in [wanted, *changed] for job in made]
    assert len(set(names)) == len(names)


def test_noise_of_a_picture_follows_from_seed_prompt_and_sample_alone() -> None:
    noise = Noise(seed=3)
    one = initial_noise(noise, "00001-abc", 0, SHAPE)
    torch.manual_seed(0)
    torch.testing.assert_close(initial_noise(noise, "00001-abc", 0, SHAPE), one, rtol=0, atol=0)
    for other in (
        initial_noise(noise, "00002-abc", 0, SHAPE),
        initial_noise(noise, "00001-abc", 1, SHAPE),
        initial_noise(Noise(seed=4), "00001-abc", 0, SHAPE),
    ):
        assert not torch.equal(other, one)
    assert one.dtype == torch.float32
    assert one.flatten()[:3].tolist() == pytest.approx(FROZEN_NOISE, abs=1e-6)  # no library may change it unnoticed
    many = torch.stack([initial_noise(noise, f"{index}", 0, SHAPE) for index in range(300)])
    assert many.mean().item() == pytest.approx(0, abs=0.04)
    assert many.std().item() == pytest.approx(1, abs=0.04)


class Recorder:
    """Stands in for a pipeline: notes the latents of each prompt, and answers gray, or what it is told."""

    vae_scale_factor = 4

    def __init__(self, pixel: float = 0.5) -> None:
        self.pixel, self.latents = pixel, {}
        self.scheduler = DDIMScheduler()
        self.unet = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(in_channels=4))

    def __call__(self, *, prompt: list[str], latents: torch.Tensor, **_: Any) -> SimpleNamespace:
        self.latents |= dict(zip(prompt, latents, strict=True))
        return SimpleNamespace(images=np.full((len(prompt), SIZE_PX, SIZE_PX, 3), self.pixel, np.float32))


def latents_of(wanted: list[Job], batch: int, folder: Path, noise: Noise) -> dict[str, torch.Tensor]:
    pipeline = Recorder()
    generate(wanted, Store(folder, {}), batch, make_sampler(pipeline, SAMPLING, noise), "recorded")  # type: ignore[arg-type]  # a stand-in
    return pipeline.latents


def test_latents_do_not_depend_on_order_number_or_batch(tmp_path: Path) -> None:
    noise = Noise(seed=3)
    plain = latents_of(todo(), 3, tmp_path / "plain", noise)
    assert len({latents.numpy().tobytes() for latents in plain.values()}) == len(plain) == 7
    for name, other in (("backwards", todo()[::-1]), ("few", todo(4))):
        for batch in (1, 2, 5):
            found = latents_of(other, batch, tmp_path / f"{name}-{batch}", noise)
            assert all(torch.equal(latents, plain[prompt]) for prompt, latents in found.items())


def test_fixed_noise_is_the_same_for_all_prompts(tmp_path: Path) -> None:
    found = latents_of(todo(), 3, tmp_path, Noise(kind="fixed", seed=3))
    assert len(found) == 7
    assert len({latents.numpy().tobytes() for latents in found.values()}) == 1
    assert not torch.equal(initial_noise(Noise(kind="fixed", seed=4), "", 0, SHAPE), next(iter(found.values())))
    mlperf = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    assert torch.equal(next(iter(found.values())), mlperf)


def test_float32_is_float32_whatever_the_caller_has_set() -> None:
    seen = []

    class Watched(Recorder):
        def __call__(self, **arguments: Any) -> SimpleNamespace:
            seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))
            return super().__call__(**arguments)

    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        make_sampler(Watched(), SAMPLING, Noise())(todo(1))  # type: ignore[arg-type]  # a stand-in
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert seen == [("ieee", "ieee")]


@pytest.mark.parametrize("pixel", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_an_error_and_no_picture(pixel: float, store: Store) -> None:
    with pytest.raises(UserError, match=rf"NaN or infinite pixels for prompt {todo()[0].prompt_id} .* in float32; try another dtype"):
        generate(todo(), store, 3, make_sampler(Recorder(pixel), SAMPLING, Noise()), "broken")  # type: ignore[arg-type]  # a stand-in
    assert len(store.missing([job.image for job in todo()])) == 7


@pytest.mark.parametrize(
    ("pixel", "byte"), [(0.0, 0), (1.0, 255), (0.5, 128), (-0.2, 0), (1.7, 255), (100.4 / 255, 100), (100.6 / 255, 101)]
)
def test_pixels_are_rounded_to_bytes_and_clipped(pixel: float, byte: int) -> None:
    made = make_sampler(Recorder(pixel), SAMPLING, Noise())(todo()[:2])  # type: ignore[arg-type]  # a stand-in
    assert made.dtype == np.uint8
    assert (made == byte).all()


def test_rendered_pictures_are_of_their_captions_and_other_ones_than_those_trained_on() -> None:
    made = render_scenes(todo())
    np.testing.assert_array_equal(render_scenes(todo()[4:5])[0], made[4])
    assert made.shape == (7, 64, 64, 3)
    axis = [parse(job.prompt).layout for job in todo()]
    assert len(set(axis)) == 7


@pytest.fixture(scope="module")
def pipeline(made_pipeline: Any) -> StableDiffusionXLPipeline:
    return copy.copy(made_pipeline)


def test_a_real_pipeline_resumes_to_the_same_bytes(pipeline: StableDiffusionXLPipeline, store: Store, tmp_path: Path) -> None:
    unbroken = Store(tmp_path / "unbroken", {})
    wanted = todo(4)
    generate(wanted, unbroken, 3, make_sampler(pipeline, SAMPLING, Noise()), "whole")
    make, calls = make_sampler(pipeline, SAMPLING, Noise()), []

    def stops(group: list[Job]) -> U8:
        if calls:
            raise KeyboardInterrupt
        calls.append(group)
        return make(group)

    with pytest.raises(KeyboardInterrupt):
        generate(wanted, store, 3, stops, "broken")
    store.path(wanted[1].image).unlink()
    generate(wanted, store, 3, make, "resumed")
    assert content(store) == content(unbroken)
    assert store.read([job.image for job in wanted]).shape == (4, SIZE_PX, SIZE_PX, 3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of NumPy 2, in diffusers
@pytest.mark.parametrize("kind", [DDIMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler])
def test_a_picture_depends_on_nothing_but_its_own_noise(kind: Any, pipeline: StableDiffusionXLPipeline) -> None:
    """Neither on torch's own generator, which a stochastic scheduler would else draw from, nor on its place, nor on autocast."""
    own = copy.copy(pipeline)
    own.scheduler = kind.from_config(pipeline.scheduler.config)
    wanted, sampling = todo(3), SAMPLING.model_copy(update={"steps": 3})
    torch.manual_seed(0)
    made = make_sampler(own, sampling, Noise())(wanted).astype(int)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        again = make_sampler(own, sampling, Noise())(wanted[::-1])[::-1].astype(int)
    assert np.abs(made - again).max() <= 1
    assert np.abs(made - make_sampler(own, sampling, Noise(seed=1))(wanted)).max() > 50
    fixed = [make_sampler(own, sampling, Noise(kind="fixed"))([job] * 3).astype(int) for job in (wanted[0], wanted[0])]
    assert np.abs(fixed[0] - fixed[1]).max() == 0


def test_the_pipeline_is_asked_for_what_the_suite_says(pipeline: StableDiffusionXLPipeline) -> None:
    own = type(pipeline.scheduler)
    make_sampler(pipeline, SAMPLING, Noise())
    assert type(pipeline.scheduler) is own
    for name, kind in SCHEDULERS.items():
        settings = pipeline.scheduler.config.prediction_type, pipeline.scheduler.config.timestep_spacing
        make_sampler(pipeline, SAMPLING.model_copy(update={"scheduler": name}), Noise())
        assert type(pipeline.scheduler) is kind
        assert (pipeline.scheduler.config.prediction_type, pipeline.scheduler.config.timestep_spacing) == settings
        assert kind.__name__.lower().startswith(name.replace("-", "")) or name == "dpmpp"
    assert {"model", *SCHEDULERS} == set(SUPPORTED_SETTINGS)
    assert DTYPES.keys() == set(Sampling.model_fields["dtype"].annotation.__args__)  # type: ignore[union-attr]  # a Literal


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_heeds_what_the_table_says(name: Scheduler, pipeline: StableDiffusionXLPipeline) -> None:
    kind, own = SCHEDULERS[name], copy.copy(pipeline)
    scheduler = kind.from_config(pipeline.scheduler.config)
    spaced = {spacing: kind.from_config(scheduler.config, timestep_spacing=spacing) for spacing in ("leading", "trailing")}
    for made in spaced.values():
        made.set_timesteps(4)
    found = {
        "timestep_spacing": spaced["leading"].timesteps.tolist() != spaced["trailing"].timesteps.tolist(),
        "timesteps": "timesteps" in inspect.signature(scheduler.set_timesteps).parameters,
        "eta": "eta" in inspect.signature(scheduler.step).parameters,
    }
    assert SUPPORTED_SETTINGS[name] == tuple(setting for setting, heeded in found.items() if heeded)
    settings = {"timestep_spacing": "trailing", "timesteps": (999, 499, 99), "eta": 0.5}
    chosen = next(setting for setting in SUPPORTED_SETTINGS[name])
    sampling = Sampling.model_validate({**SAMPLING.model_dump(), "steps": 3, "scheduler": name, chosen: settings[chosen]})
    assert make_sampler(own, sampling, Noise())(todo(1)).shape == (1, SIZE_PX, SIZE_PX, 3)
    taken = own.scheduler.timesteps.tolist()
    assert taken == [999, 499, 99] if chosen == "timesteps" else taken[0] == 999


@pytest.mark.parametrize(
    "more",
    [{}, {"scheduler": "euler"}, {"scheduler": "euler", "timestep_spacing": "leading"}, {"scheduler": "lcm", "timesteps": [999, 749, 9]}],
)
def test_what_is_said_of_the_scheduler_is_what_drew(more: dict[str, Any], pipeline: StableDiffusionXLPipeline, made: Path) -> None:
    own, sampling = copy.copy(pipeline), Sampling.model_validate({**SAMPLING.model_dump(), "steps": 3, **more})
    own.scheduler = DDIMScheduler.from_config(PARTS["scenes"]["scheduler"])
    before = own.scheduler.timesteps
    said = [
        describe(resolve(str(made)), sampling),
        describe(resolve("scenes-vega", random=True), sampling),
        describe(resolve(str(made)), sampling, own),
    ]
    assert own.scheduler.timesteps is before
    make_sampler(own, sampling, Noise())(todo(1))
    drew = own.scheduler
    expected = {"class": type(drew).__name__, "prediction_type": "v_prediction", "timesteps": drew.timesteps.tolist()}
    assert said == [expected] * 3


def test_nothing_is_said_of_a_scheduler_that_is_not_here(tmp_path: Path) -> None:
    assert describe(ModelSpec("gone", "sdxl", "sdxl", "folder", str(tmp_path / "gone")), SAMPLING) == {}
    assert describe(resolve("scenes-rendered"), SAMPLING) == {}


def test_noise_of_each_step_is_as_much_as_the_suite_says(pipeline: StableDiffusionXLPipeline) -> None:
    def made(**settings: Any) -> U8:
        sampling = Sampling.model_validate({**SAMPLING.model_dump(), "steps": 3, "scheduler": "tcd", **settings})
        return make_sampler(copy.copy(pipeline), sampling, Noise())(todo(1))

    assert np.array_equal(made(), made(eta=0.0))
    assert not np.array_equal(made(), made(eta=0.5))


def test_what_a_suite_does_not_say_of_its_steps_is_not_in_a_picture_s_identity() -> None:
    assert SAMPLING.model_dump().keys() == {
        *("steps", "guidance_scale", "size_px", "scheduler", "negative_prompt", "dtype", "batch"),
    }  # else no picture of an earlier run would be found
    given = Sampling.model_validate({**SAMPLING.model_dump(), "scheduler": "lcm", "timesteps": [999]})
    assert list_jobs(suite(), given, "w")[0].image != list_jobs(suite(), SAMPLING.model_copy(update={"scheduler": "lcm"}), "w")[0].image


def test_negative_prompts_are_given_to_each_picture_or_to_none() -> None:
    plain = call_arguments(SAMPLING, ["a", "b"])
    assert plain == {
        "prompt": ["a", "b"],
        "negative_prompt": None,
        "num_inference_steps": 1,
        "guidance_scale": 2.0,
        "height": SIZE_PX,
        "width": SIZE_PX,
        "output_type": "np",
    }
    empty = call_arguments(SAMPLING.model_copy(update={"negative_prompt": ""}), ["a", "b"])
    assert empty == {**plain, "negative_prompt": ["", ""]}
