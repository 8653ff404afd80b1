"""The commands that show what was measured: `leaderboard`, `report`, `card`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sdbench.arguments import print_answer, print_json
from sdbench.commands.console import AddCommand, check_results, table_width
from sdbench.notes import print_note


def add_commands(add: AddCommand) -> None:
    """Add the commands and their options."""
    add(
        "leaderboard",
        show_leaderboard,
        "print the leaderboard, and write it as LEADERBOARD.md, .tex, .csv and .json, with sheets of sample images",
    )

    page = add("report", _report, "write one HTML page of all records: tables, charts, verdicts and images")
    page.add_argument("--out", type=Path, help="file to write (default: RESULTS/report.html)")
    page.add_argument("--policy", type=Path, help="policy file for the verdicts (default: suites/gate.toml)")

    carding = add("card", _card, "write a model's results into the model card (README.md) in its folder")
    carding.add_argument("folder", help="folder of a pipeline, or of a UNet with --base; the model must have been measured")
    carding.add_argument("--base", help="for a bare UNet, the --base that it was measured with")


def show_leaderboard(arguments: argparse.Namespace) -> int:
    """Run `sdbench leaderboard` and return 0."""
    from sdbench import api
    from sdbench.leaderboard import export, standings, writing

    check_results(arguments)
    board = standings.read_rows(arguments.results)
    print_answer(writing.text_table(board, table_width()), arguments)
    print_json(export.nested(board), arguments)
    _note_written(api.leaderboard(places=arguments.results))  # last, since the folder may be one that can only be read
    return 0


def rewrite_leaderboard_after_run(results: Path) -> None:
    """Write all files of the leaderboard and print their paths; a failure is printed too, but does not fail the run."""
    try:
        from sdbench import api

        files = api.leaderboard(places=results)
    except Exception as error:  # noqa: BLE001  # whatever it is: the records are written, and a verdict on them stands
        print_note(f"the leaderboard could not be updated; try again with `sdbench leaderboard`: {error}")
    else:
        print_note("leaderboard: " + ", ".join(map(str, files)))


def _report(arguments: argparse.Namespace) -> int:
    from sdbench import api

    check_results(arguments)
    files = api.report(places=arguments.results, out=arguments.out, policy=arguments.policy)
    return _print_written(files, arguments)


def _card(arguments: argparse.Namespace) -> int:
    from sdbench import api

    check_results(arguments)
    card = api.card(arguments.folder, places=arguments.results, base=arguments.base)
    return _print_written([card], arguments)


def _print_written(files: Sequence[Path], arguments: argparse.Namespace) -> int:
    _note_written(files)
    print_json(files, arguments)
    return 0


def _note_written(files: Sequence[Path]) -> None:
    print_note("written: " + ", ".join(map(str, files)))
