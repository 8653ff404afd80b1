"""Training sets that are lists of links => an image folder that `pictures.open_pictures` reads.

`links.jsonl` remembers what became of each link, a line each, so that a run that was killed goes on and a dead link is
not tried again. Pictures are kept byte for byte. img2dataset does not serve here: it resumes whole shards of an
unchanged list, connects to private addresses too, and brings OpenCV, albumentations and wandb.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distillation.data.download import Link, Rules, download
from distillation.data.pictures import CAPTIONS, open_pictures
from distillation.export import check_free
from sdbench.assets.sources import METADATA, Table, read_table, read_texts
from sdbench.disk import write_bytes
from sdbench.errors import UserError

URLS = ("url", "image_url", "link", "attachments")  # the last in lists taken from Discord, as Vega's Midjourney set
BOOK = "links.jsonl"


@dataclass(frozen=True)
class Report:
    """What came of a list.

    Attributes:
        pictures: of the folder, no two of the same content.
        duplicates: rows whose link or picture an earlier row has.
        dead: links by reason.
        skipped: rows without link or caption.
        size_bytes: of all pictures.
        digest: of the folder, as `open_pictures` gives it.
    """

    pictures: int
    duplicates: int
    small: int
    dead: Mapping[str, int]
    skipped: int
    size_bytes: int
    digest: str

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.dead.items(), key=lambda item: -item[1]))
        return "\n".join(
            [
                f"fetched: {self.pictures:,} pictures, {self.size_bytes:,} bytes",
                f"duplicates: {self.duplicates:,}",
                f"too small: {self.small:,}",
                f"dead: {sum(self.dead.values()):,}" + (f" ({reasons})" if reasons else ""),
                f"rows without link or caption: {self.skipped:,}",
                f"digest: {self.digest}",
            ]
        )


def fetch(
    what: str,
    out: Path,
    rules: Rules,
    *,
    url_column: str | None = None,
    caption_column: str | None = None,
    where: tuple[str, str] | None = None,
    n: int | None = None,
    threads: int = 16,
    retry_dead: bool = False,
) -> Report:
    """Fetch the pictures of a list into an image folder; what an earlier run fetched is not fetched again.

    Args:
        what: CSV, JSON-lines or parquet file, or Hub dataset, with a column of links and one of captions.
        out: new folder, or one that an earlier run filled.
        rules: what is fetched.
        url_column: where it is not called by one of `URLS`.
        caption_column: where it is not called by one of `pictures.CAPTIONS`.
        where: only rows whose column has this value, as in `Table.where`.
        n: only the first rows of the list, or of those.
        threads: links at a time.
        retry_dead: try again what was dead in an earlier run.

    Raises:
        UserError: the list cannot be read or its columns are not clear, `out` is taken, also by another list, or no link leads to a picture.
    """
    table = read_table(what)
    column = table.column(url_column, URLS, "--url-column")
    _check_list(table, column, out)
    rows = list(_rows(table.where(*where) if where else table, column, caption_column, n))
    captions: dict[str, str] = {}
    for url, caption in rows:
        if url and caption:
            captions.setdefault(url, caption)
    links = _follow_all(list(captions), out, rules, threads, retry_dead=retry_dead)
    kept: dict[str, Link] = {}
    for link in links:
        if link.state == "fetched" and link.px >= rules.min_px:
            kept.setdefault(link.file, link)
    dead = Counter(link.reason for link in links if link.state == "dead")
    small = sum(link.state != "dead" and link.px < rules.min_px for link in links)
    if not kept:
        raise UserError(f"none of {len(rows):,} rows leads to a picture: {small:,} too small, dead {dict(dead)}; see {out / BOOK}")
    _write(out / METADATA[0], ({"file_name": link.file, "caption": captions[link.url], "url": link.url} for link in kept.values()))
    skipped = sum(not (url and caption) for url, caption in rows)
    return Report(
        pictures=len(kept),
        duplicates=len(rows) - len(kept) - small - dead.total() - skipped,
        small=small,
        dead=dead,
        skipped=skipped,
        size_bytes=sum((out / file).stat().st_size for file in kept),
        digest=open_pictures(str(out)).digest,
    )


def _check_list(table: Table, column: str, out: Path) -> None:
    """Make sure that a folder's links are all in the list: pictures of another one would leave its metadata, and so the training, unsaid."""
    if known := {link.url for link in _recall(out / BOOK)}:
        strange = known.difference((url or "").strip() for url in read_texts(table, column))
        if strange:
            raise UserError(
                f"{out} holds another list's pictures: {len(strange):,} of its links, such as {min(strange)}, are not in {table.name}. "
                "Name another folder with --out; `distillation run` takes --data several times"
            )


def _rows(table: Table, url_column: str, caption_column: str | None, n: int | None) -> Iterator[tuple[str, str]]:
    """Link and caption of each row, "" where there is none."""
    columns = url_column, table.column(caption_column, CAPTIONS, "--caption-column")
    for url, caption in zip(*(read_texts(table, column, n) for column in columns), strict=True):
        yield (url or "").strip(), (caption or "").strip()


def _follow_all(urls: list[str], out: Path, rules: Rules, threads: int, *, retry_dead: bool) -> list[Link]:
    """What became of each link, followed where that is not known yet; pictures are in place before a link is noted down."""
    book = out / BOOK
    if out.exists() and not book.exists():
        check_free(out)
    known = {link.url: link for link in _recall(book)}
    for url in urls:
        if url in known and not _settled(known[url], out, rules, retry_dead=retry_dead):
            del known[url]
    _write(book, map(asdict, known.values()))  # without what is tried again, and without a line that was cut short
    todo = [url for url in urls if url not in known]
    with (
        book.open("a", encoding="utf-8") as file,
        tqdm(desc=f"fetching into {out.name}", total=len(urls), initial=len(urls) - len(todo), unit="link", mininterval=1) as bar,
        closing(download(todo, threads, rules)) as followed,  # its threads end here, not where the garbage collector may find them
    ):
        for link, body in followed:
            if body:
                write_bytes(out / link.file, body)
            known[link.url] = link
            file.write(_line(asdict(link)))
            file.flush()
            bar.update()
    return [known[url] for url in urls]


def _recall(book: Path) -> Iterator[Link]:
    if book.exists():
        with book.open(encoding="utf-8") as lines:
            yield from (Link(**json.loads(line)) for line in lines if line.endswith("\n"))  # else the run was killed in the line


def _settled(link: Link, out: Path, rules: Rules, *, retry_dead: bool) -> bool:
    match link.state:
        case "fetched":
            return (out / link.file).exists()
        case "small":
            return link.px < rules.min_px
        case "dead":
            return not retry_dead


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_bytes(path, "".join(map(_line, rows)).encode())


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
