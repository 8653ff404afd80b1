"""Lists of links become image folders: what is fetched, what is refused and why, and nothing is fetched twice."""

import gzip
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from processes import is_locked

from distillation.cli import main
from distillation.data import download as module
from distillation.data.download import FetchRules
from distillation.data.images import open_images
from distillation.data.links import LINK_LOG, LOCK, FetchReport, fetch_images
from sdbench.disk import read_json_lines, write_json_lines
from sdbench.errors import UserError

pytestmark = pytest.mark.usefixtures("datasets_cache")
Handler = http.server.BaseHTTPRequestHandler
RULES = FetchRules(min_px=8, timeout_s=60, max_bytes=1 << 20, allow_private=True)


def image(seed: int, side: int = 16, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


class Site(http.server.ThreadingHTTPServer):
    """A loopback server that counts requests: `/<seed>` is an image, unless a handler in `pages` takes over."""

    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.hits: Counter[str] = Counter()
        self.pages: dict[str, Callable[[Handler], object]] = {}
        self.lock = threading.Lock()
        super().__init__((host, 0), _Answer)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def url(self, page: object) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/{page}"


class _Answer(Handler):
    server: Site

    def do_GET(self) -> None:  # noqa: N802  # the library calls it so
        page = self.path.strip("/")
        with self.server.lock:
            self.server.hits[page] += 1
        with suppress(BrokenPipeError, ConnectionResetError):
            if handle := self.server.pages.get(page):
                handle(self)
            else:
                answer(self, image(int(page)))

    def log_message(self, *_: object) -> None:
        pass


def answer(handler: Handler, body: bytes = b"", status: int = 200, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.shutdown()
    made.server_close()


def write_list(path: Path, urls: list[Any], captions: list[Any] | None = None) -> str:
    captions = captions or [f"caption {row}" for row in range(len(urls))]
    write_json_lines(path, ({"url": url, "caption": caption} for url, caption in zip(urls, captions, strict=True)))
    return str(path)


def read_log(folder: Path) -> dict[str, dict[str, Any]]:
    lines = [*read_json_lines(folder / LINK_LOG)]
    assert len({line["url"] for line in lines}) == len(lines)
    return {line["url"].rsplit("/", 1)[1]: line for line in lines}


def test_a_list_becomes_an_image_folder(site: Site, tmp_path: Path) -> None:
    site.pages["photo"] = lambda handler: answer(handler, image(7, kind="JPEG"))
    twin = io.BytesIO()
    Image.new("RGB", (9, 9)).save(twin, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9), "red")])
    site.pages["twin"] = lambda handler: answer(handler, twin.getvalue())
    site.pages["copy"] = lambda handler: answer(handler, image(1))
    site.pages["tiny"] = lambda handler: answer(handler, image(2, side=7))
    site.pages["moved"] = lambda handler: answer(handler, status=302, Location=site.url("3"))
    urls = [site.url(page) for page in ("1", "copy", "photo", "tiny", "moved", "1", "twin")]
    report = fetch_images(
        write_list(tmp_path / "list.jsonl", [*urls, None, site.url("4")], [*"abcdefg", "h", " "]), tmp_path / "out", RULES, threads=3
    )
    kept = open_images(str(tmp_path / "out"))
    contents = [image(1), image(7, kind="JPEG"), image(3), twin.getvalue()]
    size = sum(map(len, contents))
    assert report == FetchReport(images=4, duplicates=2, small=1, dead={}, skipped=2, size_bytes=size, digest=kept.digest)
    assert kept.captions == ["a", "c", "e", "g"]
    np.testing.assert_array_equal(np.asarray(kept.image(0)), np.asarray(Image.open(io.BytesIO(image(1)))))
    rows = [*read_json_lines(tmp_path / "out" / "metadata.jsonl")]
    assert [row["url"] for row in rows] == [urls[0], urls[2], urls[4], urls[6]]
    for row, content in zip(rows, contents, strict=True):
        file = tmp_path / "out" / row["file_name"]
        assert file.read_bytes() == content
        assert file.parent.name == file.name[:2]
    assert [row["file_name"][-4:] for row in rows] == [".png", ".jpg", ".png", ".jpg"]
    assert read_log(tmp_path / "out")["tiny"] == {"url": urls[3], "state": "small", "reason": "", "file": "", "px": 7}


