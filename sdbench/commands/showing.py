"""The commands that show what was measured: `leaderboard`, `report`, `card`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdbench.arguments import print_answer, print_json
from sdbench.commands.console import AddCommand, check_results, table_width
from sdbench.notes import print_note

if TYPE_CHECKING:
    from sdbench.leaderboard.standings import Row


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
    from sdbench.leaderboard import export, standings, writing

    check_results(arguments)
    board = standings.read_rows(arguments.results)
    print_answer(writing.text_table(board, table_width()), arguments)
    print_json(export.nested(board), arguments)
    _note_written(_write_leaderboard(board, arguments.results))  # last, since the folder may be one that can only be read
    return 0


def _write_leaderboard(board: "Sequence[Row]", results: Path) -> list[Path]:
    """Write all files of the leaderboard, and return their paths.

    Raises:
        UserError: an image cannot be read, or a file cannot be written.
    """
    from sdbench.leaderboard import samples, writing

    return [*writing.write(board, results), *samples.write(board, results)]


def rewrite_leaderboard_after_run(results: Path) -> None:
    """Write all files of the leaderboard and print their paths; a failure is printed too, but does not fail the run."""
    try:
        from sdbench.leaderboard import standings

        files = _write_leaderboard(standings.read_rows(results), results)
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
