"""Overrides make a custom suite, and each changes what it says."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sdbench import suites
from sdbench.api import Overrides
from sdbench.errors import UserError
from sdbench.scenes.grammar import scene_at

CHANGES: dict[str, dict[str, Any]] = {
    "steps": {"steps": 3},
    "guidance_scale": {"guidance_scale": 1.5},
    "scheduler": {"scheduler": "euler"},
    "timestep_spacing": {"scheduler": "euler", "timestep_spacing": "trailing"},
    "timesteps": {"scheduler": "euler", "timesteps": [999, 499]},
    "eta": {"scheduler": "ddim", "eta": 0.5},
    "prediction_type": {"scheduler": "euler", "prediction_type": "sample"},
    "rescale_betas_zero_snr": {"scheduler": "euler", "rescale_betas_zero_snr": True},
    "size_px": {"size_px": 128},
    "height_px": {"height_px": 128},
    "batch": {"batch": 8},
    "dtype": {"dtype": "float16"},
    "n": {"n": 5},
    "samples_per_prompt": {"samples_per_prompt": 2},
    "prompts": {"prompts": "mine.txt"},
    "metrics": {"metrics": ["clip_score.scenes"]},
    "reference": {"reference": "mine"},
    "rounds": {"rounds": 2},
    "calls": {"calls": 3},
}


@pytest.fixture(autouse=True)
def _prompt_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder with lists of three prompts, and without ./suites."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine.txt", "copied.txt"):
        (tmp_path / name).write_text("a cat\n\na dog\na fox\n", encoding="utf-8")


def test_each_override_changes_the_suite() -> None:
    assert CHANGES.keys() == {field.name for field in fields(Overrides)}
    plain = suites.load("quality").model_copy(update={"name": "quality-custom"})
    changed = {name: Overrides(**change).apply(suites.load("quality")) for name, change in CHANGES.items()}
    digests = {"none": plain.id.digest} | {name: suite.id.digest for name, suite in changed.items()}
    assert {suite.name for suite in changed.values()} == {"quality-custom"}
    assert len(set(digests.values())) == len(digests), digests


def test_prompts_of_a_file_or_table_are_identified_by_their_content(tmp_path: Path) -> None:
    plain = suites.load("standard")
    mine, copied, two = (
        Overrides(prompts=Path(name), n=n).apply(plain) for name, n in (("mine.txt", None), ("copied.txt", None), ("mine.txt", 2))
    )
    assert (mine.name, [*mine.prompt_list().values()]) == ("standard-custom", ["a cat", "a dog", "a fox"])
    assert mine.id == copied.id != two.id
    assert len(two.prompt_list()) == 2
    (tmp_path / "captions.csv").write_text("file,caption\n0.png,a cat\n1.png,a dog\n2.png,a fox\n", encoding="utf-8")
    assert Overrides(prompts="captions.csv").apply(plain).prompt_list() == mine.prompt_list()
    to_mine = Overrides(reference="mine").apply(plain)
    assert (to_mine.name, to_mine.reference, to_mine.prompt_list()) == ("standard-custom", "mine", plain.prompt_list())
    with pytest.raises(UserError, match=r"prompts nowhere\.txt cannot be read"):
        Overrides(prompts=Path("nowhere.txt")).apply(plain)


def test_samples_per_prompt_make_a_custom_suite_and_other_prompts_keep_them(tmp_path: Path) -> None:
    plain = suites.load("quality")
    two = Overrides(samples_per_prompt=2).apply(plain)
    assert (two.name, two.samples, two.prompt_list()) == ("quality-custom", 2, plain.prompt_list())
    (tmp_path / "mine.txt").write_text(f"{scene_at(0, 'heldout').caption}\n", encoding="utf-8")
    assert Overrides(prompts=tmp_path / "mine.txt").apply(two).samples == 2
    with pytest.raises(UserError, match=r"prompts\.samples: Input should be greater than 0"):
        Overrides(samples_per_prompt=0).apply(plain)


def test_overridden_settings_make_a_custom_suite() -> None:
    plain = suites.load("quality")
    assert Overrides().apply(plain) is plain
    few = Overrides(guidance_scale=1.0, scheduler="lcm", timesteps=[999, 749, 499, 249]).apply(plain).sampling
    assert few
    assert (few.steps, few.guidance_scale, few.scheduler, few.timesteps) == (4, 1.0, "lcm", (999, 749, 499, 249))
    with pytest.raises(UserError, match=r"prompts\.n: Input should be greater than 0 \(found 0\)"):
        Overrides(n=0).apply(plain)
    changed = Overrides(steps=3, n=5).apply(plain)
    assert changed.name == Overrides(batch=8).apply(changed).name == "quality-custom"
    assert changed.id.digest != plain.id.digest
    assert (changed.sampling.steps, len(changed.prompt_list())) == (3, 5)
    assert changed.sampling.model_dump(exclude={"steps"}) == plain.sampling.model_dump(exclude={"steps"})


def test_overridden_rounds_and_calls_apply_to_every_setting() -> None:
    plain = suites.load("efficiency")
    short = Overrides(rounds=1, calls=3).apply(plain)
    assert plain.probes
    assert short.probes
    assert (short.name, short.probes.rounds, short.probes.calls, short.probes.warmup) == ("efficiency-custom", 1, 3, 2)
    assert short.probes.select().keys() == plain.probes.select().keys()
    assert {setting.calls for setting in plain.probes.select().values()} == {None, 2}
    assert {setting.calls for setting in short.probes.select().values()} == {None}
    once = Overrides(rounds=1).apply(plain).probes
    assert once == plain.probes.model_copy(update={"rounds": 1}), "overriding only the rounds keeps the calls of each setting"
    with pytest.raises(UserError, match=r"probes\.calls: Input should be greater than 1 \(found 1\)"):
        Overrides(calls=1).apply(plain)
    with pytest.raises(UserError, match="suite 'coco-30k' has no probes, so rounds and calls have no effect; leave them out"):
        Overrides(rounds=1, calls=3).apply(suites.load("coco-30k"))
