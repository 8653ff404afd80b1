"""The command line: fast error messages, and reliable exit codes."""

import argparse
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from factories import make_measurement, make_record, save_record

from distillation import cli as distillation
from distillation.recipe import load_recipe
from sdbench import __version__, api, cli, suites
from sdbench.api import measuring
from sdbench.commands import reference
from sdbench.doctor import checks
from sdbench.errors import UserError
from sdbench.gate import baselines, floors
from sdbench.gate.compare import Side
from sdbench.gate.verdicts import Report
from sdbench.models.spec import ModelSpec, resolve
from sdbench.records import SuiteId
from sdbench.run import runner

ROOT = Path(__file__).parents[1]
SLOW = {"torch", "diffusers", "transformers", "open_clip", "torchvision", "datasets"}
STRICT = """
alpha = 0.05
[suites.quality]
"clip_score.scenes" = { direction = "higher", margin = 0.03, required = true }
"""


@pytest.fixture(autouse=True)
def _empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder without ./suites and ./results."""
    monkeypatch.chdir(tmp_path)


def run_in_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.run([sys.executable, "-c", path + code], cwd=folder, capture_output=True, encoding="utf-8", check=False)


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["models"], ["suites"], ["run", "--model", "sdlx"]])
def test_commands_without_a_model_import_no_slow_library(words: list[str], tmp_path: Path) -> None:
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
    commands = "run benchmark score gate compare noise baseline models suites leaderboard report card doctor reference scenes"
    for command in commands.split():
        assert re.search(rf"^    {command}\s", text, re.MULTILINE), command


@pytest.mark.parametrize("program", [cli.main, distillation.main])
def test_version_option_prints_the_version(program: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        program(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.split()[1:] == [__version__]


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


def error_message(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with exit code 2 and at most a screen of text on stderr; returns that text."""
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
        (
            ["run", "--model", "scenes-teacher", "--suite", "x" * 300],
            "xxx.toml: File name too long. What was finished is kept; put this right",
        ),
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
        (
            ["run", "--model", "scenes-teacher", "--until-verdict", "--baseline", "b", "--only", "probes"],
            "unknown half to gate by 'probes'; known: quality",
        ),
        (["run", "--model", "scenes-teacher", "--part", "1/2", "--dry-run"], "--dry-run does not work with --part"),
        (["run", "--model", "sdxl", "--weights", "random", "--part", "1/2"], "--weights random does not work with --part"),
        (["run", "--model", "scenes-teacher", "--suite", "efficiency-scenes", "--part", "1/2"], "measures no images, so --part has none"),
        (["run", "--model", "scenes-teacher", "--steps", "0"], "steps"),
        (["run", "--model", "scenes-teacher", "--size-px", "60"], "multiple of 8"),
        (["run", "--model", "scenes-teacher", "--scheduler", "lmc"], "sampling.scheduler: unknown value 'lmc'; did you mean 'lcm'?"),
        (["run", "--model", "scenes-teacher", "--timestep-spacing", "trailing"], "needs a scheduler that supports it"),
        (
            ["run", "--model", "scenes-teacher", "--scheduler", "lcm", "--timesteps", "999", "499", "--steps", "4"],
            "with your settings: sampling: there must be as many timesteps as steps, found 2 and 4",
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
        (["scenes", "ship", "--parts", "vae"], "--parts is for scenes train"),
        (
            ["reference", "build", "x", "--images", ".", "--column", "image", "--encoder", "scenes.features"],
            "--split and --column are for --dataset",
        ),
    ],
)
def test_invalid_input_gives_a_short_message_and_exit_code_2(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in error_message(words, capsys)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_unreadable_weights_are_rejected_before_anything_is_generated(
    more: list[str], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_pipeline / "unet", tmp_path / "student")
    (tmp_path / "student" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "student" / "diffusion_pytorch_model.bin")
    for base in ("scenes-teacher", "segmind/SSD-1B"):  # the second base would have to be fetched first
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


def test_repeatable_options_collect_their_values_in_every_use_of_a_parser() -> None:
    parser = cli.build_parser()
    for _ in range(2):
        parsed = parser.parse_args(["run", "--model", "a", "--model", "b", "--suite", "quality", "--json", "--json"])
        assert (parsed.model, parsed.suite, parsed.json) == (["a", "b"], "quality", True)


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
def test_unknown_arguments_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert done.value.code == 2
    assert "usage: sdbench" in capsys.readouterr().err


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and the parsers of all its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from parsers(subparser)


def test_options_cannot_be_abbreviated() -> None:
    all_parsers = [*parsers(cli.build_parser()), *parsers(distillation._parser())]
    assert {"sdbench gate", "sdbench baseline set", "distillation run", "distillation data fetch"} <= {
        parser.prog for parser in all_parsers
    }
    assert [parser.prog for parser in all_parsers if parser.allow_abbrev] == []


def test_every_command_and_option_has_a_help_text() -> None:
    all_parsers = [*parsers(cli.build_parser()), *parsers(distillation._parser())]
    assert [parser.prog for parser in all_parsers if not parser.description] == []
    options = [(parser.prog, action) for parser in all_parsers for action in parser._actions]
    assert [(prog, action.dest) for prog, action in options if not action.help and not isinstance(action, argparse._SubParsersAction)] == []


def test_names_in_the_help_are_complete() -> None:
    from distillation.ablation.experiment import arm_recipes
    from sdbench.encoders.catalogue import ENCODERS

    assert tuple(ENCODERS) == reference.ENCODERS
    assert tuple(arm_recipes(load_recipe("vega"), dict)) == distillation.ARMS


@pytest.fixture
def stopped_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[ModelSpec], str | None]]:
    """Models and device of each call of `run`, which stops with an error."""
    calls: list[tuple[list[ModelSpec], str | None]] = []

    def stop(specs: list[ModelSpec], *_: object, device: str | None = None, **__: object) -> None:
        calls.append((specs, device))
        raise UserError("stopped by the test")

    for module in (api, measuring):  # called by `sdbench run`, and by the gate
        monkeypatch.setattr(module, "run", stop)
    monkeypatch.setattr(runner, "run", lambda specs, context: stop(specs, device=context.device))  # by the noise floor
    return calls


