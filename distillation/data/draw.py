"""Training pictures that the teacher draws itself from captions: the data that anyone can make again.

A picture follows from (teacher, caption, row, seed, sampling); its noise from (seed, row) alone, whatever the batch. A
folder without `metadata.jsonl` is not finished; the same command goes on with it.
"""

import hashlib
import json
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distillation.export import check_free, versions
from distillation.teacher import pipeline
from sdbench.assets.sources import METADATA
from sdbench.disk import digest, write_bytes
from sdbench.errors import UserError
from sdbench.generate import Job, generate, make_sampler
from sdbench.models.digest import weights_digest
from sdbench.models.files import read_json
from sdbench.models.loading import load
from sdbench.settings import Sampling
from sdbench.store import Store
from sdbench.suites import Noise

MADE = "made.json"


def draw(
    prompts: Path,
    teacher: Path,
    out: Path,
    *,
    steps: int,
    guidance_scale: float,
    dtype: str,
    batch: int,
    size_px: int | None = None,
    n: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    part: tuple[int, int] = (1, 1),
) -> Path:
    """Draw a picture for each caption into an image folder => the folder; what an earlier run drew is not drawn again.

    Args:
        prompts: text file, a caption a line; empty lines do not count.
        teacher: folder of a whole pipeline.
        out: new folder, or one that an earlier run filled with the same teacher, sampling, seed and kind of device.
        steps: of the pipeline's own scheduler.
        guidance_scale: of classifier-free guidance.
        dtype: "float32", "bfloat16" or "float16".
        batch: pictures in each call; the last is padded.
        size_px: width and height; the teacher's own where not given.
        n: only the first captions.
        seed: of the noise.
        device: "cpu", "cuda" or "cuda:<index>".
        part: the k-th of n parts, every n-th batch, for n commands at a time into one folder; the last to end finishes it.

    Raises:
        UserError: there are fewer captions, no teacher or no such device, or a setting is out of range.
        UserError: `out` holds something else, or a picture is not finite.
    """
    captions, spec = read_captions(prompts, n), pipeline(teacher)
    sampling = _sampling(steps=steps, guidance_scale=guidance_scale, size_px=size_px or own_size_px(teacher), dtype=dtype, batch=batch)
    identity = {
        "teacher": weights_digest(spec, dtype=dtype),
        "sampling": sampling.model_dump(),
        "seed": seed,
        "device": device.partition(":")[0],
    }
    _check(out, identity)
    make = make_sampler(load(spec, dtype=dtype, device=device), sampling, Noise(seed=seed))
    if not (out / MADE).exists():
        _note(out, identity)  # no sooner: what cannot be loaded claims no folder
    store = Store(out, identity)
    todo = [Job(str(row), 0, caption, digest([store.folder.name, row, caption])) for row, caption in enumerate(captions)]
    batches = [todo[start : start + batch] for start in range(0, len(todo), batch)]  # whole: neighbours may change a picture's last bits
    generate(list(chain.from_iterable(batches[part[0] - 1 :: part[1]])), store, batch, make, "teacher")
    if store.missing([job.image for job in todo]):  # the other parts'
        return out
    rows = [{"file_name": store.path(job.image).relative_to(out).as_posix(), "caption": job.prompt} for job in todo]
    write_bytes(out / METADATA[0], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    of_captions = hashlib.sha256("\n".join(captions).encode()).hexdigest()
    _note(out, {**identity, "n": len(captions), "captions": of_captions, "versions": versions()})
    return out


def read_captions(path: Path, n: int | None = None) -> list[str]:
    """The first `n` captions of a text file, or all.

    Raises:
        UserError: it cannot be read, or holds fewer.
    """
    try:
        captions = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read captions from {path}: {error}; expected a text file in UTF-8, a caption a line") from error
    if len(captions) < (n or 1):
        raise UserError(f"{path} holds {len(captions)} captions; expected {n or 'at least 1'}")
    return captions[:n]


def own_size_px(teacher: Path) -> int:
    """The size that a pipeline was trained for.

    Raises:
        UserError: a part of it has no configuration.
    """
    unet, vae = (read_json(teacher / part / "config.json") for part in ("unet", "vae"))
    return int(unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1))


def _sampling(**settings: Any) -> Sampling:
    try:
        return Sampling(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{first['loc'][0]}: {first['msg']}; found {first['input']!r}") from error


def _check(out: Path, identity: dict[str, Any]) -> None:
    """Make sure that the folder is new, or holds pictures that were made likewise."""
    if not (out / MADE).exists():
        check_free(out)
        return
    made = read_json(out / MADE)
    if differs := [name for name, value in identity.items() if made.get(name) != value]:
        found = ", ".join(f"{name} {made.get(name)} (now {identity[name]})" for name in differs)
        raise UserError(f"{out} holds pictures that were made otherwise: {found}. Name another folder with --out, or the same settings")


def _note(out: Path, content: dict[str, Any]) -> None:
    write_bytes(out / MADE, json.dumps(content, indent=1).encode() + b"\n")
