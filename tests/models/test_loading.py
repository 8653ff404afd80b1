import copy
import json
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from ldm import unet_key
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny import SIZE_PX, edit_json, tiny_unet

from sdbench.errors import UserError
from sdbench.models.files import choose_weight_files
from sdbench.models.headers import read_header
from sdbench.models.loading import check_headers, load
from sdbench.models.locate import check_local_files
from sdbench.models.resolve import resolve
from sdbench.models.text_encoders import hub_key

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROJ_IN = "down_blocks.1.attentions.0.proj_in"


def generate(pipeline: StableDiffusionXLPipeline, size_px: int = SIZE_PX) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    images: torch.Tensor = pipeline(
        "a red circle", num_inference_steps=2, height=size_px, width=size_px, output_type="pt", generator=noise
    ).images
    return images


def open_pipeline(what: Path, dtype: str = "float32", **options: Any) -> StableDiffusionXLPipeline:
    return load(resolve(str(what), **options), dtype=dtype, device="cpu")


@pytest.fixture
def pipeline_copy(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))


def save_lora(unet: UNet2DConditionModel, folder: Path, targets: list[str]) -> Path:
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    unet.add_adapter(config)
    metadata = {**config.to_dict(), "target_modules": targets}  # type: ignore[no-untyped-call]  # peft's
    StableDiffusionXLPipeline.save_lora_weights(folder, get_peft_model_state_dict(unet), unet_lora_adapter_metadata=metadata)
    return folder


def test_folder_loads_like_the_stock_pipeline(tiny_pipeline: Path) -> None:
    pipeline = open_pipeline(tiny_pipeline)
    stock = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline, add_watermarker=False)
    stock.set_progress_bar_config(disable=True)
    assert type(pipeline) is StableDiffusionXLPipeline
    assert pipeline.watermark is None
    assert not pipeline.unet.training
    torch.testing.assert_close(generate(pipeline), generate(stock), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_part_has_the_requested_dtype(tiny_pipeline: Path, dtype: str) -> None:
    pipeline = open_pipeline(tiny_pipeline, dtype)
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    assert {weight.dtype for part in parts for weight in part.parameters()} == {getattr(torch, dtype)}


def test_bare_unet_replaces_the_unet_of_its_base(tiny_pipeline: Path, tmp_path: Path) -> None:
    unet = tiny_unet("ssd-1b", seed=7)
    unet.save_pretrained(tmp_path / "student")
    for what in (tmp_path / "student", tmp_path / "student" / WEIGHTS):
        pipeline = open_pipeline(what, base=str(tiny_pipeline))
        torch.testing.assert_close(dict(pipeline.unet.state_dict()), dict(unet.state_dict()), rtol=0, atol=0)
        assert torch.isfinite(generate(pipeline)).all()
    assert open_pipeline(tmp_path / "student" / WEIGHTS, "bfloat16", base=str(tiny_pipeline)).unet.dtype == torch.bfloat16


def test_name_prefixes_added_by_training_are_stripped(tiny_pipeline: Path, tmp_path: Path) -> None:
    unet = tiny_unet(seed=7)
    save_file({f"_orig_mod.module.{name}": tensor for name, tensor in unet.state_dict().items()}, tmp_path / "student.safetensors")
    spec = resolve(str(tmp_path / "student.safetensors"), base=str(tiny_pipeline))
    assert (spec.family, spec.architecture) == ("scenes", "vega")
    torch.testing.assert_close(dict(load(spec, dtype="float32", device="cpu").unet.state_dict()), dict(unet.state_dict()), rtol=0, atol=0)


def test_pruned_unet_of_unknown_topology_loads_from_its_folder_only(tiny_pipeline: Path, tmp_path: Path) -> None:
    tiny_unet("sdxl", transformer_layers_per_block=[1, 2, 3]).save_pretrained(tmp_path / "student")
    assert resolve(str(tmp_path / "student"), base=str(tiny_pipeline)).architecture == "custom"
    assert torch.isfinite(generate(open_pipeline(tmp_path / "student", base=str(tiny_pipeline)))).all()
    with pytest.raises(UserError, match="no known architecture; save the UNet as a folder"):
        open_pipeline(tmp_path / "student" / WEIGHTS, base=str(tiny_pipeline))


def test_sharded_unet_loads_unless_a_shard_is_missing(tiny_pipeline: Path, tmp_path: Path) -> None:
    unet = tiny_unet()
    unet.save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    torch.testing.assert_close(
        dict(open_pipeline(tmp_path / "shards", base=str(tiny_pipeline)).unet.state_dict()), dict(unet.state_dict()), rtol=0, atol=0
    )
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"but {shard.name} is missing"):
        open_pipeline(tmp_path / "shards", base=str(tiny_pipeline))


