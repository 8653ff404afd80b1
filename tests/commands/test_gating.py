"""The gate, comparisons and noise floors from the command line: exit codes that mean what they say, whatever goes wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from commandline import ROOT, SLOW, error_message, run_in_process
from factories import make_measurement, make_record, save_record
from tiny import edit_json

from sdbench import api, cli, suites
from sdbench.api import measuring
from sdbench.errors import UserError
from sdbench.gate import baselines, floors
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Rule, load
from sdbench.gate.verdicts import Report
from sdbench.machine import this_machine
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec
from sdbench.records import SuiteId
from sdbench.run import runner
from sdbench.suites import Suite

pytestmark = pytest.mark.usefixtures("empty_working_directory")
STRICT = """
alpha = 0.05
[suites.quality]
"clip_score.scenes" = { direction = "higher", margin = 0.03, required = true }
"""
COMMANDS = [["gate", "a", "--baseline", "b"], ["run", "--model", "scenes-vega", "--until-verdict", "--baseline", "b"]]


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """The folder of a record as good as the teacher's."""
    return save_record(make_measurement(), tmp_path)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """The folder of the teacher's record."""
    return save_record(make_measurement("scenes-teacher", seed=2), tmp_path)


@pytest.fixture
def worse(tmp_path: Path) -> Path:
    """The folder of a record with a lower CLIP score."""
    return save_record(make_measurement(worse="clip_score.scenes", by=2), tmp_path)


@pytest.fixture
def strict(tmp_path: Path) -> list[str]:
    (tmp_path / "strict.toml").write_text(STRICT, encoding="utf-8")
    return ["--policy", str(tmp_path / "strict.toml")]


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


def gate(candidate: Path, baseline: Path, *more: str) -> int:
    return cli.main(["gate", str(candidate), "--baseline", str(baseline), *more])


