import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hub import COMMIT, Hub, serving
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors.torch import load_file, save, save_file
from tiny import edit_json, save_tiny_pipeline, tiny_unet

from sdbench.assets import pipelines
from sdbench.errors import UserError
from sdbench.models.digest import weights_digest
from sdbench.models.loading import load
from sdbench.models.locate import locate
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec
from sdbench.run.context import RunContext
from sdbench.run.plan import plan
from sdbench.run.runner import fetch_models
from sdbench.settings import Setting
from sdbench.suites import load as load_suite

NAME = "someone/tiny"


def unreachable(*_: Any, **__: Any) -> None:
    raise ConnectionError("no route to host")


@pytest.fixture(scope="module")
def repository(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 32-bit, 16-bit and pickled weights."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(tiny_pipeline, folder, dirs_exist_ok=True)
    for path in list(folder.rglob("*.safetensors")):
        halves = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halves, path.with_name(f"{path.stem}.fp16.safetensors"), metadata={"format": "pt"})
        shutil.copy(path, path.with_suffix(".bin"))
    (folder / "README.md").write_text("a card", encoding="utf-8")
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that serves a copy of the repository."""
    with serving(tmp_path, monkeypatch) as server:
        shutil.copytree(repository, server.root / NAME)
        yield server


def fetched_files(hub: Hub) -> set[str]:
    """Names of the files that were downloaded from the repository."""
    return {path.removeprefix(f"{NAME}/") for path in hub.hits}


def snapshot_folder(tmp_path: Path) -> Path:
    """The repository's folder in the cache."""
    return tmp_path / "cache" / "models--someone--tiny" / "snapshots" / COMMIT


@pytest.mark.parametrize(("dtype", "suffix"), [("float32", ""), ("bfloat16", ".fp16"), ("float16", ".fp16")])
def test_only_configs_and_one_copy_of_the_weights_are_listed(hub: Hub, dtype: str, suffix: str) -> None:
    files = pipelines.required_files(resolve(NAME), dtype=dtype)
    assert {file.name for file in files if "safetensors" in file.name} == {
        f"unet/diffusion_pytorch_model{suffix}.safetensors",
        f"vae/diffusion_pytorch_model{suffix}.safetensors",
        f"text_encoder/model{suffix}.safetensors",
        f"text_encoder_2/model{suffix}.safetensors",
    }
    others = {file.name for file in files if "safetensors" not in file.name}
    assert {"model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt"} < others
    assert "README.md" in others  # names the licence
    assert not any(name.endswith(".bin") for name in others)
    assert all(file.size_bytes == (hub.root / NAME / file.name).stat().st_size and not file.cached for file in files)


@pytest.mark.parametrize("name", [NAME, f"{NAME}@v2"])
def test_pipeline_is_fetched_once_and_then_loaded_from_the_cache(name: str, hub: Hub) -> None:
    spec = resolve(name)
    assert not pipelines.is_cached(spec, dtype="float16")
    pipelines.fetch(spec, dtype="float16")
    requests = hub.hits.copy()
    pipelines.fetch(spec, dtype="float16")
    assert hub.hits == requests
    assert pipelines.is_cached(spec, dtype="float16")
    assert all(file.cached for file in pipelines.required_files(spec, dtype="float16"))
    found = resolve(name)
    assert (found.family, found.architecture, found.origin) == ("scenes", "vega", f"hub:{NAME}@{COMMIT}")
    assert resolve(f"{NAME}@v3").origin == f"hub:{NAME}", "that revision is not cached"
    assert load(found, dtype="bfloat16", device="cpu").unet.dtype.itemsize == 2