def test_16_bit_copy_is_used_for_16_bit_runs(tiny_pipeline: Path, tmp_path: Path) -> None:
    tiny_unet(seed=1).save_pretrained(tmp_path / "two")
    tiny_unet(seed=2).half().save_pretrained(tmp_path / "two", variant="fp16")
    full, half = (open_pipeline(tmp_path / "two", dtype, base=str(tiny_pipeline)).unet.conv_in.weight for dtype in ("float32", "bfloat16"))
    torch.testing.assert_close(full, tiny_unet(seed=1).conv_in.weight)
    torch.testing.assert_close(half.float(), tiny_unet(seed=2).conv_in.weight, rtol=0.02, atol=0.02)


def test_original_checkpoint_loads_unless_a_tensor_is_missing(teacher_folder: Path, original_checkpoint: Path, tmp_path: Path) -> None:
    again = open_pipeline(original_checkpoint, base=str(teacher_folder))
    torch.testing.assert_close(generate(again), generate(open_pipeline(teacher_folder)), rtol=0, atol=1e-4)
    tensors = load_file(original_checkpoint)
    tensors.pop("first_stage_model.decoder.conv_in.weight")
    save_file(tensors, tmp_path / "lacking.safetensors")
    with pytest.raises(UserError, match="numbers for the vae"):
        open_pipeline(tmp_path / "lacking.safetensors", base=str(teacher_folder))


def test_base_of_a_whole_checkpoint_needs_no_weights(teacher_folder: Path, original_checkpoint: Path, tmp_path: Path) -> None:
    base = shutil.copytree(teacher_folder, tmp_path / "base", ignore=lambda _, names: [name for name in names if "safetensors" in name])
    again, original = open_pipeline(original_checkpoint, base=str(base)), open_pipeline(teacher_folder)
    torch.testing.assert_close(dict(again.unet.state_dict()), dict(original.unet.state_dict()), rtol=0, atol=0)


def test_base_of_another_architecture_is_refused_with_one_that_fits(tiny_pipeline: Path, original_checkpoint: Path) -> None:
    advice = "for example --base scenes-teacher; for a UNet of a shape of its own"
    with pytest.raises(UserError, match=f"numbers for the unet .*; name another pipeline with --base: {advice}"):
        open_pipeline(original_checkpoint, base=str(tiny_pipeline))


@pytest.mark.parametrize("name", ["renamed", "conv_in.weight"])
def test_original_checkpoint_that_cannot_be_converted_is_named(
    name: str, teacher_folder: Path, original_checkpoint: Path, tmp_path: Path
) -> None:
    tensors, part = load_file(original_checkpoint), "first_stage_model.decoder"
    save_file(tensors | {f"{part}.{name}": tensors.pop(f"{part}.conv_in.weight").flatten()}, tmp_path / "damaged.safetensors")
    with pytest.raises(UserError, match=r"damaged\.safetensors cannot be loaded \(.*\); export it again, or name with --base another"):
        open_pipeline(tmp_path / "damaged.safetensors", base=str(teacher_folder))


def test_lora_is_fused(tiny_pipeline: Path, loaded_pipeline: Any, tmp_path: Path) -> None:
    lora = save_lora(tiny_unet(), tmp_path / "lora", ["to_q", "to_v"])
    plain, fused = loaded_pipeline, open_pipeline(tiny_pipeline, lora=str(lora))
    changed = {key for key, tensor in fused.unet.state_dict().items() if not torch.equal(tensor, plain.unet.state_dict()[key])}
    assert changed == {key for key in plain.unet.state_dict() if key.endswith(("to_q.weight", "to_v.weight"))}
    state = load_file(lora / "pytorch_lora_weights.safetensors")
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    update = state[f"unet.{layer}.lora_B.weight"] @ state[f"unet.{layer}.lora_A.weight"]
    before, after = (pipeline.unet.get_submodule(layer).weight for pipeline in (plain, fused))
    torch.testing.assert_close(after - before, update * 6 / 2, rtol=1e-4, atol=1e-5)


