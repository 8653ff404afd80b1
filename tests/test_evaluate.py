"""`sdbench.evaluate` makes the same record as the command line, and changes nothing of the caller's."""

import copy
import doctest
import functools
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from diffusers import EulerDiscreteScheduler
from peft import LoraConfig
from processes import by_two
from torch import nn

import sdbench
from sdbench import api, records, suites, tables
from sdbench.api import measuring
from sdbench.errors import UserError
from sdbench.models import in_memory
from sdbench.models.loading import load
from sdbench.models.resolve import resolve
from sdbench.records.names import is_probe
from sdbench.reference import cards

ROOT = Path(__file__).parents[1]
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory for results, with the shipped suites. Without a GPU, so that all that is compared was drawn on the CPU."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(cards, "SCENES_N", 256)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield folder


@pytest.fixture(scope="module")
def few(home: Path) -> suites.Suite:
    assert home
    return api.Overrides(n=4, steps=2, batch=2).apply(suites.load("quality"))


@pytest.fixture(scope="module")
def teacher(few: suites.Suite) -> api.Evaluation:
    return sdbench.evaluate("scenes-teacher", few, only="quality")


@cache
def load_student() -> Any:
    return load(resolve("scenes-vega"), dtype="float32", device="cpu")


class Packed(nn.Module):
    """A layer whose state dict holds more than tensors, as that of some quantised layers does."""

    def __init__(self, layer: nn.Module, scale: float) -> None:
        super().__init__()
        self.layer, self._packed = layer, (torch.tensor(scale), "int8")

    def get_extra_state(self) -> Any:
        return self._packed


class Scaled(torch.Tensor):
    """A tensor with a scale of its own, as the weights of other quantised layers are."""

    scale = 1.0

    def detach(self) -> "Scaled":
        return self


def copy_student() -> Any:
    return copy.deepcopy(load_student())


def snapshot(pipeline: Any) -> list[Any]:
    """Everything of the caller that an evaluation could change."""
    networks = [getattr(pipeline, part) for part in PARTS]
    kinds = [(type(pipeline.scheduler), dict(pipeline.scheduler.config), len(pipeline.scheduler.timesteps), id(pipeline.scheduler))]
    modes = [(id(module), module.training) for network in networks for module in network.modules()]
    tensors = [
        (id(tensor), tensor.dtype, tensor.device, tensor.requires_grad, tensor._version)
        for network in networks
        for tensor in network.parameters()
    ]
    generators = [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]  # noqa: NPY002
    return [*kinds, modes, tensors, generators, torch.is_grad_enabled(), dict(vars(pipeline).get("_progress_bar_config", {}))]


def test_docstring_example_runs(teacher: api.Evaluation) -> None:
    assert teacher.folder.is_relative_to("results")
    example = doctest.DocTestParser().get_doctest(api.evaluate.__doc__ or "", {"pipeline": copy_student()}, "evaluate", None, None)
    assert len(example.examples) == 8
    failures, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert failures == 0


def test_pipeline_in_memory_scores_like_the_same_model_by_name(few: suites.Suite, teacher: api.Evaluation) -> None:
    by_name = sdbench.evaluate("scenes-vega", few, only="quality")
    pipeline = copy_student()
    with torch.autocast("cpu", torch.bfloat16):  # as in a training loop
        found = sdbench.evaluate(pipeline, few, name="step-1000", baseline="scenes-vega")
    assert found.record.values == by_name.record.values
    assert {value.state for value in found.record.values} == {"ok"}
    for name, column in by_name.scores.columns.items():
        np.testing.assert_array_equal(found.scores.columns[name], column)
    assert (found.record.model.name, found.record.model.source, found.record.model.architecture) == ("step-1000", "memory", "vega")
    assert records.read(found.folder)[0] == found.record
    assert found.report is not None
    assert found.report.verdict == "pass"  # against itself
    assert "not measured, so not weighed: latency.pipeline.p50, memory.peak_data, memory.peak_allocated" in found.report.notes
    assert by_name.report is None
    agreement = teacher.record.value("agreement.ssim")
    assert agreement
    assert agreement.state == "not_applicable"


