"""Images do not depend on the order, the batch or the number of runs in which they are generated."""

import copy
import errno
import inspect
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
)
from safetensors.torch import save_file
from tiny import SIZE_PX, edit_json, save_tiny_pipeline, tiny_unet, with_unet
from tqdm import tqdm

from sdbench import store as module
from sdbench.arrays import U8
from sdbench.disk import digest, write_bytes
from sdbench.errors import UserError
from sdbench.generate import Job, call_arguments, generate, initial_noise, list_jobs, make_sampler, render_scenes, select_part
from sdbench.models.architectures import PARTS
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec
from sdbench.scenes.grammar import parse
from sdbench.schedulers import SCHEDULERS, check_prediction, describe, sampling_notes
from sdbench.settings import SUPPORTED_SETTINGS, Sampling, Scheduler
from sdbench.store import Store
from sdbench.suites import Noise, Prompts, Suite

SAMPLING = Sampling(steps=1, guidance_scale=2.0, size_px=SIZE_PX, dtype="float32", batch=3)
SHAPE = (4, 4, 4)
FROZEN_NOISE = [-0.3573163, -1.0943444, 2.4288666]


def suite(n: int = 7, **noise: Any) -> Suite:
    return Suite(name="own", version=1, family="scenes", description="", prompts=Prompts(n=n), sampling=SAMPLING, noise=Noise(**noise))


def make_jobs(n: int = 7) -> list[Job]:
    return list_jobs(suite(n), SAMPLING, "weights")


def batch_dependent_images(group: list[Job]) -> U8:
    """Images that depend on every job of their batch and on their place in it, as the last digits of a real model may."""
    seed = int(digest([job.image_id for job in group]), 16)
    return np.random.default_rng(seed).integers(0, 256, (len(group), 4, 4, 3), dtype=np.uint8)


def recording(make: Callable[[list[Job]], U8], groups: list[list[Job]]) -> Callable[[list[Job]], U8]:
    """`make`, which also appends its arguments to `groups`."""

    def call(group: list[Job]) -> U8:
        groups.append(group)
        return make(group)

    return call


def contents(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store.folder / "images").iterdir())}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", {"model": "tiny"})


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, bytes]:
    """The images of an uninterrupted run."""
    unbroken = Store(tmp_path / "unbroken", {})
    generate(make_jobs(), unbroken, 3, batch_dependent_images, "expected")
    return contents(unbroken)


def test_every_batch_is_full_and_has_its_prompts_in_order(store: Store) -> None:
    groups: list[list[Job]] = []
    generate(make_jobs(), store, 3, recording(batch_dependent_images, groups), "full")
    jobs = make_jobs()
    assert groups == [jobs[:3], jobs[3:6], [jobs[6]] * 3]
    assert set(contents(store)) == {f"{job.image_id}.png" for job in jobs}


def test_images_before_a_failed_batch_are_kept(store: Store) -> None:
    groups: list[list[Job]] = []

    def make(group: list[Job]) -> U8:
        if groups:
            raise UserError("NaN")
        return recording(batch_dependent_images, groups)(group)

    with pytest.raises(UserError, match="NaN"):
        generate(make_jobs(), store, 3, make, "broken")
    assert contents(store).keys() == {f"{job.image_id}.png" for job in make_jobs()[:3]}