def kohya_lora(pipeline: StableDiffusionXLPipeline, unet_name: Callable[[str], str]) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 and alpha 3 for some layers of every part, in the names of Kohya's scripts."""
    torch.manual_seed(2)
    names = {"unet": ("unet", unet_name), "text_encoder": ("te1", hub_key), "text_encoder_2": ("te2", hub_key)}
    found = {}
    for part, (short, rename) in names.items():
        for name, module in getattr(pipeline, part).named_modules():
            if name.endswith((".proj_in", "attn2.to_out.0", "q_proj", "k_proj", "v_proj", "out_proj", "fc1")):
                key = f"lora_{short}_{rename(name).replace('.', '_')}"
                found[f"{key}.lora_down.weight"] = torch.randn(2, module.in_features) / 10
                found[f"{key}.lora_up.weight"] = torch.randn(module.out_features, 2) / 10
                found[f"{key}.alpha"] = torch.tensor(3.0)
    return found


def peft_lora(pipeline: StableDiffusionXLPipeline) -> dict[str, torch.Tensor]:
    """A LoRA for a text encoder in peft's names, with the prefix that encoders had when it was trained."""
    torch.manual_seed(3)
    found = {}
    for name, module in pipeline.text_encoder.named_modules():
        if name.endswith(("q_proj", "fc1")):
            key = f"text_encoder.{hub_key(name)}"
            found[f"{key}.lora_A.weight"] = torch.randn(2, module.in_features) / 10
            found[f"{key}.lora_B.weight"] = torch.randn(module.out_features, 2) / 10
    return found


@pytest.mark.parametrize(
    "make_lora",
    [lambda pipeline: kohya_lora(pipeline, str), lambda pipeline: kohya_lora(pipeline, ldm_module_name), peft_lora],
    ids=["kohya", "kohya-ldm", "peft"],
)
def test_every_lora_format_is_fused_as_diffusers_does(
    make_lora: Callable[[StableDiffusionXLPipeline], dict[str, torch.Tensor]], tiny_pipeline: Path, loaded_pipeline: Any, tmp_path: Path
) -> None:
    plain, stock = loaded_pipeline, copy.deepcopy(loaded_pipeline)
    lora = make_lora(plain)
    save_file(lora, tmp_path / "lora.safetensors")
    fused = open_pipeline(tiny_pipeline, lora=str(tmp_path / "lora.safetensors"))
    stock.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    stock.fuse_lora()
    stock.unload_lora_weights()
    changed = 0
    for part in ("unet", "text_encoder", "text_encoder_2"):
        before, after, theirs = (getattr(pipeline, part).state_dict() for pipeline in (plain, fused, stock))
        changed += sum(not torch.equal(before[name], after[name]) for name in before)
        torch.testing.assert_close(dict(after), dict(theirs), rtol=0, atol=1e-6)
    assert changed == sum(name.endswith(("lora_down.weight", "lora_A.weight")) for name in lora)


def ldm_module_name(module: str) -> str:
    """Name of a UNet's module in the original layout."""
    return unet_key(f"{module}.weight").removesuffix(".weight")


