"""Training images that the teacher draws from captions: data that anyone can reproduce.

An image depends only on (teacher, caption, row, seed, sampling), and its noise only on (seed, row), whatever the batch. A folder
without `metadata.jsonl` is unfinished; the same command continues it.
"""

import hashlib
from pathlib import Path
from typing import Any

from distillation.export import check_new_or_empty
from distillation.provenance import package_versions
from distillation.teacher import pipeline_spec
from sdbench.arrays import U8
from sdbench.assets.prompts import read_lines
from sdbench.assets.sources import METADATA
from sdbench.disk import digest, read_json, write_json, write_json_lines
from sdbench.errors import UserError
from sdbench.generate import Job, generate, make_sampler, select_part
from sdbench.models.digest import weights_digest
from sdbench.models.files import read_model_json
from sdbench.models.loading import load
from sdbench.models.out_of_memory import explain_out_of_memory
from sdbench.notes import print_note
from sdbench.settings import Sampling
from sdbench.store import Store
from sdbench.suites import Noise

SETTINGS_FILE = "made.json"


def draw_images(
    prompts: Path,
    teacher: Path,
    out: Path,
    sampling: Sampling,
    *,
    n: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    part: tuple[int, int] = (1, 1),
) -> Path:
    """Draw an image for each caption into an image folder, and return the folder. Images of an earlier run are not drawn again.

    Args:
        prompts: text file with one caption per line; empty lines are skipped.
        teacher: folder of a complete pipeline.
        out: new or empty folder, or one from an earlier run with the same teacher, sampling, seed and type of device.
        n: only the first n captions.
        part: (k, n): draw only every n-th batch, starting with the k-th, so that n commands can share a folder; the last one finishes it.

    Raises:
        UserError: the captions cannot be read or are too few, or the teacher or device is missing.
        UserError: `out` holds something else or cannot be written, the device has too little memory, or an image holds NaN.
    """
    captions, spec = read_caption_lines(prompts, n), pipeline_spec(teacher)
    identity = {
        "teacher": weights_digest(spec, dtype=sampling.dtype),
        "sampling": sampling.model_dump(),
        "seed": seed,
        "device": device.partition(":")[0],
    }
    _check_same_settings(out, identity)
    store = Store(out, identity)
    jobs = [Job(str(row), 0, caption, digest([store.folder.name, row, caption])) for row, caption in enumerate(captions)]
    own = select_part(jobs, sampling.batch, part)
    if store.missing([job.image_id for job in own]):
        with explain_out_of_memory(device, "to load the teacher"):
            draw = make_sampler(load(spec, dtype=sampling.dtype, device=device), sampling, Noise(seed=seed))

        def draw_and_claim(group: list[Job]) -> U8:
            images = draw(group)
            _claim_folder(out, identity)  # only now: settings with which nothing can be drawn, for lack of memory say, claim no folder
            return images

        fewer = ["draw fewer with --batch"] if sampling.batch > 1 else []
        with explain_out_of_memory(device, f"to draw {sampling.batch} images at once", fewer):
            generate(own, store, sampling.batch, draw_and_claim, "teacher")
    if missing := store.missing([job.image_id for job in jobs]):
        print_note(f"{out}: {len(jobs) - len(missing)} of {len(jobs)} images; the other parts draw the rest")
    else:
        _finish_folder(out, store, jobs, identity)
    return out


def _claim_folder(out: Path, identity: dict[str, Any]) -> None:
    """Record the settings of images that are about to be written, and the versions that drew them."""
    _check_same_settings(out, identity)  # another part may have drawn with other settings meanwhile
    if package_versions() not in (versions := _versions(out)):
        write_json(out / SETTINGS_FILE, {**identity, "versions": [*versions, package_versions()]})


def _finish_folder(out: Path, store: Store, jobs: list[Job], identity: dict[str, Any]) -> None:
    """Write `metadata.jsonl` and complete the record of the settings."""
    rows = [{"file_name": store.path(job.image_id).relative_to(out).as_posix(), "caption": job.prompt} for job in jobs]
    write_json_lines(out / METADATA[0], rows)
    captions_digest = hashlib.sha256("\n".join(job.prompt for job in jobs).encode()).hexdigest()
    write_json(out / SETTINGS_FILE, {**identity, "n": len(jobs), "captions": captions_digest, "versions": _versions(out)})


def read_caption_lines(path: Path, n: int | None = None) -> list[str]:
    """The first `n` captions of a text file, or all.

    Raises:
        UserError: the file cannot be read, or holds fewer captions, or none.
    """
    captions = [*read_lines(path)]
    if len(captions) < (n or 1):
        raise UserError(f"{path} holds {len(captions)} captions; expected {n or 'at least 1'}. Add some{', or lower --n' if n else ''}")
    return captions[:n]


def native_size_px(folder: Path) -> int:
    """The side in px of the images that the pipeline in a folder was trained for.

    Raises:
        UserError: the configuration of its UNet or VAE cannot be read.
    """
    unet, vae = (read_model_json(folder / part / "config.json") for part in ("unet", "vae"))
    return int(unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1))


def _check_same_settings(out: Path, identity: dict[str, Any]) -> None:
    """Check that the folder is new or empty, or holds images drawn with the same settings."""
    if not (out / SETTINGS_FILE).exists():
        try:
            check_new_or_empty(out)
        except UserError:
            if not (out / SETTINGS_FILE).exists():  # else another part has begun just now
                raise
        else:
            return
    earlier, now = read_json(out / SETTINGS_FILE, _flatten), _flatten(identity)
    if differing := [name for name, value in now.items() if earlier.get(name) != value]:
        differences = ", ".join(f"{name} {earlier.get(name)} (now {now[name]})" for name in differing)
        raise UserError(f"{out} holds images drawn with other settings: {differences}. Use the same settings, or another folder with --out")


def _flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings by name, those of the sampling among them."""
    return {name: value for name, value in settings.items() if name != "sampling"} | dict(settings.get("sampling", {}))


def _versions(out: Path) -> list[dict[str, str]]:
    """The versions of the packages in each of the runs that drew images of the folder, each once."""
    found: list[dict[str, str]] = read_json(out / SETTINGS_FILE)["versions"] if (out / SETTINGS_FILE).exists() else []
    return found
