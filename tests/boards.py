"""Results with every case that a page must handle: several models, images, stages, and hostile prompts."""

from pathlib import Path

import numpy as np
import synthetic_images
from factories import make_measurement
from PIL import Image

from sdbench import records
from sdbench.records import Record, Scores, Value

SCRIPT = '<script>window.hacked = 1</script><img src="x" onerror="window.hacked = 1">'
RIGHT_TO_LEFT = "\u202eشعار أحمر <b>\u202c مرحبا"  # noqa: RUF001  # confusing on purpose
LONG = "a very long prompt " * 526 + "ends."
PROMPTS = (SCRIPT, RIGHT_TO_LEFT, LONG, *(f"a {colour} circle, number {n}" for n in range(7) for colour in ("red", "blue", "green")))
MODELS = ("scenes-teacher", "scenes-ssd-1b", "scenes-vega")


def stage(name: str, seconds: float) -> Value:
    return Value(name=f"latency.{name}.p50", kind="probe", direction="lower", unit="s", value=seconds, n=8)


def png(colour: tuple[int, int, int], side: int = 8) -> bytes:
    return synthetic_images.png(Image.new("RGB", (side, side), colour))


def make_model(place: int, name: str, prompts: tuple[str, ...] = PROMPTS, **changes: object) -> tuple[Record, Scores]:
    """The record and scores of the model at `place`, whose CLIP score is worse by `place` than the first model's."""
    record, scores = make_measurement(name, seed=place + 1, n_prompts=len(prompts), worse="clip_score.scenes", by=float(place), **changes)
    plain = {"name": "win_rate.clip_score.scenes", "kind": "score", "direction": "higher", "unit": "share"}
    not_applicable = {"state": "not_applicable", "reason": "the teacher is what the others are compared with"}
    share = Value.model_validate(plain | ({"value": 0.4, "low": 0.3, "high": 0.5, "n": len(scores.keys)} if place else not_applicable))
    parts = (stage("text_encoders", 0.01), stage("unet_step", 0.02), stage("vae_decode", 0.03))
    texts = [prompt for prompt in prompts for _ in range(2)]
    values = (*record.values, *parts, share)
    return record.model_copy(update={"values": values}), Scores(scores.prompt_ids, scores.samples, scores.columns, texts)


def write_board(results: Path, models: tuple[str, ...] = MODELS, prompts: tuple[str, ...] = PROMPTS, side: int = 8) -> list[Path]:
    """Write records of these models, each with an image of a single colour for every prompt; returns their folders."""
    folders = []
    for place, name in enumerate(models):
        record, scores = make_model(place, name, prompts)
        colours = np.random.default_rng(place).integers(0, 256, (len(prompts), 3)).tolist()
        images = {f"p{n:04d}.png": png(tuple(colour), side) for n, colour in enumerate(colours)}
        folders.append(records.write(record, scores, images, results))
    return folders
