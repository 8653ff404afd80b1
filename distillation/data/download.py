"""A link => the picture that it leads to, or the reason why there is none."""

import hashlib
import io
import logging
import re
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from ipaddress import ip_address
from socket import socket
from typing import Literal

import urllib3
from PIL import Image
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    HTTPError,
    LocationValueError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ResponseError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as WaitedError

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
RETRIES = urllib3.Retry(
    total=None,
    connect=1,
    read=1,
    other=0,
    redirect=5,
    status=3,
    status_forcelist=(429, 500, 502, 503, 504),
    raise_on_status=False,
    backoff_factor=1,
    backoff_jitter=0.5,
    retry_after_max=60,
)
PATIENCE = 5  # a whole answer may take this many times as long as each part of it
REASONS: tuple[tuple[type[Exception], str], ...] = (  # the first that fits
    (NameResolutionError, "unknown host"),
    (NewConnectionError, "no connection"),
    (WaitedError, "timeout"),
    (SSLError, "no valid certificate"),
    (ResponseError, "too many redirects"),
    (ProtocolError, "broken off"),
    (LocationValueError, "no http address"),
)


@dataclass(frozen=True)
class Rules:
    """What is fetched.

    Attributes:
        min_px: least smaller side of a picture.
        timeout_s: wait for a connection, and for each next part of an answer.
        max_bytes: largest file.
        allow_private: also from addresses that are not public, such as 127.0.0.1.
    """

    min_px: int = 512
    timeout_s: float = 20
    max_bytes: int = 64 << 20
    allow_private: bool = False


@dataclass(frozen=True)
class Link:
    """What became of a link.

    Attributes:
        reason: why it is dead.
        file: where the picture belongs: named by its content, below a folder of the name's first two digits.
        px: the picture's smaller side.
    """

    url: str
    state: Literal["fetched", "small", "dead"]
    reason: str = ""
    file: str = ""
    px: int = 0


class _DeadError(Exception):
    """The reason why a link has no picture."""


def download(urls: Sequence[str], threads: int, rules: Rules) -> Generator[tuple[Link, bytes], None, None]:
    """Follow links, `threads` at a time => each as it is done, with the picture's bytes where it was fetched."""
    client, pending = _client(threads, rules), set[Future[tuple[Link, bytes]]]()
    with ThreadPoolExecutor(threads) as pool:
        for url in urls:
            pending.add(pool.submit(_follow, client, url, rules))
            if len(pending) >= 2 * threads:  # bounds what lies in memory
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(pending))


def _follow(client: urllib3.PoolManager, url: str, rules: Rules) -> tuple[Link, bytes]:
    try:
        body = _get(client, url, rules)
        ending, px = _look(body)
    except _DeadError as error:
        return Link(url, "dead", str(error)), b""
    if px < rules.min_px:
        return Link(url, "small", px=px), b""
    name = hashlib.sha256(body).hexdigest()
    return Link(url, "fetched", file=f"{name[:2]}/{name}.{ending}", px=px), body


def _get(client: urllib3.PoolManager, url: str, rules: Rules) -> bytes:
    try:
        with client.request("GET", url, preload_content=False) as response:
            if response.status != 200:
                raise _DeadError(f"status {response.status}")
            if {"noai", "noimageai"} & set(re.split(r"[\s,:]+", response.headers.get("X-Robots-Tag", "").lower())):
                raise _DeadError("not for training")  # says its owner
            return _read(response, rules)
    except (HTTPError, OSError, ValueError) as error:
        cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        raise _DeadError(next((reason for kind, reason in REASONS if isinstance(cause, kind)), type(cause).__name__)) from error


def _read(response: urllib3.BaseHTTPResponse, rules: Rules) -> bytes:
    body, start = bytearray(), time.monotonic()
    while part := response.read1(1 << 16):
        body += part
        if len(body) > rules.max_bytes:
            raise _DeadError("too large")
        if time.monotonic() - start > PATIENCE * rules.timeout_s:
            raise _DeadError("timeout")
    return bytes(body)


def _look(body: bytes) -> tuple[str, int]:
    """The ending and the smaller side of a picture; all of it is decoded."""
    try:
        with Image.open(io.BytesIO(body), formats=list(FORMATS)) as image:
            image.load()
            return FORMATS.get(image.format or "", "jpg"), min(image.size)  # cameras' "MPO" is a JPEG with more behind it
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise _DeadError("no picture") from error


def _public(address: str) -> bool:
    return ip_address(address).is_global


class _Checked:
    """A connection that is seen to lead to a public address before anything is sent: names and redirects can lead anywhere."""

    def _new_conn(self) -> socket:
        made: socket = super()._new_conn()  # type: ignore[misc]  # of the class that this is mixed into
        if not _public(made.getpeername()[0]):
            made.close()
            raise _DeadError("no public address")
        return made


class _CheckedHTTP(_Checked, HTTPConnection):
    pass


class _CheckedHTTPS(_Checked, HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _CheckedHTTP


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _CheckedHTTPS


def _client(threads: int, rules: Rules) -> urllib3.PoolManager:
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # retries are nothing to tell
    agent = {"User-Agent": "sdbench distillation (training pictures from lists of links)"}
    client = urllib3.PoolManager(threads, maxsize=threads, headers=agent, timeout=rules.timeout_s, retries=RETRIES)
    if not rules.allow_private:
        client.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return client