def test_evaluation_prints_as_a_table_and_a_verdict(few: suites.Suite, teacher: api.Evaluation) -> None:
    found = sdbench.evaluate("scenes-vega", few, baseline="scenes-teacher", only="quality")
    assert found.report is not None
    clip, markdown = found["clip_score.scenes"], found._repr_markdown_()
    assert clip == found.record.value("clip_score.scenes")
    with pytest.raises(UserError, match=r"unknown value 'clip_score\.scene'; did you mean 'clip_score\.scenes'"):
        found["clip_score.scene"]
    assert ("agreement.ssim" in found, "fid.clean" in found) == (True, False)
    assert list(found) == list(found.record.values)
    shown = tables.format_value(clip).text
    assert str(found).startswith(f"scenes-vega under quality-custom@4 (digest {found.record.suite.digest}), 4 images\n")
    assert " ".join(f"clip_score.scenes ↑ {shown} 4".split()) in " ".join(str(found).split())
    assert f"| clip_score.scenes ↑ | {shown} | 4 |" in markdown
    assert str(found).endswith(found.report.text())
    assert markdown.endswith(found.report.markdown())
    assert "against" not in str(teacher)


def test_evaluation_leaves_the_state_of_a_training_loop_unchanged(few: suites.Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, released = copy_student(), list[int]()
    monkeypatch.setattr("sdbench.encoders.inference.release_evaluators", lambda: released.append(1))  # GPU memory held by evaluators
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.unet.train().requires_grad_(requires_grad=True)
    pipeline.unet.mid_block.eval()
    pipeline.watermark = SimpleNamespace(apply_watermark=lambda _: pytest.fail("watermarked"))
    before = snapshot(pipeline)
    suite = few.model_copy(update={"sampling": few.sampling.model_copy(update={"scheduler": "ddim"})})
    sdbench.evaluate(pipeline, suite, name="in-training")
    assert snapshot(pipeline) == before
    assert released
    pipeline.unet.conv_in.weight.data.fill_(torch.nan)
    before = snapshot(pipeline)
    with pytest.raises(UserError, match="NaN pixels"):
        sdbench.evaluate(pipeline, suite, name="broken")
    assert snapshot(pipeline) == before


def run_guide_on_rank(folder: Path) -> None:
    """Run the guide's example for a training of several processes on one of them; a call that only one makes ends in four minutes."""
    os.chdir(folder)
    guide = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "is_main_process" in block)
    names: dict[str, Any] = {
        "Accelerator": functools.partial(Accelerator, cpu=True),
        "InitProcessGroupKwargs": lambda timeout: InitProcessGroupKwargs(timeout=min(timeout, timedelta(minutes=4))),
        "timedelta": timedelta,
        "evaluate": sdbench.evaluate,
        "pipeline": copy_student(),
        "few": api.Overrides(n=2, steps=1, batch=2).apply(suites.load("quality")),
        "step": 1000,
    }
    exec(example.replace("...\n", "unet = accelerator.prepare(pipeline.unet.requires_grad_())\n"), names)
    assert isinstance(names["unet"], nn.parallel.DistributedDataParallel)


def test_one_process_of_several_evaluates_while_the_others_wait(tmp_path: Path) -> None:
    assert by_two(run_guide_on_rank, tmp_path) == [0, 0]
    ((_, record),) = records.newest_per_model(tmp_path / "results")
    assert (record.model.name, record.model.source, record.n_images) == ("run-a-step-1000", "memory", 2)


def test_what_is_drawn_from_random_generators_while_sampling_is_given_back() -> None:
    pipeline = copy_student()
    before = snapshot(pipeline)
    with in_memory.sampling_copy(pipeline, torch.float32):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    assert snapshot(pipeline) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtype_is_evaluated_on_a_copy(dtype: torch.dtype, few: suites.Suite) -> None:
    pipeline = copy_student().to(dtype)
    before, bits = snapshot(pipeline), pipeline.unet.conv_in.weight.detach().clone()
    record = sdbench.evaluate(pipeline, few, name="cast").record
    assert snapshot(pipeline) == before
    assert torch.equal(pipeline.unet.conv_in.weight, bits)
    assert record.sampling["dtype"] == "float32"
    assert record.model.weights_digest == in_memory.digest(pipeline)