@pytest.mark.parametrize("missing", [[], [0], [1, 5], [2, 3, 6], list(range(7))])
def test_resumed_run_makes_only_missing_images_with_the_same_bytes(missing: list[int], store: Store, expected: dict[str, bytes]) -> None:
    generate(make_jobs(), store, 3, batch_dependent_images, "first")
    before = {path: path.stat().st_mtime_ns for path in (store.folder / "images").iterdir()}
    for place in missing:
        store.path(make_jobs()[place].image_id).unlink()
    groups: list[list[Job]] = []
    generate(make_jobs(), store, 3, recording(batch_dependent_images, groups), "again")
    assert contents(store) == expected
    assert len(groups) == len({place // 3 for place in missing})
    kept = [store.path(job.image_id) for place, job in enumerate(make_jobs()) if place not in missing]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_progress_counts_whole_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by images, a bar drawn once a second would show a batch's first image, and a remaining time many times too long."""
    counted: list[int] = []
    monkeypatch.setattr(tqdm, "update", lambda _, n: counted.append(n))
    generate(make_jobs(), store, 3, batch_dependent_images, "counted")
    assert [n for n in counted if n] == [3, 3, 1]


def test_batch_is_written_while_the_next_is_generated_and_no_later(
    store: Store, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    second_batch_started, groups = threading.Event(), list[list[Job]]()

    def make(group: list[Job]) -> U8:
        if len(groups) == 1:
            second_batch_started.set()
        if len(groups) == 2:
            assert not store.missing([job.image_id for job in groups[0]]), "else images would pile up in memory"
        return recording(batch_dependent_images, groups)(group)

    def write(path: Path, content: bytes) -> None:
        assert second_batch_started.wait(60), "the second batch does not wait for the first to be written"
        write_bytes(path, content)

    monkeypatch.setattr(module, "write_bytes", write)
    generate(make_jobs(), store, 3, make, "overlapping")
    assert contents(store) == expected


@pytest.mark.parametrize("broken", [None, 2])
def test_full_disk_ends_the_run_and_keeps_complete_images(broken: int | None, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image of the second batch fits; that batch fails first, whether or not the third can be generated."""
    groups, fitting = list[list[Job]](), {job.image_id for job in make_jobs()[:4]}

    def make(group: list[Job]) -> U8:
        if len(groups) == broken:
            raise UserError("NaN")
        return recording(batch_dependent_images, groups)(group)

    def write(path: Path, content: bytes) -> None:
        if path.parent.name == "images" and path.stem not in fitting:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_bytes(path, content)

    monkeypatch.setattr(module, "write_bytes", write)
    with pytest.raises(OSError, match="No space left on device"):
        generate(make_jobs(12), store, 3, make, "full")
    assert contents(store).keys() == {f"{image_id}.png" for image_id in fitting}
    assert len(groups) == (broken or 3)


def generate_until_killed(store: Store) -> None:
    """Kill this process in the second batch, when its first image is written, its second partly and its third not; never returns."""
    third, fourth, fifth, sixth = (store.path(job.image_id) for job in make_jobs()[2:6])

    def write(path: Path, content: bytes) -> Path:
        if path == sixth:
            threading.Event().wait()
        if path == fifth:
            path.with_name(f".{path.name}.part").write_bytes(content[:9])
            while not fourth.exists():
                time.sleep(0.01)
            assert third.exists()
            os.kill(os.getpid(), signal.SIGKILL)
        return write_bytes(path, content)

    pytest.MonkeyPatch().setattr(module, "write_bytes", write)
    generate(make_jobs(), store, 3, batch_dependent_images, "killed")


def test_run_resumes_after_its_process_was_killed(store: Store, expected: dict[str, bytes]) -> None:
    child = os.fork()
    if child == 0:
        try:
            generate_until_killed(store)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list((store.folder / "images").glob("*.png"))) == 4
    groups: list[list[Job]] = []
    generate(make_jobs(), store, 3, recording(batch_dependent_images, groups), "resumed")
    assert groups == [make_jobs()[3:6], [make_jobs()[6]] * 3]
    assert {name: found for name, found in contents(store).items() if not name.endswith(".part")} == expected
    assert store.missing([job.image_id for job in make_jobs()]) == []


def test_name_of_an_image_depends_on_its_inputs_only() -> None:
    jobs = make_jobs()
    assert len({job.image_id for job in jobs}) == 7
    assert make_jobs(3) == jobs[:3]
    assert list_jobs(suite(), SAMPLING.model_copy(update={"batch": 5}), "weights") == jobs
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
                ("height_px", 24),
                ("scheduler", "euler"),
                ("negative_prompt", ""),
                ("dtype", "float16"),
            )
        ),
    ]
    names = [job.image_id for group in [jobs, *changed] for job in group]
    assert len(set(names)) == len(names)


def test_noise_of_an_image_depends_only_on_seed_prompt_and_sample() -> None:
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
    assert one.flatten()[:3].tolist() == pytest.approx(FROZEN_NOISE, abs=1e-6)  # frozen, to notice a change in a library
    many = torch.stack([initial_noise(noise, f"{index}", 0, SHAPE) for index in range(300)])
    assert many.mean().item() == pytest.approx(0, abs=0.04)
    assert many.std().item() == pytest.approx(1, abs=0.04)


class Recorder:
    """A stand-in for a pipeline that records the latents of each prompt, and returns images of the value `pixel`."""

    vae_scale_factor = 4

    def __init__(self, pixel: float = 0.5) -> None:
        self.pixel, self.latents = pixel, dict[str, torch.Tensor]()
        self.scheduler = DDIMScheduler()
        self.unet = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(in_channels=4))

    def __call__(self, *, prompt: list[str], latents: torch.Tensor, **_: Any) -> SimpleNamespace:
        self.latents |= dict(zip(prompt, latents, strict=True))
        return SimpleNamespace(images=torch.full((len(prompt), 3, SIZE_PX, SIZE_PX), self.pixel))


def latents_of(jobs: list[Job], batch: int, folder: Path, noise: Noise) -> dict[str, torch.Tensor]:
    pipeline = Recorder()
    generate(jobs, Store(folder, {}), batch, make_sampler(pipeline, SAMPLING, noise), "recorded")
    return pipeline.latents


def test_latent_of_a_file_is_that_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    noise = Noise(kind="fixed", file=str(tmp_path / "latent.pt"))
    for value in (1.0, 2.0):
        latent = torch.full((4, 8, 8), value)
        torch.save(latent, tmp_path / "latent.pt")
        assert torch.equal(initial_noise(noise, "p0", 0, (4, 8, 8)), latent), "the identity of an image holds the file's digest"


def test_latents_do_not_depend_on_order_number_or_batch(tmp_path: Path) -> None:
    noise = Noise(seed=3)
    plain = latents_of(make_jobs(), 3, tmp_path / "plain", noise)
    assert len({latents.numpy().tobytes() for latents in plain.values()}) == len(plain) == 7
    for name, other in (("backwards", make_jobs()[::-1]), ("few", make_jobs(4))):
        for batch in (1, 2, 5):
            found = latents_of(other, batch, tmp_path / f"{name}-{batch}", noise)
            assert all(torch.equal(latents, plain[prompt]) for prompt, latents in found.items())


def test_fixed_noise_is_the_same_for_all_prompts(tmp_path: Path) -> None:
    found = latents_of(make_jobs(), 3, tmp_path, Noise(kind="fixed", seed=3))
    assert len(found) == 7
    assert len({latents.numpy().tobytes() for latents in found.values()}) == 1
    assert not torch.equal(initial_noise(Noise(kind="fixed", seed=4), "", 0, SHAPE), next(iter(found.values())))
    mlperf = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    assert torch.equal(next(iter(found.values())), mlperf)


def test_float32_is_full_precision_whatever_the_caller_has_set() -> None:
    seen, cudnn = list[tuple[str, str]](), cast("Any", torch.backends.cudnn)  # whose `conv` is untyped

    class PrecisionRecorder(Recorder):
        def __call__(self, **arguments: Any) -> SimpleNamespace:
            seen.append((torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision))
            return super().__call__(**arguments)

    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        make_sampler(PrecisionRecorder(), SAMPLING, Noise())(make_jobs(1))
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert seen == [("ieee", "ieee")]


def test_nan_pixels_are_an_error_and_make_no_image(store: Store) -> None:
    with pytest.raises(UserError, match=rf"NaN pixels for prompt {make_jobs()[0].prompt_id} .* in float32; try another dtype"):
        generate(make_jobs(), store, 3, make_sampler(Recorder(np.nan), SAMPLING, Noise()), "broken")
    assert len(store.missing([job.image_id for job in make_jobs()])) == 7


@pytest.mark.parametrize(
    ("pixel", "byte"), [(0.0, 0), (1.0, 255), (0.5, 128), (-0.2, 0), (1.7, 255), (100.4 / 255, 100), (100.6 / 255, 101)]
)
def test_pixels_are_rounded_to_bytes_and_clipped(pixel: float, byte: int) -> None:
    images = make_sampler(Recorder(pixel), SAMPLING, Noise())(make_jobs()[:2])
    assert images.dtype == np.uint8
    assert (images == byte).all()


def test_rendered_images_depend_on_their_caption_only_and_have_different_layouts() -> None:
    images = render_scenes(make_jobs())
    np.testing.assert_array_equal(render_scenes(make_jobs()[4:5])[0], images[4])
    assert images.shape == (7, 64, 64, 3)
    layouts = [parse(job.prompt).layout for job in make_jobs()]
    assert len(set(layouts)) == 7


@pytest.fixture(scope="module")
def pipeline(loaded_pipeline: Any) -> StableDiffusionXLPipeline:
    return copy.copy(loaded_pipeline)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize("kind", [DDIMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler])
def test_image_depends_only_on_its_own_noise(kind: Any, pipeline: StableDiffusionXLPipeline) -> None:
    """Not on torch's global generator, the default of stochastic schedulers, nor on its place in the batch, nor on autocast."""
    own = copy.copy(pipeline)
    own.scheduler = kind.from_config(pipeline.scheduler.config)
    jobs, sampling = make_jobs(3), SAMPLING.model_copy(update={"steps": 3})
    torch.manual_seed(0)
    first = make_sampler(own, sampling, Noise())(jobs).astype(int)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        again = make_sampler(own, sampling, Noise())(jobs[::-1])[::-1].astype(int)
    assert np.abs(first - again).max() <= 1
    assert np.abs(first - make_sampler(own, sampling, Noise(seed=1))(jobs)).max() > 50
    fixed = [make_sampler(own, sampling, Noise(kind="fixed"))([job] * 3).astype(int) for job in (jobs[0], jobs[0])]
    assert np.abs(fixed[0] - fixed[1]).max() == 0


def test_sampler_replaces_only_the_scheduler_named_by_the_suite(pipeline: StableDiffusionXLPipeline) -> None:
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


def test_steps_that_a_scheduler_refuses_are_told_before_a_model_is_loaded() -> None:
    many = SAMPLING.model_copy(update={"scheduler": "lcm", "steps": 51})
    with pytest.raises(UserError, match=r"^LCMScheduler of the model cannot sample in 51 steps: .*50"):
        describe(resolve("scenes-vega"), many)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_uses_the_settings_in_the_table(name: Scheduler, pipeline: StableDiffusionXLPipeline) -> None:
    kind, own = SCHEDULERS[name], copy.copy(pipeline)
    scheduler = kind.from_config(pipeline.scheduler.config)
    schedulers = {spacing: kind.from_config(scheduler.config, timestep_spacing=spacing) for spacing in ("leading", "trailing")}
    for each in schedulers.values():
        each.set_timesteps(4)
    supports = {
        "timestep_spacing": schedulers["leading"].timesteps.tolist() != schedulers["trailing"].timesteps.tolist(),
        "timesteps": "timesteps" in inspect.signature(scheduler.set_timesteps).parameters,
        "eta": "eta" in inspect.signature(scheduler.step).parameters,
        **{setting: setting in inspect.signature(kind.__init__).parameters for setting in ("prediction_type", "rescale_betas_zero_snr")},
    }
    assert SUPPORTED_SETTINGS[name] == tuple(setting for setting, is_supported in supports.items() if is_supported)
    values = {"timestep_spacing": "trailing", "timesteps": (999, 499, 99), "eta": 0.5}
    setting = SUPPORTED_SETTINGS[name][0]
    sampling = Sampling.model_validate({**SAMPLING.model_dump(), "steps": 3, "scheduler": name, setting: values[setting]})
    assert make_sampler(own, sampling, Noise())(make_jobs(1)).shape == (1, SIZE_PX, SIZE_PX, 3)
    timesteps = own.scheduler.timesteps.tolist()
    if setting == "timesteps":
        assert timesteps == [999, 499, 99]
    else:
        assert timesteps[0] == 999


@pytest.mark.parametrize("name", ["ddim", "euler"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_one_step_gives_the_image_that_the_kind_of_prediction_of_the_suite_implies(
    name: Scheduler, kind: str, pipeline: StableDiffusionXLPipeline
) -> None:
    """x_t = a x + s e and v = a e - s x, so x is (x_t - s e) / a, or a x_t - s v; Euler's scheduler steps x_t / a."""
    own = copy.copy(pipeline)
    own.scheduler = DDIMScheduler.from_config(PARTS["scenes"]["scheduler"])  # of v, from noise alone
    settings = {"scheduler": name, "prediction_type": kind, "rescale_betas_zero_snr": False}
    make_sampler(own, Sampling.model_validate({**SAMPLING.model_dump(), **settings}), Noise())
    generator = torch.Generator().manual_seed(0)
    x_t, output = torch.randn(2, 1, 4, 4, 4, generator=generator)
    (timestep,) = own.scheduler.timesteps
    a_2 = own.scheduler.alphas_cumprod[timestep.long()]
    a, s = a_2.sqrt(), (1 - a_2).sqrt()
    expected = {"epsilon": (x_t - s * output) / a, "v_prediction": a * x_t - s * output, "sample": output}[kind]
    found = own.scheduler.step(output, timestep, x_t / a if name == "euler" else x_t).prev_sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_named_scheduler_takes_the_kind_of_prediction_and_the_noise_schedule_of_the_suite(
    name: Scheduler, pipeline: StableDiffusionXLPipeline
) -> None:
    own = copy.copy(pipeline)
    own.scheduler = EulerDiscreteScheduler.from_config(PARTS["sdxl"]["scheduler"])
    settings = {"scheduler": name, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    make_sampler(own, Sampling.model_validate({**SAMPLING.model_dump(), **settings}), Noise())
    assert own.scheduler.config.prediction_type == "v_prediction"
    assert own.scheduler.alphas_cumprod[-1] < 1e-6, "the last timestep is noise alone"


def test_kind_of_prediction_that_a_scheduler_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="euler-ancestral does not take prediction_type 'sample'"):
        Sampling.model_validate({**SAMPLING.model_dump(), "scheduler": "euler-ancestral", "prediction_type": "sample"})
    scheduler = EulerAncestralDiscreteScheduler(prediction_type="sample")
    scheduler.set_timesteps(1)
    with pytest.raises(NotImplementedError):  # else it need not be refused any more
        scheduler.step(torch.zeros(1), scheduler.timesteps[0], torch.zeros(1))


@pytest.mark.parametrize(
    "more",
    [{}, {"scheduler": "euler"}, {"scheduler": "euler", "timestep_spacing": "leading"}, {"scheduler": "lcm", "timesteps": [999, 749, 9]}],
)
def test_description_of_the_scheduler_matches_the_one_used(
    more: dict[str, Any], pipeline: StableDiffusionXLPipeline, tiny_pipeline: Path
) -> None:
    own, sampling = copy.copy(pipeline), Sampling.model_validate({**SAMPLING.model_dump(), "steps": 3, **more})
    own.scheduler = DDIMScheduler.from_config(PARTS["scenes"]["scheduler"])
    before = own.scheduler.timesteps
    descriptions = [
        describe(resolve(str(tiny_pipeline)), sampling),
        describe(resolve("scenes-vega", random=True), sampling),
        describe(resolve(str(tiny_pipeline)), sampling, own),
    ]
    assert own.scheduler.timesteps is before
    make_sampler(own, sampling, Noise())(make_jobs(1))
    used = own.scheduler
    expected = {"class": type(used).__name__, "prediction_type": "v_prediction", "timesteps": used.timesteps.tolist()}
    assert descriptions == [expected] * 3


def test_scheduler_without_a_kind_of_prediction_is_described(pipeline: StableDiffusionXLPipeline) -> None:
    own = copy.copy(pipeline)
    own.scheduler = IPNDMScheduler()
    found = describe(resolve("scenes-vega", random=True), SAMPLING, own)
    assert (found["class"], found["prediction_type"], len(found["timesteps"])) == ("IPNDMScheduler", None, SAMPLING.steps)


def test_scheduler_of_another_noise_is_not_replaced(pipeline: StableDiffusionXLPipeline) -> None:
    own = copy.copy(pipeline)
    own.scheduler = EDMEulerScheduler()  # Playground v2.5's kind
    assert describe(resolve("scenes-vega", random=True), SAMPLING, own)["class"] == "EDMEulerScheduler"
    euler = SAMPLING.model_copy(update={"scheduler": "euler"})
    for work in (lambda: describe(resolve("scenes-vega", random=True), euler, own), lambda: make_sampler(own, euler, Noise())):
        with pytest.raises(UserError, match=r"EDMEulerScheduler, has no betas that 'euler' could .* --scheduler model"):
            work()


def test_file_that_states_how_it_was_trained_is_drawn_so_or_not_at_all(tiny_pipeline: Path, tmp_path: Path) -> None:
    """NoobAI's checkpoint of v-prediction has two empty tensors that say so; the tiny pipeline's own scheduler fits it."""
    names = ("conv_in.weight", "down_blocks.0", "v_pred", "ztsnr")
    save_file({name: torch.zeros(0) for name in names}, tmp_path / "noob.safetensors")
    base = resolve(str(tiny_pipeline))
    spec = ModelSpec("noob", "scenes", "vega", "file", str(tmp_path / "noob.safetensors"), base)
    check_prediction(spec, SAMPLING)

    def advice(**settings: Any) -> str:
        with pytest.raises(UserError) as error:
            check_prediction(spec, Sampling.model_validate({**SAMPLING.model_dump(), "scheduler": "ddim", **settings}))
        return str(error.value).partition("; add ")[2]

    end = ", or set these in [sampling] of a suite file"
    both = "--prediction-type v_prediction --rescale-betas-zero-snr"
    assert advice(prediction_type="epsilon", rescale_betas_zero_snr=False) == f"{both}{end}"
    assert advice(rescale_betas_zero_snr=False) == f"--rescale-betas-zero-snr{end}"
    elsewhere = ModelSpec("noob", "sdxl", "sdxl", "file", spec.location, resolve("someone/not-downloaded"))
    check_prediction(elsewhere, SAMPLING)
    plain = {name: torch.zeros(0) for name in names[:2]}
    save_file(plain, tmp_path / "noob.safetensors", metadata={"modelspec.prediction_type": "epsilon"})
    check_prediction(spec, Sampling.model_validate({**SAMPLING.model_dump(), "scheduler": "ddim", "prediction_type": "epsilon"}))


def few_step_advice(spec: ModelSpec, pipeline: Any = None, **settings: Any) -> list[str]:
    """The last words of each note on drawing a model in 25 steps with guidance, or with other settings."""
    sampling = Sampling.model_validate({**SAMPLING.model_dump(), "steps": 25, "guidance_scale": 7.5, **settings})
    return [note.partition(" with --suite ")[2] or note.rpartition("; ")[2] for note in sampling_notes(spec, sampling, pipeline)]


def test_consistency_model_without_guidance_is_noted(tiny_pipeline: Path, loaded_pipeline: Any, tmp_path: Path) -> None:
    folder = with_unet(tiny_pipeline, tmp_path / "lcm", tiny_unet(time_cond_proj_dim=8))
    expected = ["the suite gives it 1. To change that, add --guidance-scale 8"]
    assert few_step_advice(resolve(str(folder)), guidance_scale=1.0) == expected
    assert few_step_advice(resolve(str(folder)), guidance_scale=8.0) == []
    assert few_step_advice(resolve(str(tiny_pipeline)), guidance_scale=1.0) == []
    in_memory = SimpleNamespace(unet=SimpleNamespace(config={"time_cond_proj_dim": 8}), scheduler=loaded_pipeline.scheduler)
    assert few_step_advice(ModelSpec("lcm", "sdxl", "sdxl", "memory", "digest"), in_memory, guidance_scale=1.0) == expected


def test_few_step_student_in_many_steps_is_noted(tmp_path: Path) -> None:
    """SDXL-Turbo comes as a whole pipeline, whose scheduler tells it from SDXL."""
    pipeline = save_tiny_pipeline(tmp_path / "turbo", "sdxl", family="sdxl")
    turbo, config = resolve(str(pipeline)), pipeline / "scheduler" / "scheduler_config.json"
    assert few_step_advice(turbo) == []
    edit_json(config, timestep_spacing="trailing")
    assert few_step_advice(turbo) == ["few-step --scheduler model --steps 1 --size-px 512"]
    for settings in ({"steps": 4}, {"guidance_scale": 1.0}, {"scheduler": "euler"}):
        assert few_step_advice(turbo, **settings) == []
    assert few_step_advice(resolve("scenes-teacher")) == [], "whose scheduler has that spacing too"
    assert few_step_advice(ModelSpec("absent", "sdxl", "sdxl", "folder", str(tmp_path / "absent"))) == []


def test_unavailable_scheduler_has_an_empty_description(tmp_path: Path) -> None:
    assert describe(ModelSpec("missing", "sdxl", "sdxl", "folder", str(tmp_path / "missing")), SAMPLING) == {}
    assert describe(resolve("scenes-rendered"), SAMPLING) == {}


def test_eta_of_the_suite_sets_the_noise_of_each_step(pipeline: StableDiffusionXLPipeline) -> None:
    def draw(**settings: Any) -> U8:
        sampling = Sampling.model_validate({**SAMPLING.model_dump(), "steps": 3, "scheduler": "tcd", **settings})
        return make_sampler(copy.copy(pipeline), sampling, Noise())(make_jobs(1))

    assert np.array_equal(draw(), draw(eta=0.0))
    assert not np.array_equal(draw(), draw(eta=0.5))


def test_images_need_not_be_square(pipeline: StableDiffusionXLPipeline) -> None:
    sampling = SAMPLING.model_copy(update={"height_px": 2 * SIZE_PX})
    assert make_sampler(copy.copy(pipeline), sampling, Noise())(make_jobs(2)).shape == (2, 2 * SIZE_PX, SIZE_PX, 3)


def test_unset_step_settings_do_not_change_the_name_of_an_image() -> None:
    assert SAMPLING.model_dump().keys() == {
        *("steps", "guidance_scale", "size_px", "scheduler", "negative_prompt", "dtype", "batch"),
    }  # else images of earlier runs would not be found
    with_timesteps = Sampling.model_validate({**SAMPLING.model_dump(), "scheduler": "lcm", "timesteps": [999]})
    assert (
        list_jobs(suite(), with_timesteps, "w")[0].image_id
        != list_jobs(suite(), SAMPLING.model_copy(update={"scheduler": "lcm"}), "w")[0].image_id
    )


def test_negative_prompt_is_passed_for_every_image_or_not_at_all() -> None:
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


def sampled(samples: int, n: int = 7) -> Suite:
    return suite(n).model_copy(update={"prompts": Prompts(n=n, samples=samples)})


def test_samples_come_after_the_images_of_a_run_without_them() -> None:
    jobs = list_jobs(sampled(3), SAMPLING, "weights")
    assert jobs[:7] == make_jobs()
    assert [(job.prompt_id, job.sample) for job in jobs[7:]] == [(job.prompt_id, sample) for sample in (1, 2) for job in make_jobs()]
    assert len({job.image_id for job in jobs}) == 21
    noise = [initial_noise(Noise(), job.prompt_id, job.sample, SHAPE).numpy().tobytes() for job in jobs]
    assert len(set(noise)) == 21


def test_noise_of_the_steps_differs_between_prompts_and_samples_unless_it_is_fixed() -> None:
    class SeedRecorder(Recorder):
        def __call__(self, **arguments: Any) -> SimpleNamespace:
            seeds.extend(each.initial_seed() for each in arguments["generator"])
            return super().__call__(**arguments)

    numbers = {}
    for kind in ("per_image", "fixed"):
        seeds: list[int] = []
        for job in list_jobs(sampled(2, 3), SAMPLING, "weights"):
            make_sampler(SeedRecorder(), SAMPLING, Noise.model_validate({"kind": kind, "seed": 3}))([job])
        numbers[kind] = len(seeds), len(set(seeds))
    assert numbers == {"per_image": (6, 6), "fixed": (6, 1)}


def test_batches_hold_one_sample_so_that_more_samples_change_no_image(tmp_path: Path) -> None:
    few, many = Store(tmp_path / "few", {}), Store(tmp_path / "many", {})
    generate(make_jobs(), few, 3, batch_dependent_images, "one sample")
    jobs = list_jobs(sampled(2), SAMPLING, "weights")
    groups: list[list[Job]] = []
    prompt_by_prompt = sorted(jobs, key=lambda job: job.prompt_id)  # as a run that stops when sure keeps them
    generate(prompt_by_prompt, many, 3, recording(batch_dependent_images, groups), "two samples")
    assert [{job.sample for job in group} for group in groups] == [{0}] * 3 + [{1}] * 3
    names = [job.image_id for job in make_jobs()]
    assert few.read(names).tobytes() == many.read(names).tobytes()
    parts = [select_part(jobs, 3, (part, 2)) for part in (1, 2)]
    assert [len(part) for part in parts] == [3 + 1 + 3, 3 + 3 + 1]
    assert sorted([*parts[0], *parts[1]], key=jobs.index) == jobs
