"""A Hub on the loopback: the file API that huggingface_hub speaks, over folders; it can cut a connection, and counts what is asked."""

import hashlib
import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "c" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Serves `root/<owner>/<name>/...` as repositories of models, and `root/datasets/...` as those of data sets.

    Attributes:
        hits: downloads, by path in `root`.
        ranges: the `Range` headers among them.
        cuts: path -> bytes after which its next download breaks off.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        self.root, self.hits, self.ranges, self.cuts = root, Counter[str](), list[str](), dict[str, int]()
        super().__init__(("127.0.0.1", 0), _Answer)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, path: str, content: bytes) -> str:
        """Serve a file => its SHA-256."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)
        return hashlib.sha256(content).hexdigest()


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub over `folder/served` that huggingface_hub asks instead of its own; its cache is `folder/cache`."""
    server, constants = Hub(folder / "served"), "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)  # whatever the environment says
    monkeypatch.setattr(f"{constants}.ENDPOINT", server.url)
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:1] == ["api"]:
            self._about("/".join(parts[2:4] if parts[1] == "models" else parts[1:4]))
            return
        path = "/".join(parts)
        if "resolve" in parts:
            at = parts.index("resolve")
            path = "/".join([*parts[:at], *parts[at + 2 :]])
        if not (self.server.root / path).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body=with_body)
        else:
            self._file(path, with_body=with_body)

    def _file(self, path: str, *, with_body: bool) -> None:
        content = (self.server.root / path).read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if with_body:
            self.server.hits[path] += 1
            self.server.ranges += [asked] if asked else []
        cut = self.server.cuts.pop(path, None) if with_body else None
        self._send(206 if asked else 200, content[start:], headers, with_body=with_body, cut=cut)

    def _about(self, repository: str) -> None:
        folder, asked = self.server.root / repository, urlsplit(self.path)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        siblings = [{"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size} for file in files]
        answer: Any = {"id": repository.removeprefix("datasets/"), "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
        if "/tree/" in asked.path:
            below = folder / unquote(asked.path.partition("/tree/")[2]).partition("/")[2]
            listed = sorted(below.rglob("*") if "recursive=true" in asked.query.lower() else below.glob("*"))
            answer = [self._entry(path, folder) for path in listed]
        self._send(200 if files else 404, json.dumps(answer).encode(), {"Content-Type": "application/json"}, with_body=True)

    def _entry(self, path: Path, folder: Path) -> dict[str, Any]:
        kind, size = ("file", path.stat().st_size) if path.is_file() else ("directory", 0)
        return {"type": kind, "path": str(path.relative_to(folder)), "size": size, "oid": "0" * 40}

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[:cut])
