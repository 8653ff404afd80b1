"""The gate's calibration draws from its suite only, and recomputes an answer when anything that it depends on has changed."""

import importlib
import json
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
        patch.setattr(cards, "SCENES_N", 512)  # images of the reference; enough here, where the default is 4,096
        yield importlib.import_module("calibrate_gate")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def sampler(calibrate: ModuleType, work: Path) -> Any:
    return calibrate.Sampler(work)


def test_only_records_of_the_quality_suite_are_used(calibrate: ModuleType, sampler: Any) -> None:
    assert {folder.parts[2].partition("@")[0] for folder in sampler.folders} == {"quality"}
    assert {turns.shape[:2] for turns in sampler.turns.values()} == {(5, len(sampler.folders))}
    first = next(calibrate.questions(sampler))
    assert first.ask(np.random.default_rng(0))[0] == "pass"


def test_losses_on_few_prompts_are_computed_without_draws(calibrate: ModuleType, sampler: Any) -> None:
    lowest, *_, highest = calibrate.calibration_questions.passing_rates(sampler)
    assert 5 < lowest * sampler.n < highest * sampler.n < 60
    chances = calibrate.calibration_questions.rare_loss_chances(sampler, lowest)  # at this rate 2 hits just pass, 3 do not
    assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
    assert chances["pass"] == pytest.approx(binom.cdf(2, sampler.n, lowest), abs=1e-5)


def test_committed_answers_are_of_this_code_and_these_records(calibrate: ModuleType, sampler: Any) -> None:
    committed = json.loads((ROOT / "results" / "calibration" / "gate.json").read_text(encoding="utf-8"))
    draws = max(answer["draws"] for answer in committed["answers"].values())
    assert committed["digest"] == calibrate.digest_of(sampler, draws), "run nox -s calibrate"
    assert list(committed["answers"]) == [question.name for question in calibrate.questions(sampler)]
    assert (ROOT / "results" / "calibration" / "gate.md").read_text(encoding="utf-8") == calibrate.table(committed)


def test_answers_of_other_records_or_code_are_not_reused(
    calibrate: ModuleType, sampler: Any, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [calibrate.digest_of(sampler, 1)]
    assert calibrate.digest_of(calibrate.Sampler(work), 1) == digests[0]
    code = calibrate.CODE
    for path in code:
        changed = tmp_path / path.name
        changed.write_bytes(b'"""Other words."""  # another comment\n' + path.read_bytes().partition(b'"""\n')[2])
        monkeypatch.setattr(calibrate, "CODE", [changed if each == path else each for each in code])
        assert calibrate.digest_of(sampler, 1) == digests[0], "words decide no answer"
        changed.write_bytes(path.read_bytes() + b"added = 1\n")
        digests.append(calibrate.digest_of(sampler, 1))
    assert {"decisions.py", "pairing.py", "judging.py", "looks.py", "sequential.py", "intervals.py", "student_t.py", "frechet.py"} <= {
        path.name for path in code
    }
    monkeypatch.setattr(sampler, "folders", sampler.folders[1:])
    digests.append(calibrate.digest_of(sampler, 1))
    assert len(set(digests)) == len(digests)
