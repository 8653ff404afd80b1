"""The command line: quick to say what is wrong, and exit codes that can be relied on."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from factories import make_measurement, make_record, save_record

from distillation import cli as distillation
from distillation.recipe import load_recipe
from sdbench import __version__, api, cli, suites
from sdbench.api import measuring
from sdbench.doctor import checks
from sdbench.errors import UserError
from sdbench.gate import baselines
from sdbench.gate.judging import Report
from sdbench.models.spec import ModelSpec, resolve
from sdbench.records import SuiteId

ROOT = Path(__file__).parents[1]
SLOW = {"torch", "diffusers", "transformers", "open_clip", "torchvision", "datasets"}
STRICT = """
alpha = 0.05
[suites.quality]
"clip_score.scenes" = { direction = "higher", margin = 0.03, required = true }
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a folder without ./suites and ./results."""
    monkeypatch.chdir(tmp_path)


def run_in_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.run([sys.executable, "-c", path + code], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["models"], ["suites"], ["run", "--model", "sdlx"]])
def test_what_needs_no_model_imports_none_of_the_slow_libraries(words: list[str], tmp_path: Path) -> None:
    code = f"""
from sdbench.cli import main
try:
    main({words!r})
except SystemExit as done:
    assert not done.code, done.code
print("imported:", sorted({SLOW!r} & set(sys.modules)))
"""
    done = run_in_process(code, tmp_path)
    assert done.stdout.splitlines()[-1:] == ["imported: []"], done.stderr


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    commands = "run benchmark score gate noise baseline models suites leaderboard report card doctor reference scenes"
    for command in commands.split():
        assert re.search(rf"^    {command}\s", text, re.MULTILINE), command


@pytest.mark.parametrize("program", [cli.main, distillation.main])
def test_a_command_says_its_version(program: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        program(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.split()[1:] == [__version__]


@pytest.mark.parametrize("more", [[], ["--until-verdict", "--baseline", "b"]])
def test_every_run_writes_all_files_of_the_leaderboard_and_stands_where_it_cannot(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_record(make_measurement(), tmp_path)
    monkeypatch.setattr(api, "run", lambda *_, **__: [folder])
    monkeypatch.setattr(api, "until_verdict", lambda *_: (folder, Report("pass", "", "a", "b")))
    words = ["run", "--model", "scenes-vega", "--results", str(tmp_path), "--json", *more]
    assert cli.main(words) == 0
    assert {path.suffix for path in tmp_path.glob("LEADERBOARD.*")} == {".md", ".tex", ".csv", ".json"}
    whole = capsys.readouterr().out
    (folder / "images" / "p0000.png").write_bytes(b"cut off")
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out == whole
    assert f"record: {folder}\n" in err
    assert re.search(r"leaderboard could not be updated.*p0000\.png cannot be read", err)


def message(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of bad input: a screen at most, on stderr, with exit code 2."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sdbench: ")
    assert "Traceback" not in err
    assert len(err) < 24 * 80
    return err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "--model", "sdlx"], "'sdlx'"),
        (["run", "--model", "scenes-teachr"], "did you mean 'scenes-teacher'? A model is a name"),
        (["run", "--model", "scenes-teacher", "--suite", "qualty"], "unknown suite 'qualty'; did you mean 'quality'?"),
        (["run", "--model", "scenes-teacher", "--suite", "nowhere.toml"], "no suite file nowhere.toml"),
        (["run", "--model", "scenes-teacher", "--suite", "fid"], "suite 'fid' is a part"),
        (["run", "--model", "scenes-teacher", "--suite", "standard"], "family"),
        (["run", "--model", "scenes-teacher", "--model", "scenes-vega", "--name", "x"], "--name is for one model"),
        (["run", "--model", "scenes-teacher", "--model", "scenes-teacher"], "two models are called 'scenes-teacher'"),
        (
            ["run", "--model", "sdxl", "--weights", "random", "--suite", "hpdv2"],
            "suite 'hpdv2' has no probes, so there is nothing to measure",
        ),
        (["run", "--model", "sdxl", "--only", "quality", "--suite", "efficiency"], "suite 'efficiency' has no metrics"),
        (["run", "--model", "sdxl", "--suite", "quality", "--dry-run"], "family"),
        (
            ["run", "--model", "sdxl", "--weights", "random", "--suite", "efficiency", "--dry-run", "--setting", "b3"],
            "unknown setting 'b3'",
        ),
        (["run", "--model", "scenes-teacher", "--only", "quality", "--setting", "base"], "--setting is for probes"),
        (["run", "--model", "scenes-teacher", "--only", "quality", "--profile"], "--profile is for probes"),
        (["run", "--model", "scenes-teacher", "--device", "gpu"], "no device 'gpu' here"),
        (["run", "--model", "scenes-teacher", "--device", "gpu", "--dry-run"], "no device 'gpu' here"),
        (["run", "--model", "scenes-teacher", "--junit", "gate.xml"], "--junit works only with --until-verdict"),
        (
            ["run", "--model", "scenes-teacher", "--until-verdict", "--baseline", "b", "--dry-run"],
            "--dry-run does not work with --until-verdict",
        ),
        (["run", "--model", "scenes-teacher", "--steps", "0"], "steps"),
        (["run", "--model", "scenes-teacher", "--size-px", "60"], "multiple of 8"),
        (["run", "--model", "scenes-teacher", "--scheduler", "lmc"], "sampling.scheduler: Input should be 'model', 'ddim'"),
        (["run", "--model", "scenes-teacher", "--timestep-spacing", "trailing"], "needs a scheduler that supports it"),
        (
            ["run", "--model", "scenes-teacher", "--scheduler", "lcm", "--timesteps", "999", "499", "--steps", "4"],
            "one for each of the 4 steps",
        ),
        (["benchmark", "--profile", "scene"], "unknown profile 'scene'; did you mean 'scenes'?"),
        (["noise", "sdxl", "--suite", "mlperf-sdxl"], "takes its latent from asset:mlperf-latents, whatever the seed"),
        (["gate", "scenes-teachr", "--baseline", "scenes-teacher"], "did you mean 'scenes-teacher'"),
        (["gate", "a", "--baseline", "b", "--policy", "nowhere.toml"], "nowhere.toml"),
        (["run", "--model", "scenes-vega", "--reference", "secnes"], "unknown reference 'secnes'; did you mean 'scenes'? Or build it"),
        (["run", "--model", "scenes-vega", "--reference", "mine"], "unknown reference 'mine'; known: scenes. Or build it"),
        (["run", "--model", "scenes-teacher", "--suite", "fid", "--dry-run"], "suite 'fid' is a part"),
        (["score", "--images", "nowhere", "--prompts", "nowhere.txt"], "nowhere"),
        (["scenes", "train", "--parts", "reeder"], "did you mean 'reader'"),
    ],
)
def test_bad_input_is_a_short_message_and_2(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in message(words, capsys)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_weights_that_cannot_be_read_are_refused_before_anything_is_made(
    more: list[str], made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "unet", tmp_path / "student")
    (tmp_path / "student" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "student" / "diffusion_pytorch_model.bin")
    for base in ("scenes-teacher", "segmind/SSD-1B"):  # the other one would have to be fetched first
        assert "only pickled weights" in message(["run", "--model", "./student", "--base", base, "--suite", "quality", *more], capsys)
    assert [path for path in tmp_path.rglob("results/**/*") if path.is_file()] == []


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.txt").write_text("sand")
    assert "holiday" in message(["run", "--model", "./holiday"], capsys)
    assert "holiday" in message(["gate", "./holiday", "--baseline", "scenes-teacher"], capsys)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["gat"],
        ["gate", "x"],
        ["gate", "x", "--base", "y"],
        ["models", "--js"],
        ["leaderboard", "--runs", "x"],
        ["scenes", "ship", "--json"],
        ["run", "--modle", "x"],
        ["run", "--model", "x", "--dtype", "float64"],
    ],
)
def test_words_that_no_command_knows_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert done.value.code == 2
    assert "usage: sdbench" in capsys.readouterr().err


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of all its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_no_option_is_taken_by_its_first_letters() -> None:
    every = [*parsers(cli.build_parser()), *parsers(distillation._parser())]
    assert {"sdbench gate", "sdbench baseline set", "distillation run", "distillation data fetch"} <= {each.prog for each in every}
    assert [each.prog for each in every if each.allow_abbrev] == []


def test_every_command_says_what_it_does_and_what_its_options_mean() -> None:
    every = [*parsers(cli.build_parser()), *parsers(distillation._parser())]
    assert [each.prog for each in every if not each.description] == []
    options = [(each.prog, action) for each in every for action in each._actions]
    assert [(prog, action.dest) for prog, action in options if not action.help and not isinstance(action, argparse._SubParsersAction)] == []


def test_names_in_the_help_are_all_that_there_are() -> None:
    from distillation.ablation.experiment import arm_recipes
    from sdbench.encoders.catalogue import ENCODERS

    assert tuple(ENCODERS) == cli.ENCODERS
    assert tuple(arm_recipes(load_recipe("vega"), dict)) == distillation.ARMS


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[ModelSpec], str | None]]:
    """Models and device of each run, which is stopped there."""
    seen: list[tuple[list[ModelSpec], str | None]] = []

    def stop(specs: list[ModelSpec], *_: object, device: str | None = None, **__: object) -> None:
        seen.append((specs, device))
        raise UserError("as far as the test goes")

    for module in (api, measuring):  # what `sdbench run` calls, and what the gate and the noise floor call
        monkeypatch.setattr(module, "run", stop)
    return seen


def test_a_unet_is_gated_and_run_against_itself_with_what_completes_it(
    made: Path, ran: list[tuple[list[ModelSpec], str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    unet, teacher = str(made / "unet"), "scenes-teacher"
    more = ["--base", teacher, "--name", "mine", "--device", "cpu"]
    assert "complete" in message(["gate", unet, "--baseline", "scenes-vega-pruned"], capsys)
    assert "For the baseline there is no such option" in message(["gate", "scenes-vega-pruned", "--baseline", unet], capsys)
    message(["gate", unet, "--baseline", "scenes-vega-pruned", *more], capsys)
    message(["noise", unet, *more], capsys)
    own = resolve(unet, base=teacher, name="mine")
    assert ran == [([own, resolve("scenes-vega-pruned")], "cpu"), ([own], "cpu")]


def test_a_record_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(save_record(make_measurement(), tmp_path))
    assert "are for a model that is run now" in message(["gate", folder, "--baseline", folder, "--base", "scenes-teacher"], capsys)


@pytest.fixture
def strict(tmp_path: Path) -> list[str]:
    (tmp_path / "strict.toml").write_text(STRICT)
    return ["--policy", str(tmp_path / "strict.toml")]


def gate(candidate: Path, baseline: Path, *more: str) -> int:
    return cli.main(["gate", str(candidate), "--baseline", str(baseline), *more])


def test_the_gate_exits_with_0_for_an_equal_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, teacher = save_record(make_measurement(), tmp_path), save_record(make_measurement("scenes-teacher", seed=2), tmp_path)
    assert gate(good, teacher) == 0
    out, err = capsys.readouterr()
    assert out.startswith("pass: ")
    assert err == ""


@pytest.mark.parametrize(("columns", "widest"), [("90", 90), ("400", 160), ("", 160)])  # of a terminal; a pipe has none
def test_tables_are_as_wide_as_the_terminal_and_never_wider_than_160(
    columns: str, widest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    folder, *_ = (save_record(make_measurement(f"a-student-{place}"), tmp_path) for place in range(9))
    words = ["--results", str(tmp_path)]
    for command in (["gate", str(folder), "--baseline", str(folder), *words], ["leaderboard", *words]):
        cli.main(command)
        lines = capsys.readouterr().out.splitlines()
        (rule, *_) = [at for at, line in enumerate(lines) if line.startswith(" ──")]
        table = lines[rule - 1 : lines.index("", rule)]
        assert 0.7 * widest < max(map(len, table)) <= widest


def test_the_gate_exits_with_1_for_a_worse_one_and_says_so_as_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse, teacher = (
        save_record(make_measurement(worse="clip_score.scenes", by=2), tmp_path),
        save_record(make_measurement("scenes-teacher", seed=2), tmp_path),
    )
    assert gate(worse, teacher, "--json") == 1
    out, err = capsys.readouterr()
    assert err.startswith("regressed: ")
    answer = json.loads(out)
    assert (answer["verdict"], answer["exit_code"]) == ("regressed", 1)
    assert [result["name"] for result in answer["results"] if result["verdict"] == "regressed"] == ["clip_score.scenes"]


def test_every_report_says_what_it_is_of(tmp_path: Path, strict: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = save_record(make_measurement(), tmp_path), save_record(make_measurement("scenes-teacher", seed=2), tmp_path)
    baselines.set_baseline("production", teacher, "release 3", tmp_path)
    files = ["--junit", "gate.xml", "--markdown", "gate.md"]
    assert cli.main(["gate", str(student), "--baseline", "production", "--results", str(tmp_path), "--json", *strict, *files]) == 3
    inputs = json.loads(capsys.readouterr().out)["inputs"]
    assert inputs == {
        "candidate": str(student),
        "baseline": str(teacher),
        "baseline_asked": "production",
        "suite": "quality@1 (digest 5017e)",
        "policy": str(tmp_path / "strict.toml"),
        "alpha": 0.05,
    }
    properties = ET.parse("gate.xml").findall("properties/property")
    assert [each.get("value") for each in properties] == list(map(str, inputs.values()))
    lines = (tmp_path / "gate.md").read_text(encoding="utf-8").splitlines()
    assert {f"- baseline: {teacher}", "- baseline asked: production", "- alpha: 0.05"} <= set(lines)


def test_the_gate_exits_with_2_for_what_it_cannot_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = save_record(make_measurement("scenes-teacher", seed=2), tmp_path)
    assert gate(save_record(make_measurement(family="sdxl"), tmp_path), teacher) == 2
    assert capsys.readouterr().out.startswith("incomparable: ")
    assert gate(save_record((make_record("empty", n_images=200), make_measurement()[1]), tmp_path), teacher) == 2
    assert capsys.readouterr().out.startswith("incomparable: ")
    damaged = save_record(make_measurement("damaged"), tmp_path)
    (damaged / "record.json").write_text(
        (damaged / "record.json").read_text().replace("scenes-student", "x").replace("damaged", "harmless")
    )
    assert gate(damaged, teacher) == 2
    assert "was changed after it was written" in capsys.readouterr().err


def test_the_gate_exits_with_3_where_prompts_are_too_few(tmp_path: Path, strict: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    few, teacher = save_record(make_measurement(n_prompts=6), tmp_path), save_record(make_measurement("scenes-teacher", seed=2, n_prompts=6), tmp_path)
    assert gate(few, teacher, *strict) == 3
    assert capsys.readouterr().out.startswith("inconclusive: ")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no idea"),
        MemoryError(),
        UserError("mend it"),
        ImportError("no torch"),
        KeyboardInterrupt(),
        SystemExit(1),
        SystemExit(0),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    "words", [["gate", "a", "--baseline", "b"], ["run", "--model", "scenes-vega", "--until-verdict", "--baseline", "b"]]
)
def test_a_gate_that_crashes_never_looks_like_one_that_judged(
    words: list[str], error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object, **__: object) -> Report:
        raise error

    monkeypatch.setattr(api, "compare", crash)
    monkeypatch.setattr(api, "until_verdict", crash)
    assert str(error) in message(words, capsys)


def test_a_crash_is_told_to_machines_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def crash(*_: object, **__: object) -> Report:
        raise ImportError("no parquet")

    monkeypatch.setattr(api, "compare", crash)
    junit, markdown = tmp_path / "gate.xml", tmp_path / "gate.md"
    assert cli.main(["gate", "a", "--baseline", "b", "--json", "--junit", str(junit), "--markdown", str(markdown)]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2
    assert 'errors="1"' in junit.read_text()
    assert "no parquet" in junit.read_text()
    assert "no parquet" in markdown.read_text()


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_report_that_cannot_be_written_is_no_verdict(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_record(make_measurement(), tmp_path)
    assert gate(folder, folder, option, str(tmp_path / "nowhere" / "file")) == 2
    assert "the verdict cannot be published" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("full", "more"), [("stdout", []), ("stdout", ["--json"]), ("stderr", ["--json"])])
def test_a_full_disk_is_no_verdict(full: str, more: list[str], tmp_path: Path) -> None:
    worse = save_record(make_measurement(worse="clip_score.scenes", by=2), tmp_path)
    words = [sys.executable, "-m", "sdbench.cli", "gate", str(worse), "--baseline", str(save_record(make_measurement(seed=2), tmp_path)), *more]
    with Path("/dev/full").open("w") as sink:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, full: sink}
        assert subprocess.run(words, cwd=ROOT, check=False, **streams).returncode == 2  # type: ignore[call-overload]


def test_a_gate_that_is_asked_to_end_has_no_verdict(tmp_path: Path) -> None:
    code = """
