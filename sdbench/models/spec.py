"""What a model to measure is, and what it may be called."""

import re
from dataclasses import dataclass, replace
from os.path import expanduser
from pathlib import Path

from sdbench.errors import UserError
from sdbench.models.architectures import AnyFamily, Family
from sdbench.models.catalogue import CATALOGUE, Entry, Source

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
NAME_RULE = "use only letters, digits and .+-_, a letter or digit first"  # in words
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
RANDOM_LABEL = "random weights"


@dataclass(frozen=True)
class ModelSpec:
    """A model to measure.

    Attributes:
        name: the model's name in tables.
        architecture: a name in `architectures.TOPOLOGIES`, "custom", or "" for images without a model.
        location: Hub repository, absolute path, or folder of the embedded weights; for a pipeline in memory its digest; ""
            for random and rendered.
        base: the pipeline that supplies text encoders, VAE and scheduler if `location` is only a UNet; for a checkpoint in
            one file, it supplies only configuration and tokenizers.
        lora: absolute path or Hub repository of a LoRA that is fused into the weights.
        revision: branch, tag or commit of a Hub repository; None for the newest.
    """

    name: str
    family: AnyFamily
    architecture: str
    source: Source
    location: str
    base: "ModelSpec | None" = None
    lora: str | None = None
    revision: str | None = None

    @property
    def known_family(self) -> Family:
        """The family of a model of the catalogue, or of one with random weights: its other networks are known too."""
        assert self.family != "custom"
        return self.family

    @property
    def label(self) -> str:
        """A warning that tables show beside the name: `RANDOM_LABEL` for random weights, otherwise ""."""
        return RANDOM_LABEL if self.source == "random" else ""

    @property
    def origin(self) -> str:
        """The source as written to records: `hub:<repo>[@<commit>]`, `folder:<name>`, `file:<name>`, or just `source`.

        It ends with that of a LoRA, after a `+`.
        """
        if self.lora:
            is_local = Path(self.lora).is_absolute()
            return f"{replace(self, lora=None).origin}+{f'file:{Path(self.lora).name}' if is_local else _hub_origin(self.lora)}"
        match self.source:
            case "hub":
                return _hub_origin(self.location, self.revision)
            case "folder" | "unet-folder":
                return f"folder:{Path(self.location).name}"
            case "file":
                return f"file:{Path(self.location).name}"
        return self.source


def path_of(what: str) -> Path:
    """The path that a user names, where `~` is a home folder; the home of an unknown user stays as it is, and so is not found."""
    return Path(expanduser(what))  # noqa: PTH111  # Path.expanduser raises a RuntimeError


def _hub_origin(repository: str, revision: str | None = None) -> str:
    folder = snapshot_folder(repository, revision)
    return f"hub:{repository}" + (f"@{folder.name}" if folder else "")


def snapshot_folder(repository: str, revision: str | None) -> Path | None:
    """The folder of a downloaded Hub repository, named by its commit; None if it is not on this disk."""
    from sdbench.models import hub  # the import takes half a second, which a gate on names does not need

    return hub.cached_snapshot(repository, revision)


def with_name(spec: ModelSpec, name: str | None) -> ModelSpec:
    """The spec under another name, or under its own name made safe for file names.

    Raises:
        UserError: the name cannot be part of a file name, or is another model's in the catalogue.
    """
    chosen = name or re.sub(r"[^\w.+-]+", "-", spec.name).lstrip(".-_+")
    if not NAME.fullmatch(chosen):
        raise UserError(f"{chosen or spec.name!r} cannot name a model: {NAME_RULE}; choose another name with --name")
    if (entry := CATALOGUE.get(chosen)) and not _is_entry(spec, entry):
        raise UserError(
            f"{chosen!r} is the catalogue's name of another model ({entry.location or entry.source}); choose one for "
            f"{'@'.join(filter(None, [spec.location or spec.architecture, spec.revision]))} with --name"
        )
    return replace(spec, name=chosen)


def _is_entry(spec: ModelSpec, entry: Entry) -> bool:
    """Whether a model may have the name of an entry of the catalogue, by which the gate finds its records."""
    if spec.source == "random":
        return (spec.family, spec.architecture) == (entry.family, entry.architecture)
    return (spec.source, spec.location, spec.revision, spec.lora) == (entry.source, entry.location, None, None)
