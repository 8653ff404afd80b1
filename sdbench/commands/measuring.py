"""The commands that measure: `run`, `benchmark`, `score`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbench.arguments import add_device, add_part, print_answer, print_json
from sdbench.commands import gating, overrides, showing
from sdbench.commands.console import AddCommand, add_completion, add_runs, places_from, print_requirements, table_width
from sdbench.errors import CompleteError, PartialError, UserError
from sdbench.notes import print_note

if TYPE_CHECKING:
    from sdbench.models.spec import ModelSpec
    from sdbench.run.context import RunContext
    from sdbench.suites import Suite


def add_commands(add: AddCommand) -> None:
    """Add the commands and their options."""
    _add_run(add("run", _run, "measure models under a suite and write a record of each"))

    benchmarking = add("benchmark", _benchmark, "measure every model of a profile and write the leaderboard")
    benchmarking.add_argument(
        "--profile",
        default="auto",
        help="scenes: the embedded family; sdxl: the full-size family; sdxl-random: its latency and memory, with random weights; auto: "
        "what this machine can run (default: auto)",
    )
    _add_dry_run(benchmarking)
    add_runs(benchmarking)

    scoring = add("score", _score, "score images that were made by another program, with their prompts")
    scoring.add_argument("--images", type=Path, required=True, help="folder of PNG, JPEG or WebP images")
    scoring.add_argument(
        "--prompts",
        type=Path,
        help="text file with one prompt per line, in the order of the images' file names (default: the captions in the folder, in its "
        "metadata.jsonl or metadata.csv, or in a .txt beside each image)",
    )
    scoring.add_argument(
        "--suite", default="standard", help="suite whose metrics to use (default: standard; name quality for images of scenes)"
    )
    overrides.add_scoring(scoring)
    scoring.add_argument("--name", help="also write a record under this name, for the leaderboard and the gate")
    add_device(scoring)
    add_runs(scoring)


def _add_run(measuring: argparse.ArgumentParser) -> None:
    _add_models(measuring)
    measuring.add_argument(
        "--suite", help="suite name, see `sdbench suites`, or suite file (default: quality for scenes, standard for sdxl)"
    )
    measuring.add_argument("--only", choices=("quality", "probes"), help="run only the image metrics, or only latency and memory")
    measuring.add_argument(
        "--setting",
        action="append",
        default=[],
        help="measure latency and memory only in this setting of the suite; --dry-run lists them; may be repeated (default: all)",
    )
    measuring.add_argument(
        "--profile-stages", action="store_true", help="also profile each stage, outside the timed rounds, and write where its time goes"
    )
    _add_dry_run(measuring)
    overrides.add_overrides(measuring)
    add_runs(measuring)
    add_device(measuring)
    add_part(
        measuring,
        "draw only the K-th of N parts of the images, for N parallel commands, such as one per GPU (chosen with --device); afterwards, the "
        "same command without --part does the rest",
    )
    judging = measuring.add_argument_group("verdict", "the options after --until-verdict work only with it")
    judging.add_argument(
        "--until-verdict",
        action="store_true",
        help="run the prompts in batches, stop as soon as the gate is sure, and exit with the codes of gate",
    )
    judging.add_argument("--baseline", help="what to compare with, in the forms that gate takes")
    gating.add_outputs(judging)


def _add_dry_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dry-run", action="store_true", help="only print what would be fetched, written and missing, and how long it would take"
    )


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        nargs="+",
        action="extend",
        required=True,
        help="model name, see `sdbench models`; folder of a pipeline or UNet; .safetensors file; owner/name or owner/name@revision on the "
        "Hub; or several, such as checkpoint-*/unet; may be repeated",
    )
    add_completion(command)
    command.add_argument(
        "--weights",
        choices=("own", "random"),
        default="own",
        help="random: use the model's architecture with random weights, for latency and memory (default: own)",
    )


def _run(arguments: argparse.Namespace) -> int:
    if arguments.until_verdict:
        return gating.until_verdict(arguments, lambda: _read_models_and_suite(arguments))
    from sdbench import api

    specs, suite = _read_models_and_suite(arguments)
    from sdbench.run.context import check_models, check_suite  # they import torch, so misspelt options are reported first

    only = "probes" if arguments.weights == "random" and arguments.only is None else arguments.only
    options = {"settings": tuple(arguments.setting), "profile": arguments.profile_stages}
    context = _make_context(suite, arguments, only, arguments.device, **options)
    check_suite(context)  # before anything is printed, in a dry run too
    check_models(specs, suite)
    if arguments.part:
        return _draw_part(specs, suite, arguments)
    missing = _missing_from_teacher(specs, context) if only != "probes" else []
    if arguments.dry_run:
        planned = _print_plan(specs, context, arguments, missing)
        print_json(planned, arguments)
        return 0
    if only != "probes":
        print_requirements(suite, arguments, missing)
    try:
        made = api.run(specs, suite, **options, only=only, device=arguments.device, places=places_from(arguments))
    except PartialError as error:
        if error.folders:
            _print_records(error.folders, arguments)
        raise
    return _print_records(made, arguments)


def _draw_part(specs: "Sequence[ModelSpec]", suite: "Suite", arguments: argparse.Namespace) -> int:
    from sdbench import api

    if not suite.own_metrics:
        raise UserError(f"suite {suite.name!r} measures no images, so --part has none to draw; leave it out")
    missing = api.draw(specs, suite, part=arguments.part, places=places_from(arguments), device=arguments.device)
    for name, n in missing.items():
        print_note(
            f"{name}: {n} images are still missing, from parts that are running, were stopped or were not started, or were drawn with "
            "another version, batch size or kind of device; the same command without --part draws what is left"
            if n
            else f"{name}: all images are drawn; the same command without --part scores them and writes the record"
        )
    print_json({"missing": missing}, arguments)
    return 0


def _read_models_and_suite(arguments: argparse.Namespace) -> "tuple[list[ModelSpec], Suite]":
    """The models and the suite that the options of `run` name."""
    from sdbench.api.inputs import find_suite
    from sdbench.models.resolve import resolve, with_distinct_names

    _check_until_verdict(arguments)
    if arguments.part:
        _check_part(arguments)
    if arguments.name and len(arguments.model) > 1:
        raise UserError("--name is for one model, but several are given; run them one by one, or leave --name out")
    options = {"lora": arguments.lora, "name": arguments.name, "random": arguments.weights == "random"}
    specs, complete = [], []
    for what in arguments.model:
        try:
            specs.append(resolve(what, base=arguments.base, **options))
        except CompleteError as error:  # the teacher beside bare UNets
            specs.append(resolve(what, **options))
            complete.append(error)
    if len(complete) == len(specs):
        raise complete[0]
    return with_distinct_names(specs), overrides.read(arguments).apply(find_suite(arguments.suite, specs[0]))


def _check_until_verdict(arguments: argparse.Namespace) -> None:
    """Check that no option is given that means nothing with `--until-verdict`, or without it."""
    if bool(arguments.baseline) != arguments.until_verdict or (arguments.until_verdict and len(arguments.model) > 1):
        raise UserError("--until-verdict takes one --model and a --baseline to compare it with; --baseline needs --until-verdict too")
    names = ("dry_run", "setting", "profile_stages") if arguments.until_verdict else ("policy", "junit", "markdown")
    if wrong := [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name)]:
        raise UserError(f"{wrong[0]} {'does not work' if arguments.until_verdict else 'works only'} with --until-verdict; leave it out")


def _check_part(arguments: argparse.Namespace) -> None:
    """Check that no option asks for more than images."""
    asked = {
        "--weights random": arguments.weights == "random",
        "--only probes": arguments.only == "probes",
        **{f"--{name.replace('_', '-')}": getattr(arguments, name) for name in ("setting", "profile_stages", "dry_run", "until_verdict")},
    }
    if wrong := [option for option, given in asked.items() if given]:
        raise UserError(f"{wrong[0]} does not work with --part, which only draws images; leave one of them out")


def _make_context(
    suite: "Suite", arguments: argparse.Namespace, only: str | None, device: str | None = None, **options: Any
) -> "RunContext":
    from sdbench.machine import choose_device
    from sdbench.run.context import RunContext

    where = places_from(arguments)
    return RunContext(suite, choose_device(device), where.results, where.work, only, **options)


def _print_plan(
    specs: "Sequence[ModelSpec]", context: "RunContext", arguments: argparse.Namespace, missing: Sequence[str] = ()
) -> dict[str, Any]:
    from sdbench.run.plan import plan

    content = plan(specs, context, missing)
    print_answer(content["text"], arguments)
    return content


def _print_records(made: Sequence[Path], arguments: argparse.Namespace) -> int:
    from sdbench import records
    from sdbench.leaderboard import standings, writing

    shown = [standings.Row(path, records.read_record(path)) for path in made]
    print_answer(writing.text_table(shown, table_width()), arguments)
    for path in made:
        print_answer(f"record: {path}", arguments)
    print_json([{"path": path, **row.record.model_dump(mode="json")} for path, row in zip(made, shown, strict=True)], arguments)
    showing.rewrite_leaderboard_after_run(arguments.results)
    return 0


def _benchmark(arguments: argparse.Namespace) -> int:
    from sdbench import api
    from sdbench.run import profiles

    chosen = profiles.choose(arguments.profile)
    print_note(f"profile {chosen.name}: {chosen.why}")
    if arguments.dry_run:
        planned = [
            _print_plan(each.specs, _make_context(each.suite, arguments, each.only, settings=each.settings), arguments)
            for each in chosen.suite_runs
        ]
        print_json(planned, arguments)
        return 0
    errors, measured, places = [], 0, places_from(arguments)
    for each in chosen.suite_runs:
        if each.only != "probes":
            print_requirements(each.suite, arguments)
        try:
            measured += len(api.run(each.specs, each.suite, places=places, only=each.only, settings=each.settings))
        except UserError as error:  # the other suites can be measured
            errors.append(str(error))
            measured += len(error.folders) if isinstance(error, PartialError) else 0
    if measured:
        showing.show_leaderboard(arguments)
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from sdbench import api
    from sdbench.api.inputs import load_suite
    from sdbench.tables import Cell, format_value

    suite = overrides.read(arguments, overrides.SCORING).apply(load_suite(arguments.suite))
    options = {"places": places_from(arguments), "device": arguments.device}
    if arguments.name:
        return _print_records([api.record_images(arguments.images, arguments.prompts, suite, name=arguments.name, **options)], arguments)
    values, scores = api.score(arguments.images, arguments.prompts, suite, **options)
    by_reason: dict[Cell, list[str]] = {}  # several metrics may lack the same file
    for value in values:
        shown = format_value(value)
        if value.value is None:
            by_reason.setdefault(shown, []).append(value.name)
        else:
            note = f" ({shown.note})" if shown.note else ""
            print_answer(f"{value.name:28} {shown.text}{note}, n = {value.n}", arguments)
    for shown, names in by_reason.items():
        print_answer(f"{', '.join(names)}: {shown.text}: {shown.note}", arguments)
    if all(value.value is None for value in values):  # a script must not take this for scores
        raise UserError(
            f"none of these metrics could be measured; put right what is missing, or name another suite than {arguments.suite!r}"
        )
    columns = {name: column.tolist() for name, column in scores.columns.items()}
    print_json({"values": [value.model_dump() for value in values], "scores": columns}, arguments)
    return 0


def _missing_from_teacher(specs: "Sequence[ModelSpec]", context: "RunContext") -> list[str]:
    """What a run would be missing from the teacher, as far as can be known without fetching anything."""
    from sdbench.run import recording, requirements

    return recording.missing_of_teacher(specs, context) if requirements.inputs_are_here(context.suite) else []
