"""The commands that give a verdict, `gate` and `run --until-verdict`, that prepare one, `noise` and `baseline`, and `compare`.

Exit code 1 means "regressed" and nothing else. Whatever goes wrong is exit code 2: a crash, a missing library, Ctrl-C, a request to
end, a report that cannot be written.
"""

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sdbench.arguments import add_command, add_device, print_answer, print_json
from sdbench.commands import overrides, showing
from sdbench.commands.console import (
    AddCommand,
    add_common,
    add_completion,
    add_runs,
    check_results,
    places_from,
    print_requirements,
    table_width,
)
from sdbench.errors import UserError
from sdbench.notes import print_note

if TYPE_CHECKING:
    from sdbench.gate.comparison import Comparison
    from sdbench.gate.verdicts import Report
    from sdbench.models.spec import ModelSpec
    from sdbench.suites import Suite

INCOMPARABLE = 2


def add_commands(add: AddCommand) -> None:
    """Add the commands and their options."""
    judging = add("gate", gate, "compare a candidate with a baseline; exit code: 0 pass, 1 regressed, 2 cannot compare, 3 inconclusive")
    judging.add_argument("candidate", help="record folder, name of a model or of its row, or checkpoint")
    judging.add_argument("--baseline", required=True, help="baseline name, record folder, name of a model or of its row, or checkpoint")
    judging.add_argument(
        "--suite", help="suite to compare under (default: that of a record that is given, else the family's: standard or quality)"
    )
    judging.add_argument("--only", choices=("quality",), help="weigh only the image metrics, not latency, memory and size")
    add_completion(judging)
    add_device(judging)
    add_runs(judging)
    add_outputs(judging)
    overrides.add_overrides(judging)

    comparing = add(
        "compare", compare, "show how much better B is than A: the difference of each metric, with its interval; no policy, no verdict"
    )
    comparing.add_argument("a", metavar="A", help="record folder, name of a model or of its row, or baseline name; nothing is run")
    comparing.add_argument("b", metavar="B", nargs="+", help="likewise; of several, each is compared with A")
    comparing.add_argument(
        "--suite", help="name, name@version, digest or file of the suite of the records (default: the one that both have)"
    )
    _add_markdown(comparing, "comparison")

    flooring = add("noise", noise, "measure how much a model's scores vary with the noise seed: the floor for the gate's margins")
    flooring.add_argument("model", help="model name or checkpoint")
    flooring.add_argument("--seeds", type=int, default=4, help="number of runs, each with its own noise seed (default: 4)")
    flooring.add_argument("--suite", help="suite name or file (default: quality for scenes, standard for sdxl)")
    flooring.add_argument("--only", choices=("quality", "probes"), help="run only the image metrics, or only latency and memory")
    add_completion(flooring)
    add_device(flooring)
    add_runs(flooring)
    overrides.add_overrides(flooring)

    naming = add("baseline", baseline, "give names to the records that candidates are compared with, and list the names")
    actions = naming.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = add_command(actions, "list", "list each name with its record, since when and why, and its earlier records")
    moving = add_command(actions, "set", "make a name stand for a record from now on")
    moving.add_argument("name", help="a name, such as production")
    moving.add_argument("record", help="record folder inside the results folder, or a model's name if the model has only one row")
    removing = add_command(actions, "remove", "remove a name; its history is kept")
    removing.add_argument("name", help="the name to remove")
    for action in (moving, removing):
        action.add_argument("--why", required=True, help="the reason, which is kept with the date")
    for action in (listing, moving, removing):
        add_common(action, again=True)


def add_outputs(command: "argparse._ActionsContainer") -> None:
    """Add the options of the commands that give a verdict."""
    command.add_argument("--policy", type=Path, help="policy file with the metrics to weigh and their margins (default: suites/gate.toml)")
    command.add_argument("--junit", type=Path, metavar="FILE", help="also write the verdict as JUnit XML")
    _add_markdown(command, "verdict")


