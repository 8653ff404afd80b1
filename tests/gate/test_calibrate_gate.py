"""The gate's calibration draws from its suite only, and recomputes an answer when anything that it depends on has changed."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from sdbench.reference import cards

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def calibrate() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the pool and the records are looked up in the working directory
        patch.syspath_prepend(ROOT / "suites")
        patch.setattr(cards, "SCENES_N", 512)  # pictures of the reference; enough here, where the default is 4,096
        yield importlib.import_module("calibrate_gate")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def judge(calibrate: ModuleType, work: Path) -> Any:
    return calibrate.Judge(work, 1)


def test_only_records_of_the_quality_suite_are_used(calibrate: ModuleType, judge: Any) -> None:
    assert {folder.parts[2].partition("@")[0] for folder in judge.folders} == {"quality"}
    assert {len(rounds) for rounds in judge.rounds.values()} == {5 * len(judge.folders)}
    first = next(calibrate.questions(judge))
    assert first.ask(np.random.default_rng(0))[0] in ("pass", "inconclusive")


def test_losses_on_few_prompts_are_computed_without_draws(calibrate: ModuleType, judge: Any) -> None:
    lowest, *_, highest = calibrate.passing_rates(judge)
    assert 5 < lowest * judge.n < highest * judge.n < 60
    chances = calibrate.rare_loss_chances(judge, lowest)  # at this rate 2 hits just pass, 3 do not
    assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
    assert chances["pass"] == pytest.approx(binom.cdf(2, judge.n, lowest), abs=1e-5)


def test_answers_of_other_records_or_code_are_not_reused(
    calibrate: ModuleType, judge: Any, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [calibrate.digest_of(judge)]
    assert calibrate.digest_of(calibrate.Judge(work, 1)) == digests[0]
    code = calibrate.CODE
    for path in code:
        changed = tmp_path / path.name
        changed.write_bytes(path.read_bytes() + b"\n")
        monkeypatch.setattr(calibrate, "CODE", [changed if each == path else each for each in code])
        digests.append(calibrate.digest_of(judge))
    assert {"decisions.py", "compare.py", "judging.py", "looks.py", "sequential.py", "intervals.py", "student_t.py", "frechet.py"} <= {
        path.name for path in code
    }
    monkeypatch.setattr(judge, "folders", judge.folders[1:])
    digests.append(calibrate.digest_of(judge))
    assert len(set(digests)) == len(digests)
