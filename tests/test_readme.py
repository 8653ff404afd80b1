"""The README and the guides agree with the code and the results: tables are the leaderboard's, command lines parse, and examples run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distillation import cli as distillation_cli
from sdbench import cli, suites
from sdbench.gate import policy
from sdbench.reference import cards
from sdbench.score import PROTOCOLS
from sdbench.settings import Setting

ROOT = Path(__file__).parents[1]
README, LEADERBOARD, MEASURING, GATE, DISTILLATION = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "results/LEADERBOARD.md", "docs/measuring.md", "docs/gate.md", "docs/distillation.md")
)
MODELS = ("| scenes-", "| sdxl |", "| ssd-1b |", "| vega |")
ROWS = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith(MODELS)]
GUIDES = f"{README}\n{MEASURING}\n{GATE}\n{DISTILLATION}".replace("\\\n", "")  # a command may go on in the next line


def commands(program: str) -> list[list[str]]:
    """The arguments of each command line of the README and the guides that runs a program."""
    lines = re.findall(rf"^(?:\$ |\w+=\w+ torchrun .* -m )?{program} (.*?)$", GUIDES, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_number_of_the_readme_is_in_the_leaderboard(row: list[str]) -> None:
    for cell in row[1:]:
        if cell not in ("no model", "(is the teacher)"):
            assert f"| {cell} " in LEADERBOARD


def test_readme_table_is_of_the_shipped_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    suite = suites.load("quality")
    assert re.findall(r"`quality@\d+`", README) == [f"`quality@{suite.version}`"]
    assert f"suite digest: {suite.id.digest}" in LEADERBOARD
    assert len(ROWS) == 8


def test_every_command_line_parses_and_uses_only_references_that_one_builds() -> None:
    lines = commands("sdbench")
    assert len(lines) > 30
    parsed = [cli.build_parser().parse_args(line) for line in lines]
    built = {each.name for each in parsed if each.command.__name__ == "_reference"}
    used = {each.reference for each in parsed if each.command.__name__ == "_run"} - {None}
    assert used == {"mine"}
    assert used <= built


def test_every_command_line_of_distillation_parses() -> None:
    lines = commands("distillation")
    assert len(lines) > 8
    for line in lines:
        distillation_cli.build_parser().parse_args(line)


def test_example_verdict_is_what_the_gate_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "140")
    line, printed = re.findall(r"^\$ sdbench (.*?)\n(.*?)```", GATE, re.DOTALL | re.MULTILINE)[0]
    assert cli.main(shlex.split(line)) == 1
    assert capsys.readouterr().out == printed


def python_example(page: str, call: str) -> str:
    """The first example in Python on a page that makes this call."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return next(block for block in blocks if call in block)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the README's example in Python leaves, with fewer prompts and steps; in an empty folder, which is then that of the tests."""
    example, names = python_example(README, "evaluate("), dict[str, Any]()
    assert example.count("n=64") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("home"))
        patch.setattr(cards, "SCENES_N", 256)
        exec(example.replace("n=64", "n=4, steps=2, batch=2"), names)
        yield names


def test_python_example_evaluates_a_pipeline_into_a_folder_of_its_own(evaluated: dict[str, Any]) -> None:
    found = evaluated["found"]
    assert found.record.model.source == "memory"
    assert found["agreement.ssim"].state == "ok"
    assert found.report.inputs.baseline_asked == "scenes-ssd-1b"
    assert found.folder.is_relative_to("my-results")
    assert [path.name for path in Path().iterdir()] == ["my-results"]


def test_results_are_read_as_tables_and_logged_as_the_guide_says(evaluated: dict[str, Any]) -> None:
    record, logged = evaluated["found"].record, list[Any]()
    wandb = SimpleNamespace(log=lambda values, step: logged.append((values, step)))
    names = {"found": evaluated["found"], "step": 1000, "wandb": wandb}
    exec(f"import pandas as pd\n{python_example(MEASURING, 'wandb')}", names)
    numbers = {value.name: value.value for value in record.values}
    assert dict(zip(names["values"].name, names["values"].value, strict=True)) == numbers
    assert {"prompt_id", "sample", "prompt", "clip_score.scenes", "fd.scenes:influence"} <= {*names["scores"]}
    assert len(names["scores"]) == record.n_images == 4
    assert logged == [(numbers, 1000)]


def test_example_suite_and_policy_load(tmp_path: Path) -> None:
    suite_text, policy_text = re.findall(r"```toml\n(.*?)```", MEASURING, re.DOTALL)
    (tmp_path / "mine.txt").write_text("\n".join(f"prompt {row}" for row in range(200)), encoding="utf-8")
    for name, text in (("mine.toml", suite_text), ("policy.toml", policy_text)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    suite, rules = suites.load(str(tmp_path / "mine.toml")), policy.load(tmp_path / "policy.toml").rules("mine")
    assert len(suite.prompt_list()) == 200
    (tmp_path / "more.toml").write_text(re.sub("^# (teacher|probes) = ", r"\1 = ", suite_text, flags=re.MULTILINE), encoding="utf-8")
    more = suites.load(str(tmp_path / "more.toml"))
    assert more.teacher == suites.Teacher(model="my-sdxl", suite="mine-25")
    assert more.probes
    assert [*more.probes.select()] == ["base", "b8", "compiled"]
    assert [key for key in Setting.model_fields if not re.search(rf"a setting has .*\b{key}\b", suite_text)] == []
    assert rules.keys() <= set(suite.metrics["sdxl"]) <= PROTOCOLS.keys()
    assert all(PROTOCOLS[name].direction == rule.direction for name, rule in rules.items())
