"""Resolves what a user names to a `ModelSpec`: a catalogue name, a folder, a file or a Hub repository."""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from sdbench.errors import CompleteError, IncompleteError, UserError, unknown_name
from sdbench.models.architectures import (
    TOPOLOGIES,
    WIDTHS,
    AnyFamily,
    Family,
    architecture_of,
    depths,
    depths_of_keys,
    family_of,
    ldm_depths,
    unet_config,
)
from sdbench.models.catalogue import CATALOGUE, TEACHERS
from sdbench.models.files import (
    ADAPTER,
    LORA_FILE,
    MERGE_ADAPTER,
    PART_CLASSES,
    PICKLES,
    checkpoint_kind,
    read_config,
    read_model_json,
    strip_prefixes,
    unet_folder,
)
from sdbench.models.headers import Tensor, read_header
from sdbench.models.spec import HUB_NAME, ModelSpec, path_of, snapshot_folder, with_name
from sdbench.notes import print_note

_, UNET_CLASS = PART_CLASSES["unet"]
_AT_REVISION = re.compile(rf"(?P<repository>{HUB_NAME.pattern})(?:@(?P<revision>[\w./-]+))?")
_ADAPTER_FILE = "adapter_model.safetensors"  # of peft
# Names that trainers give to the weights of all checkpoints, and to the folders in them.
_STOCK_FILES = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16", "model", LORA_FILE.removesuffix(".safetensors"))
_STOCK_FOLDERS = ("unet", "unet_ema", "unet_target", "unet_lora", "student")  # the last by `distillation`
OWN_BASE = (  # for a checkpoint in the original (LDM) layout, whose shape no pipeline of the catalogue has
    "for a UNet of a shape of its own, a folder with the .json and .txt files of the pipeline that it was made from (of SDXL: `hf download "
    "stabilityai/stable-diffusion-xl-base-1.0 --include '*.json' --include '*.txt' --local-dir base`) and, in unet/config.json, its own "
    "configuration; no weights are read from it"
)


def resolve(
    what: str,
    *,
    base: "str | ModelSpec | None" = None,
    lora: str | None = None,
    name: str | None = None,
    random: bool = False,
) -> ModelSpec:
    """The spec of what a user names; reads configurations and headers, never weights.

    Args:
        what: catalogue name, path of a pipeline folder, UNet folder or `.safetensors` file, or on the Hub `owner/name` (of a repository
            in the catalogue, the model there), or `owner/name@revision` with a branch, tag or commit.
        base: the pipeline (named in the same way) that completes a bare UNet.
        lora: path or Hub repository of a LoRA to fuse.
        name: the model's name in tables; by default the catalogue's name or the last part of the path, preceded by the parent's name if the
            last part is the same for all checkpoints.
        random: take the architecture of the catalogue's entry, with random weights.

    Raises:
        IncompleteError: it is only part of a pipeline, and no base is given.
        CompleteError: it is a whole pipeline, and a base is given.
        UserError: there is no such model, its files are damaged, or the options do not fit it.
    """
    completion = resolve(base) if isinstance(base, str) else base
    if completion is not None and (completion.base is not None or completion.source in ("random", "rendered", "file")):
        raise UserError(
            f"--base {completion.name!r} is not a complete pipeline with weights in diffusers layout ({completion.source}); "
            f"name one, such as {TEACHERS.get(completion.family, 'sdxl')!r}"
        )
    spec = _random_spec(what) if random else _spec_of(what, completion)
    if lora is not None:
        spec = _with_lora(spec, lora)
    if completion is not None and spec.base != completion:
        alone = f"; to measure its UNet alone, name {Path(spec.location) / 'unet'}" if spec.source == "folder" else ""
        raise CompleteError(f"{what!r} is already a complete pipeline; leave --base out, it only completes a bare UNet{alone}")
    _check_family_of_base(spec)
    return with_name(spec, name)


