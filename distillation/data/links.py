"""Fetch training sets that are lists of links into an image folder, which `images.open_images` reads.

`links.jsonl` records the result of each link, one per line, so that a killed run resumes and dead links are not retried.
Images are stored byte for byte. img2dataset is not an alternative: it resumes only whole shards of an unchanged list, also
connects to private addresses, and requires OpenCV, albumentations and wandb.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from distillation.data.download import FetchRules, Link, download
from distillation.data.images import open_images
from distillation.export import check_new_or_empty
from sdbench.assets.prompts import COLUMNS
from sdbench.assets.sources import METADATA, Rows, read_rows, read_texts
from sdbench.disk import json_line, locked, read_json_lines, write_bytes, write_json_lines
from sdbench.errors import UserError
from sdbench.notes import progress

URL_COLUMNS = ("url", "image_url", "link", "attachments")  # the last in lists taken from Discord, such as Vega's Midjourney set
LINK_LOG, LOCK = "links.jsonl", "links.lock"


@dataclass(frozen=True)
class FetchReport:
    """The result of fetching a list.

    Attributes:
        images: in the folder, all with different content.
        duplicates: rows with the link or the image of an earlier row.
        small: links to images below the minimum size.
        dead: number of dead links by reason.
        skipped: rows without link or caption.
        size_bytes: of all images.
        digest: of the folder, as in `open_images`.
    """

    images: int
    duplicates: int
    small: int
    dead: Mapping[str, int]
    skipped: int
    size_bytes: int
    digest: str

    def __str__(self) -> str:
        return "\n".join(
            [
                f"fetched: {self.images:,} images, {self.size_bytes:,} bytes",
                f"duplicates: {self.duplicates:,}",
                f"too small: {self.small:,}",
                f"dead: {_with_reasons(self.dead)}",
                f"rows without link or caption: {self.skipped:,}",
                f"digest: {self.digest}",
            ]
        )


def _with_reasons(dead: Mapping[str, int]) -> str:
    """The number of dead links, and how many of them for which reason: `3 (timeout 2, status 404 1)`."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(dead.items(), key=lambda item: -item[1]))
    return f"{sum(dead.values()):,}" + (f" ({reasons})" if reasons else "")


def fetch_images(
    source: str,
    out: Path,
    rules: FetchRules,
    *,
    url_column: str | None = None,
    caption_column: str | None = None,
    where: tuple[str, str] | None = None,
    n: int | None = None,
    threads: int = 16,
    retry_dead: bool = False,
) -> FetchReport:
    """Fetch the images of a list into an image folder. Images of an earlier run are not fetched again.

    Another command that fetches into the folder is waited for.

    Args:
        source: CSV, JSON-lines or parquet file, or Hub dataset, with a column of links and one of captions.
        out: new or empty folder, or one from an earlier run.
        url_column: column of links; default: the one named in `URL_COLUMNS`.
        caption_column: column of captions; default: the one named in `prompts.COLUMNS`.
        where: (column, value): only rows with this value, see `Rows.where`.
        n: only the first n rows, after `where`.
        threads: links to follow at a time.
        retry_dead: retry links that were dead in an earlier run.

    Raises:
        UserError: the list cannot be read, a column is missing or ambiguous, no row fits `where`, `out` holds something else or another
            list or cannot be written, or no link leads to an image.
    """
    listed = read_rows(source)
    column = listed.column(url_column, URL_COLUMNS, "--url-column")
    rows = list(_rows(listed.where(*where) if where else listed, column, caption_column, n))
    captions: dict[str, str] = {}
    for url, caption in rows:
        if url and caption:
            captions.setdefault(url, caption)
    if not any((out / name).exists() for name in (LINK_LOG, LOCK)):  # no other fetch has begun there
        check_new_or_empty(out)
    with locked(out / LOCK):
        _check_same_list(listed, column, out)
        links = _follow_links(list(captions), out, rules, threads, retry_dead=retry_dead)
        return _write_metadata(out, rows, captions, links, rules.min_px)


def _write_metadata(out: Path, rows: list[tuple[str, str]], captions: Mapping[str, str], links: list[Link], min_px: int) -> FetchReport:
    """Write `metadata.jsonl` for the images that are large enough, and return the report."""
    kept: dict[str, Link] = {}
    for link in links:
        if link.state == "fetched" and link.px >= min_px:
            kept.setdefault(link.file, link)
    dead = Counter(link.reason for link in links if link.state == "dead")
    small = sum(link.state != "dead" and link.px < min_px for link in links)
    if not kept:
        raise UserError(
            f"none of {len(rows):,} rows leads to an image; too small: {small:,}, dead: {_with_reasons(dead)}. "
            f"{out / LINK_LOG} lists all links"
        )
    write_json_lines(
        out / METADATA[0], ({"file_name": link.file, "caption": captions[link.url], "url": link.url} for link in kept.values())
    )
    skipped = sum(not (url and caption) for url, caption in rows)
    return FetchReport(
        images=len(kept),
        duplicates=len(rows) - len(kept) - small - dead.total() - skipped,
        small=small,
        dead=dead,
        skipped=skipped,
        size_bytes=sum((out / file).stat().st_size for file in kept),
        digest=open_images(str(out)).digest,
    )


def _check_same_list(listed: Rows, column: str, out: Path) -> None:
    """Check that the list has all links of the folder: images of another list would silently drop out of the metadata."""
    if logged := {link.url for link in _read_log(out / LINK_LOG)}:
        missing = logged.difference((url or "").strip() for url in read_texts(listed, column))
        if missing:
            raise UserError(
                f"{out} holds another list's images: {len(missing):,} of its links, such as {min(missing)}, are not in {listed.name}. "
                "Name another folder with --out; `distillation run` accepts --data several times"
            )


def _rows(listed: Rows, url_column: str, caption_column: str | None, n: int | None) -> Iterator[tuple[str, str]]:
    """Link and caption of each row; "" if missing."""
    columns = url_column, listed.column(caption_column, COLUMNS, "--caption-column")
    for url, caption in zip(*(read_texts(listed, column, n) for column in columns), strict=True):
        yield (url or "").strip(), (caption or "").strip()


def _follow_links(urls: list[str], out: Path, rules: FetchRules, threads: int, *, retry_dead: bool) -> list[Link]:
    """The result of each link; only links without a final result are followed. An image is stored before its link is logged."""
    log = out / LINK_LOG
    results = {link.url: link for link in _read_log(log)}
    for url in urls:
        if url in results and not _is_final(results[url], out, rules, retry_dead=retry_dead):
            del results[url]
    write_json_lines(log, map(asdict, results.values()))  # without links to retry, and without an incomplete line
    remaining = [url for url in urls if url not in results]
    with (
        log.open("a", encoding="utf-8") as file,
        progress(desc=f"fetching into {out.name}", total=len(urls), initial=len(urls) - len(remaining), unit="link") as bar,
        closing(download(remaining, threads, rules)) as downloads,  # ends its threads here, not when the garbage collector gets to it
    ):
        for link, body in downloads:
            if body:
                write_bytes(out / link.file, body)
            results[link.url] = link
            file.write(json_line(asdict(link)))
            file.flush()
            bar.update()
    return [results[url] for url in urls]


def _read_log(log: Path) -> Iterator[Link]:
    return read_json_lines(log, TypeAdapter(Link).validate_json)


def _is_final(link: Link, out: Path, rules: FetchRules, *, retry_dead: bool) -> bool:
    match link.state:
        case "fetched":
            return (out / link.file).exists()
        case "small":
            return link.px < rules.min_px
        case "dead":
            return not retry_dead