def test_gate_and_noise_complete_a_unet_with_the_given_base(
    tiny_pipeline: Path, stopped_runs: list[tuple[list[ModelSpec], str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    unet, teacher = str(tiny_pipeline / "unet"), "scenes-teacher"
    more = ["--base", teacher, "--name", "mine", "--device", "cpu"]
    assert "complete" in error_message(["gate", unet, "--baseline", "scenes-vega-pruned"], capsys)
    assert "for example --base scenes-teacher. But --base completes only the candidate" in error_message(
        ["gate", "scenes-vega-pruned", "--baseline", unet], capsys
    )
    assert cli.main(["gate", unet, "--baseline", "scenes-vega-pruned", *more]) == 2
    assert re.match(
        r"checking mine and scenes-vega-pruned under quality@\d+ \(digest \w+\) in results: what is missing, .*\nsdbench: ",
        capsys.readouterr().err,
    )
    error_message(["noise", unet, *more], capsys)
    own = resolve(unet, base=teacher, name="mine")
    assert stopped_runs == [([own, resolve("scenes-vega-pruned")], "cpu"), ([own], "cpu")]


def test_pipelines_of_one_name_are_told_apart_by_their_folders(
    tiny_pipeline: Path, tmp_path: Path, stopped_runs: list[tuple[list[ModelSpec], str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    for parent in ("run-a", "run-b"):
        shutil.copytree(tiny_pipeline, tmp_path / parent / "student")
    assert cli.main(["gate", str(tmp_path / "run-b" / "student"), "--baseline", str(tmp_path / "run-a" / "student")]) == 2
    assert "\nchecking run-b-student and run-a-student under quality@" in capsys.readouterr().err
    assert [[spec.name for spec in specs] for specs, _ in stopped_runs] == [["run-b-student", "run-a-student"]]


def test_models_of_two_families_are_refused_before_anything_is_fetched(
    stopped_runs: list[tuple[list[ModelSpec], str | None]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sdbench.run.requirements.fetch_evaluators", lambda _: pytest.fail("fetched"))
    assert "is of family" in error_message(["gate", "scenes-vega", "--baseline", "sdxl", "--device", "cpu"], capsys)
    assert stopped_runs == []


@pytest.mark.parametrize("candidate", ["scenes-vega", "record"])
def test_nothing_is_run_for_a_policy_without_the_suite(
    candidate: str, tmp_path: Path, stopped_runs: list[tuple[list[ModelSpec], str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sdbench.run.context", None)  # which imports torch, for seconds
    (tmp_path / "other.toml").write_text(STRICT.replace("quality", "other"), encoding="utf-8")
    named = save_record(make_measurement(suite=suites.load("quality").id), tmp_path) if candidate == "record" else candidate
    with pytest.raises(UserError, match=r"has no table \[suites\.quality\]"):
        api.gate(named, "scenes-teacher", policy=tmp_path / "other.toml", places=api.Places(tmp_path), device="cpu")
    assert stopped_runs == []


def test_a_record_against_itself_passes_with_a_note(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(student, student) == 0
    assert "candidate and baseline are the same record" in capsys.readouterr().out
    assert "A and B are the same record" in api.compare(student, student, places=api.Places(tmp_path)).notes


def test_record_is_named_by_its_file_too(student: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = student / "record.json", teacher / "record.json"
    assert gate(ours, theirs) == 0
    assert cli.main(["compare", str(ours), str(theirs), "--results", str(tmp_path)]) == 0
    assert cli.main(["baseline", "set", "production", str(theirs), "--why", "x", "--results", str(tmp_path)]) == 0
    capsys.readouterr()
    assert baselines.find("production", tmp_path) == teacher


def test_unet_of_no_family_is_refused_before_the_evaluators_are_listed(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "other")
    config = tmp_path / "other" / "unet" / "config.json"
    edit_json(config, cross_attention_dim=1024)
    for words in (["noise", "./other"], ["run", "--model", "./other"], ["gate", "./other", "--baseline", "scenes-vega", "--device", "cpu"]):
        message = error_message(words, capsys)
        assert message.startswith(f"sdbench: {config}: cross_attention_dim is 1024, expected 2048 (family sdxl) or 96 (family scenes): ")
        assert "use `sdbench score`" in message


@pytest.mark.parametrize("only", [None, "quality"])
def test_record_of_a_catalogue_baseline_is_used_where_nothing_is_timed(
    only: str | None, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where latency is compared, both take turns, whatever was measured before."""
    suite, ran = suites.load("quality"), []

    def run(specs: list[ModelSpec], *_: object, **__: object) -> list[Path]:
        ran.append([spec.name for spec in specs])
        return [save_record(make_measurement(spec.name, suite=suite.id, machine=here), Path("results")) for spec in specs]

    here = this_machine("cpu")
    save_record(make_measurement("scenes-teacher", suite=suite.id, machine=here), Path("results"))
    monkeypatch.setattr(measuring, "run", run)
    report = api.gate(tiny_pipeline, "scenes-teacher", name="mine", device="cpu", only=only)
    assert report.inputs
    assert Path(report.inputs.baseline).parent.name == "scenes-teacher"
    assert ran == [["mine"] if only else ["mine", "scenes-teacher"]]


def test_baseline_whose_record_lacks_what_the_policy_requires_is_measured_again(
    tiny_pipeline: Path, stopped_runs: list[tuple[list[ModelSpec], str | None]]
) -> None:
    suite = suites.load("quality")
    record, scores = make_measurement("scenes-teacher", suite=suite.id, machine=this_machine("cpu"))
    lacking = tuple(value for value in record.values if value.name != "clip_score.scenes")
    save_record((record.model_copy(update={"values": lacking}), scores), Path("results"))
    options: dict[str, Any] = {"name": "mine", "device": "cpu", "only": "quality"}
    for judge in (
        lambda: api.gate(tiny_pipeline, "scenes-teacher", **options),
        lambda: api.evaluate(tiny_pipeline, suite, baseline="scenes-teacher", **options),
    ):
        with pytest.raises(UserError, match="stopped by the test"):
            judge()
    assert [[spec.name for spec in specs] for specs, _ in stopped_runs] == [["mine", "scenes-teacher"]] * 2


def test_gate_and_noise_change_settings_of_a_suite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[Suite] = []

    def stop(_: object, suite: Suite, *__: object, **___: object) -> None:
        ran.append(suite)
        raise UserError("stopped by the test")

    monkeypatch.setattr(measuring, "run", stop)
    monkeypatch.setattr(runner, "run", lambda specs, context: stop(specs, context.suite))
    few = ["--n", "8", "--steps", "2", "--device", "cpu"]
    assert cli.main(["gate", "scenes-vega-pruned", "--baseline", "scenes-vega", "--suite", "quality", *few]) == 2
    assert cli.main(["noise", "scenes-vega", *few]) == 2
    capsys.readouterr()
    settings = [(suite.name, suite.sampling.steps, suite.prompts.n) for suite in ran]
    assert settings == [("quality-custom", 2, 8)] * 2
    assert "name the suite that these settings change" in error_message(["gate", "a", "--baseline", "b", *few], capsys)


def test_missing_record_is_announced_before_it_is_measured(
    stopped_runs: list[tuple[list[ModelSpec], str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    record = save_record(make_measurement(suite=suites.load("quality").id), Path("results"))
    assert cli.main(["gate", str(record), "--baseline", "scenes-teacher", "--json"]) == 2
    out, err = capsys.readouterr()
    assert re.match(
        r"no matching record of scenes-teacher under quality@\d+ \(digest \w+\) in results: measuring it now, on this machine\n", err
    )
    assert json.loads(out)["verdict"] == "incomparable"
    assert cli.main(["run", "--model", "scenes-vega", "--until-verdict", "--baseline", "scenes-teacher"]) == 2
    assert capsys.readouterr().err.startswith("no matching record of scenes-teacher under quality@")
    assert len(stopped_runs) == 2


def test_reference_that_the_policy_requires_is_missed_before_anything_is_drawn(
    stopped_runs: list[tuple[list[ModelSpec], str | None]],
) -> None:
    suite, (model, baseline) = suites.load("quality").model_copy(update={"reference": "photographs"}), ("scenes-vega", "scenes-teacher")
    for judge in (
        lambda: api.gate(model, baseline, suite=suite),
        lambda: api.until_verdict(model, suite, baseline=baseline),
        lambda: api.evaluate(model, suite, baseline=baseline),
    ):
        with pytest.raises(UserError, match=r"requires what this machine lacks: reference 'photographs', so fd\.scenes will be missing"):
            judge()
    assert stopped_runs == []


@pytest.mark.parametrize("required", ["true", "false"])
@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("clip_score.scene", "clip_score.scenes"),
        ("latency.pipelin.p50", "latency.pipeline.p50"),
        ("latency.pipeline.p50@b8", "latency.pipeline.p50"),  # the suite times no such setting
    ],
)
def test_metric_of_the_policy_that_the_suite_cannot_measure_is_refused_before_anything_is_drawn(
    typo: str, meant: str, required: str, tmp_path: Path, stopped_runs: list[tuple[list[ModelSpec], str | None]]
) -> None:
    """A policy's typo would otherwise end hours of drawing as incomparable."""
    policy, (model, baseline) = tmp_path / "policy.toml", ("scenes-vega", "scenes-teacher")
    policy.write_text(f'{STRICT}"{typo}" = {{ direction = "lower", margin = 1, required = {required} }}', encoding="utf-8")
    few = api.Overrides(n=4).apply(suites.load("quality"))
    for judge in (
        lambda: api.gate(model, baseline, few, policy=policy, only="quality"),
        lambda: api.until_verdict(model, few, baseline=baseline, policy=policy),
        lambda: api.evaluate(model, few, baseline=baseline, policy=policy),
    ):
        with pytest.raises(
            UserError, match=rf"suite 'quality-custom' does not measure: .* '{re.escape(typo)}'; did you mean '{re.escape(meant)}'\? Let"
        ):
            judge()
    assert stopped_runs == []


def test_gate_on_quality_alone(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = save_record(make_measurement(worse="latency.pipeline.p50", by=9), tmp_path)
    assert gate(slower, teacher) == 1
    assert gate(slower, teacher, "--only", "quality") == 0
    assert "left out, as only image metrics are weighed: latency.pipeline.p50, memory.peak_data" in capsys.readouterr().out


def test_noise_says_what_its_numbers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [Side.read(save_record(make_measurement(seed=seed), tmp_path)) for seed in (1, 2)]
    floor = floors.estimate(sides, (1, 2), SuiteId(name="quality", version=1, digest="5017e"))
    spreads = {
        "fd.scenes": floors.Spread(noise=77.8, values=(769.3, 823.9), unit="distance"),
        "clip_score.scenes": floors.Spread(noise=0.355, values=(83.2, 83.8), unit="100 cos"),
        "scene_accuracy": floors.Spread(noise=0.0, values=(1.0, 1.0), unit="share"),
        "latency.pipeline.p50": floors.Spread(noise=0.0123, values=(0.5, 0.6), unit="s"),
    }
    asked: dict[str, Any] = {}

    def measure_noise(*_: object, **options: Any) -> tuple[Path, floors.Floor]:
        asked.update(options)
        suite = SuiteId(name="mine.v2", version=1, digest="3e")
        return tmp_path / "floor.toml", floor.model_copy(update={"suite": suite, "metrics": spreads})

    monkeypatch.setattr(api, "noise", measure_noise)
    assert cli.main(["noise", "scenes-vega"]) == 0
    assert asked["seeds"] == 4
    numbers, _, table = capsys.readouterr().out.partition("\n\n")
    (tmp_path / "policy.toml").write_text(f"alpha = 0.05\n{table}", encoding="utf-8")
    assert load(tmp_path / "policy.toml").suites == {
        "mine.v2": {  # without what has no noise, and without probes, whose margins are chosen
            "fd.scenes": Rule(direction="lower", margin=311, noise=77.8, required=True),
            "clip_score.scenes": Rule(direction="higher", margin=1.42, noise=0.355, required=True),
        }
    }
    distance, _, _, latency, rule, _ = numbers.splitlines()
    assert distance.split(maxsplit=1) == [
        "fd.scenes",
        "standard deviation of the difference of two runs: 77.8; the runs' values: 769.3 to 823.9",
    ]
    assert "of two runs: 1.23 %; the runs' values: 0.5000 to 0.6000" in latency
    assert rule == "a margin in the gate's policy must exceed the standard deviation of its metric"


def test_noise_needs_a_suite_that_draws_its_latents(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["noise", "sdxl", "--suite", "mlperf-sdxl"]) == 2
    assert "takes its latent from asset:mlperf-latents, whatever the seed" in capsys.readouterr().err  # behind what is not on this disk


def test_options_for_a_run_are_rejected_with_a_record(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gate", str(student), "--baseline", str(student), "--base", "scenes-teacher"]
    assert "apply only to a model that is yet to run" in error_message(words, capsys)


def test_gate_exits_with_0_for_an_equal_model(student: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(student, teacher) == 0
    out, err = capsys.readouterr()
    assert out.startswith("pass: ")
    assert err == ""


def test_gate_exits_with_1_for_a_worse_model_also_in_json(worse: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(worse, teacher, "--json") == 1
    out, err = capsys.readouterr()
    assert err.startswith("regressed: ")
    answer = json.loads(out)
    assert (answer["verdict"], answer["exit_code"]) == ("regressed", 1)
    assert [result["name"] for result in answer["results"] if result["verdict"] == "regressed"] == ["clip_score.scenes"]


def test_every_report_names_its_inputs(
    student: Path, teacher: Path, strict: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_gate_exits_with_2_for_incomparable_records(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
@pytest.mark.parametrize("words", COMMANDS)
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
def test_unwritable_report_is_not_a_verdict(
    option: str, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report"
    report = api.gate(student, student)

    def judge(*_: object, **__: object) -> Report:
        path.mkdir()  # in the hours that this takes
        return report

    monkeypatch.setattr(api, "gate", judge)
    assert gate(student, student, option, str(path), "--json") == 2
    out, err = capsys.readouterr()
    assert f"the verdict cannot be published: cannot write {path}: " in err
    assert json.loads(out)["verdict"] == "pass", "it is not lost"


@pytest.mark.parametrize("words", COMMANDS)
@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    option: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("gate", "until_verdict"):
        monkeypatch.setattr(api, name, lambda *_, **__: pytest.fail("measured"))
    message = error_message([*words, option, "nowhere/file"], capsys)
    assert message == f"sdbench: {option} nowhere/file: there is no folder nowhere; make it, or name another file\n"
    assert error_message([*words, option, str(tmp_path)], capsys) == f"sdbench: {option} {tmp_path}: this is a folder; name a file in it\n"
    (tmp_path / "old").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    for name, obstacle in (("new", str(tmp_path)), ("old", "old")):
        message = error_message([*words, option, name], capsys)
        assert message == f"sdbench: {option} {name}: {obstacle} cannot be written; make it writable, or name another file\n"


@pytest.mark.parametrize("words", COMMANDS)
def test_crash_while_arguments_are_read_does_not_look_like_a_verdict(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object) -> None:
        raise KeyError("nan")

    monkeypatch.setattr("sdbench.arguments._StoreOnce.__call__", crash)
    with pytest.raises(SystemExit) as done:
        cli.main(words)
    assert done.value.code == 2
    assert "error: the arguments cannot be read: KeyError: 'nan'; see" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("full", "more"), [("stdout", []), ("stdout", ["--json"]), ("stderr", ["--json"])])
def test_full_disk_is_not_a_verdict(full: str, more: list[str], worse: Path, teacher: Path) -> None:
    words = [sys.executable, "-m", "sdbench.cli", "gate", str(worse), "--baseline", str(teacher), *more]
    with Path("/dev/full").open("w", encoding="utf-8") as sink:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, full: sink}
        assert subprocess.run(words, cwd=ROOT, check=False, **streams).returncode == 2


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


def test_records_of_an_unknown_suite_are_compared_but_not_run_against(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "own.toml"
    policy.write_text(STRICT.replace("quality", "own"), encoding="utf-8")
    suite = SuiteId(name="own", version=1, digest="5017e")
    folders = [save_record(make_measurement(seed=seed, suite=suite), tmp_path) for seed in (1, 2)]
    assert gate(folders[0], folders[1], "--policy", str(policy)) == 3
    capsys.readouterr()
    assert gate(folders[0], Path("scenes-vega"), "--policy", str(policy)) == 2
    assert "is of suite 'own', but neither ./suites nor the package has a file for it; give it with --suite FILE" in capsys.readouterr().err


def test_compare_exits_with_0_without_policy_or_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")  # in which no name is wrapped
    for name, by in (("before", 0.0), ("after", 2.0)):
        save_record(make_measurement(name, worse="clip_score.scenes", by=by, suite=SuiteId(name="own", version=1, digest="0a")), tmp_path)
    words, page = ["compare", "before", "after", "--results", str(tmp_path), "--suite", "own"], tmp_path / "page.md"
    assert cli.main([*words, "--markdown", str(page)]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"clip_score.scenes \(100 cos\) ↑ +worse ", out)
    assert err == ""
    assert cli.main([*words, "--markdown", str(page), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["differences"][1]["outcome"] == "worse"
    assert page.read_text(encoding="utf-8").count("### after compared with before") == 2
    assert cli.main([*words, "--markdown", str(tmp_path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["differences"], "the answer is not lost with the page"
    assert "only records are compared" in error_message(["compare", "before", "scenes-vega", "--results", str(tmp_path)], capsys)
    several = ["compare", "before", "after", "before", *words[3:]]
    assert cli.main([*several, "--markdown", str(page)]) == 0
    assert re.search(r"metric +A +after +before\n", capsys.readouterr().out)
    assert re.findall("### (.*) compared with before", page.read_text(encoding="utf-8"))[2:] == ["after", "before"]
    assert cli.main([*several, "--json"]) == 0
    assert [each["b"] for each in json.loads(capsys.readouterr().out)] == ["after", "before"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [["gate", "--baseline"], ["compare"]])
def test_gate_and_comparison_of_records_import_no_slow_library(words: list[str], student: Path, tmp_path: Path) -> None:
    code = f"""
from sdbench import cli
assert cli.main([*{words!r}, {str(student)!r}, {str(student)!r}]) == 0
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
def test_gate_with_a_closed_pipe_does_not_pass(more: list[str], worse: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ClosedPipe:
        def write(self, _: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(sys, "stdout", ClosedPipe())
    assert gate(worse, teacher, *more) == 2