def _add_markdown(command: "argparse._ActionsContainer", what: str) -> None:
    command.add_argument(
        "--markdown", type=Path, metavar="FILE", help=f"also append the {what} as Markdown to FILE, such as $GITHUB_STEP_SUMMARY"
    )


def gate(arguments: argparse.Namespace) -> int:
    """Run `sdbench gate` and return the exit code."""

    def judge() -> "Report":
        from sdbench import api

        own = {name: getattr(arguments, name) for name in ("base", "lora", "name", "device", "only")}
        own |= {"policy": arguments.policy, "places": places_from(arguments), "announce": print_note}
        return api.gate(arguments.candidate, arguments.baseline, _read_suite(arguments), **own)

    return _judge_and_publish(judge, arguments, arguments.candidate)


def _read_suite(arguments: argparse.Namespace) -> "Suite | None":
    """The suite to run where a record is missing, if the options name one."""
    from sdbench import api
    from sdbench.api.inputs import load_suite

    changes = overrides.read(arguments)
    if arguments.suite:
        return changes.apply(load_suite(arguments.suite))
    if changes != api.Overrides():
        raise UserError("name the suite that these settings change: --suite, such as --suite quality")
    return None


def until_verdict(arguments: argparse.Namespace, read_request: "Callable[[], tuple[list[ModelSpec], Suite]]") -> int:
    """Run `sdbench run --until-verdict` and return the exit code; `read_request` gives the one model and the suite."""

    def judge() -> "Report":
        from sdbench import api

        (spec,), suite = read_request()
        options = {name: getattr(arguments, name) for name in ("baseline", "policy", "device", "only")}
        path, report = api.until_verdict(spec, suite, **options, places=places_from(arguments), announce=print_note)
        print_note(f"record: {path}")
        showing.rewrite_leaderboard_after_run(arguments.results)
        return report

    return _judge_and_publish(judge, arguments, arguments.model[0])


def compare(arguments: argparse.Namespace) -> int:
    """Run `sdbench compare` and return 0."""
    from sdbench import api
    from sdbench.gate.comparison import side_by_side

    found = [api.compare(arguments.a, b, arguments.suite, places=arguments.results) for b in arguments.b]
    several = len(found) > 1
    print_answer(side_by_side(found, table_width()) if several else found[0].text(table_width()), arguments)
    print_json([each.to_json() for each in found] if several else found[0].to_json(), arguments)
    for each in found:
        _append_markdown(each, arguments)
    return 0


def noise(arguments: argparse.Namespace) -> int:
    """Run `sdbench noise` and return 0."""
    from sdbench import api
    from sdbench.api.inputs import find_suite
    from sdbench.gate import floors
    from sdbench.models.resolve import check_family, resolve
    from sdbench.records.names import is_probe
    from sdbench.tables import format_number

    spec = resolve(arguments.model, base=arguments.base, lora=arguments.lora, name=arguments.name)
    suite = overrides.read(arguments).apply(find_suite(arguments.suite, spec))
    check_family(spec, suite.family, suite.name)  # before anything is printed
    if arguments.only != "probes":
        print_requirements(suite, arguments)
    path, floor = api.noise(
        spec, suite, **{name: getattr(arguments, name) for name in ("seeds", "device", "only")}, places=places_from(arguments)
    )
    from sdbench.score import PROTOCOLS  # imports torch, as the run has

    for name, spread in floor.metrics.items():
        noise_text = f"{100 * spread.noise:.3g} %" if is_probe(name) else f"{spread.noise:.3g}"
        ends = f"{format_number(min(spread.values))} to {format_number(max(spread.values))}"
        print_answer(f"{name:28} standard deviation of the difference of two runs: {noise_text}; the runs' values: {ends}", arguments)
    print_answer("a margin in the gate's policy must exceed the standard deviation of its metric", arguments)
    print_answer(f"written: {path}", arguments)
    if table := floors.policy_table(floor, {name: protocol.direction for name, protocol in PROTOCOLS.items()}):
        start = f"# a starting point for a policy that begins with alpha = 0.05: margins of {floors.MARGIN} times the noise"
        print_answer(f"\n{start}; choose those of latency and memory\n{table}", arguments)
    print_json(floor.model_dump(mode="json"), arguments)
    return 0


