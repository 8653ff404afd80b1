"""The calibration of the gate draws from the suite that it says, and asks again once anything that answers depend on has changed."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import binom

ROOT = Path(__file__).parents[2]


@pytest.fixture
def calibrate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(ROOT)  # the pool and the records are found under the working directory
    monkeypatch.syspath_prepend(ROOT / "suites")
    return importlib.import_module("calibrate_gate")


def test_records_of_other_suites_are_no_material(calibrate: ModuleType, tmp_path: Path) -> None:
    judge = calibrate.Judge(tmp_path, 1)
    assert {folder.parts[2].partition("@")[0] for folder in judge.folders} == {"quality"}
    assert {len(rounds) for rounds in judge.rounds.values()} == {5 * len(judge.folders)}
    first = next(calibrate.questions(judge))
    assert first.ask(np.random.default_rng(0))[0] in ("pass", "inconclusive")


def test_what_few_prompts_lose_needs_no_draws(calibrate: ModuleType, tmp_path: Path) -> None:
    judge = calibrate.Judge(tmp_path, 1)
    lowest, *_, highest = calibrate.passing_rates(judge)
    assert 5 < lowest * judge.n < highest * judge.n < 60
    found = calibrate.rarely(judge, lowest)  # at which 2 hits just pass, 3 do not
    assert sum(found.values()) == pytest.approx(1, abs=1e-4)
    assert found["pass"] == pytest.approx(binom.cdf(2, judge.n, lowest), abs=1e-5)


def test_answers_of_other_records_or_code_are_not_kept(calibrate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = calibrate.Judge(tmp_path, 1)
    found = [calibrate.digest_of(judge)]
    assert calibrate.digest_of(calibrate.Judge(tmp_path, 1)) == found[0]
    code = calibrate.CODE
    for path in code:
        changed = tmp_path / path.name
        changed.write_bytes(path.read_bytes() + b"\n")
        monkeypatch.setattr(calibrate, "CODE", [changed if each == path else each for each in code])
        found.append(calibrate.digest_of(judge))
    assert {"decisions.py", "compare.py", "judging.py", "looks.py", "sequential.py", "intervals.py", "student_t.py", "frechet.py"} <= {
        path.name for path in code
    }
    judge.folders = judge.folders[1:]
    found.append(calibrate.digest_of(judge))
    assert len(set(found)) == len(found)
