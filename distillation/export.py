"""Students on disk: a diffusers folder with a record of how the student was made and a model card."""

import glob
import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from filelock import FileLock
from safetensors import SafetensorError

from distillation.provenance import Provenance, model_card
from distillation.teacher import Teacher
from sdbench.disk import locked
from sdbench.errors import UserError
from sdbench.models.files import part_files

INDEX = "model_index.json"
EXPORTING = "exporting.lock"  # held while its folder is filled


def export_student(
    student: UNet2DConditionModel,
    out: Path,
    teacher: Teacher,
    provenance: Provenance,
    *,
    logs: Mapping[str, Path] | None = None,
    unet_only: bool = False,
) -> Path:
    """Write the student in the teacher's dtype, as a pipeline with the teacher's other parts or as the UNet alone, and return `out`.

    Args:
        student: on any device.
        out: new or empty folder.
        teacher: what the student was cut from.
        logs: training losses of each segment, JSON lines, by the name of its folder; copied to `losses/<name>.jsonl`.

    Raises:
        UserError: `out` is not empty or another run fills it meanwhile, weights of the teacher are missing, or the disk is full; nothing
            is written to `out` then.
    """
    check_new_or_empty(out)
    target = out.resolve()  # "." has no name of its own
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        with (
            tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary,  # of this run alone
            locked(Path(temporary) / EXPORTING),
        ):
            partial = Path(temporary) / "student"  # unlike the temporary folder, readable by others
            _write_folder(student, partial, teacher, provenance, unet_only=unet_only)
            for name, log in (logs or {}).items():
                (partial / "losses").mkdir(exist_ok=True)
                shutil.copy(log, partial / "losses" / f"{name}.jsonl")
            check_new_or_empty(out)  # another run may have written its student there
            if target.exists():
                target.rmdir()
            partial.rename(target)
    except (OSError, SafetensorError) as error:  # safetensors wraps the OSError of a full disk
        raise UserError(f"cannot write the student to {out}: {error}. Make room, or name another folder with --out") from error
    return out


def _remove_leftovers(target: Path) -> None:
    """Remove what exports to this folder that were killed left beside it: temporary folders whose lock nobody holds any more."""
    for lock in target.parent.glob(f".{glob.escape(target.name)}-*/{EXPORTING}"):
        with suppress(OSError), FileLock(lock, blocking=False):  # one that is held raises a TimeoutError, which is an OSError
            shutil.rmtree(lock.parent)


def _write_folder(student: UNet2DConditionModel, folder: Path, teacher: Teacher, provenance: Provenance, *, unet_only: bool) -> None:
    folder.mkdir()
    if not unet_only:
        _copy_parts(teacher.folder, folder)
    unet = folder if unet_only else folder / "unet"
    student.to(getattr(torch, teacher.dtype)).save_pretrained(unet)
    config = json.loads((unet / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # a local path
    (unet / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "provenance.json").write_text(json.dumps(asdict(provenance), indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(provenance, unet_only=unet_only), encoding="utf-8")


def check_new_or_empty(out: Path) -> None:
    """Check that writing to `out` overwrites nothing.

    Raises:
        UserError: `out` is a file or a folder that is not empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} exists; expected a new or empty folder. Remove it, or name another with --out")


def _copy_parts(teacher: Path, out: Path) -> None:
    shutil.copy(teacher / INDEX, out / INDEX)
    for name, kind in json.loads((teacher / INDEX).read_text(encoding="utf-8")).items():
        if name != "unet" and isinstance(kind, list) and kind[0] is not None:
            (out / name).mkdir()
            for path in part_files(teacher / name, name):
                _copy_without_variant(path, out / name)
    for path in teacher.glob("LICENSE*"):
        shutil.copy(path, out / path.name)


def _copy_without_variant(path: Path, folder: Path) -> None:
    """Copy a file without "fp16" in its name, so that it loads without `variant`; a teacher may have only 16-bit files."""
    copy = folder / path.name.replace(".fp16", "")
    if ".index." in path.name:
        copy.write_text(path.read_text(encoding="utf-8").replace(".fp16", ""), encoding="utf-8")
    else:
        shutil.copy(path, copy)