def test_float32_run_fetches_the_32_bit_copy_even_if_the_16_bit_one_is_cached(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = resolve(NAME)
    pipelines.fetch(spec, dtype="float16")
    assert not pipelines.is_cached(spec, dtype="float32")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.HfApi.model_info", unreachable)
        pipelines.fetch(spec, dtype="float32")
    warning = capsys.readouterr().err
    assert warning.startswith(
        "tiny: using its 16-bit copy, the only one on this disk. cannot fetch 'someone/tiny' from the Hub (ConnectionError: no route"
    )
    pipelines.fetch(spec, dtype="float32")
    assert pipelines.is_cached(spec, dtype="float32")
    assert "unet/diffusion_pytorch_model.safetensors" in fetched_files(hub)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", [NAME, f"{NAME}@main"])
def test_another_copy_is_fetched_at_the_commit_of_the_first(name: str, hub: Hub, tmp_path: Path) -> None:
    spec = resolve(name)
    pipelines.fetch(spec, dtype="float16")
    before = weights_digest(spec, dtype="float16")
    hub.commit = "d" * 40
    pipelines.fetch(spec, dtype="float32")
    assert pipelines.is_cached(spec, dtype="float32")
    assert weights_digest(spec, dtype="float16") == before != weights_digest(spec, dtype="float32")
    assert spec.origin == f"hub:{NAME}@{COMMIT}"
    assert [*snapshot_folder(tmp_path).parent.iterdir()] == [snapshot_folder(tmp_path)]


def test_float32_run_uses_16_bit_weights_of_a_repository_without_others(hub: Hub) -> None:
    for path in (hub.root / NAME).rglob("*.safetensors"):
        if ".fp16" not in path.name:
            path.unlink()
    spec = resolve(NAME)
    for _ in range(2):
        pipelines.fetch(spec, dtype="float32")
    assert load(spec, dtype="float32", device="cpu").unet is not None


def test_licence_files_that_diffusers_did_not_cache_are_fetched_or_reported_missing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (hub.root / NAME / "LICENSE.md").write_text("its text", encoding="utf-8")
    spec = resolve(NAME)
    pipelines.fetch_card(spec)  # nothing is cached yet, so there is no licence to fetch
    pipelines.fetch(spec, dtype="float32")
    for card in ("README.md", "LICENSE.md"):
        (snapshot_folder(tmp_path) / card).resolve().unlink()
        (snapshot_folder(tmp_path) / card).unlink()
    hub.hits.clear()
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", unreachable)
        pipelines.fetch_card(spec)
    assert "tiny: no README.md in " in capsys.readouterr().err
    for _ in range(2):
        pipelines.fetch_card(spec)
    assert fetched_files(hub) == {"LICENSE.md", "README.md"}
    assert hub.hits.total() == 2


@pytest.mark.usefixtures("hub")
def test_base_is_fetched_without_its_unet(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "student")
    spec = resolve(str(tmp_path / "student"), base=NAME)
    names = {file.name for file in pipelines.required_files(spec, dtype="float32")}
    assert "unet/diffusion_pytorch_model.safetensors" not in names
    assert {"vae/diffusion_pytorch_model.safetensors", "model_index.json"} < names
    pipelines.fetch(spec, dtype="float32")
    assert load(spec, dtype="float32", device="cpu").unet is not None


@pytest.mark.usefixtures("hub")
def test_interrupted_download_does_not_count_as_cached(tmp_path: Path) -> None:
    spec = resolve(NAME)
    pipelines.fetch(spec, dtype="float32")
    (snapshot_folder(tmp_path) / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert not pipelines.is_cached(spec, dtype="float32")


def test_repository_without_safetensors_is_an_error(hub: Hub) -> None:
    for path in (hub.root / NAME).glob("vae/*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match=r"'someone/tiny' has no vae/diffusion_pytorch_model\.safetensors"):
        pipelines.required_files(resolve(NAME), dtype="float32")


def test_pipeline_of_the_hub_takes_no_base(hub: Hub) -> None:
    message = r"'someone/tiny' is already a complete pipeline; leave --base out"
    with pytest.raises(UserError, match=message):
        pipelines.fetch(resolve(NAME, base="scenes-teacher"), dtype="float32")
    assert not hub.hits
    pipelines.fetch(resolve(NAME), dtype="float32")
    with pytest.raises(UserError, match=message):
        resolve(NAME, base="scenes-teacher")


def test_pipeline_of_another_kind_is_refused_by_the_listing(hub: Hub) -> None:
    edit_json(hub.root / NAME / "model_index.json", _class_name="StableDiffusionXLInpaintPipeline")
    for name in ("text_encoder_2", "tokenizer_2"):
        shutil.rmtree(hub.root / NAME / name)  # a pipeline of another kind need not have the same parts
    for look in (pipelines.fetch, pipelines.missing_files):
        with pytest.raises(UserError, match=r"'someone/tiny' is a 'StableDiffusionXLInpaintPipeline', expected 'StableDiffusionXLPipe"):
            look(resolve(NAME), dtype="float32")
    assert not hub.hits


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("model_index.json", {"vae": ["own_code", "Autoencoder"]}, r"model_index\.json: vae is \['own_code', 'Autoencoder'\]"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**9}, "'model_max_length' is 1000000000"),
        ("unet/config.json", {"quantization_config": {"load_in_4bit": True}}, "unet is quantised"),
    ],
)
def test_pipeline_that_cannot_be_measured_is_refused_before_its_weights_are_fetched(
    file: str, values: dict[str, Any], message: str, hub: Hub
) -> None:
    edit_json(hub.root / NAME / file, **values)
    with pytest.raises(UserError, match=message):
        pipelines.fetch(resolve(NAME), dtype="float32")
    assert file in fetched_files(hub)
    assert not any(name.endswith(".safetensors") for name in fetched_files(hub))