def test_loras_that_diffusers_would_fuse_only_partly_are_rejected(tiny_pipeline: Path, loaded_pipeline: Any, tmp_path: Path) -> None:
    pipeline, file = loaded_pipeline, tmp_path / "lora.safetensors"
    layer = "lora_unet_down_blocks_1_attentions_0_proj_in"
    damaged = peft_lora(pipeline)
    damaged[name := next(iter(damaged))] /= 0
    for lora, expected in (
        (peft_lora(pipeline) | {"vae.encoder.mid_block.attentions.0.to_q.lora_A.weight": torch.zeros(2, 8)}, r"such as 'vae\.encoder"),
        ({f"{layer}.hada_lora.weight": torch.zeros(1)}, "has a format that diffusers does not read"),
        (damaged, rf"lora\.safetensors: tensor '{name}' holds NaN or infinity"),
        (kohya_lora(pipeline, str) | {f"{layer}.dora_scale": torch.zeros(1)}, "is a DoRA"),
        ({f"base_model.model.{layer}.lora_A.weight": torch.zeros(1)}, "is an adapter of peft, which is not read: merge it with"),
        (
            kohya_lora(pipeline, str) | {f"{layer}.lora_mid.weight": torch.zeros(2, 2)},
            rf"lora\.safetensors has a format .*{layer}\.lora_mid",
        ),
        ({f"{layer}.lora_down.weight": torch.zeros(2, 8)}, rf"has a format that diffusers does not read .*{layer}\.lora_up\.weight"),
    ):
        save_file(lora, file)
        with pytest.raises(UserError, match=expected):
            open_pipeline(tiny_pipeline, lora=str(file))


def test_lora_of_another_architecture_is_rejected(tiny_pipeline: Path, tmp_path: Path) -> None:
    deeper = save_lora(tiny_unet("sdxl"), tmp_path / "deeper", ["to_q"])
    with pytest.raises(UserError, match=r"layers that the model lacks, such as 'unet\.down_blocks.*another architecture"):
        open_pipeline(tiny_pipeline, lora=str(deeper))
    names = {
        f"base_model.model.{name}": tensor for name, tensor in load_file(deeper / "pytorch_lora_weights.safetensors").items()
    }  # as peft's own save_pretrained
    save_file(names, tmp_path / "peft.safetensors")
    with pytest.raises(UserError, match=r"peft\.safetensors cannot be fused\. It is an adapter of peft, .*: merge it with"):
        open_pipeline(tiny_pipeline, lora=str(tmp_path / "peft.safetensors"))
    wider = save_lora(tiny_unet(block_out_channels=[8, 16, 32]), tmp_path / "wider", ["to_q"])
    with pytest.raises(UserError, match=r"does not fit 'unet\.down_blocks.*another width"):
        open_pipeline(tiny_pipeline, lora=str(wider))