def with_distinct_names(specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """The specs of models that are measured together; those of one name get as many parent folders in front of it as make them distinct.

    Raises:
        UserError: two still have the same name.
    """
    found = [_behind_parents(spec, [other for other in specs if other.name == spec.name]) for spec in specs]
    for one, other in itertools.combinations(found, 2):
        if one == other:
            raise UserError(f"{one.name!r} is named twice; leave one out")
        if one.name == other.name:
            places = " and ".join(each.location or each.source for each in (one, other))
            raise UserError(f"two models are called {one.name!r}: {places}; run them one by one, each with a --name of its own")
    if renamed := [one.name for one, spec in zip(found, specs, strict=True) if one.name != spec.name]:
        print_note(f"models of one name get their parent folders in front of it: {', '.join(renamed)}")
    return found


def _behind_parents(spec: ModelSpec, namesakes: Sequence[ModelSpec]) -> ModelSpec:
    """The spec, with its name behind the fewest parent folders that tell it from its namesakes; as it was where none do."""
    above = [_parents(each) for each in namesakes]
    depth = next((depth for depth in range(max(map(len, above)) + 1) if len({each[:depth] for each in above}) == len(above)), 0)
    return with_name(replace(spec, name="-".join((*reversed(_parents(spec)[:depth]), spec.name))), None) if depth else spec


def _parents(spec: ModelSpec) -> tuple[str, ...]:
    """The names of the folders above those that a model is named by, the nearest first; on the Hub, that of the owner."""
    path = Path(spec.location)
    if spec.source == "file" and path.stem in _STOCK_FILES:
        path = path.parent
    if spec.source in ("file", "unet-folder") and path.name in _STOCK_FOLDERS:
        path = path.parent
    return tuple(folder.name for folder in path.parents)


def _check_family_of_base(spec: ModelSpec) -> None:
    base = spec.base
    if base is None or "custom" in (spec.family, base.family) or (base.source == "hub" and base.architecture == "custom"):
        return  # the family of a Hub pipeline that is not downloaded is a guess
    if spec.family != base.family:
        raise UserError(
            f"{spec.location} is of family {spec.family!r}, --base {base.name!r} of {base.family!r}: their text embeddings differ in "
            f"width; name the pipeline that it was made from, such as --base {TEACHERS[spec.family]}"
        )


def check_family(spec: ModelSpec, family: Family, suite: str) -> None:
    """Check that a model is of the family of a suite.

    Raises:
        UserError: it is of another, or of none.
    """
    if spec.family == "custom":
        expected = " or ".join(f"{WIDTHS[each]['cross_attention_dim']} (family {each})" for each in get_args(Family))
        raise UserError(
            f"{_describe_text_width(spec)}, expected {expected}: models with other text encoders are not measured; to score their images, "
            "draw them yourself and use `sdbench score`"
        )
    if spec.family != family:
        raise UserError(
            f"{spec.name!r} is of family {spec.family!r}, suite {suite!r} is for {family!r}; rows of two families are never compared"
        )


def _describe_text_width(spec: ModelSpec) -> str:
    """Where a model states the width of the text embeddings that its UNet takes, and the width."""
    if spec.source == "memory":
        return f"{spec.name!r}: its UNet takes text embeddings of another width"
    path = (spec.source == "hub" and snapshot_folder(spec.location, spec.revision)) or Path(spec.location)
    if spec.source == "file":
        widths = _text_widths(strip_prefixes(read_header(path)))
        return f"{path}: its attentions take text embeddings of width {' and '.join(map(str, sorted(widths))) or 'unknown'}"
    config = (unet_folder(path) if spec.base else path / "unet") / "config.json"
    return f"{config}: cross_attention_dim is {read_config(config).get('cross_attention_dim')}"


def _resolve(path: Path) -> Path:
    """The absolute path; a file that is a link stays one, since the Hub's cache has the contents under a name without a suffix."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _spec_of(what: str, base: ModelSpec | None) -> ModelSpec:
    path = path_of(what)
    if what in CATALOGUE:
        return _from_catalogue(what)
    if path.is_dir():
        return _from_folder(_resolve(path), base)
    if path.is_file():
        return _from_file(_resolve(path), base)
    if entry := next((entry for entry in CATALOGUE.values() if (entry.source, entry.location) == ("hub", what)), None):
        return _from_catalogue(entry.name)
    if (match := _AT_REVISION.fullmatch(what)) and not path.parent.is_dir():
        return _from_hub(match["repository"], base, match["revision"])
    raise _not_found(what, path)


def _not_found(what: str, path: Path) -> UserError:
    advice = (
        "A model is a name of the catalogue, the path of a folder in diffusers layout or of a .safetensors file, or owner/name or "
        "owner/name@revision on the Hub."
    )
    if path.is_symlink():
        return UserError(f"{what!r} is a link to {path.readlink()}, which leads to no file or folder; put the link right. {advice}")
    if path.exists():
        return UserError(f"{what!r} is neither a file nor a folder. {advice}")
    if "/" not in what and "\\" not in what and path.suffix != ".safetensors":
        return unknown_name("model", what, CATALOGUE, advice)
    siblings = [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, 1)
    hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else "."
    return UserError(f"no folder or file {what!r}{hint} {advice}{_explain_path(what, path)}")


def _explain_path(what: str, path: Path) -> str:
    """A sentence on a name that may have meant the Hub, but was taken for a path; "" for any other."""
    taken = _AT_REVISION.fullmatch(what) and path.parent.is_dir()
    return f" The folder {str(path.parent)!r} is here, so this was taken for a path; to mean the Hub, run from elsewhere." if taken else ""


def _from_catalogue(name: str) -> ModelSpec:
    entry = CATALOGUE[name]
    base = _from_catalogue(TEACHERS["scenes"]) if entry.location.startswith("unets/") else None
    return ModelSpec(name, entry.family, entry.architecture, entry.source, entry.location, base)


def _random_spec(what: str) -> ModelSpec:
    if what not in CATALOGUE:
        raise UserError(
            "random weights need an architecture of the catalogue: "
            f"{unknown_name('model', what, (name for name, e in CATALOGUE.items() if e.architecture))}"
        )
    entry = CATALOGUE[what]
    if entry.source == "rendered":
        raise UserError(f"{what!r} is images without a model, so it has no weights to draw at random; name a model, such as 'sdxl'")
    return ModelSpec(what, entry.family, entry.architecture, "random", "")


def _from_folder(folder: Path, base: ModelSpec | None) -> ModelSpec:
    if (folder / "model_index.json").is_file():
        config = read_config(folder / "unet" / "config.json")
        return ModelSpec(folder.name, family_of(config), architecture_of(config), "folder", str(folder))
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is not a checkpoint: it holds neither model_index.json (a pipeline) nor config.json (a UNet), "
            f"but {', '.join(sorted(entry.name for entry in folder.iterdir())[:5]) or 'nothing'}.{_advise_contents(folder)}"
        )
    config = read_config(folder / "config.json")
    if config.get("_class_name") != UNET_CLASS:
        raise UserError(
            f"{folder / 'config.json'} describes a {config.get('_class_name')!r}, expected {UNET_CLASS!r} or, for a complete pipeline, a "
            "model_index.json beside it"
        )
    family = family_of(config)
    return ModelSpec(
        _checkpoint_name(folder), family, architecture_of(config), "unet-folder", str(folder), _require_base(base, folder, family)
    )


def _checkpoint_name(path: Path) -> str:
    """A name that differs between checkpoints: `checkpoint-1000-unet` for `checkpoint-1000/unet` and for the weights in it."""
    if path.is_file():
        return _checkpoint_name(path.parent) if path.stem in _STOCK_FILES else path.stem
    return f"{path.parent.name}-{path.name}" if path.name in _STOCK_FOLDERS else path.name


def _advise_contents(folder: Path) -> str:
    """Sentences that name the UNets and the LoRA in a folder; "" if there are none."""
    unets = sorted(config.parent for config in folder.glob("*/config.json") if read_model_json(config).get("_class_name") == UNET_CLASS)
    files = sorted(path for path in folder.glob("*.safetensors") if path.name not in (LORA_FILE, _ADAPTER_FILE))
    candidates = [str(path) for path in (*unets, *files)]
    advice = f" Name what is in it, with --base: {' or '.join(candidates)}." if candidates else ""
    if (folder / ADAPTER).is_file():
        return f"{advice} {MERGE_ADAPTER}"
    return (
        f"{advice} It holds a LoRA: name the model that it belongs to, and this folder with --lora."
        if (folder / LORA_FILE).is_file()
        else advice
    )


def _from_file(path: Path, base: ModelSpec | None) -> ModelSpec:
    if path.suffix not in (".safetensors", *PICKLES):
        raise UserError(f"{path} is neither a .safetensors file nor a folder in diffusers layout")
    if path.suffix in PICKLES:
        raise UserError(
            f"{path} is not a .safetensors file; pickled weights can run code and are not read. Write its tensors to one, with the program "
            "below; where they lie under another key than 'state_dict', such as 'ema', put that in its place. A diffusers EMAModel, whose "
            "'shadow_params' have no names, writes them with `save_pretrained`: name that folder. python -c "
            f'"import torch; from safetensors.torch import save_file; '
            f"found = torch.load({str(path)!r}, map_location='cpu', weights_only=True); "
            "found = found.get('state_dict', found); "
            "save_file({name: tensor.clone() for name, tensor in found.items() if torch.is_tensor(tensor)}, "
            f'{str(path.with_suffix(".safetensors"))!r})"'
        )
    tensors = strip_prefixes(read_header(path))
    ldm = checkpoint_kind(path, tensors) == "checkpoint"
    family, architecture = _family_of_tensors(tensors), _architecture_of_tensors(tensors, ldm=ldm)
    if base is None and ldm:
        raise IncompleteError(
            f"{path} holds no configuration and tokenizers; name the pipeline that completes it with --base: "
            f"{example_base(tensors) or OWN_BASE}"
        )
    return ModelSpec(_checkpoint_name(path), family, architecture, "file", str(path), _require_base(base, path, family))


def _architecture_of_tensors(tensors: Mapping[str, Tensor], *, ldm: bool) -> str:
    actual, expected = depths_of_keys(tensors), ldm_depths if ldm else depths
    return next((name for name in TOPOLOGIES if expected(unet_config(name)) == actual), "custom")


def _family_of_tensors(tensors: Mapping[str, Tensor]) -> AnyFamily:
    widths = _text_widths(tensors)
    return family_of({"cross_attention_dim": widths.pop()}) if len(widths) == 1 else "custom"


def _text_widths(tensors: Mapping[str, Tensor]) -> set[int]:
    """The widths of the text embeddings that the attentions of a UNet take."""
    ending = ".transformer_blocks.0.attn2.to_k.weight"  # width of the UNet x width of the text
    return {tensor.shape[-1] for name, tensor in tensors.items() if name.endswith(ending)}


def example_base(tensors: Mapping[str, Tensor]) -> str | None:
    """The option for the catalogue's pipeline of a checkpoint's architecture, in the original (LDM) layout; None where there is none."""
    kind = _family_of_tensors(tensors), _architecture_of_tensors(tensors, ldm=True)
    names = (entry.name for entry in CATALOGUE.values() if (entry.family, entry.architecture) == kind)
    complete = next((name for name in names if _from_catalogue(name).base is None), None)
    return f"for example --base {complete}" if complete else None


def _require_base(base: ModelSpec | None, path: Path, family: AnyFamily) -> ModelSpec:
    if base is not None:
        return base
    example = TEACHERS.get(family)
    advice = f"for example --base {example}" if example else "the pipeline it was made from"
    raise IncompleteError(f"{path} holds only a UNet; name the pipeline that completes it with --base: {advice}")


def _from_hub(repository: str, base: ModelSpec | None, revision: str | None) -> ModelSpec:
    name = "@".join(filter(None, [repository.split("/")[1], revision]))
    folder = snapshot_folder(repository, revision)
    if folder and (folder / "model_index.json").is_file():
        base = None  # which a complete pipeline does not take
    spec = ModelSpec(name, base.family if base else "sdxl", "custom", "hub", repository, base, revision=revision)
    if folder is None or not (config := (unet_folder(folder) if base else folder / "unet") / "config.json").is_file():
        return spec  # its architecture is known once it is downloaded
    content = read_config(config)
    return replace(spec, family=family_of(content), architecture=architecture_of(content))


def with_cached_architecture(spec: ModelSpec) -> ModelSpec:
    """The spec of a Hub model with its configuration's family and architecture, if that was downloaded since; any other spec unchanged."""
    if spec.source != "hub":
        return spec
    cached = _from_hub(spec.location, spec.base, spec.revision)
    return replace(spec, family=cached.family, architecture=cached.architecture) if cached.architecture != "custom" else spec


def _with_lora(spec: ModelSpec, lora: str) -> ModelSpec:
    if spec.source in ("random", "rendered"):
        raise UserError(f"--lora needs a model with weights, {spec.name!r} is {spec.source}")
    path = path_of(lora)
    if path.exists():
        resolved = _resolve(path)
        return replace(spec, name=f"{spec.name}+{_checkpoint_name(resolved)}", lora=str(resolved))
    if HUB_NAME.fullmatch(lora) and not path.parent.is_dir():
        return replace(spec, name=f"{spec.name}+{path.name}", lora=lora)
    raise UserError(
        f"no LoRA {lora!r}: it is the path of a .safetensors file or of a folder that holds one, or owner/name on the Hub."
        f"{_explain_path(lora, path)}"
    )