def test_quantised_unet_is_refused_before_its_weights_are_fetched(hub: Hub) -> None:
    for place in ("root", "folder/unet"):
        tiny_unet().save_pretrained(hub.root / "someone" / place)
        edit_json(hub.root / "someone" / place / "config.json", quantization_config={})
    for name in ("someone/root", "someone/folder"):
        with pytest.raises(UserError, match="is quantised"):
            pipelines.fetch(resolve(name, base="scenes-teacher"), dtype="float32")
    assert sorted(hub.hits) == ["someone/folder/unet/config.json", "someone/root/config.json"]


def test_repository_of_single_files_is_refused_with_the_way_to_measure_one(hub: Hub) -> None:
    hub.put("someone/files/config.json", b"{}")
    for step in range(14):
        hub.put(f"someone/files/checkpoint-{step:02}/unet/diffusion_pytorch_model.safetensors", b"gigabytes")
    hub.put("someone/files/a_4step_unet.ckpt", b"gigabytes")
    found = (
        r".*\. It holds a_4step_unet\.ckpt, checkpoint-00/unet/diffusion_pytorch_model\.safetensors, .* and 3 more\. "
        r".*`hf download someone/files FILE --local-dir \.`, .* name it$"
    )
    with pytest.raises(UserError, match=rf"^repository 'someone/files' has no model_index\.json, which .* needs --base\){found}"):
        pipelines.fetch(resolve("someone/files"), dtype="float32")
    with pytest.raises(UserError, match=rf"^repository 'someone/files' has no diffusion_pytorch_model\.safetensors{found}"):
        pipelines.fetch(resolve("someone/files", base="scenes-teacher"), dtype="float32")
    assert not hub.hits


@pytest.mark.parametrize("error", [OfflineModeIsEnabled("offline mode is enabled"), ConnectionError("no route to host")])
def test_offline_error_has_a_command_for_the_needed_files_and_their_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(UserError) as found:
        pipelines.fetch(resolve("vega"), dtype="float16")
    message = str(found.value)
    assert all(
        part in message
        for part in (
            "segmind/Segmind-Vega",
            str(error),
            "about 3.3 GB",
            "`hf download segmind/Segmind-Vega '--include=*.json' '--include=*.txt' ",
            "'--include=unet/diffusion_pytorch_model*.safetensors'",
            "name that folder",
        )
    )


def test_command_of_the_offline_error_fetches_what_a_run_needs_and_little_else(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(f"{NAME}/sd_xl_base_1.0.safetensors", b"gigabytes")
    hub.put("someone/loras/pytorch_lora_weights.safetensors", b"the LoRA")
    hub.put("someone/loras/other.safetensors", b"gigabytes")
    for place in ("someone/unet", "someone/unet2/unet"):
        tiny_unet().save_pretrained(hub.root / place)
    local = save_tiny_pipeline(tmp_path / "local")
    for spec in (
        resolve(NAME),
        resolve("someone/unet", base=str(local)),
        resolve("someone/unet2", base=str(local)),
        resolve(str(local), lora="someone/loras"),
    ):
        needed = {
            f"{file.repository}/{file.name}" for dtype in ("float32", "float16") for file in pipelines.required_files(spec, dtype=dtype)
        }
        with monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.HfApi.model_info", unreachable)
            with pytest.raises(UserError, match=r"no route to host\). Needed is what `hf download ") as found:
                pipelines.fetch(spec, dtype="float32")
        _, _, repository, *options = shlex.split(str(found.value).split("`")[1])
        patterns = [option.removeprefix("--include=") for option in options]
        names = {path.relative_to(hub.root).as_posix() for path in (hub.root / repository).rglob("*") if path.is_file()}
        assert {name for name in names if any(fnmatch(name, f"{repository}/{pattern}") for pattern in patterns)} == needed


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("RepoNotFound", r"^there is no 'someone/tiny' on the Hub, or it is private: check the name, or `hf auth login`$"),
        ("GatedRepo", r"^'someone/tiny' is gated: accept its terms at http.*/someone/tiny, then `hf auth login`$"),
        ("RevisionNotFound", r"^'someone/tiny' has no revision 'v9' on the Hub$"),
    ],
)
def test_refusal_of_the_hub_is_told_from_a_lack_of_network(code: str, message: str, hub: Hub) -> None:
    hub.refusals[NAME] = code
    with pytest.raises(UserError, match=message):
        pipelines.fetch(resolve(f"{NAME}@v9"), dtype="float32")


@pytest.mark.usefixtures("hub")
def test_plan_of_cached_models_makes_no_requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = resolve(NAME)
    context = RunContext(load_suite("quality"), "cpu", tmp_path, tmp_path, "probes")
    assert len(plan([spec], context)["files"]) > 4
    pipelines.fetch(spec, dtype="float32")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("network access"))
    assert plan([spec], context)["files"] == []


