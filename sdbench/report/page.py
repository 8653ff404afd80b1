"""One HTML page of all records. It makes no requests, runs no script but its own, and opens from a file."""

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sdbench import records, tables
from sdbench.disk import write_bytes
from sdbench.gate.policy import Policy
from sdbench.leaderboard import grids, published, ranks, standings
from sdbench.leaderboard.standings import Row, Section
from sdbench.report import image_wall, sections

FILE_NAME = "report.html"
COLUMNS = {"setting": "words", "verdict": "words", "protocol": "prose", "source": "prose"}  # title -> class; else numbers
_HERE = Path(__file__).parent


def write(results: Path, out: Path, policy: Policy) -> list[Path]:
    """Write the page, and beside it the images that it has no room for, and return the paths of the pages.

    Raises:
        UserError: there are no records, one or an image is unreadable, or a file cannot be written.
    """
    board = standings.read_rows(results)
    found = standings.sections(board)
    albums = [sections.build_album(section) for section in found]
    room = image_wall.PAGE_BYTES // max(1, sum(bool(album.names) for album in albums))
    made, shown = [out], []
    for number, (section, album) in enumerate(zip(found, albums, strict=True), 1):
        wall = image_wall.build_wall(album, room)
        view = sections.build_view(section, number, wall, album, policy, results)
        if wall.left:
            path = _write_rest(section, number, album, wall.left, out)
            view["beside"] = quote(path.relative_to(out.parent).as_posix())
            made.append(path)
        shown.append(view)
    write_bytes(out, render(shown, _lede(board, results), published.grid(_link)).encode())
    return made


def _write_rest(section: Section, number: int, album: image_wall.Album, left: Sequence[str], out: Path) -> Path:
    """Write the page of a section's remaining images into a folder beside the main page, and return its path."""
    folder = out.with_name(f"{out.stem}-images")
    wall = image_wall.build_rest_wall(album, left, folder / f"s{number}")
    view = sections.build_rest_view(section, number, wall)
    path = folder / f"s{number}.html"
    page = render([view], f"The {len(left)} rows of images that {out.name} has no room for.", None, images="'self' data: file:")
    return write_bytes(path, page.encode())


def _link(claim: published.Claim) -> str:
    return Markup('<a href="{}">{}</a>').format(claim.url, claim.source)


def _breakable(name: str) -> Markup:
    """A name as HTML that may be broken after a point or an underscore, so that it need be no wider than its numbers."""
    return Markup("<wbr>").join(re.split("(?<=[._])", name))


def _lede(board: Sequence[Row], results: Path) -> str:
    total = len(records.folders(results))
    newest = max(row.record.created for row in board)
    rows = (
        f"{len(board)} rows, the newest record of each model (out of {total} records)"
        if total > len(board)
        else f"{total} record{'s' * (total != 1)}"
    )
    return f"{rows}, the latest from {newest:%d %B %Y}. Rows of different sections are not comparable. {grids.METHODS}"


def render(shown: Sequence[dict[str, Any]], lede: str, elsewhere: tables.Grid | None, images: str = "data:") -> str:
    """The page as HTML.

    Args:
        shown: a view of each section, from `sections`.
        elsewhere: published numbers; None to leave them out.
        images: allowed sources of images, in the syntax of a Content-Security-Policy.
    """
    script, style = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["classes"] = COLUMNS
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html.j2").render(
        title="sdbench leaderboard",
        lede=lede,
        sections=shown,
        published=elsewhere,
        explained=ranks.EXPLANATION,
        bias=grids.BIAS,
        images=images,
        script=Markup(script),  # noqa: S704  # our own file
        style=Markup(style),  # noqa: S704  # likewise
        script_hash=f"sha256-{digest}",
    )
