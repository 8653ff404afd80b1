"""Stages remove parts in rising order of loss per parameter, each with a valid config; a written recipe loads unchanged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.cli import main
from distillation.cut import MIDDLE_ATTENTION, Cut
from distillation.prune import student_config
from distillation.recipe import load_recipe
from distillation.sensitivity.budget import TIED_TO_MIDDLE, find_best_cut, parameter_cost, sum_removed
from distillation.sensitivity.derive import (
    SOURCE,
    _stage_ends,
    check_recipe_path,
    derive_recipe,
    split_into_stages,
    stage_table,
    write_recipe,
)
from distillation.sensitivity.removal import WHOLE_MIDDLE
from sdbench.arrays import F64
from sdbench.errors import UserError
from sdbench.models.architectures import Family, depths, unet_config

TEACHER = unet_config("sdxl", "scenes")
COUNTS = parameter_cost(TEACHER)
WHOLE_TEACHER = Cut({path: tuple(range(depth)) for path, depth in depths(TEACHER).items()}, 0)


def random_losses(seed: int, whole: float | None = None) -> dict[str, F64]:
    chance = np.random.default_rng(seed)
    losses = {path: 10 ** chance.uniform(-6, -1, len(row)) for path, row in COUNTS.parts.items()}
    return losses if whole is None else losses | {WHOLE_MIDDLE: np.array([whole])}


def gone(before: Cut, after: Cut, path: str) -> set[int]:
    return set(before.blocks.get(path, ())) - set(after.blocks.get(path, ()))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([None, 1e-6, 1e3]), st.floats(0.3, 0.7), st.integers(1, 5))
def test_each_stage_has_a_config_and_removes_the_cheapest_blocks(seed: int, whole: float | None, share: float, n: int) -> None:
    losses = random_losses(seed, whole)
    cut = find_best_cut(losses, COUNTS, int(share * COUNTS.total))
    cuts = split_into_stages(losses, COUNTS, cut, n)
    assert len(cuts) == n
    assert cuts[-1] == cut
    dearest = 0.0
    for before, after in zip([WHOLE_TEACHER, *cuts], cuts, strict=False):
        assert depths(student_config(TEACHER, after)) == after.depths
        assert all(set(kept) <= set(before.blocks[path]) for path, kept in after.blocks.items())
        ordinary = [path for path in WHOLE_TEACHER.blocks if path not in (MIDDLE_ATTENTION, TIED_TO_MIDDLE)]
        prices = [losses[path][block] / COUNTS.parts[path][block] for path in ordinary for block in gone(before, after, path)]
        assert min(prices, default=dearest) >= dearest
        dearest = max(prices, default=dearest)
        assert COUNTS.remaining(after) < COUNTS.remaining(before)
        if MIDDLE_ATTENTION not in cut.blocks and MIDDLE_ATTENTION in after.blocks:
            # it is removed at once, and before any block of the tied attention
            assert len(after.blocks[MIDDLE_ATTENTION]) == len(after.blocks[TIED_TO_MIDDLE]) == 10


def test_a_middle_that_stays_loses_blocks_together_with_the_tied_attention() -> None:
    losses = {path: np.full(len(row), 1.0) for path, row in COUNTS.parts.items()} | {WHOLE_MIDDLE: np.array([1e9])}
    losses[MIDDLE_ATTENTION], losses[TIED_TO_MIDDLE] = np.arange(1.0, 11), np.arange(10.0, 0, -1)
    kept = {**WHOLE_TEACHER.blocks, MIDDLE_ATTENTION: tuple(range(4, 10)), TIED_TO_MIDDLE: tuple(range(6))}
    cuts = split_into_stages(losses, COUNTS, Cut(kept, 0), 4)
    assert [cut.blocks[MIDDLE_ATTENTION] for cut in cuts] == [tuple(range(first, 10)) for first in (1, 2, 3, 4)]
    assert [cut.blocks[TIED_TO_MIDDLE] for cut in cuts] == [tuple(range(depth)) for depth in (9, 8, 7, 6)]
    assert cuts[-1].blocks == kept


@pytest.mark.parametrize(("whole", "goes_first"), [(1e-9, True), (1e9, False)])
def test_a_middle_that_goes_has_the_loss_of_the_whole_and_not_of_its_blocks(whole: float, *, goes_first: bool) -> None:
    losses = {path: np.full(len(row), 1.0) for path, row in COUNTS.parts.items()} | {WHOLE_MIDDLE: np.array([whole])}
    shortened = next(path for path, kept in WHOLE_TEACHER.blocks.items() if path != TIED_TO_MIDDLE and len(kept) > 1)
    kept = {path: blocks for path, blocks in WHOLE_TEACHER.blocks.items() if path != MIDDLE_ATTENTION}
    cut = Cut(kept | {shortened: WHOLE_TEACHER.blocks[shortened][1:]}, 0)
    first, last = split_into_stages(losses, COUNTS, cut, 2)
    assert last == cut
    assert (MIDDLE_ATTENTION not in first.blocks, 0 in first.blocks[shortened]) == (goes_first, goes_first)


@pytest.mark.parametrize(
    ("losses", "n", "ends"),
    [
        ([1, 1, 1, 1], 2, [2, 4]),
        ([1, 1, 1, 9], 2, [3, 4]),
        ([0, 0, 0], 3, [1, 2, 3]),
        ([9, 1, 1], 3, [1, 2, 3]),
        ([1, 2, 3, 4, 5, 6], 3, [3, 5, 6]),
    ],
)
def test_stages_end_where_sums_are_nearest_to_equal_and_none_is_empty(losses: list[float], n: int, ends: list[int]) -> None:
    assert _stage_ends(np.array(losses), n) == ends


def test_too_few_parts_for_the_stages_are_refused() -> None:
    with pytest.raises(UserError, match="removes 0 parts, too few for 2 stages"):
        split_into_stages(random_losses(0), COUNTS, WHOLE_TEACHER, 2)


@pytest.fixture(scope="module")
def cuts() -> list[Cut]:
    losses = random_losses(3)
    return split_into_stages(losses, COUNTS, find_best_cut(losses, COUNTS, int(0.4 * COUNTS.total)), 3)


def test_the_stage_table_shows_blocks_losses_and_costs(cuts: list[Cut]) -> None:
    losses = random_losses(3)
    lines = stage_table(cuts, losses, [COUNTS]).splitlines()
    assert lines[0] == "| keeps after | stage 1 | stage 2 | stage 3 |"
    assert len(lines) == 2 + 11 + 2
    assert f"| {', '.join(map(str, cuts[0].blocks[TIED_TO_MIDDLE]))} |" in lines[2 + list(losses).index(TIED_TO_MIDDLE)]
    assert lines[-2].endswith(f" {sum_removed(losses, cuts[-1]):.3g} |")
    assert f" {COUNTS.remaining(cuts[-1]):,} parameters (" in lines[-1]


@pytest.mark.usefixtures("fake_estimates")
def test_a_written_recipe_loads_and_cuts_as_planned(
    cuts: list[Cut], teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, vega = tmp_path / "new" / "derived-0.4.toml", load_recipe("vega")
    write_recipe(derive_recipe(cuts, "sdxl", path.stem, vega), path, "why")
    assert path.read_text(encoding="utf-8").startswith("# why\n")
    found = load_recipe(path)
    assert found.cuts == cuts
    assert (found.name, found.student) == ("derived-0.4", None)
    assert (found.taps, found.loss, found.scenes, found.sdxl) == (vega.taps, vega.loss, vega.scenes, vega.sdxl)
    assert {row.source for stage in found.stages for row in stage.keep} == {SOURCE}
    assert main(["plan", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("derived-0.4: a student from sdxl, family scenes\n")
    steps = found.stage_steps(found.settings("scenes").steps)[-1]
    assert f"stage stage-3: {steps:,} steps, {COUNTS.remaining(cuts[-1]):,} parameters" in said
    out = tmp_path / "student"
    assert main(["prune", str(path), "--teacher", str(teacher_folder), "--out", str(out)]) == 0
    assert "# derived-0.4, family scenes" in (out / "README.md").read_text(encoding="utf-8")


def test_a_recipe_like_one_of_a_single_family_has_that_family_alone(
    cuts: list[Cut], write_one_family: Callable[[Family], Path], tmp_path: Path
) -> None:
    like = load_recipe(write_one_family("sdxl"))
    write_recipe(derive_recipe(cuts, "sdxl", "derived", like), tmp_path / "derived.toml", "why")
    found = load_recipe(tmp_path / "derived.toml")
    assert (found.families, found.sdxl) == (("sdxl",), like.sdxl)


def test_no_recipe_starts_from_an_unnamed_architecture(cuts: list[Cut]) -> None:
    with pytest.raises(UserError, match="starts from an architecture that has a name; found 'custom'"):
        derive_recipe(cuts, "custom", "derived", load_recipe("vega"))


def test_an_invalid_recipe_path_is_refused_before_any_work(tmp_path: Path) -> None:
    for name in ("derived.json", "Derived.toml", "my plan.toml", ".derived.toml"):
        with pytest.raises(UserError, match="is not a valid recipe file name"):
            check_recipe_path(tmp_path / name, budget=True)
    with pytest.raises(UserError, match="give --parameters or --latency"):
        check_recipe_path(tmp_path / "derived.toml", budget=False)
    (tmp_path / "derived.toml").touch()
    with pytest.raises(UserError, match="exists; expected a new file"):
        check_recipe_path(tmp_path / "derived.toml", budget=True)
