"""Download images from links; a link that gives no image gets the reason."""

import hashlib
import io
import logging
import re
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from http.client import HTTPResponse
from io import BufferedReader, RawIOBase
from ipaddress import IPv4Address, IPv6Network, ip_address
from socket import socket
from typing import Any, Literal

import pydantic
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
from urllib3.exceptions import TimeoutError as UrllibTimeoutError

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
_NAT64 = IPv6Network("64:ff9b::/96")
TOTAL_TIMEOUT_FACTOR = 5  # a whole response may take this many times as long as one part of it
REASONS: tuple[tuple[type[Exception], str], ...] = (  # the first match counts
    (NameResolutionError, "unknown host"),
    (NewConnectionError, "no connection"),
    (UrllibTimeoutError, "timeout"),
    (SSLError, "no valid certificate"),
    (ResponseError, "too many redirects"),
    (ProtocolError, "broken off"),
    (LocationValueError, "no http address"),
)


@dataclass(frozen=True)
class FetchRules:
    """Which images to fetch.

    Attributes:
        min_px: minimum length of an image's shorter side.
        timeout_s: to wait for a connection, and for each part of a response; a whole response may take `TOTAL_TIMEOUT_FACTOR` times as
            long.
        max_bytes: of a response; a link to more is dead.
        allow_private: also fetch from addresses that are not public, such as 127.0.0.1.
    """

    min_px: int = 512
    timeout_s: float = 20
    max_bytes: int = 64 << 20
    allow_private: bool = False


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Link:
    """The result of a link; validated, since people edit the log that it is read from.

    Attributes:
        reason: why the link is dead.
        file: relative path for the image: its SHA-256, in a folder named by the first two digits.
        px: length of the image's shorter side.
    """

    url: str
    state: Literal["fetched", "small", "dead"]
    reason: str = ""
    file: str = ""
    px: int = 0


class _DeadError(Exception):
    """A link has no image; the message is the reason."""


def download(urls: Sequence[str], threads: int, rules: FetchRules) -> Generator[tuple[Link, bytes], None, None]:
    """Follow links, `threads` at a time, and yield each result as soon as it is there, with the image's bytes if it was fetched.

    Closing it early waits only for the links that are being followed.
    """
    client, pending, pool = _client(threads, rules), set[Future[tuple[Link, bytes]]](), ThreadPoolExecutor(threads)
    try:
        for url in urls:
            pending.add(pool.submit(_follow, client, url, rules))
            if len(pending) >= 2 * threads:  # bounds the images in memory
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(pending))
    finally:
        pool.shutdown(cancel_futures=True)


def _follow(client: urllib3.PoolManager, url: str, rules: FetchRules) -> tuple[Link, bytes]:
    try:
        body = _get(client, url, rules)
        suffix, px = _inspect_image(body)
    except _DeadError as error:
        return Link(url, "dead", str(error)), b""
    if px < rules.min_px:
        return Link(url, "small", px=px), b""
    name = hashlib.sha256(body).hexdigest()
    return Link(url, "fetched", file=f"{name[:2]}/{name}.{suffix}", px=px), body


def _get(client: urllib3.PoolManager, url: str, rules: FetchRules) -> bytes:
    try:
        with client.request("GET", url, preload_content=False) as response:
            if response.status != 200:
                raise _DeadError(f"status {response.status}")
            if {"noai", "noimageai"} & set(re.split(r"[\s,:]+", response.headers.get("X-Robots-Tag", "").lower())):
                raise _DeadError("not for training")  # the owner's wish
            return _read(response, rules.max_bytes)
    except (HTTPError, OSError, ValueError) as error:
        cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        raise _DeadError(next((reason for kind, reason in REASONS if isinstance(cause, kind)), type(cause).__name__)) from error


def _read(response: urllib3.BaseHTTPResponse, max_bytes: int) -> bytes:
    body = bytearray()
    while part := response.read1(1 << 16):
        body += part
        if len(body) > max_bytes:
            raise _DeadError("too large")
    return bytes(body)


def _inspect_image(body: bytes) -> tuple[str, int]:
    """Decode an image, and return its file suffix and the length of its shorter side."""
    try:
        with Image.open(io.BytesIO(body), formats=list(FORMATS)) as image:
            image.load()
            return FORMATS.get(image.format or "", "jpg"), min(image.size)  # "MPO", written by cameras, is a JPEG followed by more images
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise _DeadError("no image") from error


def _is_public(address: str) -> bool:
    found = ip_address(address)
    if found in _NAT64:  # a gateway connects to the IPv4 address in the last 32 bits
        found = IPv4Address(int(found) & 0xFFFFFFFF)
    return found.is_global


class _TimelyReader(RawIOBase):
    """Reads from a socket until a deadline. The socket's own timeout starts again with each byte, in headers as in bodies."""

    def __init__(self, raw: RawIOBase, seconds: float) -> None:
        self._raw, self._deadline = raw, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._deadline:
            raise TimeoutError
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimelyResponse(HTTPResponse):
    def __init__(self, sock: socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = BufferedReader(_TimelyReader(self.fp.detach(), TOTAL_TIMEOUT_FACTOR * (sock.gettimeout() or 0)))


class _TimelyHTTPConnection(HTTPConnection):
    response_class = _TimelyResponse


class _TimelyHTTPSConnection(HTTPSConnection):
    response_class = _TimelyResponse


class _PublicOnly:
    """Mixin: refuses private addresses before anything is sent.

    It checks the open connection, since names and redirects can lead anywhere.
    """

    def _new_conn(self) -> socket:
        connection: socket = super()._new_conn()  # type: ignore[misc]  # of the class that this is mixed into
        if not _is_public(connection.getpeername()[0]):
            connection.close()
            raise _DeadError("no public address")
        return connection


class _PublicHTTPConnection(_PublicOnly, _TimelyHTTPConnection):
    pass


class _PublicHTTPSConnection(_PublicOnly, _TimelyHTTPSConnection):
    pass


def _client(threads: int, rules: FetchRules) -> urllib3.PoolManager:
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # no warnings about retries
    headers = {"User-Agent": "sdbench distillation (training images from lists of links)"}
    client = urllib3.PoolManager(threads, maxsize=threads, headers=headers, timeout=rules.timeout_s, retries=RETRIES)
    plain, encrypted = (
        (_TimelyHTTPConnection, _TimelyHTTPSConnection) if rules.allow_private else (_PublicHTTPConnection, _PublicHTTPSConnection)
    )
    client.pool_classes_by_scheme = {
        "http": type("Pool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("Pool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": encrypted}),
    }
    return client