import os, signal
from sdbench import api, cli
api.compare = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(cli.main(["gate", "a", "--baseline", "b"]))
"""
    done = run_in_process(code, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "interrupted" in done.stderr


def test_a_request_to_end_ends_what_was_started_too(tmp_path: Path) -> None:
    code = """
import subprocess
from sdbench import cli
started = "import time; print('there', flush=True); time.sleep(60)"
cli._models = lambda _: subprocess.run([sys.executable, "-c", started])
sys.exit(cli.main(["models"]))
"""
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    words = [sys.executable, "-c", path + code]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        process.terminate()
        _, said = process.communicate(timeout=20)  # which ends only when both have let go of the pipe
    assert process.returncode == 130
    assert said == "sdbench: interrupted; what was finished is kept, and the same command continues from there\n"


def test_records_of_a_suite_that_is_nowhere_are_compared_and_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "own.toml"
    policy.write_text(STRICT.replace("quality", "own"))
    suite = SuiteId(name="own", version=1, digest="5017e")
    folders = [save_record(make_measurement(seed=seed, suite=suite), tmp_path) for seed in (1, 2)]
    assert gate(*folders, "--policy", str(policy)) == 3
    capsys.readouterr()
    assert gate(folders[0], Path("scenes-vega"), "--policy", str(policy)) == 2
    assert "is of suite 'own', but neither ./suites nor the package has a file for it; give it with --suite FILE" in capsys.readouterr().err


def test_a_gate_on_records_imports_what_is_quick_to_import(tmp_path: Path) -> None:
    folder = save_record(make_measurement(), tmp_path)
    code = f"""
