"""The command line: fast error messages, and reliable exit codes."""

import argparse
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import ROOT, SLOW, error_message, forbid, run_in_process
from factories import make_measurement, save_record
from tqdm import tqdm

from distillation import cli as distillation
from distillation.commands import ablation
from distillation.recipe import load_recipe
from sdbench import __version__, api, cli
from sdbench.arguments import run_command, show
from sdbench.assets.weights import RemoteFile
from sdbench.commands import reference, scenes
from sdbench.errors import PartialError, UserError
from sdbench.gate.verdicts import Report
from sdbench.leaderboard import writing
from sdbench.run import requirements
from sdbench.scenes.embedded import verified_path
from sdbench.suites import Suite

pytestmark = pytest.mark.usefixtures("empty_working_directory")


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("sdbench", ["--help"]),
        ("sdbench", ["run", "--help"]),
        ("sdbench", ["models"]),
        ("sdbench", ["suites"]),
        ("sdbench", ["run", "--model", "sdlx"]),
        ("sdbench", ["score", "--images", "nowhere"]),
        ("sdbench", ["noise", "scenes-vega", "--seeds", "1"]),
        ("sdbench", ["scenes", "train", "--parts", "vae", "reeder"]),
        ("sdbench", ["scenes", "ship", "--parts", "vae"]),
        ("sdbench", ["reference", "build", "x", "--images", ".", "--encoder", "scenes.features", "scenes.feature"]),
        ("distillation", ["--help"]),
        ("distillation", ["plan", "vegga"]),
        ("distillation", ["run", "vegga"]),
        ("distillation", ["sensitivity", "--like", "vegga"]),
    ],
)
def test_commands_without_a_model_import_no_slow_library(package: str, words: list[str], tmp_path: Path) -> None:
    code = f"""
from {package}.cli import main
try:
    main({words!r})
except SystemExit as done:
    assert not done.code, done.code
print("imported:", sorted({SLOW!r} & set(sys.modules)))
"""
    done = run_in_process(code, tmp_path)
    assert done.stdout.splitlines()[-1:] == ["imported: []"], done.stderr


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_do_not_wait_for_libraries(option: str, tmp_path: Path) -> None:
    code = f"""
from sdbench.cli import main
try:
    main([{option!r}])
except SystemExit:
    print("imported:", sorted({{"numpy", "pydantic"}} & set(sys.modules)))
"""
    assert run_in_process(code, tmp_path).stdout.splitlines()[-1] == "imported: []"