@pytest.mark.usefixtures("hub")
def test_plan_lists_each_file_that_the_run_fetches_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("one", "two"):
        tiny_unet().save_pretrained(tmp_path / name)
    specs = [resolve(str(tmp_path / name), base=NAME) for name in ("one", "two")]
    suite = load_suite("quality")
    assert suite.probes
    suite = suite.model_copy(
        update={
            "sampling": suite.sampling.model_copy(update={"dtype": "bfloat16"}),
            "probes": suite.probes.model_copy(update={"settings": (Setting(dtype="float32"),)}),
        }
    )

    context = RunContext(suite, "cpu", tmp_path, tmp_path, "probes")
    planned = [file["name"] for file in plan(specs, context)["files"]]
    fetch_models(specs, context)
    folder = snapshot_folder(tmp_path)
    assert sorted(planned) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    weights = [path for path in planned if path.endswith(".safetensors")]
    assert len(weights) == 3
    assert all(".fp16." in path for path in weights), "a timing in float32 needs no 32-bit copy"
    assert load(specs[0], dtype="float32", device="cpu").vae.dtype.itemsize == 4
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    for dtype in ("bfloat16", "float32"):  # the latter would use the 16-bit copy
        of_dtype = suite.model_copy(update={"sampling": suite.sampling.model_copy(update={"dtype": dtype})})
        assert plan(specs, replace(context, suite=of_dtype))["files"] == []


def test_models_from_elsewhere_need_no_hub_files(tiny_pipeline: Path) -> None:
    for spec in (resolve(str(tiny_pipeline)), resolve("sdxl", random=True), resolve("scenes-rendered")):
        assert pipelines.required_files(spec, dtype="float32") == []
        assert pipelines.is_cached(spec, dtype="float32")
        pipelines.fetch(spec, dtype="float32")


def test_lora_of_the_hub_is_chosen_before_anything_is_fetched(hub: Hub, tiny_pipeline: Path) -> None:
    for name in ("two_step_lora.safetensors", "four_step_lora.safetensors", "four_step_unet.safetensors", "more/other.safetensors"):
        hub.put(f"someone/loras/{name}", b"gigabytes")
    spec = resolve(str(tiny_pipeline), lora="someone/loras")
    message = (
        r"'someone/loras': expected pytorch_lora_weights\.safetensors or a single \.safetensors file in its root, found "
        r"four_step_lora\.safetensors, four_step_unet\.safetensors, two_step_lora\.safetensors\. "
        r".*`hf download someone/loras FILE --local-dir \.`, and name it with --lora FILE$"
    )
    for look in (pipelines.fetch, pipelines.required_files):
        with pytest.raises(UserError, match=message):
            look(spec, dtype="float32")
    assert not hub.hits
    hub.put("someone/loras/pytorch_lora_weights.safetensors", b"the LoRA")
    assert [file.name for file in pipelines.required_files(spec, dtype="float32")] == ["pytorch_lora_weights.safetensors"]
    hub.put("someone/single/style.safetensors", b"the LoRA")
    single = pipelines.required_files(resolve(str(tiny_pipeline), lora="someone/single"), dtype="float32")
    assert [file.name for file in single] == ["style.safetensors"]


def test_lora_of_the_hub_does_not_depend_on_what_the_cache_has_of_its_repository(
    hub: Hub, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cached(repository: str, *names: str) -> ModelSpec:
        """A model with a LoRA of a repository that has files of these names, of which another program cached the first."""
        for name in names:
            hub.put(f"someone/{repository}/{name}", save({"unet.conv_in.lora_A.weight": torch.zeros(1)}))
        huggingface_hub.hf_hub_download(f"someone/{repository}", names[0])
        return resolve(str(tiny_pipeline), lora=f"someone/{repository}")

    spec = cached("several", "two_step_lora.safetensors", "four_step_lora.safetensors")
    for look in (pipelines.fetch, pipelines.missing_files):
        with pytest.raises(UserError, match=r"LoRA 'someone/several': expected .*, found four_step_lora\.safetensors, two_step_lora"):
            look(spec, dtype="float32")
    spec = cached("standard", "two_step_lora.safetensors", "pytorch_lora_weights.safetensors")
    pipelines.fetch(spec, dtype="float32")
    file = locate(spec).lora
    assert file
    assert file.name == "pytorch_lora_weights.safetensors"
    assert spec.origin == f"folder:tiny-vega+hub:someone/standard@{COMMIT}"
    single = cached("single", "style.safetensors")
    pipelines.fetch(single, dtype="float32")
    assert "on this disk" not in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    assert pipelines.is_cached(spec, dtype="float32")
    assert pipelines.missing_files(single, dtype="float32") == []
    pipelines.fetch(single, dtype="float32")
    note = "tiny-vega+single: using style.safetensors, the only one on this disk. cannot fetch 'someone/single' from the Hub (ConnectionErr"
    assert note in capsys.readouterr().err
