"""A suite and rules to gate it by, and fake evaluators and probes, for tests of what a run does with them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdbench import records
from sdbench.arrays import F32, U8
from sdbench.encoders import scenes
from sdbench.encoders.catalogue import TOWERS
from sdbench.encoders.towers import Towers
from sdbench.gate.policy import Policy, Rule
from sdbench.probes import driver
from sdbench.probes.driver import ProbeResult
from sdbench.records import Scores, Value
from sdbench.reference import cards
from sdbench.run.context import RunContext, prepare
from sdbench.scenes.grammar import parse, scene_at
from sdbench.scenes.render import SIZE_PX, render
from sdbench.settings import Probes, Sampling
from sdbench.suites import Prompts, Suite

METRICS = ("fd.scenes", "clip_score.scenes", "preference.scenes", "win_rate.preference.scenes", "scene_accuracy")
SUITE = Suite(
    name="own",
    version=1,
    family="scenes",
    description="",
    metrics={"scenes": METRICS},
    reference="scenes",
    prompts=Prompts(n=4),
    sampling=Sampling(steps=1, guidance_scale=1.0, size_px=SIZE_PX, dtype="float32", batch=2),
)
PROBED = SUITE.model_copy(update={"probes": Probes(rounds=1, calls=2, warmup=0)})
LATENCY = Value(name="latency.pipeline.p50", kind="probe", direction="lower", unit="s", value=0.5, n=2, samples=((0.4, 0.6),))
RULES = Policy(
    alpha=0.05,
    suites={
        "own": {
            "fd.scenes": Rule(direction="lower", margin=1, required=True),
            "clip_score.scenes": Rule(direction="higher", margin=1, required=True),
        }
    },
)
PROMPTS = [scene_at(index, "heldout").caption for index in range(6)]
IMAGES = render([parse(prompt) for prompt in PROMPTS], range(6))


def colours(images: U8) -> F32:
    """A fake image encoder: mean and spread of each channel, N x 6."""
    assert images.dtype == np.uint8
    flat = images.reshape(len(images), -1, 3) / 255
    return np.concatenate([flat.mean(1), flat.std(1)], 1).astype(np.float32)


def letters(captions: Any) -> F32:
    """A fake text encoder: counts of six letters, N x 6."""
    return np.array([[1 + caption.count(letter) for letter in "aeiorl"] for caption in captions], np.float32)


def replace_towers(patch: pytest.MonkeyPatch, name: str, **changes: Any) -> None:
    """Replace the shipped towers of this name by fake ones."""
    patch.setitem(TOWERS, name, lambda: replace(Towers(f"{name}.fake", 100.0, colours, letters), **changes))


def replace_all_evaluators(patch: pytest.MonkeyPatch) -> None:
    """Replace all shipped evaluators by fake ones."""
    known = {colours(image[None]).tobytes(): parse(prompt).layout for image, prompt in zip(IMAGES, PROMPTS, strict=True)}
    other = parse("a small cyan ring on a black background").layout
    patch.setattr(scenes, "encoder_id", "{}.fake".format)
    patch.setattr(scenes, "features", colours)
    replace_towers(patch, "clip.scenes")
    replace_towers(patch, "preference.scenes")
    patch.setattr(scenes, "layouts", lambda images: [known.get(colours(image[None]).tobytes(), other) for image in images])
    patch.setattr(cards, "SCENES_N", 32)


def replace_probes(patch: pytest.MonkeyPatch, *values: Value) -> None:
    """Let the probes measure these values of every model."""
    patch.setattr(driver, "measure", lambda specs, *_, **__: ProbeResult({spec.name: [*values] for spec in specs}, "turns"))


def prepare_in(folder: Path, suite: Suite = SUITE, only: str | None = "quality") -> RunContext:
    context = RunContext(suite, "cpu", folder / "results", folder / "runs", only)
    prepare(context)
    return context


def write_again(folder: Path, shift: float = 0.0, **changes: Any) -> Path:
    """Write a record again, as of now, with other fields and with its scores moved by `shift`; returns the new folder."""
    record, scores = records.read(folder)
    moved = Scores(scores.prompt_ids, scores.samples, {name: column + shift for name, column in scores.columns.items()})
    return records.write(record.model_copy(update={"created": records.now(), **changes}), moved, {}, folder.parents[3])


def modification_times(folder: Path) -> dict[str, int]:
    """When each file was written, by its path; without locks, which older versions of filelock write to when they take them."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def fail_if_called(*_: Any, **__: Any) -> None:
    raise AssertionError("work was done")
