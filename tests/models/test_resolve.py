import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from ldm import unet_key
from safetensors.torch import save_file
from tiny import edit_json, tiny_unet

from sdbench.errors import UserError
from sdbench.models.architectures import ldm_depths, unet_config
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.files import LDM_PREFIXES
from sdbench.models.loading import load
from sdbench.models.resolve import check_family, resolve, with_distinct_names
from sdbench.models.spec import ModelSpec


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_catalogue_names_resolve() -> None:
    assert resolve("vega") == ModelSpec("vega", "sdxl", "vega", "hub", "segmind/Segmind-Vega")
    assert resolve("segmind/Segmind-Vega") == resolve("vega")
    assert resolve("scenes-rendered") == ModelSpec("scenes-rendered", "scenes", "", "rendered", "")
    pruned = resolve("scenes-vega-pruned")
    assert (pruned.architecture, pruned.source, pruned.base) == ("vega", "embedded", resolve("scenes-teacher"))
    assert all(resolve(name).name == name for name in CATALOGUE)


def test_random_weights_are_labelled() -> None:
    spec = resolve("ssd-1b", random=True)
    assert spec == ModelSpec("ssd-1b", "sdxl", "ssd-1b", "random", "")
    assert (spec.label, spec.origin, resolve("ssd-1b").label) == ("random weights", "random", "")


def test_folder_resolves_to_its_architecture(tiny_pipeline: Path) -> None:
    spec = resolve(str(tiny_pipeline))
    assert spec == ModelSpec("tiny-vega", "scenes", "vega", "folder", str(tiny_pipeline))
    assert spec.origin == "folder:tiny-vega"


def test_bare_unet_resolves_from_folder_and_file(tiny_pipeline: Path, tmp_path: Path) -> None:
    tiny_unet("ssd-1b").save_pretrained(tmp_path / "student")
    spec = resolve(str(tmp_path / "student"), base=str(tiny_pipeline), name="mine")
    assert spec == ModelSpec("mine", "scenes", "ssd-1b", "unet-folder", str(tmp_path / "student"), resolve(str(tiny_pipeline)))
    file = resolve(str(tmp_path / "student" / "diffusion_pytorch_model.safetensors"), base=str(tiny_pipeline))
    assert (file.source, file.family, file.architecture, file.origin) == (
        "file",
        "scenes",
        "ssd-1b",
        "file:diffusion_pytorch_model.safetensors",
    )


def test_checkpoints_of_one_run_get_distinct_names(tiny_pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1000"
    for name in ("unet", "unet_ema", "unet_target", "student", "final"):
        shutil.copytree(tiny_pipeline / "unet", folder / name)
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "model.safetensors")
    names = {
        folder / "unet": "checkpoint-1000-unet",
        folder / "unet_ema": "checkpoint-1000-unet_ema",
        folder / "unet_target": "checkpoint-1000-unet_target",
        folder / "student": "checkpoint-1000-student",
        folder / "unet" / "diffusion_pytorch_model.safetensors": "checkpoint-1000-unet",
        folder / "model.safetensors": "checkpoint-1000",
        folder / "final": "final",
    }
    assert {path: resolve(str(path), base=str(tiny_pipeline)).name for path in names} == names


