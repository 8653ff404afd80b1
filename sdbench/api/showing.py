"""Show: the leaderboard, the HTML page of all records, and the results in a model's card."""

import shlex
from pathlib import Path

from sdbench.api.gating import load_policy
from sdbench.api.inputs import as_text
from sdbench.api.places import NamedPlaces, as_places
from sdbench.errors import UserError


def leaderboard(*, places: NamedPlaces = "results") -> list[Path]:
    """Write `LEADERBOARD.md`, .tex, .csv and .json and the sheets of sample images into the folder of results, and return their paths.

    Raises:
        UserError: there are no records, one or an image cannot be read, or a file cannot be written.
    """
    from sdbench.leaderboard import samples, standings, writing

    results = as_places(places).results
    board = standings.read_rows(results)
    return [*writing.write(board, results), *samples.write(board, results)]


def report(*, places: NamedPlaces = "results", out: str | Path | None = None, policy: str | Path | None = None) -> list[Path]:
    """Write the HTML page of all records, and return its path and those of the pages beside it.

    Args:
        out: the page; by default `report.html` in the folder of results.
        policy: policy file of the verdicts on it; by default `gate.toml` beside the suites.

    Raises:
        UserError: there are no records, the given `policy` weighs none of them, `out` is a folder, or a file cannot be read or written.
    """
    from sdbench.leaderboard import standings
    from sdbench.report import page

    if out and Path(out).is_dir():
        raise UserError(f"{out} is a folder; name the file of the page with --out, such as {Path(out) / page.FILE_NAME}")
    rules, results = load_policy(policy), as_places(places).results
    measured = sorted({row.record.suite.name for row in standings.read_rows(results)}) if policy else []
    if measured and not any(rules.suites.get(rules.table_name(name)) for name in measured):
        rules.rules(measured[0])  # raises, with what to do
    return page.write(results, Path(out or results / page.FILE_NAME), rules)


def card(folder: str | Path, *, places: NamedPlaces = "results", base: str | None = None) -> Path:
    """Write the results of the model in a folder into its model card, and return the card's path.

    Args:
        base: see `sdbench run`; the pipeline that completes a UNet.

    Raises:
        UserError: the folder holds no model, no record is of its weights, or the card cannot be read or written.
    """
    from sdbench.leaderboard import standings
    from sdbench.models.digest import weights_digest
    from sdbench.models.resolve import resolve
    from sdbench.models.spec import path_of
    from sdbench.report import card as cards

    spec = resolve(as_text(folder), base=base)
    if spec.source not in ("folder", "unet-folder"):
        raise UserError(
            f"a card is written into the folder of a pipeline or UNet, and {str(folder)!r} is not one ({spec.origin}); name one"
        )
    results = as_places(places).results
    board = standings.read_rows(results)
    dtypes = {row.record.sampling.get("dtype", "float32") for row in board if row.record.family == spec.family}
    digests = {weights_digest(spec, dtype=dtype) for dtype in dtypes}
    own = [row for row in board if row.record.model.weights_digest in digests]
    if not own:
        command = shlex.join(["sdbench", "run", "--model", str(folder), *(("--base", base) if base else ())])
        raise UserError(f"no record under {results} is of the weights in {folder}; measure them first: {command}")
    newest = {  # the same weights may have been measured under several names
        (row.record.suite.digest, row.record.machine.machine_class): row for row in sorted(own, key=lambda row: row.record.created)
    }
    return cards.write(path_of(str(folder)), board, [*newest.values()])
