"""The command line. Tables for people go to stderr, `--json` to stdout; imports wait until a command needs them."""

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbench import gating
from sdbench.errors import UserError

if TYPE_CHECKING:
    from sdbench.api import Places
    from sdbench.models.spec import ModelSpec
    from sdbench.suites import Suite

BAD_INPUT, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command => the process's exit code; an error that a user can mend is a message and 2."""
    arguments = parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    with contextlib.suppress(ValueError):  # only the main thread may ask for it
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command(arguments)
    except KeyboardInterrupt:
        say("sdbench: interrupted; what was finished is kept, and the same command goes on from there")
        return INTERRUPTED
    except UserError as error:
        say(f"sdbench: {error}")
        return BAD_INPUT
    except BrokenPipeError:  # whoever reads the answer went away; 0 would say that a gate has passed
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return BAD_INPUT


def _interrupt(*_: object) -> None:
    """A request to end is Ctrl-C's: what a command has started ends with it."""
    raise KeyboardInterrupt


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def give(content: Any) -> None:
    """The answer for machines."""
    print(json.dumps(content, indent=1, default=str))


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="sdbench", description="Measure SDXL and its distilled students, rank them, and gate new checkpoints."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help_text, description=help_text)
        made.set_defaults(command=command)
        made.add_argument("--json", action="store_true", help="answer as JSON on stdout")
        made.add_argument("--results", type=Path, default=Path("results"), help="folder of records (default: results)")
        made.add_argument("--runs", type=Path, help="folder of pictures and features (default: RESULTS/runs)")
        return made

    measuring = add("run", _run, "measure models under a suite and write a record of each")
    _add_models(measuring)
    measuring.add_argument("--suite", help="name of a suite or path of a suite file (default: quality for scenes, standard for sdxl)")
    measuring.add_argument("--only", choices=("quality", "probes"), help="run only one half of the suite")
    measuring.add_argument(
        "--setting", action="append", default=[], help="setting of the suite's probes, such as base; repeatable (default: all)"
    )
    measuring.add_argument("--profile", action="store_true", help="also write what holds the time of each stage, beside the rounds")
    measuring.add_argument("--dry-run", action="store_true", help="print what would be fetched and made, and stop")
    for name in ("steps", "size-px", "batch", "n"):
        measuring.add_argument(f"--{name}", type=int, help="in place of the suite's own; the row is then of suite '<name>-custom'")
    measuring.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="in place of the suite's own; likewise")
    measuring.add_argument("--device", help="cpu, cuda or cuda:<index> (default: cuda where there is one)")
    measuring.add_argument("--until-verdict", action="store_true", help="stop once the gate is sure; exit codes as of gate")
    measuring.add_argument("--baseline", help="what to compare with until the verdict: as of gate")
    gating.add_outputs(measuring)

    profile = add("benchmark", _benchmark, "measure every model of a profile and write the leaderboard")
    profile.add_argument("--profile", default="auto", help="auto, scenes, sdxl or sdxl-random (default: auto, which says what it chose)")
    profile.add_argument("--dry-run", action="store_true", help="print what would be fetched and made, and stop")

    scoring = add("score", _score, "score pictures of scenes made elsewhere (64 px) against their captions")
    scoring.add_argument("--images", type=Path, required=True, help="folder of PNG, JPEG or WebP pictures")
    scoring.add_argument("--prompts", type=Path, required=True, help="text file with a prompt a line, in the order of the file names")

    gating.add_commands(add)
    add("models", _models, "list the models known by name")
    add("suites", _suites, "list the suites")
    add("leaderboard", _leaderboard, "print the leaderboard and write it as results/LEADERBOARD.md, .csv and .json")

    page = add("report", _report, "write one HTML page of all records: tables, charts, verdicts and pictures")
    page.add_argument("--out", type=Path, help="the page (default: RESULTS/report.html)")
    page.add_argument("--policy", type=Path, help="policy file of the verdicts (default: suites/gate.toml)")

    carding = add("card", _card, "write a model's results into the README.md of its folder")
    carding.add_argument("folder", help="folder of a pipeline, or of a UNet with --base; it must have been measured")
    carding.add_argument("--base", help="pipeline that completed a bare UNet when it was measured")

    add(
        "doctor",
        _doctor,
        "say what this machine can run, what is missing, and whether the shipped weights are intact and the metrics behave",
    )

    references = add("reference", _reference, "build reference statistics from real pictures, import published ones, or list those at hand")
    _add_reference(references)

    training = add("scenes", _scenes, "train the embedded family's own weights, or install what was trained")
    training.add_argument("action", choices=("train", "ship"), help="train: make parts in WORK; ship: install them with a manifest")
    training.add_argument("--parts", nargs="+", default=[], help="parts to train (default: all)")
    training.add_argument(
        "--work", type=Path, default=Path("results/runs/training"), help="folder to train in; a part that was killed goes on from there"
    )
    training.add_argument("--device", help="cpu, cuda or cuda:<index>")
    return top