def test_checkpoints_of_two_trainings_are_told_apart_by_their_folders(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, deep, later = (
        "run-a/checkpoint-1/unet",
        "run b/checkpoint-1/unet",
        "old/run-a/checkpoint-1/unet",
        "run-a/checkpoint-2/unet",
    )
    for name in (first, second, deep, later):
        shutil.copytree(tiny_pipeline / "unet", tmp_path / name)
    file = f"{first}/diffusion_pytorch_model.safetensors"

    def names(*paths: str) -> list[str]:
        specs = [resolve("scenes-teacher"), *(resolve(str(tmp_path / path), base=str(tiny_pipeline)) for path in paths)]
        teacher, *others = with_distinct_names(specs)
        assert teacher == specs[0]
        return [spec.name for spec in others]

    assert names(first, later) == ["checkpoint-1-unet", "checkpoint-2-unet"], "names that do not clash stay as they are"
    assert capsys.readouterr().err == ""
    assert names(first, second) == names(file, second) == ["run-a-checkpoint-1-unet", "run-b-checkpoint-1-unet"]
    assert "models of one name get their parent folders in front of it: run-a-checkpoint-1-unet, run-b" in capsys.readouterr().err
    assert names(first, deep, later) == [f"{tmp_path.name}-run-a-checkpoint-1-unet", "old-run-a-checkpoint-1-unet", "checkpoint-2-unet"]
    with pytest.raises(UserError, match=r"two models are called 'checkpoint-1-unet': .*unet and .*safetensors; run them one by one, each"):
        names(first, file)


def test_pipelines_of_one_name_are_told_apart_by_their_folder_or_owner(tiny_pipeline: Path, tmp_path: Path) -> None:
    for parent in ("run-a", "run-b"):
        shutil.copytree(tiny_pipeline, tmp_path / parent / "student")
    folders = [resolve(str(tmp_path / parent / "student")) for parent in ("run-a", "run-b")]
    specs = [*folders, resolve("one/mine"), resolve("two/mine")]
    assert [spec.name for spec in with_distinct_names(specs)] == ["run-a-student", "run-b-student", "one-mine", "two-mine"]


def test_loras_of_one_run_get_distinct_names(tmp_path: Path) -> None:
    """diffusers' trainers give one file name to the LoRA of every checkpoint, and those of LCM one folder name too."""
    for folder, name in (("checkpoint-500", "sdxl+checkpoint-500"), ("checkpoint-500/unet_lora", "sdxl+checkpoint-500-unet_lora")):
        file = tmp_path / folder / "pytorch_lora_weights.safetensors"
        file.parent.mkdir()
        file.touch()
        for lora in (file, file.parent):
            assert resolve("sdxl", lora=str(lora)).name == name


def test_original_checkpoint_is_recognised_by_its_keys(teacher_folder: Path, original_checkpoint: Path) -> None:
    spec = resolve(str(original_checkpoint), base=str(teacher_folder))
    assert (spec.name, spec.source, spec.family, spec.architecture) == ("whole", "file", "scenes", "sdxl")
    with pytest.raises(UserError, match=r"holds no configuration and tokenizers; .*--base scenes-teacher"):
        resolve(str(original_checkpoint))


def test_pruned_checkpoint_is_to_be_completed_by_a_pipeline_of_its_own_architecture(tmp_path: Path) -> None:
    """Its configurations are read from there; the teacher's would not fit."""
    for architecture in ("ssd-1b", "koala-700m"):
        config = unet_config(architecture)
        save_ldm_names(ldm_depths(config), config["cross_attention_dim"], tmp_path / "pruned.safetensors")
        with pytest.raises(UserError, match=rf"holds no configuration and tokenizers; .*: for example --base {architecture}$"):
            resolve(str(tmp_path / "pruned.safetensors"))
    depths = ldm_depths(unet_config("vega")) | {"model.diffusion_model.middle_block.1": 3}
    save_ldm_names(depths, 2048, tmp_path / "own.safetensors")
    base = r"a folder with .*--include '\*\.json' --include '\*\.txt' .* in unet/config.json, its own"
    with pytest.raises(UserError, match=rf": for a UNet of a shape of its own, {base}"):
        resolve(str(tmp_path / "own.safetensors"))


def save_ldm_names(depths: dict[str, int], text_width: int, path: Path) -> None:
    """Write a checkpoint in the original (LDM) layout with the names by which one is recognised, and next to no weights."""
    names = [f"{place}.transformer_blocks.{index}.attn2.to_k.weight" for place, depth in depths.items() for index in range(depth)]
    tensors = {prefix: torch.zeros(1) for prefix in LDM_PREFIXES.values()}
    save_file(tensors | {name: torch.zeros(1, text_width) for name in names}, path)


def test_hub_name_resolves_with_and_without_revision() -> None:
    assert resolve("someone/their-sdxl") == ModelSpec("their-sdxl", "sdxl", "custom", "hub", "someone/their-sdxl")
    at = resolve("someone/their-sdxl@runs/step-1000")
    assert (at.name, at.location, at.revision) == ("their-sdxl-runs-step-1000", "someone/their-sdxl", "runs/step-1000")
    with pytest.raises(UserError, match=r"no folder or file 'someone/their-sdxl@'"):
        resolve("someone/their-sdxl@")
    bare = resolve("someone/their-unet", base="scenes-teacher")
    assert (bare.family, bare.base) == ("scenes", resolve("scenes-teacher"))


def test_folder_called_as_an_owner_on_the_hub_hides_only_what_is_not_in_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf download segmind/SSD-1B --local-dir segmind/SSD-1B` makes one."""
    monkeypatch.chdir(tmp_path)
    Path("segmind/SSD-1B").mkdir(parents=True)
    assert resolve("segmind/Segmind-Vega") == resolve("vega")
    taken = r"\. The folder 'segmind' is here, so this was taken for a path; to mean the Hub, run from elsewhere\.$"
    with pytest.raises(UserError, match=rf"^no folder or file 'segmind/tiny-sd@v2'\. .*{taken}"):
        resolve("segmind/tiny-sd@v2")
    with pytest.raises(UserError, match=rf"^no LoRA 'segmind/style': .*{taken}"):
        resolve("vega", lora="segmind/style")
    with pytest.raises(UserError, match=r"owner/name@revision on the Hub\.$"):
        resolve("./segmind/tiny-sd")


def test_lora_is_part_of_the_name(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "style.safetensors").touch()
    spec = resolve(str(tiny_pipeline), lora=str(tmp_path / "style.safetensors"))
    assert (spec.name, spec.lora) == ("tiny-vega+style", str(tmp_path / "style.safetensors"))
    assert spec.origin == "folder:tiny-vega+file:style.safetensors"
    of_hub = resolve("vega", lora="someone/style")
    assert (of_hub.lora, of_hub.origin) == ("someone/style", "hub:segmind/Segmind-Vega+hub:someone/style")


def test_files_in_the_hubs_cache_keep_their_names(tiny_pipeline: Path, tmp_path: Path) -> None:
    """There they are links to files that are called by their digests, without a suffix; `hf download` prints the link."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    save_file(tiny_unet().state_dict(), tmp_path / "blobs" / "0123abcd")
    link = tmp_path / "snapshots" / "student.safetensors"
    link.symlink_to("../blobs/0123abcd")
    spec = resolve(str(link), base=str(tiny_pipeline), lora=str(link))
    assert (spec.name, spec.location, spec.lora) == ("student+student", str(link), str(link))


def test_resolving_imports_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys; from sdbench.models.resolve import resolve; from sdbench.models.digest import weights_digest; "
        "import sdbench.assets.weights; weights_digest(resolve('sdxl', random=True)); "
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("sdlx", {}, "unknown model 'sdlx'; did you mean 'sdxl'"),
        ("~nobody-of-that-name/student", {}, "no folder or file '~nobody-of-that-name/student'"),
        ("./nowhere/at-all", {}, "no folder or file './nowhere/at-all'"),
        ("nowhere.safetensors", {}, "no folder or file 'nowhere.safetensors'"),
        ("sdlx", {"random": True}, "random weights need an architecture .* did you mean 'sdxl'"),
        ("scenes-rendered", {"random": True}, "images without a model"),
        ("sdxl", {"base": "vega"}, "already a complete pipeline; leave --base out"),
        ("sdxl", {"base": "scenes-vega"}, "--base 'scenes-vega' is not a complete pipeline .*such as 'scenes-teacher'"),
        ("sdxl", {"lora": "~nobody-of-that-name/lora"}, "no LoRA '~nobody-of-that-name/lora'"),
        ("sdxl", {"lora": "no-such-lora"}, "no LoRA 'no-such-lora'"),
        ("sdxl", {"lora": "a/b", "random": True}, "--lora needs a model with weights, 'sdxl' is random"),
        ("sdxl", {"name": "../sdxl"}, "cannot name a model"),
        ("sdxl", {"name": "vega"}, "'vega' is the catalogue's name of another model"),
        ("someone/vega", {}, "'vega' is the catalogue's name of another model"),
        ("sdxl", {"name": "sdxl", "lora": "a/b"}, "'sdxl' is the catalogue's name of another model"),
        ("sdxl", {"name": "vega", "random": True}, "'vega' is the catalogue's name of another model"),
        ("sdxl", {"name": "scenes-teacher", "random": True}, "'scenes-teacher' is the catalogue's name of another model"),
        (
            "segmind/Segmind-Vega@old",
            {"name": "vega"},
            r"'vega' is the catalogue's name of another model.*for segmind/Segmind-Vega@old with",
        ),
    ],
)
def test_invalid_names_and_options_are_rejected(what: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(what, **options)


def test_base_of_a_whole_pipeline_is_refused_with_the_way_to_measure_its_unet_alone(tiny_pipeline: Path) -> None:
    unet = tiny_pipeline / "unet"
    with pytest.raises(UserError, match=f"leave --base out, .* to measure its UNet alone, name {re.escape(str(unet))}$"):
        resolve(str(tiny_pipeline), base="scenes-teacher")
    assert resolve(str(unet), base="scenes-teacher").source == "unet-folder"


def test_base_of_another_family_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    tiny_unet(family="sdxl").save_pretrained(tmp_path / "full")
    message = r"full is of family 'sdxl', --base 'scenes-teacher' of 'scenes': .* such as --base sdxl$"
    for what in (tmp_path / "full", tmp_path / "full" / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(UserError, match=message.replace("full is", f"{re.escape(str(what))} is")):
            resolve(str(what), base="scenes-teacher")
        assert resolve(str(what), base="sdxl").family == "sdxl"
    with pytest.raises(UserError, match=r"of family 'scenes', --base 'sdxl' of 'sdxl': .* such as --base scenes-teacher$"):
        resolve(str(tiny_pipeline / "unet"), base="sdxl")
    assert resolve(str(tiny_pipeline / "unet"), base="someone/not-downloaded").family == "scenes"


def test_mistyped_path_error_suggests_a_similar_one(tiny_pipeline: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"did you mean '{tiny_pipeline}'")):
        resolve(str(tiny_pipeline.parent / "tiny-vegs"))


def test_path_that_leads_to_no_file_is_not_suggested_in_its_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, target in (("student", "moved-away"), ("loop", "loop"), ("student.safetensors", "moved-away")):
        Path(name).symlink_to(target)
        for what in (name, f"./{name}", str(tmp_path / name)):
            with pytest.raises(UserError, match=rf"^'{what}' is a link to {target}, which leads to no file or folder; put"):
                resolve(what)
    with pytest.raises(UserError, match=f"^{os.devnull!r} is neither a file nor a folder"):
        resolve(os.devnull)


def test_model_of_no_family_is_told_from_one_of_another(tiny_pipeline: Path, tmp_path: Path) -> None:
    save_file({name: tensor[..., :24].contiguous() for name, tensor in tiny_unet().state_dict().items()}, tmp_path / "narrow.safetensors")
    narrow = resolve(str(tmp_path / "narrow.safetensors"), base=str(tiny_pipeline))
    with pytest.raises(UserError, match=r"narrow\.safetensors: its attentions take text embeddings of width 24, expected 2048 .* or 96 "):
        check_family(narrow, "scenes", "quality")
    with pytest.raises(UserError, match=r"'mine': its UNet takes text embeddings of another width, expected 2048"):
        check_family(ModelSpec("mine", "custom", "custom", "memory", "d16e57"), "sdxl", "standard")
    with pytest.raises(UserError, match="'vega' is of family 'sdxl', suite 'quality' is for 'scenes'"):
        check_family(resolve("vega"), "scenes", "quality")
    check_family(resolve("vega"), "sdxl", "standard")


def test_folders_that_are_not_checkpoints_are_rejected(tiny_pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is not a checkpoint: .*but nothing"):
        resolve(str(tmp_path / "empty"))
    for name in ("unet", "unet_ema"):
        shutil.copytree(tiny_pipeline / "unet", tmp_path / "half" / name)
    shutil.copytree(tiny_pipeline / "vae", tmp_path / "half" / "vae")
    (tmp_path / "half" / "model.safetensors").touch()
    with pytest.raises(
        UserError, match=r"Name what is in it, with --base: \S*half/unet or \S*half/unet_ema or \S*half/model\.safetensors\."
    ):
        resolve(str(tmp_path / "half"))
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").touch()
    (tmp_path / "half" / "pytorch_lora_weights.safetensors").touch()
    with pytest.raises(UserError, match=r"with --base: \S*half/unet or .* It holds a LoRA: name the model"):
        resolve(str(tmp_path / "half"))
    with pytest.raises(
        UserError, match=r"is not a checkpoint: .*safetensors\. It holds a LoRA: name the model that it belongs to, and this folder"
    ):
        resolve(str(tmp_path / "lora"))
    (tmp_path / "peft").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "peft" / name).touch()
    with pytest.raises(UserError, match=r"is not a checkpoint: .*adapter_model\.safetensors\. It is an adapter of peft.*: merge it"):
        resolve(str(tmp_path / "peft"))
    with pytest.raises(UserError, match="describes a 'AutoencoderKL', expected 'UNet2DConditionModel'"):
        resolve(str(tiny_pipeline / "vae"))
    with pytest.raises(UserError, match=r"holds only a UNet; .*for example --base scenes-teacher"):
        resolve(str(tiny_pipeline / "unet"))


def test_config_of_endless_layers_is_refused_before_they_are_counted(tiny_pipeline: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_pipeline / "unet" / "config.json", tmp_path)
    edit_json(tmp_path / "config.json", layers_per_block=10**12)
    with pytest.raises(UserError, match="'layers_per_block' is 1000000000000"):
        resolve(str(tmp_path), base=str(tiny_pipeline))


def test_files_that_are_not_checkpoints_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").touch()
    with pytest.raises(UserError, match="pickled weights can run code"):
        resolve(str(tmp_path / "old.ckpt"))
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(UserError, match=r"recipe.toml is neither a .safetensors file nor a folder in diffusers layout$"):
        resolve(str(tmp_path / "recipe.toml"))
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "style.safetensors")
    with pytest.raises(UserError, match=r"is a LoRA .*with --lora"):
        resolve(str(tmp_path / "style.safetensors"))
    parts = {prefix: torch.zeros(1) for part, prefix in LDM_PREFIXES.items() if part != "vae"}
    save_file(parts, tmp_path / "no-vae.safetensors")
    with pytest.raises(UserError, match=r"only part of an SDXL checkpoint .* has no vae \(first_stage_model\.\*\)\."):
        resolve(str(tmp_path / "no-vae.safetensors"))
    save_file({prefix: torch.zeros(1) for prefix in LDM_PREFIXES.values()} | {"edm_mean": torch.zeros(1)}, tmp_path / "edm.safetensors")
    with pytest.raises(UserError, match=r"is a checkpoint of EDM's kind \(tensor 'edm_mean'\)"):
        resolve(str(tmp_path / "edm.safetensors"))
    save_file({"cond_stage_model.weight": torch.zeros(1)}, tmp_path / "sd15.safetensors")
    with pytest.raises(UserError, match=r"neither a UNet .* nor a whole SDXL checkpoint"):
        resolve(str(tmp_path / "sd15.safetensors"))


def suggested_program(what: Path) -> str:
    """The conversion program in the error message for an unsupported file."""
    with pytest.raises(UserError) as error:
        resolve(str(what))
    found = re.search(r'python -c "(.+)"$', str(error.value))
    assert found, error.value
    return found[1]


def test_suggested_program_converts_pickled_weights(tiny_pipeline: Path, tmp_path: Path) -> None:
    unet = tiny_unet("ssd-1b", seed=3)
    torch.save({"state_dict": unet.state_dict()}, tmp_path / "old.ckpt")
    exec(suggested_program(tmp_path / "old.ckpt"), {})
    converted = load(resolve(str(tmp_path / "old.safetensors"), base=str(tiny_pipeline)), dtype="float32", device="cpu").unet
    torch.testing.assert_close(dict(converted.state_dict()), dict(unet.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("key", ["ema", "state_dict"])
def test_suggested_program_takes_the_weights_from_under_a_key(key: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    unet = tiny_unet(seed=3)
    torch.save({key: {**unet.state_dict(), "decay": 0.999}, "step": 1000}, tmp_path / "step.pt")
    program = suggested_program(tmp_path / "step.pt")
    exec(program, {})  # as it stands, it finds the tensors or none, and does not fail
    exec(program.replace("'state_dict'", repr(key)), {})
    converted = load(resolve(str(tmp_path / "step.safetensors"), base=str(tiny_pipeline)), dtype="float32", device="cpu").unet
    torch.testing.assert_close(dict(converted.state_dict()), dict(unet.state_dict()), rtol=0, atol=0)


def test_averaged_weights_without_names_are_to_be_saved_by_diffusers(tiny_pipeline: Path, tmp_path: Path) -> None:
    """The way out that the message names is one: `save_pretrained` writes the averaged weights as a UNet's folder."""
    unet = tiny_unet(seed=3)
    average = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    torch.save(average.state_dict(), tmp_path / "ema.pt")
    with pytest.raises(UserError, match=r"EMAModel, whose 'shadow_params' have no names, writes them with `save_pretrained`"):
        resolve(str(tmp_path / "ema.pt"))
    average.save_pretrained(str(tmp_path / "folder"))
    saved = load(resolve(str(tmp_path / "folder"), base=str(tiny_pipeline)), dtype="float32", device="cpu").unet
    torch.testing.assert_close(dict(saved.state_dict()), dict(unet.state_dict()), rtol=0, atol=0)


def test_suggested_program_converts_a_unet_in_original_names(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unet = tiny_unet()
    save_file(
        {f"model.diffusion_model.{unet_key(key)}": tensor for key, tensor in unet.state_dict().items()}, tmp_path / "student.safetensors"
    )
    exec(suggested_program(tmp_path / "student.safetensors").replace("stabilityai/stable-diffusion-xl-base-1.0", str(tiny_pipeline)), {})
    converted = load(resolve(str(tmp_path / "student"), base=str(tiny_pipeline)), dtype="float32", device="cpu").unet
    torch.testing.assert_close(dict(converted.state_dict()), dict(unet.state_dict()), rtol=0, atol=0)
