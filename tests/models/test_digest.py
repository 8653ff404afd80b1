import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny import edit_json, tiny_unet

from sdbench.errors import UserError
from sdbench.models import digest as module
from sdbench.models.digest import weights_digest
from sdbench.models.headers import Tensor, read_headers
from sdbench.models.resolve import resolve


def digest(path: Path, base: Path | None = None, lora: Path | None = None) -> str | None:
    return weights_digest(resolve(str(path), base=str(base) if base else None, lora=str(lora) if lora else None))


def _nudge(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"][0] += 1e-6
    save_file(tensors, path)


def _rename(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors["text_model.other"] = tensors.pop("text_model.final_layer_norm.bias")
    save_file(tensors, path)


def _set(file: str, **values: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, **values)


@pytest.mark.parametrize(
    "change",
    [
        _nudge,
        _rename,
        _set("unet/config.json", norm_eps=1e-4),
        _set("scheduler/scheduler_config.json", prediction_type="epsilon"),
        _set("model_index.json", force_zeros_for_empty_prompt=False),
        _set("tokenizer_2/tokenizer_config.json", model_max_length=7),
    ],
)
def test_every_change_that_affects_images_changes_the_digest(tiny_pipeline: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    copy = Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))
    assert digest(copy) == digest(tiny_pipeline)
    change(copy)
    assert digest(copy) != digest(tiny_pipeline)


def test_versions_sharding_and_unrelated_files_keep_the_digest(tiny_pipeline: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))
    (copy / "README.md").write_text("notes", encoding="utf-8")
    edit_json(copy / "unet" / "config.json", _diffusers_version="0.1")
    shutil.rmtree(copy / "unet")
    UNet2DConditionModel.from_pretrained(tiny_pipeline / "unet").save_pretrained(copy / "unet", max_shard_size="200KB")
    assert len(list((copy / "unet").glob("*.safetensors"))) > 1
    assert digest(copy) == digest(tiny_pipeline)


def test_base_and_lora_change_the_digest(tiny_pipeline: Path, tmp_path: Path) -> None:
    tiny_unet(seed=1).save_pretrained(tmp_path / "student")
    other = Path(shutil.copytree(tiny_pipeline, tmp_path / "other"))
    _nudge(other)
    assert digest(tmp_path / "student", tiny_pipeline) != digest(tmp_path / "student", other)
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_file({"unet.x.lora_A.weight": torch.full((1,), value)}, tmp_path / f"{name}.safetensors")
    assert len({digest(tiny_pipeline), *(digest(tiny_pipeline, lora=tmp_path / f"{name}.safetensors") for name in "ab")}) == 3


def test_scale_of_a_lora_changes_the_digest(tiny_pipeline: Path, tmp_path: Path) -> None:
    path, found = tmp_path / "lora.safetensors", set()
    for alpha in (None, 1, 8):
        settings = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": alpha})}
        save_file({"unet.x.lora_A.weight": torch.ones(1)}, path, metadata=settings if alpha else None)
        found.add(digest(tiny_pipeline, lora=path))
    assert len(found) == 3


def test_unet_of_the_base_does_not_affect_the_digest(tiny_pipeline: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_pipeline / "unet", tmp_path / "unet")
    assert digest(tmp_path / "unet", tiny_pipeline) == digest(tiny_pipeline)
    edit_json(tmp_path / "unet" / "config.json", norm_eps=1e-4)
    assert digest(tmp_path / "unet", tiny_pipeline) != digest(tiny_pipeline)


def test_random_weights_have_a_digest_and_rendered_models_none() -> None:
    sdxl, again, vega = (weights_digest(resolve(name, random=True)) for name in ("sdxl", "sdxl", "vega"))
    assert sdxl == again != vega
    assert weights_digest(resolve("scenes-rendered")) is None


def test_weights_cut_short_while_they_are_read_are_an_error(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"

    def read_then_cut(files: Iterable[Path]) -> dict[str, Tensor]:
        found = read_headers(files)
        if path in [tensor.path for tensor in found.values()]:
            path.write_bytes(path.read_bytes()[:-1])
        return found

    monkeypatch.setattr(module, "read_headers", read_then_cut)
    with pytest.raises(UserError, match=rf"{path.name} was cut short while it was read"):
        digest(copy)