def test_digest_covers_everything_that_affects_an_image() -> None:
    pipeline = copy_student()
    seen = {in_memory.digest(pipeline)}
    assert in_memory.digest(copy_student()) in seen

    def assert_digest_changed() -> None:
        found = in_memory.digest(pipeline)
        assert found not in seen
        seen.add(found)

    bias = pipeline.unet.conv_out.bias
    bias.data[0] += 1e-3
    assert_digest_changed()
    bias.data = bias.data.half()
    assert_digest_changed()
    bias.data = bias.data.view(torch.bfloat16)  # other values, though the same bytes
    assert_digest_changed()
    pipeline.vae.config["scaling_factor"] = 7.0
    pipeline.vae.register_to_config(scaling_factor=7.0)
    assert_digest_changed()
    pipeline.scheduler.register_to_config(beta_end=0.5)
    assert_digest_changed()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    assert_digest_changed()
    pipeline.unet.disable_adapters()
    assert_digest_changed()
    pipeline.unet.enable_adapters()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "second")
    assert_digest_changed()
    pipeline.unet.set_adapter("default")
    assert_digest_changed()
    layer = next(module for module in pipeline.unet.modules() if hasattr(module, "scaling"))
    layer.scaling["default"] = 0.25
    assert_digest_changed()
    pipeline.enable_freeu(0.9, 0.2, 1.3, 1.4)
    assert_digest_changed()
    pipeline.vae.enable_tiling()
    assert_digest_changed()
    pipeline.unet.forward = functools.partial(pipeline.unet.forward)
    assert_digest_changed()
    pipeline.unet.conv_out = Packed(pipeline.unet.conv_out, scale=0.5)
    assert_digest_changed()
    assert in_memory.digest(pipeline) in seen
    pipeline.unet.conv_out._packed = (torch.tensor(0.25), "int8")
    assert_digest_changed()
    pipeline.unet.register_buffer("scaled", scaled := torch.zeros(2).as_subclass(Scaled))
    assert_digest_changed()
    scaled.scale = 0.5
    assert_digest_changed()
    pipeline.unet.register_buffer("shifted", pipeline.unet._buffers.pop("scaled"))
    assert_digest_changed()
    pipeline.unet.train().enable_gradient_checkpointing()
    assert in_memory.digest(pipeline) in seen, "training changes no image"


def test_digest_covers_patches_of_a_pipeline() -> None:
    pipeline = copy_student()
    seen = {in_memory.digest(pipeline)}
    pipeline("a circle", num_inference_steps=1, output_type="latent")
    assert in_memory.digest(pipeline) in seen, "drawing changes no image"

    def assert_digest_changed() -> None:
        found = in_memory.digest(pipeline)
        assert found not in seen
        seen.add(found)

    block = pipeline.unet.down_blocks[1].attentions[0].transformer_blocks[0]
    block.__class__ = type("MergingBlock", (type(block),), {})  # as Token Merging patches a network
    assert_digest_changed()
    block.strengths = {"first": [0.5, 1.0]}
    assert_digest_changed()
    block.strengths["first"][0] = 0.25
    assert_digest_changed()
    pipeline.unet.down_blocks[1].register_forward_hook(lambda *_: None)
    assert_digest_changed()
    pipeline.unet.down_blocks[1].register_forward_pre_hook(lambda *_: None)
    assert_digest_changed()
    for name, value in (("pad_token", pipeline.tokenizer.bos_token), ("model_max_length", 7)):
        setattr(pipeline.tokenizer, name, value)
        assert_digest_changed()
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        tokenizer.add_tokens(["<cat>"])
        assert_digest_changed()
    pipeline.register_to_config(force_zeros_for_empty_prompt=not pipeline.config.force_zeros_for_empty_prompt)
    assert_digest_changed()
    pipeline.encode_prompt = functools.partial(pipeline.encode_prompt)
    assert_digest_changed()
    pipeline.scheduler.__class__ = type("OwnScheduler", (type(pipeline.scheduler),), {})
    assert_digest_changed()
    pipeline.__class__ = type("OwnPipeline", (type(pipeline),), {})
    assert_digest_changed()
    pipeline.watermark = object()  # evaluation draws without
    pipeline.text_encoder.config.dtype = torch.float16  # as loaded; the tensors were cast since
    pipeline.text_encoder.name_or_path = "elsewhere"
    pipeline.unet.register_to_config(_name_or_path="elsewhere")
    pipeline.unet.conv_out.bias.data = pipeline.unet.conv_out.bias.data.repeat_interleave(2)[::2]
    assert in_memory.digest(pipeline) in seen