def _add_models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        action="append",
        required=True,
        help="catalogue name, pipeline folder, UNet folder, .safetensors file or Hub name; repeatable",
    )
    command.add_argument("--base", help="pipeline that completes a bare UNet")
    command.add_argument("--lora", help="LoRA file, folder or Hub name to fuse")
    command.add_argument("--name", help="what tables call the model")
    command.add_argument(
        "--weights", choices=("own", "random"), default="own", help="random: the architecture without its weights, for latency and memory"
    )


def _add_reference(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("build", "import", "list"))
    command.add_argument("name", nargs="?", help="what suites call the reference")
    command.add_argument("file", nargs="?", type=Path, help="import: a .npz with `mu` and `sigma`")
    command.add_argument("--images", type=Path, help="build: folder of real pictures")
    command.add_argument("--dataset", help="build: file, folder or Hub name that `datasets` opens")
    command.add_argument("--split", default="train", help="build: of the dataset (default: train)")
    command.add_argument("--column", help="build: of the dataset's pictures, where it has several")
    command.add_argument("--encoder", nargs="+", default=[], help="build: encoders to build for; import: the one its maker names")
    command.add_argument("--n", type=int, help="build: only the first N pictures; import: pictures behind the file")
    command.add_argument("--source", help="import: where it was published")


def _places(arguments: argparse.Namespace) -> "Places":
    from sdbench.api import Places

    return Places(arguments.results, _runs(arguments))


def _runs(arguments: argparse.Namespace) -> Path:
    runs: Path | None = arguments.runs
    return runs or Path(arguments.results) / "runs"


def _run(arguments: argparse.Namespace) -> int:
    if arguments.until_verdict:
        return gating.until_verdict(arguments, lambda: _asked(arguments))
    from sdbench import api

    specs, suite = _asked(arguments)
    only = "probes" if arguments.weights == "random" and arguments.only is None else arguments.only
    if arguments.dry_run:
        return _plan(specs, suite, arguments)
    if only != "probes" and specs[0].family == suite.family:
        _tell(suite, arguments)
    made = api.run(
        specs, suite, _places(arguments), device=arguments.device, only=only, settings=arguments.setting, profile=arguments.profile
    )
    return _show(made, arguments)


def _asked(arguments: argparse.Namespace) -> "tuple[list[ModelSpec], Suite]":
    """The models and the suite that the options of `run` name."""
    from sdbench import api, suites
    from sdbench.models.spec import resolve

    if bool(arguments.baseline) != arguments.until_verdict or (arguments.until_verdict and len(arguments.model) > 1):
        raise UserError("--until-verdict takes one --model and the --baseline that it is compared with; neither goes without the other")
    if arguments.name and len(arguments.model) > 1:
        raise UserError("--name names one model, but several are given; run them one by one, or leave --name out")
    named = {"base": arguments.base, "lora": arguments.lora, "name": arguments.name, "random": arguments.weights == "random"}
    specs = [resolve(what, **named) for what in arguments.model]
    suite = suites.load(arguments.suite or api.FAMILY_SUITE.get(specs[0].family, "standard"))
    return specs, api.Overrides(arguments.steps, arguments.size_px, arguments.batch, arguments.dtype, arguments.n).apply(suite)


def _plan(specs: "Sequence[ModelSpec]", suite: "Suite", arguments: argparse.Namespace) -> int:
    from sdbench.plan import plan

    content = plan(specs, suite, _runs(arguments))
    if arguments.json:
        give(content)
    else:
        say(content["text"])
    return 0


def _show(made: Sequence[Path], arguments: argparse.Namespace) -> int:
    from sdbench import leaderboard, records, standings

    leaderboard.write(arguments.results)
    shown = [standings.Row(path, records.head(path)) for path in made]
    say(leaderboard.text_table(shown))
    for path in made:
        say(f"record: {path}")
    if arguments.json:
        give([{"path": path, **row.record.model_dump(mode="json")} for path, row in zip(made, shown, strict=True)])
    return 0


