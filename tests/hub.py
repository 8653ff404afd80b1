"""A Hub on the loopback: the file API that huggingface_hub uses, served from folders; it counts requests and can cut connections."""

import hashlib
import http.server
import json
import re
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
    """Serves `root/<owner>/<name>/...` as model repositories, and `root/datasets/...` as data set repositories.

    Attributes:
        hits: number of downloads, by path in `root`.
        ranges: the `Range` headers of downloads.
        cuts: path -> bytes after which its next download breaks off.
        refusals: repository -> the code of the error with which it is refused, as the Hub names it.
        commit: the newest of every repository; each commit has the same files.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        self.root, self.hits, self.ranges, self.cuts = root, Counter[str](), list[str](), dict[str, int]()
        self.refusals, self.commit = dict[str, str](), COMMIT
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, path: str, content: bytes) -> str:
        """Serve a file; returns its SHA-256."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)
        return hashlib.sha256(content).hexdigest()


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve `folder/served` as the Hub for huggingface_hub, with its cache in `folder/cache`."""
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


class _Handler(http.server.BaseHTTPRequestHandler):
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
        self.commit = next((part for part in parts if re.fullmatch(r"[0-9a-f]{40}", part)), self.server.commit)
        if parts[:1] == ["api"]:
            self._send_listing("/".join(parts[2:4] if parts[1] == "models" else parts[1:4]))
            return
        path = "/".join(parts)
        if "resolve" in parts:
            at = parts.index("resolve")
            path = "/".join([*parts[:at], *parts[at + 2 :]])
        if not (self.server.root / path).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body=with_body)
        else:
            self._send_file(path, with_body=with_body)

    def _send_file(self, path: str, *, with_body: bool) -> None:
        content = (self.server.root / path).read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        byte_range = self.headers.get("Range", "")
        start = int(byte_range.removeprefix("bytes=").partition("-")[0]) if byte_range else 0
        if byte_range:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if with_body:
            self.server.hits[path] += 1
            self.server.ranges += [byte_range] if byte_range else []
        cut = self.server.cuts.pop(path, None) if with_body else None
        self._send(206 if byte_range else 200, content[start:], headers, with_body=with_body, cut=cut)

    def _send_listing(self, repository: str) -> None:
        folder, url = self.server.root / repository, urlsplit(self.path)
        if refusal := self.server.refusals.get(repository):
            self._send(403, b"", {"X-Error-Code": refusal}, with_body=True)
            return
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        siblings = [{"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size} for file in files]
        index = folder / "model_index.json"
        config = {"diffusers": {"_class_name": json.loads(index.read_bytes())["_class_name"]}} if index.is_file() else {}
        about = {"id": repository.removeprefix("datasets/"), "sha": self.commit, "config": config}
        answer: Any = about | {"siblings": siblings, "private": False, "tags": []}
        if "/tree/" in url.path:
            below = folder / unquote(url.path.partition("/tree/")[2]).partition("/")[2]
            listed = sorted(below.rglob("*") if "recursive=true" in url.query.lower() else below.glob("*"))
            answer = [self._entry(path, folder) for path in listed]
        headers = {"Content-Type": "application/json"} | ({} if files else {"X-Error-Code": "RepoNotFound"})
        self._send(200 if files else 404, json.dumps(answer).encode(), headers, with_body=True)

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