def test_quantised_network_is_evaluated_as_it_is(few: suites.Suite) -> None:
    pipeline = copy_student()
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    evaluation = sdbench.evaluate(pipeline, few.model_copy(update={"metrics": {"scenes": ("clip_score.scenes",)}}), name="eight-bit")
    assert {value.state for value in evaluation.record.values} == {"ok"}
    assert torch.float8_e4m3fn in {tensor.dtype for tensor in pipeline.unet.parameters()}


def test_quantised_network_whose_other_layers_have_another_dtype_is_refused_before_anything_is_run(
    few: suites.Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "run", lambda *_, **__: pytest.fail("run"))
    pipeline = copy_student().to(torch.float16)
    pipeline.unet.register_parameter("packed", nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False))
    message = r"unet is quantised, and its other layers are float16, but the suite computes in float32.*Overrides\(dtype='float16'\)\.apply"
    with pytest.raises(UserError, match=message):
        sdbench.evaluate(pipeline, few, baseline="scenes-ssd-1b")
    in_memory.check_dtype(pipeline, "float16")


def test_network_that_is_wrapped_or_not_in_memory_is_refused(few: suites.Suite) -> None:
    pipeline = copy_student()
    pipeline.unet = torch.nn.DataParallel(pipeline.unet)
    with pytest.raises(UserError, match=r"unet is a DataParallel without.*pipeline\.unet = pipeline\.unet\.module"):
        sdbench.evaluate(pipeline, few)
    pipeline = copy_student()
    pipeline.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(UserError, match=r"weights of the pipeline's unet are not in memory.*enable_model_cpu_offload"):
        sdbench.evaluate(pipeline, few)


def test_invalid_input_is_reported_before_anything_is_generated(few: suites.Suite, home: Path) -> None:
    pipeline = copy_student()
    with pytest.raises(UserError, match="UNet2DConditionModel is not a StableDiffusionXLPipeline"):
        sdbench.evaluate(pipeline.unet, few)
    with pytest.raises(UserError, match="unknown model 'scenes-vegas'; did you mean 'scenes-vega'"):
        sdbench.evaluate("scenes-vegas", few)
    for model in (pipeline, "scenes-vega"):
        with pytest.raises(UserError, match="unknown value of `only` 'qualty'; did you mean 'quality'"):
            sdbench.evaluate(model, few, only="qualty", baseline="scenes-ssd-1b")
    with pytest.raises(UserError, match="unknown value of `only` 'probes'; known: quality"):
        sdbench.evaluate("scenes-vega", few, only="probes", baseline="scenes-ssd-1b")
    with pytest.raises(UserError, match="unknown value of `only` 'probe'; did you mean 'probes'"):
        api.run([resolve("scenes-vega")], few, only="probe")
    with pytest.raises(UserError, match="save the pipeline and name its folder"):
        sdbench.evaluate(pipeline, few, only="probes")
    with pytest.raises(UserError, match="is the catalogue's name of another model"):
        sdbench.evaluate(pipeline, few, name="scenes-teacher")
    with pytest.raises(UserError, match="family 'scenes', suite 'standard' is for 'sdxl'"):
        sdbench.evaluate(pipeline, "standard", name="other")
    with pytest.raises(UserError, match="unknown model 'scenes-vegas'; did you mean 'scenes-vega'"):
        sdbench.evaluate(pipeline, few, name="other", baseline="scenes-vegas")
    with pytest.raises(UserError, match=r"has no table \[suites\.own\]"):
        sdbench.evaluate(pipeline, few.model_copy(update={"name": "own"}), name="other", baseline="scenes-vega")
    with pytest.raises(UserError, match="'quality-custom' has no metrics, so there is nothing to measure"):
        sdbench.evaluate(pipeline, few.model_copy(update={"metrics": {}}), name="other")
    pipeline.vae = None
    with pytest.raises(UserError, match="the pipeline has no vae"):
        sdbench.evaluate(pipeline, few)
    assert not list(home.glob("results/scenes/*/other"))