CASES: dict[str, tuple[Callable[[Handler], None], str, int]] = {  # what the server does, the reason, requests
    "missing": (lambda handler: answer(handler, status=404), "status 404", 1),
    "cut": (lambda handler: answer(handler, image(0)[:200], length=len(image(0))), "broken off", 1),
    "half": (lambda handler: answer(handler, image(0)[:200]), "no image", 1),
    "text": (lambda handler: answer(handler, b"<html>not here any more</html>", Content_Type="image/png"), "no image", 1),
    "vector": (lambda handler: answer(handler, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"), "no image", 1),
    "large": (lambda handler: answer(handler, b"x" * ((1 << 20) + 1)), "too large", 1),
    "swollen": (lambda handler: answer(handler, gzip.compress(b"x" * (1 << 24)), Content_Encoding="gzip"), "too large", 1),
    "loop": (lambda handler: answer(handler, status=302, Location="/loop"), "too many redirects", 6),
    "elsewhere": (lambda handler: answer(handler, status=302, Location="file:///etc/hostname"), "no http address", 1),
    "busy": (lambda handler: answer(handler, status=503, Retry_After="0"), "status 503", 4),
    "declined": (lambda handler: answer(handler, image(0), X_Robots_Tag="otherbot: noai, noindex"), "not for training", 1),
}


def test_dead_links_have_a_reason_and_are_retried_only_when_asked(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRIES", module.RETRIES.new(backoff_factor=0, backoff_jitter=0))
    site.pages |= {page: does for page, (does, _, _) in CASES.items()}
    closed = Site()
    closed.server_close()
    pages = [*CASES, "1"]
    odd = {closed.url("gone"): "no connection", "ftp://example.org/ftp": "no http address", "http://[/odd": "no http address"}
    what = write_list(tmp_path / "list.jsonl", [*map(site.url, pages), *odd])
    report = fetch_images(what, tmp_path / "out", RULES)
    closed.shutdown()
    expected = Counter([reason for _, reason, _ in CASES.values()] + list(odd.values()))
    assert (report.images, report.dead) == (1, expected)
    assert site.hits == {page: times for page, (_, _, times) in CASES.items()} | {"1": 1}
    found = read_log(tmp_path / "out")
    assert {page: found[page]["reason"] for page in CASES} == {page: reason for page, (_, reason, _) in CASES.items()}
    assert str(report).splitlines()[3] == (
        "dead: 14 (no image 3, no http address 3, too large 2, status 404 1, broken off 1, too many redirects 1, status 503 1, "
        "not for training 1, no connection 1)"
    )

    site.hits.clear()
    assert fetch_images(what, tmp_path / "out", RULES) == report
    assert site.hits == {}
    site.pages["missing"] = lambda handler: answer(handler, image(2))
    again = fetch_images(what, tmp_path / "out", RULES, retry_dead=True)
    assert (again.images, again.dead["status 404"]) == (2, 0)
    assert site.hits["missing"] == 1
    assert "1" not in site.hits
    assert list(read_log(tmp_path / "out")).count("missing") == 1


def test_a_server_that_hangs_or_drips_is_given_up(site: Site, tmp_path: Path) -> None:
    over = threading.Event()

    def drip(handler: Handler, start: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + start)
        while not over.wait(0.02):
            handler.wfile.write(b"x")

    starts = {"body": b"Content-Length: 1000000\r\n\r\n", "header": b"X: ", "chunk": b"Transfer-Encoding: chunked\r\n\r\n1;"}
    site.pages |= {"hang": lambda _: over.wait()} | {page: partial(drip, start=start) for page, start in starts.items()}
    with pytest.raises(UserError, match=r"dead: 4 \(timeout 4\)"):
        fetch_images(
            write_list(tmp_path / "list.jsonl", list(map(site.url, site.pages))),
            tmp_path / "out",
            FetchRules(timeout_s=0.2, allow_private=True),
        )
    over.set()


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path) -> None:
    def once(status: int) -> Callable[[Handler], None]:
        states = iter([status])
        return lambda handler: answer(handler, image(status), next(states, 200), Retry_After="0")

    site.pages |= {str(status): once(status) for status in (429, 500, 503)}
    report = fetch_images(write_list(tmp_path / "list.jsonl", list(map(site.url, site.pages))), tmp_path / "out", RULES)
    assert (report.images, report.dead, site.hits) == (3, {}, {"429": 2, "500": 2, "503": 2})


def test_min_px_can_change_without_fetching_again(site: Site, tmp_path: Path) -> None:
    for side in (10, 20, 30):
        site.pages[f"side{side}"] = partial(answer, body=image(side, side))
    what = write_list(tmp_path / "list.jsonl", list(map(site.url, site.pages)))
    found = []
    for least in (20, 30, 10):
        report = fetch_images(what, tmp_path / "out", FetchRules(min_px=least, allow_private=True))
        found.append((report.images, report.small))
    assert found == [(2, 1), (1, 2), (3, 0)]
    assert site.hits == {"side10": 2, "side20": 1, "side30": 1}


SCRIPT = """
import sys, pathlib, datasets
datasets.config.HF_DATASETS_CACHE = pathlib.Path(sys.argv[3])
from distillation.data.links import fetch_images
from distillation.data.download import FetchRules
fetch_images(sys.argv[1], pathlib.Path(sys.argv[2]), FetchRules(min_px=8, timeout_s=60, allow_private=True), threads=1)
"""


def test_a_killed_run_continues(site: Site, tmp_path: Path) -> None:
    reached, go = threading.Event(), threading.Event()

    def wall(handler: Handler) -> None:
        reached.set()
        go.wait(300)
        answer(handler, image(5))

    site.pages["5"] = wall
    what = write_list(tmp_path / "list.jsonl", [site.url(page) for page in range(9)])
    words = [sys.executable, "-c", SCRIPT, what, str(tmp_path / "out"), str(tmp_path / "cache")]
    running = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    try:
        assert reached.wait(300)
        deadline = time.monotonic() + 60
        while len((tmp_path / "out" / LINK_LOG).read_text(encoding="utf-8").splitlines()) < 5:
            assert time.monotonic() < deadline, "the log lacks images that came before the one it waits for"
            time.sleep(0.01)
    finally:
        running.kill()
        assert running.wait() == -signal.SIGKILL
        go.set()
    with (tmp_path / "out" / LINK_LOG).open("a", encoding="utf-8") as file:
        file.write('{"url": "http://cut-sho')  # as a kill in the middle of a line would leave it
    with pytest.raises(UserError, match=r"nothing to read in .*out: expected metadata\.jsonl"):
        open_images(str(tmp_path / "out"))
    before = Counter(site.hits)
    assert [before[str(page)] for page in range(7)] == [1, 1, 1, 1, 1, 1, 0]
    resumed = fetch_images(what, tmp_path / "out", RULES)
    assert site.hits - before == {"5": 1, "6": 1, "7": 1, "8": 1}
    assert len(read_log(tmp_path / "out")) == 9
    assert resumed == fetch_images(what, tmp_path / "unbroken", RULES)
    assert (tmp_path / "out" / "metadata.jsonl").read_bytes() == (tmp_path / "unbroken" / "metadata.jsonl").read_bytes()


def test_whoever_stops_waits_only_for_the_links_that_are_being_followed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            stopped.set()
            super().shutdown(wait)

    def answer_late(handler: Handler) -> None:
        stopped.wait(300)
        answer(handler, image(1))

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    site.pages |= dict.fromkeys(("1", "2"), answer_late)
    with closing(module.download([site.url(page) for page in range(9)], 2, RULES)) as downloads:
        assert next(downloads)[0].url == site.url(0)
    assert site.hits.keys() <= {"0", "1", "2"}, "the fourth was only queued"


def test_an_image_that_was_deleted_is_fetched_again(site: Site, tmp_path: Path) -> None:
    what = write_list(tmp_path / "list.jsonl", [site.url(1), site.url(2)])
    first = fetch_images(what, tmp_path / "out", RULES)
    (tmp_path / "out" / read_log(tmp_path / "out")["2"]["file"]).unlink()
    assert fetch_images(what, tmp_path / "out", RULES) == first
    assert site.hits == {"1": 1, "2": 2}


@pytest.mark.parametrize("change", [{"note": "mine"}, {"px": "wide"}, {"state": "gone"}, None])
def test_a_log_edited_to_nonsense_is_an_error_with_its_line(change: dict[str, str] | None, site: Site, tmp_path: Path) -> None:
    what = write_list(tmp_path / "list.jsonl", [site.url(1), site.url(2)])
    fetch_images(what, tmp_path / "out", RULES)
    log = tmp_path / "out" / LINK_LOG
    first, second = log.read_text(encoding="utf-8").splitlines()
    edited = [] if change is None else json.loads(second) | change
    log.write_text(f"{first}\n{json.dumps(edited)}\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"^line 2 of .*links\.jsonl is damaged \([^\n]+\); remove that line, and run the same command again$"
    ):
        fetch_images(what, tmp_path / "out", RULES)


def test_private_addresses_are_refused_before_any_request(site: Site, tmp_path: Path) -> None:
    what = write_list(tmp_path / "list.jsonl", [site.url(1), site.url(1).replace("http", "https")])
    with pytest.raises(
        UserError, match=r"none of 2 rows leads to an image; too small: 0, dead: 2 \(no public address 2\)\. .*links\.jsonl lists all links"
    ):
        fetch_images(what, tmp_path / "out", FetchRules(min_px=8))
    assert site.hits == {}


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
def test_a_redirect_to_a_private_address_is_refused(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Site("127.0.0.2")
    monkeypatch.setattr(module, "_is_public", lambda address: address == "127.0.0.1")
    site.pages["inner"] = lambda handler: answer(handler, status=302, Location=inner.url(1))
    report = fetch_images(write_list(tmp_path / "list.jsonl", [site.url(2), site.url("inner")]), tmp_path / "out", FetchRules(min_px=8))
    inner.shutdown()
    inner.server_close()
    assert (report.images, report.dead, inner.hits) == (1, {"no public address": 1}, {})


def test_what_counts_as_private() -> None:
    private = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"]
    private += ["::1", "fe80::1%2", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::a01:203"]
    assert [address for address in private if module._is_public(address)] == []
    assert module._is_public("1.1.1.1")
    assert module._is_public("2606:4700:4700::1111")
    assert module._is_public("64:ff9b::808:808")


def test_lists_have_several_formats_and_column_names(site: Site, tmp_path: Path) -> None:
    rows = {"URL": [site.url(1), site.url(2)], "TEXT": ["a", "b, c"], "link": ["x", "y"]}
    table = datasets.Dataset.from_dict(rows)
    table.to_csv(tmp_path / "list.csv")
    table.to_json(tmp_path / "list.jsonl")
    table.to_parquet(tmp_path / "list.parquet")
    with pytest.raises(UserError, match=r"URL and link of its columns .*expected one. Name it with --url-column"):
        fetch_images(str(tmp_path / "list.csv"), tmp_path / "out", RULES)
    for ending in ("csv", "jsonl", "parquet"):
        report = fetch_images(str(tmp_path / f"list.{ending}"), tmp_path / "out", RULES, url_column="URL")
        assert open_images(str(tmp_path / "out")).captions == ["a", "b, c"]
        assert report.images == 2
    assert fetch_images(str(tmp_path / "list.csv"), tmp_path / "first", RULES, url_column="URL", n=1).images == 1
    assert site.hits == {"1": 2, "2": 1}


@pytest.mark.parametrize(
    "others",
    [
        # zzliang/GRIT, an instance on its card
        {"key": "000373938", "clip_similarity_vitb32": 0.35, "clip_similarity_vitl14": 0.29, "id": 1}
        | {"width": 228, "height": 221, "url": "", "caption": ""},
        # wanng/midjourney-v5-202304-clean, by scripts that read it: the two files under data/ have the same columns
        {"Content": "**a** --v 5", "upscaled": True, "Attachments": "", "clean_prompts": ""},
    ],
    ids=["GRIT", "Midjourney"],
)  # fmt: skip
def test_the_lists_of_vegas_model_card_need_no_column_options(others: dict[str, Any], site: Site, tmp_path: Path) -> None:
    url, caption = list(others)[-2:]
    rows = [{**others, url: site.url(number), caption: f"image {number}"} for number in (1, 2)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "list.parquet")
    assert fetch_images(str(tmp_path / "list.parquet"), tmp_path / "out", RULES).images == 2
    assert open_images(str(tmp_path / "out")).captions == ["image 1", "image 2"]


def test_one_command_fetches_into_a_folder_at_a_time(site: Site, tmp_path: Path) -> None:
    out, held = tmp_path / "out", list[bool]()
    lock = out / LOCK

    def note(handler: Handler) -> None:
        held.append(is_locked(lock))
        answer(handler, image(1))

    site.pages["1"] = note
    out.mkdir()
    lock.touch()  # as of a command that has only just begun; it is waited for
    assert fetch_images(write_list(tmp_path / "list.jsonl", [site.url(1)]), out, RULES).images == 1
    assert held == [True]
    assert not is_locked(lock)


def test_a_folder_with_other_files_is_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserError, match="out exists; expected a new or empty folder"):
        fetch_images(write_list(tmp_path / "list.jsonl", [site.url(1)]), tmp_path / "out", RULES)
    assert site.hits == {}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_another_lists_folder_is_left_alone(site: Site, tmp_path: Path) -> None:
    first, longer = (write_list(tmp_path / f"{n}.jsonl", list(map(site.url, range(n)))) for n in (2, 3))
    fetch_images(first, tmp_path / "out", RULES)
    assert fetch_images(longer, tmp_path / "out", RULES).images == 3
    before = (tmp_path / "out" / "metadata.jsonl").read_bytes()
    with pytest.raises(
        UserError,
        match=r"another list's images: 1 of its links, such as .*/2, are not in 2.jsonl.*; `distillation run` accepts --data several",
    ):
        fetch_images(first, tmp_path / "out", RULES)
    assert (tmp_path / "out" / "metadata.jsonl").read_bytes() == before


def test_rows_can_be_filtered_also_later(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"Attachments": site.url(number), "clean_prompts": f"image {number}", "upscaled": number > 1} for number in range(4)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "list.parquet")
    what, out = str(tmp_path / "list.parquet"), tmp_path / "out"
    assert fetch_images(what, out, RULES).images == 4
    arguments = ["data", "fetch", what, "--out", str(out), "--min-px", "8", "--allow-private", "--where"]
    assert main([*arguments, "upscaled=TRUE"]) == 0
    assert open_images(str(out)).captions == ["image 2", "image 3"]
    assert main([*arguments, "upscaled=maybe"]) == 2
    assert "list.parquet: no row whose column 'upscaled' is 'maybe'; found False, True" in capsys.readouterr().err
    assert main([*arguments, "upscale=true"]) == 2
    assert "did you mean 'upscaled'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "upscaled"])
    assert "'upscaled' is not of the form COLUMN=VALUE" in capsys.readouterr().err