def peft_layer(a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """A LoRA of one layer, 8 x 8, in peft's names, whose tensors have these shapes."""
    return {f"unet.{PROJ_IN}.lora_A.weight": torch.zeros(a), f"unet.{PROJ_IN}.lora_B.weight": torch.zeros(b)}


@pytest.mark.parametrize(
    "lora",
    [
        peft_layer((2, 8), (8, 2)) | {f"unet.{PROJ_IN}.lora_C.weight": torch.zeros(2, 2)},  # diffusers would skip lora_C,
        {name.replace(".weight", ".default.weight"): tensor for name, tensor in peft_layer((2, 8), (8, 2)).items()},  # skip all,
        {name: tensor for name, tensor in peft_layer((2, 8), (8, 2)).items() if "lora_B" in name},  # and draw the missing half at random
        {name: tensor for name, tensor in peft_layer((2, 8), (8, 2)).items() if "lora_A" in name},
        peft_layer((3, 8), (8, 2)),
        peft_layer((0, 8), (8, 0)),
        peft_layer((2, 9), (8, 2)),
        peft_layer((2, 8), (9, 2)),
        peft_layer((2, 8), (0, 10**9)),  # takes no bytes in the file; diffusers would build a layer of that rank
        peft_layer((2, 8, 1, 1), (8, 2, 1, 1)),
        peft_layer((), (8, 2)),
    ],
)
def test_lora_with_unknown_missing_or_misshapen_tensors_is_refused_by_its_headers(
    lora: dict[str, torch.Tensor], tiny_pipeline: Path, tmp_path: Path
) -> None:
    save_file(lora, tmp_path / "lora.safetensors")
    spec = resolve(str(tiny_pipeline), lora=str(tmp_path / "lora.safetensors"))
    with pytest.raises(
        UserError, match=rf"lora\.safetensors does not fit 'unet\.{PROJ_IN}' of the model: its tensors have shapes .*Name a LoRA"
    ):
        check_headers(spec, dtype="float32")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unet.r": 10**9}, "'unet.r' is 1000000000, but its tensors have at most rank 2"),
        ({"unet.r": 2, "unet.rank_pattern": {PROJ_IN: 10**9}}, "rank_pattern' is .*, but its tensors have at most rank 2"),
        ({"unet.r": 2, "unet.lora_alpha": "x"}, "cannot be fused"),
        ({"unet.r": 2, "unet.no_such_setting": 1}, "cannot be fused .*TypeError"),
        ({"unet.r": 2, "unet.use_dora": True}, "cannot be fused"),
        ([], "cannot be fused"),
    ],
)
def test_lora_with_damaged_settings_is_an_error(settings: object, message: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    save_file(peft_layer((2, 8), (8, 2)), tmp_path / "lora.safetensors", metadata=metadata)
    with pytest.raises(UserError, match=message):
        open_pipeline(tiny_pipeline, lora=str(tmp_path / "lora.safetensors"))


def test_file_or_folder_without_a_lora_is_rejected(tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a LoRA: none of its tensors"):
        open_pipeline(tiny_pipeline, lora=str(tiny_pipeline / "unet" / WEIGHTS))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected pytorch_lora_weights\.safetensors or a single"):
        open_pipeline(tiny_pipeline, lora=str(tmp_path / "empty"))


def test_random_weights_keep_the_random_state_and_generate_an_image() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pipeline = load(resolve("scenes-vega", random=True), dtype="bfloat16", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    tensors = [
        tensor
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
        for tensor in part.state_dict().values()
    ]
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    image = generate(pipeline, 64)
    assert image.shape == (1, 3, 64, 64)
    assert image.float().std() > 0.01


def test_rendered_model_cannot_be_loaded() -> None:
    with pytest.raises(UserError, match="images without a model"):
        load(resolve("scenes-rendered"), dtype="float32", device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_device_is_an_error(tiny_pipeline: Path) -> None:
    with pytest.raises(UserError, match="sees no CUDA device; use --device cpu"):
        load(resolve(str(tiny_pipeline)), dtype="float32", device="cuda")


def test_embedded_teacher_loads_and_generates() -> None:
    pipeline = load(resolve("scenes-teacher"), dtype="float32", device="cpu")
    assert torch.isfinite(generate(pipeline, 64)).all()


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "unet" / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / "unet" / WEIGHTS)

    return damage


def _json(file: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, **values)


def _bytes(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_tensors(lambda t: t.pop("conv_in.weight")), r"unet lacks 1 of the 564 tensors .* 'conv_in\.weight'\. Put the config\.json"),
        (_tensors(lambda t: t.update(stray=torch.zeros(1))), r"unet holds 1 of 565 tensors .* not in its configuration, such as 'stray'"),
        (
            _tensors(lambda t: t.update({"conv_out.bias": torch.zeros(5)})),
            rf"{WEIGHTS}: 'conv_out\.bias' has shape \[5\], .* asks for \[4\]",
        ),
        (
            _tensors(lambda t: t["conv_out.bias"].fill_(torch.nan)),
            r"unet of .*: tensor 'conv_out\.bias' has 4 values that are NaN or infinite",
        ),
        (_tensors(lambda t: t["conv_out.bias"][0].fill_(-torch.inf)), r"'conv_out\.bias' has 1 values that are NaN or infinite"),
        (
            _bytes(f"unet/{WEIGHTS}", lambda raw: raw[:-100]),
            rf"{WEIGHTS} was cut short or is damaged: \d+ bytes, its header promises \d+ \(first tensor .*weight",
        ),
        (_bytes(f"unet/{WEIGHTS}", lambda raw: raw[:20]), r"is not a safetensors file \(20 bytes\), or was cut short"),
        (_bytes(f"unet/{WEIGHTS}", lambda _: b""), r"is not a safetensors file \(0 bytes\)"),
        (_bytes(f"vae/{WEIGHTS}", lambda _: b"version https://git-lfs.github.com/spec/v1\n"), "a git-lfs pointer"),
        (lambda folder: (folder / "vae" / WEIGHTS).unlink(), rf"vae has no weights of the vae: expected {WEIGHTS}, found config.json"),
        (
            lambda folder: (folder / "vae" / WEIGHTS).rename(folder / "vae" / "diffusion_pytorch_model.bin"),
            "only pickled weights .*can run code",
        ),
        (lambda folder: shutil.rmtree(folder / "text_encoder_2"), r"cannot read .*text_encoder_2/config\.json"),
        (_bytes("text_encoder/config.json", lambda _: b"[]"), "does not hold a JSON object, found list"),
        (
            _json("model_index.json", _class_name="StableDiffusionPipeline"),
            "describes a 'StableDiffusionPipeline', expected 'StableDiffusionXLPipeline'",
        ),
        (_json("model_index.json", vae=5), r"vae is 5, expected \['diffusers', 'AutoencoderKL'\]"),
        (_json("model_index.json", unet=["my_code", "MyUNet"]), r"unet is \['my_code', 'MyUNet'\], expected .*custom code"),
        (
            _json("model_index.json", scheduler=["my_code", "MyScheduler"]),
            r"scheduler is \['my_code', 'MyScheduler'\], .*custom code",
        ),
        (_json("model_index.json", scheduler=["diffusers", "DiffusionPipeline"]), "scheduler is .*'DiffusionPipeline'"),
        (lambda folder: (folder / "scheduler" / "diffusers.py").touch(), r"scheduler/diffusers\.py is code"),
        (lambda folder: (folder / "tokenizer_2" / "transformers.py").touch(), r"tokenizer_2/transformers\.py is code"),
        (lambda folder: (folder / "text_encoder" / "adapter_config.json").touch(), r"text_encoder holds adapter_config\.json"),
        (
            _json("unet/config.json", layers_per_block=10**9),
            r"unet/config\.json: 'layers_per_block' is 1000000000, expected at most 1,000\.",
        ),
        (_json("vae/config.json", block_out_channels=[16, 10**12]), r"vae/config\.json: 'block_out_channels' is 1000000000000"),
        (_json("text_encoder/config.json", num_hidden_layers=10**6), "'num_hidden_layers' is 1000000"),
        (_json("scheduler/scheduler_config.json", num_train_timesteps=10**9), "'num_train_timesteps' is 1000000000"),
        (_json("tokenizer/tokenizer_config.json", model_max_length=10**30), "'model_max_length' is 1000"),
        (_bytes("vae/config.json", lambda _: b"[" * 10**5), "cannot read .*vae/config.json: maximum recursion depth"),
        (_bytes(f"vae/{WEIGHTS}", lambda _: pickle.dumps(_Spy(), 0)), "is not a safetensors file"),
        (_bytes(f"vae/{WEIGHTS}", lambda _: (10**5).to_bytes(8, "little") + b"[" * 10**5), "is not a safetensors file"),
        (
            _bytes(f"vae/{WEIGHTS}", lambda raw: raw.replace(b'"F32"', b'"F64"')),
            rf"vae/{WEIGHTS} has a damaged safetensors header \(.*offset",
        ),
        (
            _json("scheduler/scheduler_config.json", beta_start="x"),
            r"cannot be loaded \(TypeError: .*\).*; copy its tokenizers and scheduler",
        ),
        (
            _json("model_index.json", scheduler=["diffusers", "NoSuchScheduler"]),
            r"cannot be loaded \(.*NoSuchScheduler.*; copy its tokenizers and scheduler",
        ),
        (
            _json("tokenizer_2/tokenizer_config.json", eos_token="<new>"),
            r"/tokenizer_2 puts the token '<new>' into each prompt, which is not among the \d+ of text_encoder_2; copy",
        ),
        (_json("tokenizer/tokenizer_config.json", bos_token="<new>"), r"/tokenizer puts the token '<new>' .* of text_encoder; copy"),
        (_json("tokenizer/tokenizer_config.json", pad_token="<new>"), r"/tokenizer puts the token '<new>' .* of text_encoder; copy"),
        (_bytes("tokenizer/tokenizer.json", lambda _: b"{}"), r"cannot be loaded \(.*\).*; copy its tokenizers and scheduler"),
        (_json("unet/config.json", block_out_channels=[8, 8]), r"unet/config\.json does not describe a UNet2DConditionModel"),
        (
            _json("unet/config.json", quantization_config={"quant_method": "bitsandbytes"}),
            r"unet is quantised.*sdbench\.evaluate\(pipeline\)",
        ),
        (
            _json("text_encoder/config.json", transformers_weights="other.safetensors"),
            r"names 'other\.safetensors' as 'transformers_weights'",
        ),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), r"/tokenizer is missing or empty; copy it from the base pipeline"),
        (
            lambda folder: [file.unlink() for file in (folder / "tokenizer_2").iterdir()],
            r"/tokenizer_2 is missing or empty; copy it from the base pipeline",
        ),
        (
            lambda folder: [(folder / "tokenizer_2" / name).unlink() for name in ("tokenizer.json", "merges.txt")],
            r"tokenizer_2 has no vocabulary: .* found tokenizer_config\.json, vocab\.json; copy",
        ),
        (lambda folder: (folder / "tokenizer_2" / "tokenizer_config.json").unlink(), r"cannot read .*tokenizer_2/tokenizer_config\.json"),
        (
            lambda folder: (folder / "tokenizer" / "tokenizer_config.json").write_text("{}", encoding="utf-8"),
            r"tokenizer/tokenizer_config\.json has no model_max_length",
        ),
        (lambda folder: shutil.rmtree(folder / "scheduler"), r"cannot read .*scheduler/scheduler_config\.json"),
    ],
)
def test_damaged_folder_is_an_error(pipeline_copy: Path, damage: Callable[[Path], object], message: str) -> None:
    spec = resolve(str(pipeline_copy))
    damage(pipeline_copy)
    with pytest.raises(UserError, match=message):
        load(spec, dtype="float32", device="cpu")
    if "NaN" not in message:  # all but values of weights
        with pytest.raises(UserError, match=message):
            check_headers(spec, dtype="float32")