from sdbench import cli
assert cli.main(["gate", {str(folder)!r}, "--baseline", {str(folder)!r}]) == 0
print("imported:", sorted({SLOW | {"scipy", "pandas", "matplotlib", "huggingface_hub", "PIL"}!r} & set(sys.modules)))
"""
    assert run_in_process(code, tmp_path).stdout.splitlines()[-1:] == ["imported: []"]


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--model", "scenes-vega", "--until-verdict"],
        ["run", "--model", "scenes-vega", "--baseline", "scenes-teacher"],
        ["run", "--model", "scenes-vega", "--model", "scenes-ssd-1b", "--until-verdict", "--baseline", "scenes-teacher"],
    ],
)
def test_until_the_verdict_takes_one_model_and_a_baseline(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--until-verdict takes one --model" in message(words, capsys)


def test_a_gate_that_cannot_print_its_report_never_looks_like_one_that_judged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mute(Report):
        def text(self, width: int = 160) -> str:
            raise ZeroDivisionError(width)

    monkeypatch.setattr(api, "compare", lambda *_, **__: Mute("pass", "", "a", "b"))
    assert "ZeroDivisionError" in message(["gate", "a", "--baseline", "b"], capsys)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_gate_whose_reader_went_away_does_not_pass(more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, _: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None: ...

        def close(self) -> None: ...

    worse, teacher = (
        save_record(make_measurement(worse="clip_score.scenes", by=2), tmp_path),
        save_record(make_measurement("scenes-teacher", seed=2), tmp_path),
    )
    monkeypatch.setattr(sys, "stdout", Gone())
    assert gate(worse, teacher, *more) == 2


def test_models_and_suites_are_answered_as_text_or_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    out, err = capsys.readouterr()
    assert (out.startswith("sdxl "), err) == (True, "")
    assert cli.main(["models", "--json"]) == 0
    assert {"sdxl", "ssd-1b", "vega", "scenes-teacher"} <= {entry["name"] for entry in json.loads(capsys.readouterr().out)}
    assert cli.main(["suites", "--json"]) == 0
    found = {suite["name"]: suite["family"] for suite in json.loads(capsys.readouterr().out)}
    assert found["quality"] == "scenes"
    assert found["fid"] is None
    assert cli.main(["suites"]) == 0
    out, err = capsys.readouterr()
    assert "\n    metrics of scenes: clip_score.scenes\n    metrics of sdxl: clip_score.vit-l-14\n" in out
    assert err == ""


@pytest.mark.parametrize("words", [["leaderboard"], ["report"], ["card", "."], ["baseline", "--results", "nowhere", "list"]])
def test_results_that_are_not_there_are_not_made(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [] if "--results" in words else ["--results", "nowhere"]
    assert "no results folder nowhere; name another with --results" in message([*words, *more], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["leaderboard", "report"])
def test_a_folder_of_no_records_is_no_empty_leaderboard(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = save_record(make_measurement(), tmp_path).parents[2]
    before = sorted(tmp_path.rglob("*"))
    said = message([command, "--results", str(family)], capsys)
    assert f"no records in {family}, where they would be FAMILY/SUITE@VERSION/MODEL/DIGEST/record.json" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_the_doctor_names_what_is_too_old_or_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy>=2.0", "torch>=99", "nowhere>=1"])
    found = [*checks._packages()]
    assert [(finding.is_ok, finding.is_fatal) for finding in found] == [(True, True), (False, True), (False, True)]
    assert found[0].text == f"numpy {metadata.version('numpy')}"
    assert re.match(r"torch 2\.\S+, needed is torch>=99; install sdbench again", found[1].text)
    assert found[2].text.startswith("nowhere is not installed, needed is nowhere>=1; install")
    monkeypatch.undo()
    assert all(finding.is_ok for finding in checks._packages())
    monkeypatch.setattr(metadata, "requires", lambda _: metadata.version("nowhere"))
    assert [finding.is_fatal for finding in checks._packages()] == [False]


def test_the_doctor_looks_at_the_folders_that_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "_metrics", lambda: iter(()))
    monkeypatch.setattr(checks, "_published_values", lambda: iter(()))
    found = {finding.text for finding in checks.examine(tmp_path / "new" / "results", tmp_path / "away")}
    assert f"folder {tmp_path}/new/results can be written" in found
    assert any(text.endswith(f"of disk free for {tmp_path}/away") for text in found)


def test_another_program_s_files_in_suites_hide_none_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "api_tests.toml").write_text('endpoint = "/v1"')
    assert cli.main(["suites"]) == 0
    out, err = capsys.readouterr()
    assert "not a suite: suite suites/api_tests.toml: unknown key 'endpoint'" in err
    assert "quality@" in out


def test_prompts_and_a_reference_of_one_s_own_make_a_suite_by_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = suites.load("standard")
    for name in ("mine.txt", "copied.txt"):
        (tmp_path / name).write_text("a cat\n\na dog\na fox\n", encoding="utf-8")
    mine, copied, two = (
        api.Overrides(prompts=Path(name), n=n).apply(plain) for name, n in (("mine.txt", None), ("copied.txt", None), ("mine.txt", 2))
    )
    assert (mine.name, [*mine.prompt_list().values()]) == ("standard-custom", ["a cat", "a dog", "a fox"])
    assert mine.id == copied.id != two.id
    assert len(two.prompt_list()) == 2
    to_mine = api.Overrides(reference="mine").apply(plain)
    assert (to_mine.name, to_mine.reference, to_mine.prompt_list()) == ("standard-custom", "mine", plain.prompt_list())
    with pytest.raises(UserError, match=r"prompts nowhere\.txt cannot be read"):
        api.Overrides(prompts=Path("nowhere.txt")).apply(plain)
    said = message(["run", "--model", "scenes-vega", "--prompts", "mine.txt", "--dry-run"], capsys)
    assert "suite 'quality-custom': not a caption of the scenes grammar: 'a cat'" in said


def test_settings_of_one_s_own_make_a_suite_of_another_name() -> None:
    plain = suites.load("quality")
    assert api.Overrides().apply(plain) is plain
    few = api.Overrides(guidance_scale=1.0, scheduler="lcm", timesteps=[999, 749, 499, 249]).apply(plain).sampling
    assert few
    assert (few.steps, few.guidance_scale, few.scheduler, few.timesteps) == (4, 1.0, "lcm", (999, 749, 499, 249))
    with pytest.raises(UserError, match=r"prompts\.n: Input should be greater than 0 \(found 0\)"):
        api.Overrides(n=0).apply(plain)
    changed = api.Overrides(steps=3, n=5).apply(plain)
    assert changed.name == "quality-custom"
    assert changed.id.digest != plain.id.digest
    assert (changed.sampling and changed.sampling.steps, len(changed.prompt_list())) == (3, 5)
    assert changed.sampling is not None
    assert plain.sampling is not None
    assert changed.sampling.model_dump(exclude={"steps"}) == plain.sampling.model_dump(exclude={"steps"})


def test_rounds_and_calls_of_one_s_own_are_those_of_every_setting() -> None:
    plain = suites.load("efficiency")
    short = api.Overrides(rounds=1, calls=3).apply(plain)
    assert plain.probes
    assert short.probes
    assert (short.name, short.probes.rounds, short.probes.calls, short.probes.warmup) == ("efficiency-custom", 1, 3, 2)
    assert short.probes.select().keys() == plain.probes.select().keys()
    assert {setting.calls for setting in plain.probes.select().values()} == {None, 2}
    assert {setting.calls for setting in short.probes.select().values()} == {None}
    once = api.Overrides(rounds=1).apply(plain).probes
    assert once == plain.probes.model_copy(update={"rounds": 1}), "a setting's own calls stay where only the rounds are others"
    with pytest.raises(UserError, match=r"probes\.calls: Input should be greater than 1 \(found 1\)"):
        api.Overrides(calls=1).apply(plain)
    with pytest.raises(UserError, match="suite 'coco-30k' has no probes, so nothing to take in rounds and calls; leave that out"):
        api.Overrides(rounds=1, calls=3).apply(suites.load("coco-30k"))