def test_gate_and_noise_complete_a_unet_with_the_given_base(
    tiny_pipeline: Path, stopped_runs: list[tuple[list[ModelSpec], str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    unet, teacher = str(tiny_pipeline / "unet"), "scenes-teacher"
    more = ["--base", teacher, "--name", "mine", "--device", "cpu"]
    assert "complete" in error_message(["gate", unet, "--baseline", "scenes-vega-pruned"], capsys)
    assert "But --base completes only the candidate" in error_message(["gate", "scenes-vega-pruned", "--baseline", unet], capsys)
    assert cli.main(["gate", unet, "--baseline", "scenes-vega-pruned", *more]) == 2
    assert re.match(
        r"no matching record of mine and scenes-vega-pruned under quality@\d+ \(digest \w+\): measuring them now, on this machine \(the files of a checkpoint .*\)\nsdbench: ",
        capsys.readouterr().err,
    )
    error_message(["noise", unet, *more], capsys)
    own = resolve(unet, base=teacher, name="mine")
    assert stopped_runs == [([own, resolve("scenes-vega-pruned")], "cpu"), ([own], "cpu")]


def test_missing_record_is_announced_before_it_is_measured(
    stopped_runs: list[tuple[list[ModelSpec], str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    record = save_record(make_measurement(suite=suites.load("quality").id), Path("results"))
    assert cli.main(["gate", str(record), "--baseline", "scenes-teacher", "--json"]) == 2
    out, err = capsys.readouterr()
    assert re.match(r"no matching record of scenes-teacher under quality@\d+ \(digest \w+\): measuring it now, on this machine\n", err)
    assert json.loads(out)["verdict"] == "incomparable"
    assert cli.main(["run", "--model", "scenes-vega", "--until-verdict", "--baseline", "scenes-teacher"]) == 2
    assert capsys.readouterr().err.startswith("no matching record of scenes-teacher under quality@")
    assert len(stopped_runs) == 2


def test_gate_on_quality_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = make_measurement(worse="latency.pipeline.p50", by=9), make_measurement("scenes-teacher", seed=2)
    slower, old = save_record(student, tmp_path), save_record(teacher, tmp_path)
    assert gate(slower, old) == 1
    assert gate(slower, old, "--only", "quality") == 0
    assert "left out, as only image metrics are weighed: latency.pipeline.p50, memory.peak_data" in capsys.readouterr().out


def test_noise_says_what_its_numbers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [Side.read(save_record(make_measurement(seed=seed), tmp_path)) for seed in (1, 2)]
    floor = floors.estimate(sides, (1, 2), SuiteId(name="quality", version=1, digest="5017e"))
    spreads = {
        "fd.scenes": floors.Spread(noise=77.8, values=(769.3, 823.9), unit="distance"),
        "latency.pipeline.p50": floors.Spread(noise=0.0123, values=(0.5, 0.6), unit="s"),
    }
    monkeypatch.setattr(api, "noise", lambda *_: (tmp_path / "floor.toml", floor.model_copy(update={"metrics": spreads})))
    assert cli.main(["noise", "scenes-vega"]) == 0
    distance, latency, rule, _ = capsys.readouterr().out.splitlines()
    assert distance.split(maxsplit=1) == [
        "fd.scenes",
        "standard deviation of the difference of two runs: 77.8; the runs' values: 769.3 to 823.9",
    ]
    assert "of two runs: 1.23 %; the runs' values: 0.5000 to 0.6000" in latency
    assert rule == "a margin in the gate's policy must exceed the standard deviation of its metric"


def test_options_for_a_run_are_rejected_with_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(save_record(make_measurement(), tmp_path))
    assert "apply only to a model that is yet to run" in error_message(
        ["gate", folder, "--baseline", folder, "--base", "scenes-teacher"], capsys
    )


@pytest.fixture
def strict(tmp_path: Path) -> list[str]:
    (tmp_path / "strict.toml").write_text(STRICT, encoding="utf-8")
    return ["--policy", str(tmp_path / "strict.toml")]


def gate(candidate: Path, baseline: Path, *more: str) -> int:
    return cli.main(["gate", str(candidate), "--baseline", str(baseline), *more])


def test_gate_exits_with_0_for_an_equal_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, teacher = save_record(make_measurement(), tmp_path), save_record(make_measurement("scenes-teacher", seed=2), tmp_path)
    assert gate(good, teacher) == 0
    out, err = capsys.readouterr()
    assert out.startswith("pass: ")
    assert err == ""


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
        assert 0.7 * widest < max(map(len, table)) <= widest


def test_gate_exits_with_1_for_a_worse_model_also_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_every_report_names_its_inputs(tmp_path: Path, strict: list[str], capsys: pytest.CaptureFixture[str]) -> None:
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


def test_gate_exits_with_2_for_incomparable_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = save_record(make_measurement("scenes-teacher", seed=2), tmp_path)
    assert gate(save_record(make_measurement(family="sdxl"), tmp_path), teacher) == 2
    assert capsys.readouterr().out.startswith("incomparable: ")
    assert gate(save_record((make_record("empty", n_images=200), make_measurement()[1]), tmp_path), teacher) == 2
    assert capsys.readouterr().out.startswith("incomparable: ")
    damaged = save_record(make_measurement("damaged"), tmp_path)
    (damaged / "record.json").write_text(
        (damaged / "record.json").read_text(encoding="utf-8").replace("scenes-student", "x").replace("damaged", "harmless"),
        encoding="utf-8",
    )
    assert gate(damaged, teacher) == 2
    assert "was changed after it was written" in capsys.readouterr().err


def test_gate_exits_with_3_if_prompts_are_too_few(tmp_path: Path, strict: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    few, teacher = (
        save_record(make_measurement(n_prompts=6), tmp_path),
        save_record(make_measurement("scenes-teacher", seed=2, n_prompts=6), tmp_path),
    )
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
def test_crash_of_the_gate_does_not_look_like_a_verdict(
    words: list[str], error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object, **__: object) -> Report:
        raise error

    monkeypatch.setattr(api, "gate", crash)
    monkeypatch.setattr(api, "until_verdict", crash)
    assert str(error) in error_message(words, capsys)


def test_crash_is_reported_in_json_junit_and_markdown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object, **__: object) -> Report:
        raise ImportError("no parquet")

    monkeypatch.setattr(api, "gate", crash)
    junit, markdown = tmp_path / "gate.xml", tmp_path / "gate.md"
    assert cli.main(["gate", "a", "--baseline", "b", "--json", "--junit", str(junit), "--markdown", str(markdown)]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2
    assert 'errors="1"' in junit.read_text(encoding="utf-8")
    assert "no parquet" in junit.read_text(encoding="utf-8")
    assert "no parquet" in markdown.read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_unwritable_report_is_not_a_verdict(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_record(make_measurement(), tmp_path)
    assert gate(folder, folder, option, str(tmp_path)) == 2
    assert "the verdict cannot be published" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
@pytest.mark.parametrize(
    "words", [["gate", "a", "--baseline", "b"], ["run", "--model", "scenes-vega", "--until-verdict", "--baseline", "b"]]
)
def test_report_without_a_folder_is_refused_before_anything_is_measured(
    words: list[str], option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[object] = []
    for name in ("gate", "until_verdict"):
        monkeypatch.setattr(api, name, lambda *given, **_: measured.append(given))
    message = error_message([*words, option, "nowhere/file"], capsys)
    assert "the verdict cannot be published: there is no folder nowhere for file; make it" in message
    assert not measured


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("full", "more"), [("stdout", []), ("stdout", ["--json"]), ("stderr", ["--json"])])
def test_full_disk_is_not_a_verdict(full: str, more: list[str], tmp_path: Path) -> None:
    worse, baseline = (
        save_record(make_measurement(worse="clip_score.scenes", by=2), tmp_path),
        save_record(make_measurement(seed=2), tmp_path),
    )
    words = [sys.executable, "-m", "sdbench.cli", "gate", str(worse), "--baseline", str(baseline), *more]
    with Path("/dev/full").open("w", encoding="utf-8") as sink:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, full: sink}
        assert subprocess.run(words, cwd=ROOT, check=False, **streams).returncode == 2


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_stream_that_cannot_encode_a_sign_gets_a_question_mark(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_record(make_measurement(), tmp_path)
    words = ["leaderboard", "--results", str(tmp_path), *more]
    assert cli.main(words) == 0
    expected = capsys.readouterr().out.encode("ascii", "replace")
    assert (b"?" in expected) != bool(more), "only the table has arrows"
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert cli.main(words) == 0
    assert narrow.buffer.getvalue() == expected


def test_terminated_gate_has_no_verdict(tmp_path: Path) -> None:
    code = """
import os, signal
from sdbench import api, cli
api.gate = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(cli.main(["gate", "a", "--baseline", "b"]))
"""
    done = run_in_process(code, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "interrupted" in done.stderr


def test_sigterm_ends_child_processes_too(tmp_path: Path) -> None:
    code = """
import subprocess
from sdbench import cli
child = "import time; print('there', flush=True); time.sleep(60)"
cli._models = lambda _: subprocess.run([sys.executable, "-c", child])
sys.exit(cli.main(["models"]))
"""
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    words = [sys.executable, "-c", path + code]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        process.terminate()
        _, err = process.communicate(timeout=20)  # returns only when both processes have closed the pipe
    assert process.returncode == 130
    assert err == "sdbench: interrupted; what was finished is kept, and the same command continues from there\n"


def test_records_of_an_unknown_suite_are_compared_but_not_run_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "own.toml"
    policy.write_text(STRICT.replace("quality", "own"), encoding="utf-8")
    suite = SuiteId(name="own", version=1, digest="5017e")
    folders = [save_record(make_measurement(seed=seed, suite=suite), tmp_path) for seed in (1, 2)]
    assert gate(folders[0], folders[1], "--policy", str(policy)) == 3
    capsys.readouterr()
    assert gate(folders[0], Path("scenes-vega"), "--policy", str(policy)) == 2
    assert "is of suite 'own', but neither ./suites nor the package has a file for it; give it with --suite FILE" in capsys.readouterr().err


def test_compare_exits_with_0_without_policy_or_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, by in (("before", 0.0), ("after", 2.0)):
        save_record(make_measurement(name, worse="clip_score.scenes", by=by, suite=SuiteId(name="own", version=1, digest="0a")), tmp_path)
    words, page = ["compare", "before", "after", "--results", str(tmp_path), "--suite", "own"], tmp_path / "page.md"
    assert cli.main([*words, "--markdown", str(page)]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"clip_score.scenes \(100 cos\) ↑ .* worse\n", out)
    assert err == ""
    assert cli.main([*words, "--markdown", str(page), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["differences"][1]["outcome"] == "worse"
    assert page.read_text(encoding="utf-8").count("### after compared with before") == 2
    assert "only records are compared" in error_message(["compare", "before", "scenes-vega", "--results", str(tmp_path)], capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["gate", "--baseline"], ["compare"]])
def test_gate_and_comparison_of_records_import_no_slow_library(words: list[str], tmp_path: Path) -> None:
    folder = save_record(make_measurement(), tmp_path)
    code = f"""
from sdbench import cli
assert cli.main([*{words!r}, {str(folder)!r}, {str(folder)!r}]) == 0
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
def test_until_verdict_takes_one_model_and_a_baseline(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--until-verdict takes one --model" in error_message(words, capsys)


def test_unprintable_report_does_not_look_like_a_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class UnprintableReport(Report):
        def text(self, width: int = 160) -> str:
            raise ZeroDivisionError(width)

    monkeypatch.setattr(api, "gate", lambda *_, **__: UnprintableReport("pass", "", "a", "b"))
    assert "ZeroDivisionError" in error_message(["gate", "a", "--baseline", "b"], capsys)


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_gate_with_a_closed_pipe_does_not_pass(more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ClosedPipe:
        def write(self, _: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None: ...

        def close(self) -> None: ...

    worse, teacher = (
        save_record(make_measurement(worse="clip_score.scenes", by=2), tmp_path),
        save_record(make_measurement("scenes-teacher", seed=2), tmp_path),
    )
    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    assert gate(worse, teacher, *more) == 2


def test_models_and_suites_are_listed_as_text_or_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert cli.main(["models"]) == 0
    out, err = capsys.readouterr()
    assert (out.split()[:2], err) == (["model", "family"], "")
    (vega,) = (line.split() for line in out.splitlines() if line.startswith(" vega "))  # each model has one line, as in a pipe
    assert vega == ["vega", "sdxl", "vega", "hub", "3.3", "GB", "segmind/Segmind-Vega", "Apache-2.0"]
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


def test_doctor_reports_old_or_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_doctor_tells_what_compiled_settings_lack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "my-cc"
    compiler.touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", str(compiler))
    assert checks._compiler().is_ok
    monkeypatch.delenv("CC")
    (tmp_path / "Python.h").unlink()
    finding = checks._compiler()
    assert (finding.is_ok, finding.is_fatal) == (False, False)
    assert "without a C compiler and Python's headers" in finding.text


def test_doctor_checks_the_given_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "_metrics", lambda: iter(()))
    monkeypatch.setattr(checks, "_published_values", lambda: iter(()))
    found = {finding.text for finding in checks.examine(tmp_path / "new" / "results", tmp_path / "away")}
    assert f"folder {tmp_path}/new/results can be written" in found
    assert any(text.endswith(f"of disk free for {tmp_path}/away") for text in found)


def test_doctor_finds_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    finding = checks._writable(tmp_path / "results" / "runs", "--runs")
    assert (finding.is_ok, finding.text.endswith("results/runs cannot be written; name another with --runs")) == (False, True)


def test_unrelated_files_in_the_suites_folder_do_not_hide_shipped_suites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "api_tests.toml").write_text('endpoint = "/v1"', encoding="utf-8")
    assert cli.main(["suites"]) == 0
    out, err = capsys.readouterr()
    assert "not a suite: suite suites/api_tests.toml: unknown key 'endpoint'" in err
    assert "quality@" in out


def test_custom_prompts_and_reference_make_a_custom_suite_identified_by_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = suites.load("standard")
    for name in ("mine.txt", "copied.txt"):
        (tmp_path / name).write_text("a cat\n\na dog\na fox\n", encoding="utf-8")
    mine, copied, two = (
        api.Overrides(prompts=Path(name), n=n).apply(plain) for name, n in (("mine.txt", None), ("copied.txt", None), ("mine.txt", 2))
    )
    assert (mine.name, [*mine.prompt_list().values()]) == ("standard-custom", ["a cat", "a dog", "a fox"])
    assert mine.id == copied.id != two.id
    assert len(two.prompt_list()) == 2
    (tmp_path / "captions.csv").write_text("file,caption\n0.png,a cat\n1.png,a dog\n2.png,a fox\n", encoding="utf-8")
    table = api.Overrides(prompts="captions.csv").apply(plain)
    assert table.prompt_list() == mine.prompt_list()
    capsys.readouterr()  # `datasets` shows its progress
    to_mine = api.Overrides(reference="mine").apply(plain)
    assert (to_mine.name, to_mine.reference, to_mine.prompt_list()) == ("standard-custom", "mine", plain.prompt_list())
    with pytest.raises(UserError, match=r"prompts nowhere\.txt cannot be read"):
        api.Overrides(prompts=Path("nowhere.txt")).apply(plain)
    message = error_message(["run", "--model", "scenes-vega", "--prompts", "mine.txt", "--dry-run"], capsys)
    assert "suite 'quality-custom': not a caption of the scenes grammar: 'a cat'. The embedded family draws only captions" in message
    assert (
        "such as 'a large red circle left of a small blue star on a pink background'; other prompts need a model of family sdxl" in message
    )


def test_overridden_settings_make_a_custom_suite() -> None:
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


def test_overridden_rounds_and_calls_apply_to_every_setting() -> None:
    plain = suites.load("efficiency")
    short = api.Overrides(rounds=1, calls=3).apply(plain)
    assert plain.probes
    assert short.probes
    assert (short.name, short.probes.rounds, short.probes.calls, short.probes.warmup) == ("efficiency-custom", 1, 3, 2)
    assert short.probes.select().keys() == plain.probes.select().keys()
    assert {setting.calls for setting in plain.probes.select().values()} == {None, 2}
    assert {setting.calls for setting in short.probes.select().values()} == {None}
    once = api.Overrides(rounds=1).apply(plain).probes
    assert once == plain.probes.model_copy(update={"rounds": 1}), "overriding only the rounds keeps the calls of each setting"
    with pytest.raises(UserError, match=r"probes\.calls: Input should be greater than 1 \(found 1\)"):
        api.Overrides(calls=1).apply(plain)
    with pytest.raises(UserError, match="suite 'coco-30k' has no probes, so rounds and calls have no effect; leave them out"):
        api.Overrides(rounds=1, calls=3).apply(suites.load("coco-30k"))