def _benchmark(arguments: argparse.Namespace) -> int:
    from sdbench import api, profiles

    chosen = profiles.choose(arguments.profile)
    say(f"profile {chosen.name}: {chosen.why}")
    for job in chosen.jobs:
        if arguments.dry_run:
            _plan(job.specs, job.suite, arguments)
            continue
        if job.only != "probes":
            _tell(job.suite, arguments)
        api.run(job.specs, job.suite, _places(arguments), only=job.only, settings=job.settings)
    return 0 if arguments.dry_run else _leaderboard(arguments)


def _score(arguments: argparse.Namespace) -> int:
    from sdbench import api

    values, scores = api.score(arguments.images, arguments.prompts, _places(arguments))
    for value in values:
        ends = "" if value.low is None else f" ({value.low:.4g} to {value.high:.4g})"
        number = f"{value.state}: {value.reason}" if value.value is None else f"{value.value:.4g}{ends}, n = {value.n}"
        say(f"{value.name:28} {number} {value.note}".rstrip())
    if arguments.json:
        give(
            {
                "values": [value.model_dump() for value in values],
                "scores": {name: column.tolist() for name, column in scores.columns.items()},
            }
        )
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from sdbench.models.catalogue import CATALOGUE

    if arguments.json:
        give([asdict(entry) for entry in CATALOGUE.values()])
        return 0
    for entry in CATALOGUE.values():
        fetch = f"{entry.download_gb:.1f} GB to fetch" if entry.download_gb else "nothing to fetch"
        say(
            f"{entry.name:20} {entry.family:7} {entry.architecture or '-':11} {entry.source:9} {fetch:18} {entry.location}  {entry.licence}".rstrip()
        )
    return 0


def _suites(arguments: argparse.Namespace) -> int:
    from sdbench import suites

    found = [suites.load(name) for name in suites.names()]
    if arguments.json:
        give([suite.model_dump() for suite in found])
        return 0
    for suite in found:
        say(f"{suite.name}@{suite.version:<3} {suite.family or 'part':7} {suite.description}")
        _tell(suite, arguments)
    return 0


def _tell(suite: "Suite", arguments: argparse.Namespace) -> None:
    """What a suite needs that is not on this disk."""
    from sdbench import needs

    for line in needs.text(suite, _runs(arguments)):
        say(f"    {line}")


def _leaderboard(arguments: argparse.Namespace) -> int:
    from sdbench import leaderboard, samples, standings
    from sdbench.report import flat

    board = standings.rows(arguments.results)
    made = [leaderboard.write(arguments.results), *flat.write(board, arguments.results), *samples.write(board, arguments.results)]
    say(leaderboard.text_table(board))
    return _written(made, arguments, flat.nested(board))


def _report(arguments: argparse.Namespace) -> int:
    from sdbench import api

    made = api.report(_places(arguments), arguments.out, arguments.policy)
    return _written(made, arguments, made)


def _card(arguments: argparse.Namespace) -> int:
    from sdbench import api

    made = api.card(arguments.folder, _places(arguments), base=arguments.base)
    return _written([made], arguments, made)


def _written(made: Sequence[Path], arguments: argparse.Namespace, content: Any) -> int:
    say("written: " + ", ".join(map(str, made)))
    if arguments.json:
        give(content)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from sdbench import doctor

    findings = []
    for finding in doctor.examine():
        findings.append(finding)
        say(f"{'ok ' if finding.fine else 'BAD' if finding.fatal else '-- '} {finding.text}")
    if arguments.json:
        give([vars(finding) for finding in findings])
    return BAD_INPUT if any(finding.fatal and not finding.fine for finding in findings) else 0


def _reference(arguments: argparse.Namespace) -> int:
    from sdbench import reference_command

    found = reference_command.run(arguments, _runs(arguments))
    for card in found:
        say(reference_command.line(card))
    if not found:
        say("no reference was built or imported yet; `scenes` is rendered when it is needed")
    if arguments.json:
        give([card.model_dump() for card in found])
    return 0


def _scenes(arguments: argparse.Namespace) -> int:
    from sdbench.machine import chosen_device, environment
    from sdbench.scenes.training import make, ship

    shop = make.Shop(arguments.work, chosen_device(arguments.device))
    if arguments.action == "ship":
        say(f"installed: {ship.ship(shop, environment().model_dump(), arguments.results / 'training')}")
        return 0
    for part in arguments.parts or make.PARTS:
        make.make(part, shop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