@pytest.mark.parametrize("package", ["sdbench", "distillation"])
def test_packages_run_as_modules(package: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", package, "--version"], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stdout) == (0, f"{package} {__version__}\n"), done.stderr


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    commands = "run benchmark score gate compare noise baseline models suites leaderboard report card doctor clean reference scenes"
    for command in commands.split():
        assert re.search(rf"^    {command}\s", text, re.MULTILINE), command


@pytest.mark.parametrize("more", [[], ["--until-verdict", "--baseline", "b"]])
def test_run_writes_all_leaderboard_files_and_succeeds_if_it_cannot(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_record(make_measurement(), tmp_path)
    monkeypatch.setattr(api, "run", lambda *_, **__: [folder])
    monkeypatch.setattr(api, "until_verdict", lambda *_, **__: (folder, Report("pass", "", "a", "b")))
    words = ["run", "--model", "scenes-vega", "--results", str(tmp_path), "--json", *more]
    assert cli.main(words) == 0
    assert {path.suffix for path in tmp_path.glob("LEADERBOARD.*")} == {".md", ".tex", ".csv", ".json"}
    first_out = capsys.readouterr().out
    (folder / "images" / "p0000.png").write_bytes(b"cut off")
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out == first_out
    assert f"record: {folder}\n" in err
    assert re.search(r"leaderboard could not be updated.*p0000\.png cannot be read", err)


@pytest.mark.parametrize("words", [["run", "--model", "scenes-vega"], ["benchmark", "--profile", "scenes"]])
def test_models_that_were_measured_are_shown_beside_the_error_of_one_that_was_not(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_in_part(*_: object, **__: object) -> None:
        raise PartialError("all of its pixels are NaN", [save_record(make_measurement("scenes-ssd-1b"), tmp_path)])

    monkeypatch.setattr(api, "run", fail_in_part)
    assert cli.main([*words, "--results", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "scenes-ssd-1b" in out
    assert err.endswith("sdbench: all of its pixels are NaN\n")
    assert (tmp_path / "LEADERBOARD.md").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "--model", "sdlx"], "'sdlx'"),
        (["run", "--model", "scenes-teachr"], "did you mean 'scenes-teacher'? A model is a name"),
        (["run", "--model", "scenes-teacher", "--suite", "qualty"], "unknown suite 'qualty'; did you mean 'quality'?"),
        (["run", "--model", "scenes-teacher", "--suite", "nowhere.toml"], "no suite file nowhere.toml"),
        (
            ["run", "--model", "scenes-teacher", "--suite", "x" * 300],
            "xxx.toml: File name too long. What was finished is kept; put this right",
        ),
        (["run", "--model", "scenes-teacher", "--suite", "fid"], "suite 'fid' is a part"),
        (["run", "--model", "scenes-teacher", "--suite", "standard"], "family"),
        (["run", "--model", "scenes-teacher", "--model", "scenes-vega", "--name", "x"], "--name is for one model"),
        (["run", "--model", "scenes-teacher", "--model", "scenes-teacher"], "'scenes-teacher' is named twice; leave one out"),
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
        (["run", "--model", "scenes-teacher", "--only", "quality", "--profile-stages"], "--profile-stages is for probes"),
        (["run", "--model", "scenes-teacher", "--device", "gpu"], "no device 'gpu' here"),
        (["run", "--model", "scenes-teacher", "--device", "gpu", "--dry-run"], "no device 'gpu' here"),
        (["run", "--model", "scenes-teacher", "--junit", "gate.xml"], "--junit works only with --until-verdict"),
        (
            ["run", "--model", "scenes-teacher", "--until-verdict", "--baseline", "b", "--dry-run"],
            "--dry-run does not work with --until-verdict",
        ),
        (
            ["run", "--model", "scenes-teacher", "--until-verdict", "--baseline", "b", "--only", "probes"],
            "unknown value of `only` 'probes'; known: quality",
        ),
        (["run", "--model", "scenes-teacher", "--part", "1/2", "--dry-run"], "--dry-run does not work with --part"),
        (["run", "--model", "sdxl", "--weights", "random", "--part", "1/2"], "--weights random does not work with --part"),
        (["run", "--model", "scenes-teacher", "--suite", "efficiency-scenes", "--part", "1/2"], "measures no images, so --part has none"),
        (
            ["run", "--model", "scenes-teacher", "--scheduler", "lcm", "--timesteps", "999", "499", "--steps", "4"],
            "with your settings: sampling: there must be as many timesteps as steps, found 2 and 4",
        ),
        (["benchmark", "--profile", "scene"], "unknown profile 'scene'; did you mean 'scenes'?"),
        (["gate", "scenes-teachr", "--baseline", "scenes-teacher"], "did you mean 'scenes-teacher'"),
        (["gate", "a", "--baseline", "b", "--policy", "nowhere.toml"], "nowhere.toml"),
        (["run", "--model", "scenes-vega", "--reference", "secnes"], "unknown reference 'secnes'; did you mean 'scenes'? Or build it"),
        (["run", "--model", "scenes-vega", "--reference", "mine"], "unknown reference 'mine'; known: scenes. Or build it"),
        (["run", "--model", "scenes-teacher", "--suite", "fid", "--dry-run"], "suite 'fid' is a part"),
        (["score", "--images", "nowhere", "--prompts", "nowhere.txt"], "nowhere"),
        (["scenes", "train", "--parts", "vae", "reeder"], "did you mean 'reader'"),
        (["scenes", "ship", "--parts", "vae"], "--parts is for scenes train"),
        (
            ["reference", "build", "x", "--images", ".", "--column", "image", "--encoder", "scenes.features"],
            "--split and --column are for --dataset",
        ),
    ],
)
def test_invalid_input_gives_a_short_message_and_exit_code_2(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in error_message(words, capsys)


def test_a_base_completes_those_models_that_lack_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A teacher and a bare UNet are measured in one run, so that they take turns."""
    words = ["run", "--base", "scenes-teacher", "--dry-run", "--json", "--results", str(tmp_path), "--model"]
    assert cli.main([*words, str(verified_path("unets/vega-pruned")), "--model", "scenes-teacher"]) == 0
    assert [model["model"] for model in json.loads(capsys.readouterr().out)["models"]] == ["vega-pruned", "scenes-teacher"]
    assert "'scenes-teacher' is already a complete pipeline; leave --base out" in error_message([*words, "scenes-teacher"], capsys)


@pytest.mark.parametrize("between", [[], ["--model"]])
def test_several_models_are_given_by_one_option_or_by_several(
    between: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shell makes several words of `out/checkpoint-*/unet`."""
    words = ["run", "--results", str(tmp_path), "--model", "scenes-teacher", *between, "scenes-vega", "--dry-run", "--json"]
    assert cli.main(words) == 0
    assert [model["model"] for model in json.loads(capsys.readouterr().out)["models"]] == ["scenes-teacher", "scenes-vega"]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_unreadable_weights_are_rejected_before_anything_is_generated(
    more: list[str], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_pipeline / "unet", tmp_path / "student")
    (tmp_path / "student" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "student" / "diffusion_pytorch_model.bin")
    for base in ("scenes-teacher", "someone/teacher"):  # the second base would have to be fetched first
        assert "only pickled weights" in error_message(["run", "--model", "./student", "--base", base, "--suite", "quality", *more], capsys)
    assert [path for path in tmp_path.rglob("results/**/*") if path.is_file()] == []


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_control_characters_from_files_do_not_reach_the_terminal(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = json.dumps({"\x1b[2J\x9b1;32mpass\r": {"dtype": "F32", "shape": [1], "data_offsets": [0, 40]}}).encode()
    (tmp_path / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert cli.main(["gate", str(tmp_path / "odd.safetensors"), "--baseline", "scenes-vega", "--results", str(tmp_path), *more]) == 2
    assert cli.main(["run", "--model", str(tmp_path / "odd.safetensors")]) == 2
    shown = "".join(capsys.readouterr())
    assert shown.count(r"\x1b[2J\x9b1;32mpass\r") == 2
    assert not set(shown) & {"\x1b", "\x9b", "\r"}


def test_folder_that_is_not_a_checkpoint_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.txt").write_text("sand", encoding="utf-8")
    assert "holiday" in error_message(["run", "--model", "./holiday"], capsys)
    assert "holiday" in error_message(["gate", "./holiday", "--baseline", "scenes-teacher"], capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["run", "--model", "x", "--suite", "quality", "--suite", "standard"],
            "--suite is given twice: quality and standard; give one of them",
        ),
        (["run", "--model", "x", "--steps", "4", "--steps", "5"], "--steps is given twice: 4 and 5"),
        (
            ["run", "--model", "x", "--timesteps", "9", "--timesteps", "4"],
            r"--timesteps is given twice: \[9\] and \[4\]; give all its values",
        ),
        (["reference", "list", "--results", "a", "--results", "b"], "--results is given twice: a and b"),
    ],
)
def test_option_of_one_value_is_refused_where_it_is_given_twice(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert done.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--guidance-scale", "--eta"])
@pytest.mark.parametrize("words", [["run", "--model", "scenes-vega"], ["gate", "scenes-vega", "--baseline", "x"], ["noise", "scenes-vega"]])
def test_setting_that_is_not_a_number_is_out_of_range(words: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = option.strip("-").replace("-", "_")
    message = error_message([*words, "--suite", "quality", option, "nan"], capsys)
    assert message == f"sdbench: suite 'quality' with your settings: sampling.{name}: Input should be a finite number (found nan)\n"


def test_repeatable_options_collect_their_values_in_every_use_of_a_parser() -> None:
    parser = cli.build_parser()
    for _ in range(2):
        parsed = parser.parse_args(["run", "--model", "a", "--model", "b", "--suite", "quality", "--json", "--json"])
        assert (parsed.model, parsed.suite, parsed.json) == (["a", "b"], "quality", True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "sdbench: error: the following arguments are required: COMMAND; see `sdbench --help`"),
        (["gat"], "sdbench: error: argument COMMAND: invalid choice: 'gat' (choose from "),
        (["gate", "x"], "sdbench gate: error: the following arguments are required: --baseline; see `sdbench gate --help`"),
        (["gate", "x", "--base", "y"], "sdbench gate: error: the following arguments are required: --baseline"),
        (["models", "--js"], "sdbench models: error: unrecognized arguments: --js; see `sdbench models --help`"),
        (["leaderboard", "--runs", "x"], "sdbench leaderboard: error: unrecognized arguments: --runs x; see"),
        (["scenes", "ship", "--json"], "sdbench scenes: error: unrecognized arguments: --json"),
        (["run", "--modle", "x"], "sdbench run: error: the following arguments are required: --model"),
        (
            ["run", "--model", "x", "--batch-size", "4"],
            "sdbench run: error: unrecognized arguments: --batch-size 4; see `sdbench run --help`",
        ),
        (["run", "--model", "x", "--dtype", "float64"], "sdbench run: error: argument --dtype: invalid choice: 'float64' (choose from "),
        (
            ["reference", "list", "--sort"],
            "sdbench reference list: error: unrecognized arguments: --sort; see `sdbench reference list --help`",
        ),
        (["reference", "--sort", "list"], "sdbench reference: error: unrecognized arguments: --sort; see `sdbench reference --help`"),
        (["--sort", "models", "\x1b[2J"], r"sdbench models: error: unrecognized arguments: \x1b[2J; see"),
        (["--sort", "models"], "sdbench: error: unrecognized arguments: --sort; see `sdbench --help`"),
        (
            ["compare", "a", ""],
            "sdbench compare: error: argument B: the value is empty; if it is that of a variable, set the variable",
        ),
        (["gate", "a", "--baseline", ""], "sdbench gate: error: argument --baseline: the value is empty"),
        (["run", "--model", ""], "sdbench run: error: argument --model: the value is empty"),
        (["run", "--model", "x", "--metrics", "fid.clean", ""], "sdbench run: error: argument --metrics: the value is empty"),
        (["run", "--model", "x", "--name", ""], "sdbench run: error: argument --name: the value is empty"),
        (["leaderboard", "--results="], "sdbench leaderboard: error: argument --results: the value is empty"),
        (["baseline", "list", "--results", ""], "sdbench baseline list: error: argument --results: the value is empty"),
    ],
)
def test_unknown_or_missing_arguments_exit_with_2_and_one_line_of_their_command(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert done.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


@pytest.mark.parametrize("words", [["reference", "--json", "list"], ["reference", "list", "--json"]])
def test_common_options_stand_before_or_after_an_action(words: list[str]) -> None:
    assert cli.build_parser().parse_args(words).json


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and the parsers of all its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from parsers(subparser)


def test_options_cannot_be_abbreviated() -> None:
    all_parsers = [*parsers(cli.build_parser()), *parsers(distillation.build_parser())]
    assert {"sdbench gate", "sdbench baseline set", "distillation run", "distillation data fetch"} <= {
        parser.prog for parser in all_parsers
    }
    assert [parser.prog for parser in all_parsers if parser.allow_abbrev] == []


def test_every_command_and_option_has_a_help_text() -> None:
    all_parsers = [*parsers(cli.build_parser()), *parsers(distillation.build_parser())]
    assert [parser.prog for parser in all_parsers if not parser.description] == []
    options = [(parser.prog, action) for parser in all_parsers for action in parser._actions]
    assert [(prog, action.dest) for prog, action in options if not action.help and not isinstance(action, argparse._SubParsersAction)] == []


def test_names_in_the_help_are_complete() -> None:
    from distillation.ablation.experiment import arm_recipes
    from sdbench.encoders.catalogue import ENCODERS
    from sdbench.scenes.training.make import PARTS

    assert set(reference.ENCODERS) <= set(ENCODERS)
    assert tuple(PARTS) == scenes.PARTS
    assert tuple(arm_recipes(load_recipe("vega"), dict)) == ablation.ARMS


def test_score_takes_other_metrics_and_another_reference(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found: list[Suite] = []

    def stop(_: object, __: object, suite: Suite, **___: object) -> None:
        found.append(suite)
        raise UserError("stopped by the test")

    monkeypatch.setattr(api, "score", stop)
    score = ["score", "--images", "images", "--suite", "standard", "--metrics", "clip_score.vit-l-14", "fid.clean", "--reference"]
    error_message([*score, "scenes"], capsys)
    assert [(suite.own_metrics, suite.reference) for suite in found] == [(("clip_score.vit-l-14", "fid.clean"), "scenes")]
    assert "unknown reference 'mine'" in error_message([*score, "mine"], capsys)
    assert len(found) == 1


@pytest.mark.parametrize(("columns", "widest"), [("90", 90), ("400", 160), ("", 160)])  # widths of a terminal; a pipe has none
def test_tables_have_the_width_of_the_terminal_up_to_160(
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
        assert 0.6 * widest < max(map(len, table)) <= widest


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_stream_that_cannot_encode_the_signs_of_a_table_gets_similar_ones(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_record(make_measurement(), tmp_path)
    words = ["leaderboard", "--results", str(tmp_path), *more]
    assert cli.main(words) == 0
    expected = capsys.readouterr().out.replace("↑", "^").replace("↓", "v").replace("±", "+-").replace("─", "-").replace("¹", "*1")
    assert ({"^", "v"} <= set(expected)) != bool(more), "only the table has arrows"
    monkeypatch.setattr(sys, "stdout", narrow := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert cli.main(words) == 0
    assert narrow.buffer.getvalue() == expected.encode("ascii")


def test_note_numbers_and_other_characters_stay_apart_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", narrow := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))

    def answer() -> int:
        show("0.31 ¹², café")
        return 0

    assert run_command("sdbench", answer) == 0
    assert narrow.buffer.getvalue() == b"0.31 *1*2, caf?\n"


@pytest.mark.parametrize("words", [["models"], ["models", "--json"]])
def test_closed_stdout_is_an_error_that_is_told(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python does under `>&-`
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith("sdbench: stdout: Bad file descriptor. ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_command_ends_its_child_processes_too(number: signal.Signals, tmp_path: Path) -> None:
    code = """
import signal
import subprocess
from sdbench import cli
from sdbench.commands import listing
child = "import time; print('there', flush=True); time.sleep(60)"
listing._models = lambda _: subprocess.run([sys.executable, "-c", child])
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
sys.exit(cli.main(["models"]))
"""
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    words = [sys.executable, "-c", path + code]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=20)  # returns only when both processes have closed the pipe
    assert process.returncode == 130
    assert err == "sdbench: interrupted; what was finished is kept, and the same command continues from there\n"


def test_a_signal_that_is_ignored_as_under_nohup_stays_ignored() -> None:
    def hang_up() -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command("sdbench", hang_up) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_message_has_its_own_line_after_a_progress_bar_that_the_error_ended(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        for _ in tqdm(range(3), file=sys.stderr):
            raise UserError("no more")
        return 0

    assert run_command("sdbench", fails) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "sdbench: no more"


def test_models_and_suites_are_listed_as_text_or_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["models"]) == 0
    out, err = capsys.readouterr()
    assert (out.split()[:2], err) == (["model", "family"], "")
    (vega,) = (line.split() for line in out.splitlines() if line.startswith(" vega "))  # each model has one line, as in a pipe
    assert vega == ["vega", "sdxl", "vega", "hub", "3.3", "GB", "segmind/Segmind-Vega", "Apache-2.0"]
    (embedded,) = (line for line in out.splitlines() if line.startswith(" scenes-vega "))
    assert "unets/vega ¹ " in embedded
    assert out.endswith(f"\n¹ in {verified_path('unets/vega').parents[1]}\n")
    assert cli.main(["models", "--json"]) == 0
    assert {"sdxl", "ssd-1b", "vega", "scenes-teacher"} <= {entry["name"] for entry in json.loads(capsys.readouterr().out)}
    assert cli.main(["suites", "--json"]) == 0
    found = {suite["name"]: suite["family"] for suite in json.loads(capsys.readouterr().out)}
    assert found["quality"] == "scenes"
    assert found["fid"] is None
    assert cli.main(["suites", "quality", "--json"]) == 0
    assert [suite["name"] for suite in json.loads(capsys.readouterr().out)] == ["quality"]


def test_every_suite_has_one_line_in_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["suites"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split(maxsplit=2) for line in lines[2 : lines.index("")]]
    assert [name.partition("@")[0] for name, *_ in rows if not name.startswith(("d", "e"))] == [
        "quality", "standard", "coco-30k", "few-step", "hpdv2", "mlperf-sdxl",
    ]  # fmt: skip  # the default of each family first
    assert len(rows) == 11
    by_name = {name: (family, rest) for name, family, rest in rows}
    assert by_name["quality@4"] == ("scenes", "512       Every metric, in minutes on two cores")
    assert by_name["diversity@1"] == ("sdxl", "64 x 4    How different images of a prompt are")
    assert by_name["coco-30k@1"][1].startswith("30,000 ")
    assert "parts that suites include: agreement, clip_score, fid, latency, preference, vram" in lines
    assert "default: quality for scenes and standard for sdxl" in lines
    assert err == ""


def test_a_suite_by_name_is_shown_with_what_it_measures_and_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "unknown suite 'qualty'; did you mean 'quality'?" in error_message(["suites", "qualty"], capsys)
    assert cli.main(["suites", "clip_score"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["metrics of scenes: clip_score.scenes", "metrics of sdxl: clip_score.vit-l-14"]
    assert cli.main(["suites", "coco-30k"]) == 0
    out = capsys.readouterr().out
    assert re.search("^missing: reference 'coco-30k', .*`sdbench reference build coco-30k .*`", out, re.MULTILINE)  # on one line
    files = [RemoteFile(place, None, "x", size, cached=False) for place, size in (("a/b", 10**9), ("c/d", 24 * 10**7), ("a/b", 10**9))]
    monkeypatch.setattr(requirements, "files_to_fetch", lambda _: files)
    assert cli.main(["suites", "diversity@1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("diversity@1 (sdxl): How different images of a prompt are: four of each prompt")
    assert "prompts: 64, 4 images of each" in lines
    assert lines[-4:] == [
        "metrics of sdxl: diversity.clip.vit-l-14, diversity.dinov2, clip_score.vit-l-14",
        "to fetch, in all 2.24 GB:",
        "       2 GB  a/b",
        "     240 MB  c/d",
    ]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("words", [["leaderboard"], ["report"], ["card", "."], ["baseline", "--results", "nowhere", "list"]])
def test_missing_results_folder_is_not_created(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [] if "--results" in words else ["--results", "nowhere"]
    assert "no results folder nowhere; name another with --results" in error_message([*words, *more], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["leaderboard", "report"])
def test_folder_without_records_is_an_error_not_an_empty_leaderboard(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = save_record(make_measurement(), tmp_path).parents[2]
    before = sorted(tmp_path.rglob("*"))
    message = error_message([command, "--results", str(family)], capsys)
    assert f"no records in {family}, expected at FAMILY/SUITE@VERSION/MODEL/DIGEST/record.json" in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_leaderboard_of_a_folder_that_can_only_be_read_is_printed(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_record(make_measurement(), tmp_path)
    words = ["leaderboard", "--results", str(tmp_path), *more]
    assert cli.main(words) == 0
    expected = capsys.readouterr().out

    def refuse(path: Path, *_: object) -> None:
        raise UserError(f"cannot write {path}")

    monkeypatch.setattr(writing, "write_bytes", refuse)
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == expected
    assert err.endswith(f"sdbench: cannot write {tmp_path}/LEADERBOARD.md\n")


def test_leaderboard_without_the_records_that_cannot_be_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_record(make_measurement(), tmp_path)
    locked = save_record(make_measurement("scenes-vega"), tmp_path).parent
    forbid(locked, monkeypatch)
    message = error_message(["leaderboard", "--results", str(tmp_path)], capsys)
    assert message.startswith(f"sdbench: {locked}: Permission denied. What was finished is kept; put this right")
    assert not (tmp_path / "LEADERBOARD.md").exists()


def test_unrelated_files_in_the_suites_folder_do_not_hide_shipped_suites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "api_tests.toml").write_text('endpoint = "/v1"', encoding="utf-8")
    assert cli.main(["suites"]) == 0
    out, err = capsys.readouterr()
    assert "not a suite: suite suites/api_tests.toml: unknown key 'endpoint'" in err
    assert "quality@" in out


def test_prompts_that_are_no_captions_of_scenes_are_refused_for_the_embedded_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("a cat\n", encoding="utf-8")
    message = error_message(["run", "--model", "scenes-vega", "--prompts", "mine.txt", "--dry-run"], capsys)
    assert "suite 'quality-custom': not a caption of the scenes grammar: 'a cat'. The embedded family draws only captions" in message
    assert (
        "such as 'a large red circle left of a small blue star on a pink background'; other prompts need a model of family sdxl" in message
    )


def test_exit_code_survives_a_stderr_that_nobody_reads() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "sdbench", "gate", "no", "--baseline", "none"], stderr=write, check=False)
    os.close(write)
    assert done.returncode == 2