def baseline(arguments: argparse.Namespace) -> int:
    """Run `sdbench baseline` and return 0."""
    from sdbench.gate import baselines, lookup

    check_results(arguments)
    if arguments.action == "set":
        record = lookup.find_record(arguments.record, arguments.results)
        baselines.set_baseline(arguments.name, record, arguments.why, arguments.results)
    if arguments.action == "remove":
        baselines.remove_baseline(arguments.name, arguments.why, arguments.results)
    known = baselines.read(arguments.results)
    for name, moves in known.items():
        for move in reversed(moves):
            since = f"{move.when:%Y-%m-%d %H:%M}"
            shown = name if move is moves[-1] else ""
            what = f"removed: {move.why}" if move.removed else f"{move.model} under {move.suite}: {move.why}  ({move.record})"
            print_answer(f"{shown:16} {since}  {what}", arguments)
    if not known:
        print_note("there are no baselines yet; name one: sdbench baseline set NAME RECORD --why TEXT")
    print_json({name: [move.model_dump(mode="json") for move in moves] for name, moves in known.items()}, arguments)
    return 0


def _judge_and_publish(judge: "Callable[[], Report]", arguments: argparse.Namespace, candidate: str) -> int:
    """Judge, publish the report, and return the exit code."""
    _check_outputs(arguments)
    try:
        try:
            report = judge()
        except BaseException as error:  # noqa: BLE001  # a crash must never look like "regressed"
            from sdbench.gate.verdicts import Report

            report = Report("incomparable", _describe_error(error), candidate, arguments.baseline or "no baseline")
        _publish(report, arguments)
    except BaseException as error:  # noqa: BLE001  # nor may a verdict that could not be published
        with contextlib.suppress(BaseException):
            print_note(f"sdbench: the verdict cannot be published: {_describe_error(error)}")
        return INCOMPARABLE
    return report.exit_code


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Check that the files of the report can be written, before hours of measuring."""
    for option in ("junit", "markdown"):
        path: Path | None = getattr(arguments, option)
        if path and (obstacle := _obstacle_to(path)):
            raise UserError(f"--{option} {path}: {obstacle}")


def _obstacle_to(path: Path) -> str:
    """Why a file cannot be written, and what to do; "" where nothing speaks against it."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"there is no folder {path.parent}; make it, or name another file"
    if path.is_dir():
        return "this is a folder; name a file in it"
    target = path if path.exists() else folder
    return "" if os.access(target, os.W_OK) else f"{target} cannot be written; make it writable, or name another file"


def _describe_error(error: BaseException) -> str:
    if isinstance(error, UserError | OSError):  # the latter names its file
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "the gate was interrupted before it had a verdict; what was finished is kept, and the same command continues from there"
    return f"the gate itself failed: {type(error).__name__}: {error}"


def _publish(report: "Report", arguments: argparse.Namespace) -> None:
    """Print the report for people, then for machines, and write its files last: one that cannot be written is an error, not a loss."""
    if report.verdict == "incomparable" and not report.results and not report.differences:
        print_note(f"sdbench: {report.why}")
    else:
        print_answer(report.text(table_width()), arguments)
    print_json(report.to_json(), arguments)
    if arguments.junit:
        _write(arguments.junit, "w", report.junit())
    _append_markdown(report, arguments)


def _append_markdown(found: "Report | Comparison", arguments: argparse.Namespace) -> None:
    if arguments.markdown:
        _write(arguments.markdown, "a", found.markdown())


def _write(path: Path, mode: str, text: str) -> None:
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:  # that of a full disk names no file
        raise UserError(f"cannot write {path}: {error.strerror}") from error