def test_what_the_libraries_ignore_is_no_reason_to_refuse_a_folder(pipeline_copy: Path, tiny_pipeline: Path) -> None:
    for part in ("unet", "vae", "text_encoder"):
        _json(f"{part}/config.json", quantization_config=None)(pipeline_copy)
    (pipeline_copy / "unet" / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    save_file({"conv_in.lora_A.weight": torch.ones(1)}, pipeline_copy / "unet" / "adapter_model.safetensors")
    for name in ("model.onnx", "model.onnx_data", "flax_model.msgpack", "openvino_model.xml", "openvino_model.bin", "pytorch_model.bin"):
        (pipeline_copy / "text_encoder" / name).touch()
    shutil.copy(pipeline_copy / "vae" / WEIGHTS, pipeline_copy / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    encoder = pipeline_copy / "text_encoder" / "model.safetensors"
    counters = {"text_model.embeddings.position_ids": torch.arange(77)[None]}  # saved by older versions of transformers
    save_file(load_file(encoder) | counters, encoder, metadata={"format": "pt"})
    torch.testing.assert_close(generate(open_pipeline(pipeline_copy)), generate(open_pipeline(tiny_pipeline)), rtol=0, atol=0)


class _Spy:
    """Fails the test where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


def test_header_beyond_the_formats_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(200_000_008)  # takes no room on the disk
    tracemalloc.start()
    with pytest.raises(UserError, match="is not a safetensors file"):
        read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("weights", "index"),
    [
        (WEIGHTS, f"{WEIGHTS}.index.json"),
        ("diffusion_pytorch_model.fp16.safetensors", f"{WEIGHTS}.index.fp16.json"),
        ("diffusion_pytorch_model.fp16.safetensors", f"{WEIGHTS}.fp16.index.json"),
    ],
)
def test_second_copy_which_diffusers_would_load_unchecked_is_refused(pipeline_copy: Path, weights: str, index: str) -> None:
    unet = pipeline_copy / "unet"
    honest = load_file(unet / WEIGHTS)
    (unet / WEIGHTS).rename(unet / weights)
    save_file({name: torch.zeros_like(tensor) for name, tensor in honest.items()}, unet / "other-00001-of-00001.safetensors")
    (unet / index).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(honest, "other-00001-of-00001.safetensors")}), encoding="utf-8"
    )
    with pytest.raises(UserError, match=rf"two copies of the weights of the unet, {weights} and the shards that {index} names"):
        open_pipeline(pipeline_copy)


@pytest.mark.parametrize(("stem", "takes_shards"), [("diffusion_pytorch_model", True), ("model", False)])
def test_of_a_file_and_shards_that_copy_is_fetched_which_the_library_loads(stem: str, takes_shards: bool) -> None:
    shards = {f"{stem}-00001-of-00002.safetensors", f"{stem}-00002-of-00002.safetensors"}
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    choice = choose_weight_files({single, index, *shards, f"{stem}.bin.index.fp16.json"}, stem, sixteen_bit=False)
    assert choice
    assert choice.variant is None
    assert set(choice.names) == ({index} | shards if takes_shards else {single})


def test_parts_that_no_image_needs_are_not_read(pipeline_copy: Path) -> None:
    for part in ("image_encoder", "feature_extractor"):
        _json("model_index.json", **{part: ["code", "Code"]})(pipeline_copy)
        (pipeline_copy / part).mkdir()
        (pipeline_copy / part / "code.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    pipeline = open_pipeline(pipeline_copy)
    assert (pipeline.image_encoder, pipeline.feature_extractor) == (None, None)


@pytest.mark.parametrize("place", ["../unet/{}", "{folder}/unet/{}"])
def test_shards_outside_the_folder_are_not_read(pipeline_copy: Path, place: str) -> None:
    shard = place.format(WEIGHTS, folder=pipeline_copy)
    (pipeline_copy / "vae" / WEIGHTS).unlink()
    (pipeline_copy / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}), encoding="utf-8")
    with pytest.raises(UserError, match=f"names 1 shards, but {shard} is missing"):
        open_pipeline(pipeline_copy)


def test_missing_folder_of_weights_is_called_missing(pipeline_copy: Path) -> None:
    shutil.rmtree(pipeline_copy / "vae")
    with pytest.raises(
        UserError, match=r"there is no folder \S*/vae, which should hold the weights of the vae; copy it from the base pipeline"
    ):
        check_local_files(resolve(str(pipeline_copy)))


def test_text_encoder_without_one_of_its_tensors_is_an_error(pipeline_copy: Path) -> None:
    tensors = load_file(pipeline_copy / "text_encoder" / "model.safetensors")
    tensors.pop("text_model.final_layer_norm.bias")
    save_file(tensors, pipeline_copy / "text_encoder" / "model.safetensors")
    with pytest.raises(UserError, match=r"text_encoder lacks 1 of the .* 'text_model\.final_layer_norm\.bias'"):
        open_pipeline(pipeline_copy)


def test_text_encoder_tensors_may_lack_their_prefix(pipeline_copy: Path, loaded_pipeline: Any) -> None:
    path = pipeline_copy / "text_encoder" / "model.safetensors"
    save_file({name.removeprefix("text_model."): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    torch.testing.assert_close(generate(open_pipeline(pipeline_copy)), generate(loaded_pipeline), rtol=0, atol=1e-5)


def test_old_attention_names_in_the_vae_are_supported(pipeline_copy: Path, loaded_pipeline: Any) -> None:
    path = pipeline_copy / "vae" / WEIGHTS
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, tensor in load_file(path).items():
        old_name = next((name.replace(new, was) for new, was in old.items() if new in name), name)
        renamed[old_name] = tensor
    assert "decoder.mid_block.attentions.0.query.weight" in renamed
    save_file(renamed, path)
    torch.testing.assert_close(generate(open_pipeline(pipeline_copy)), generate(loaded_pipeline), rtol=0, atol=1e-5)


def test_missing_embedded_weights_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdbench.models.locate.WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="embedded weights are part of the package: install it again"):
        load(resolve("scenes-vega"), dtype="float32", device="cpu")


def test_embedded_students_share_the_teachers_parts(teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(teacher_folder, tmp_path / "pipeline")
    tiny_unet("vega", seed=4).save_pretrained(tmp_path / "unets" / "vega")
    monkeypatch.setattr("sdbench.models.locate.WEIGHTS", tmp_path)
    teacher, student = (load(resolve(name), dtype="float32", device="cpu") for name in ("scenes-teacher", "scenes-vega"))
    assert len(teacher.unet.state_dict()) == 1680
    assert len(student.unet.state_dict()) == 564
    torch.testing.assert_close(dict(student.vae.state_dict()), dict(teacher.vae.state_dict()), rtol=0, atol=0)


def test_hub_model_that_was_not_fetched_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="weights of 'segmind/Segmind-Vega' are not on this disk"):
        load(resolve("vega"), dtype="float32", device="cpu")