def test_baseline_without_a_record_is_run_first_or_in_turns_on_the_device_of_the_model(
    few: suites.Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def run(specs: Any, *_: Any, device: str | None, only: str | None, **__: Any) -> None:
        runs.append(([spec.name for spec in specs], device, only))
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "run", run)
    for evaluate in (
        lambda: sdbench.evaluate(copy_student(), few, baseline="scenes-ssd-1b"),
        lambda: sdbench.evaluate("scenes-vega", few, baseline="scenes-ssd-1b", device="cpu"),
        lambda: api.until_verdict(resolve("scenes-vega"), few, baseline="scenes-ssd-1b", device="cpu", only="quality"),
    ):
        with pytest.raises(KeyboardInterrupt):
            evaluate()
    assert runs == [
        (["scenes-ssd-1b"], "cpu", "quality"),
        (["scenes-vega", "scenes-ssd-1b"], "cpu", None),
        (["scenes-ssd-1b"], "cpu", "quality"),
    ]


def test_until_verdict_can_weigh_and_measure_image_metrics_alone(few: suites.Suite, teacher: api.Evaluation) -> None:
    assert teacher.record.value("latency.pipeline.p50") is None
    found, report = api.until_verdict(resolve("scenes-teacher", name="copy"), few, baseline=teacher.folder, device="cpu", only="quality")
    assert {"clip_score.scenes", "preference.scenes"} <= {result.name for result in report.results}
    assert not [result.name for result in report.results if is_probe(result.name)]
    assert report.notes[-1] == "not measured, so not weighed: latency.pipeline.p50, memory.peak_data, memory.peak_allocated"
    assert report.inputs
    assert report.inputs.baseline_asked == str(teacher.folder)
    assert records.read_record(found).value("latency.pipeline.p50") is None
    with pytest.raises(UserError, match="unknown value of `only` 'probes'"):
        api.until_verdict(resolve("scenes-teacher"), few, baseline=str(teacher.folder), only="probes")


def test_nothing_is_run_for_a_policy_without_the_suite(
    few: suites.Suite, teacher: api.Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "run", lambda *_, **__: pytest.fail("run"))
    policy = tmp_path / "policy.toml"
    policy.write_text("alpha = 0.05\n[suites.other]\n", encoding="utf-8")
    for judge in (
        lambda: api.gate("scenes-vega-pruned", teacher.folder, few, policy=policy),
        lambda: api.until_verdict(resolve("scenes-vega-pruned"), few, baseline="scenes-vega", policy=policy),
    ):
        with pytest.raises(UserError, match=r"has no table \[suites\.quality\], so it weighs no metric of suite 'quality-custom'"):
            judge()


def test_suite_of_the_users_own_is_gated_by_a_policy_of_their_own_in_folders_of_their_own(few: suites.Suite, tmp_path: Path) -> None:
    suite = few.model_copy(update={"name": "own", "metrics": {"scenes": ("clip_score.scenes",)}})
    policy, places = tmp_path / "policy.toml", api.Places(tmp_path / "mine", tmp_path / "work")
    policy.write_text(
        'alpha = 0.05\n[suites.own]\n"clip_score.scenes" = { direction = "higher", margin = 1.0, required = true }\n', encoding="utf-8"
    )
    found = sdbench.evaluate("scenes-vega", suite, only="quality", baseline="scenes-vega-pruned", policy=policy, places=places)
    assert found.report
    assert [result.name for result in found.report.results] == ["clip_score.scenes"]
    assert found.folder.is_relative_to(places.results)
    assert {path.name for path in tmp_path.iterdir()} == {"policy.toml", "mine", "work"}
    assert not (places.results / "runs").exists()


def test_import_of_sdbench_and_evaluate_is_lazy() -> None:
    program = "import sys, sdbench; assert 'sdbench.api' not in sys.modules; sdbench.evaluate; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    assert {"__version__", "evaluate"} <= {*dir(sdbench)}
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        sdbench.evaluat  # noqa: B018
