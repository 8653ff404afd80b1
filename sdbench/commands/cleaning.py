"""The command that frees the disk of images that can be made again: `clean`."""

import argparse
from dataclasses import asdict

from sdbench.arguments import print_answer, print_json
from sdbench.commands.console import AddCommand, add_runs, places_from, table_width
from sdbench.errors import unknown_name


def add_commands(add: AddCommand) -> None:
    """Add the command and its options."""
    cleaning = add(
        "clean", _clean, "list the images and features that runs have left, by model; with --delete, delete them: records stay as they are"
    )
    cleaning.add_argument("--delete", action="store_true", help="delete what is listed; not while a run still uses it")
    cleaning.add_argument("--model", action="append", metavar="NAME", help="only what this model has left; may be repeated")
    cleaning.add_argument(
        "--older-than",
        type=float,
        default=0,
        metavar="DAYS",
        help="only folders in which nothing was written for so many days (default: 0)",
    )
    add_runs(cleaning)


def _clean(arguments: argparse.Namespace) -> int:
    from sdbench import tables
    from sdbench.disk import size_text
    from sdbench.store import stored_runs

    work = places_from(arguments).work
    found = stored_runs(work)
    names = {run.model for run in found if run.model}
    for name in arguments.model or ():
        if name not in names:
            raise unknown_name("model with images here", name, names)
    chosen = [run for run in found if run.age_days >= arguments.older_than and (not arguments.model or run.model in arguments.model)]
    if chosen:
        header = ("model", "device", "images", "size", "days old", "folder")
        rows = tuple(
            (
                run.model or "(made elsewhere)",
                run.device or "none",
                f"{run.n_images:,}",
                size_text(run.size_bytes),
                f"{run.age_days:.1f}",
                str(run.folder),
            )
            for run in chosen
        )
        print_answer(tables.text(tables.Grid(header, rows), table_width()), arguments)
    if arguments.delete:
        for run in chosen:
            run.delete()
    ending = "deleted" if arguments.delete else "nothing is deleted without --delete"
    folders = "1 folder" if len(chosen) == 1 else f"{len(chosen)} folders"
    print_answer(f"{folders} in {work}, {size_text(sum(run.size_bytes for run in chosen))}: {ending}", arguments)
    print_json([asdict(run) for run in chosen], arguments)
    return 0
