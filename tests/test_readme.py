"""The README and the guides agree with the code and the results: tables are the leaderboard's, command lines parse, and examples run."""

import re
import shlex
from pathlib import Path
from unittest.mock import MagicMock

import pytest

import sdbench
from distillation import cli as distillation_cli
from sdbench import api, cli, suites
from sdbench.gate import policy
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


def test_python_example_evaluates_few_prompts_into_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def evaluate(model: object, suite: suites.Suite, **options: object) -> MagicMock:
        calls.append((model, suite.prompts.n, options))
        return MagicMock()

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sdbench, "evaluate", evaluate)
    example = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "evaluate(" in block)
    exec(example, {"pipeline": "mine"})
    places = api.Places("my-results")
    assert calls == [
        ("scenes-teacher", 64, {"only": "quality", "places": places}),
        ("mine", 64, {"baseline": "scenes-vega", "name": "step-1000", "places": places}),
    ]


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
