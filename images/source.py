"""Where a bundle's bytes come from: a local file, or an http(s) server that knows byte ranges."""

from __future__ import annotations

import os
import random
import re
import stat
import time
from base64 import b64encode
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Protocol, Self

from core.errors import BundleInvalid, SourceUnreachable

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

#: How often a server may send us elsewhere for one piece.
_REDIRECTS = 5


class Source(Protocol):
    """Bytes that can be read at any place, from several threads at once."""

    @property
    def name(self) -> str:
        """For people; without credentials."""
        ...

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Exactly `length` bytes. Raises BundleInvalid (it ends before) or SourceUnreachable."""
        ...

    def close(self) -> None:
        """Give up what is held; later reads are errors."""
        ...


def open_source(where: str | Path) -> Source:
    """A source for a path or an ``http(s)://`` URL. Raises SourceUnreachable."""
    if isinstance(where, str) and where.lower().startswith(("http://", "https://")):
        return ReadAhead(HttpSource(where))
    return FileSource(Path(str(where).removeprefix("file://")))


def without_credentials(where: str) -> str:
    """A path or URL as it may stand on a screen, in a lock or in a log: neither a password nor a signed query."""
    scheme, marks, rest = where.partition("://")
    if not marks or scheme.lower() not in ("http", "https"):
        return where
    host, slash, path = rest.partition("/")
    return re.split("[?#]", f"{scheme}://{host.rpartition('@')[2]}{slash}{path}")[0]


def truncated(source: Source, offset: int, length: int) -> BundleInvalid:
    """The error for bytes that should be there and are not."""
    return BundleInvalid(
        "the bundle is truncated",
        what=f"{source.name} has {source.size} bytes; {length} are needed at {offset}",
        next="copy it again, completely",
    )


class FileSource:
    """A local file. What is read is what lies there at that moment; hashes tell whether it was changed."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
            status = os.fstat(self._fd)
        except OSError as error:
            raise SourceUnreachable(
                f"cannot open {path}", what=error.strerror or str(error), next=f"ls -l {path}"
            ) from error
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise SourceUnreachable(f"cannot open {path}", what="not a regular file", next=f"ls -l {path}")

    def read(self, offset: int, length: int) -> bytes:
        """See Source."""
        if offset + length > self.size:
            raise truncated(self, offset, length)
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    raise truncated(self, offset, length)
                data += more
        except OSError as error:
            raise SourceUnreachable(
                f"cannot read {self.name}", what=error.strerror or str(error), next="dmesg | tail"
            ) from error
        return data

    def close(self) -> None:
        """See Source."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to bear with a server. Seconds; `slowest` in bytes/s is what a transfer must reach on the whole;
    `backoff` doubles with each of `tries`.
    """

    connect: float = 10
    silence: float = 15
    slowest: int = 16 << 10
    tries: int = 4
    backoff: float = 0.5


class _Broken(Exception):
    """A try that failed in a way that may pass."""


class HttpSource:
    """A file on an http(s) server, read by ranges. Each answer must fit the question, and the file must stay the same
    (length, ETag, Last-Modified) while it is read. Goes to the server directly, whatever proxy the environment names.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        """Asks the server for the size. Raises SourceUnreachable."""
        import urllib3

        self._patience = patience or Patience()
        try:
            parsed = urllib3.util.parse_url(url)
        except urllib3.exceptions.LocationParseError as error:
            raise SourceUnreachable("this is not a URL that can be fetched", what="it cannot be parsed") from error
        if not parsed.host:
            raise SourceUnreachable("this is not a URL that can be fetched", what="it names no server")
        # Neither a password nor a signed query belongs on a screen or in a log.
        self.name = parsed._replace(auth=None, query=None, fragment=None).url
        self._url = parsed._replace(auth=None, fragment=None).url
        self._headers = {"Accept-Encoding": "identity"}
        credentials = _from_url(parsed.auth) if parsed.auth else _from_netrc(parsed.host)
        if credentials is not None:
            self._headers["Authorization"] = f"Basic {b64encode(credentials).decode()}"
        self._pool = urllib3.PoolManager(
            maxsize=8,
            retries=False,
            timeout=urllib3.Timeout(connect=self._patience.connect, read=self._patience.silence),
        )
        self._identity: tuple[str | None, ...] | None = None
        self.size = 0
        self._fetch(0, 1)

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """See Source."""
        if offset + length > self.size:
            raise truncated(self, offset, length)
        return self._fetch(offset, length) if length else b""

    def close(self) -> None:
        """See Source."""
        self._pool.clear()

    def _fetch(self, offset: int, length: int) -> bytes | memoryview:
        """Try until it works or the tries are used up."""
        troubles: list[str] = []
        for turn in range(self._patience.tries):
            if turn:
                time.sleep(self._patience.backoff * 2 ** (turn - 1) * random.uniform(0.8, 1.2))
            try:
                return self._try(offset, length)
            except _Broken as error:
                troubles.append(str(error))
        raise self._unreachable(
            *(f"try {turn}: {trouble}" for turn, trouble in enumerate(troubles, 1)),
            next="check the server and the network between, then try again",
        )

    def _try(self, offset: int, length: int) -> memoryview:
        from urllib3 import exceptions as broken

        try:
            answer = self._ask({**self._headers, "Range": f"bytes={offset}-{offset + length - 1}"})
        except (broken.HTTPError, ValueError) as error:  # ValueError: sent to what is no URL
            raise _Broken(_reason(error)) from error
        whole = False
        try:
            self._check(answer, offset, length)
            data = self._body(answer, length)
            whole = True
            return data
        except (broken.HTTPError, OSError) as error:
            raise _Broken(_reason(error)) from error
        finally:
            if whole:
                answer.release_conn()
            else:
                with suppress(OSError, broken.HTTPError):
                    answer.close()

    def _ask(self, headers: dict[str, str]) -> BaseHTTPResponse:
        """The answer, its body not read yet, from wherever the server sends us. What comes with a redirect is not read
        either: it may never end. Credentials are for the server that was named, and go to no other.
        """
        from urllib.parse import urljoin

        url = self._url
        for _ in range(1 + _REDIRECTS):
            answer = self._pool.request(
                "GET", url, headers=headers, redirect=False, preload_content=False, decode_content=False
            )
            location = answer.get_redirect_location()
            if not location:
                return answer
            answer.close()
            there = urljoin(url, location)
            if _server(there) != _server(url):
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = there
        raise _Broken("too many redirects")

    def _check(self, answer: BaseHTTPResponse, offset: int, length: int) -> None:
        """Whether the answer's head fits the question."""
        if answer.status in (408, 429) or answer.status >= 500:
            raise _Broken(f"the server answers {answer.status}")
        if answer.status == 200:
            raise self._unreachable(
                "the server ignores Range requests and sends the whole file",
                next="copy the bundle here and use its path, or serve it by a server that knows byte ranges",
            )
        if answer.status != 206:
            raise self._unreachable(f"the server answers {answer.status}", next="check the URL")
        unit, _, rest = answer.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        if unit != "bytes" or span != f"{offset}-{offset + length - 1}" or not (total.isascii() and total.isdigit()):
            raise self._unreachable(f"the server was asked for bytes {offset}-{offset + length - 1} and sends others")
        told = answer.headers.get("Content-Length")
        if told is not None and told != str(length):
            raise self._unreachable(f"the server announces a length other than the {length} bytes asked for")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self._unreachable("the server sends an encoded body, though it was told not to")
        identity = (total, answer.headers.get("ETag"), answer.headers.get("Last-Modified"))
        if self._identity is None:
            self._identity, self.size = identity, int(total[:18])
        elif identity != self._identity:
            raise self._unreachable("the file on the server changed while it was being read", next="start again")

    def _body(self, answer: BaseHTTPResponse, length: int) -> memoryview:
        """Exactly `length` bytes, in tolerable time."""
        deadline = time.monotonic() + 2 * self._patience.silence + length / self._patience.slowest
        data = bytearray()
        while len(data) < length:
            piece = answer.read1(min(length - len(data), 1 << 18))
            if not piece:
                raise _Broken(f"the server ended the connection after {len(data)} of {length} bytes")
            data += piece
            if time.monotonic() > deadline:
                raise _Broken(f"the server is too slow: {len(data)} of {length} bytes until the time limit")
        if answer.read1(1):
            raise self._unreachable(f"the server sends more than the {length} bytes asked for")
        return memoryview(data).toreadonly()

    def _unreachable(self, *what: str, next: str = "") -> SourceUnreachable:
        return SourceUnreachable(f"cannot read {self.name}", what=what, next=next or ())


def _from_url(auth: str) -> bytes:
    """User and password as they stand in a URL, where a character with a meaning of its own is written as %40."""
    from urllib.parse import unquote_to_bytes

    user, _, password = auth.partition(":")
    return unquote_to_bytes(user) + b":" + unquote_to_bytes(password)


def _from_netrc(host: str) -> bytes | None:
    """User and password for a host from ~/.netrc: so that they need not stand in a URL, on a command line."""
    from netrc import NetrcParseError, netrc

    try:
        found = netrc().authenticators(host)
    except (OSError, NetrcParseError, UnicodeDecodeError):
        return None
    return f"{found[0]}:{found[2]}".encode() if found else None


def _server(url: str) -> tuple[str | None, str | None, int | None]:
    """Scheme, host and port. Raises ValueError."""
    from urllib3.util import parse_url

    parsed = parse_url(url)
    return parsed.scheme, parsed.host, parsed.port or {"http": 80, "https": 443}.get(parsed.scheme or "")


def _reason(error: Exception) -> str:
    """A text for the failure without URLs in it (a redirect's may carry credentials)."""
    from urllib3 import exceptions as broken

    inner = error.reason if isinstance(error, broken.MaxRetryError) and error.reason else error
    known: list[tuple[type[Exception], str]] = [
        (broken.NameResolutionError, "the server's name cannot be resolved"),
        (broken.ReadTimeoutError, "the server stalls: nothing came within the time limit"),
        (broken.NewConnectionError, "the server cannot be reached: connection refused or no route"),
        (broken.ConnectTimeoutError, "the server cannot be reached in time"),
        (broken.SSLError, "TLS failed: the server's certificate is not accepted here, or it does not speak TLS"),
        (ValueError, "the URL, or where it leads, is no address that can be fetched"),
        (TimeoutError, "the server stalls: nothing came within the time limit"),
    ]
    return next(
        (text for kind, text in known if isinstance(inner, kind)), f"the connection broke ({type(inner).__name__})"
    )


class ReadAhead:
    """Reads a slow source in aligned blocks and keeps the last few, so that neighbours do not cost a round trip each.
    Memory: `block` × `keep` bytes.
    """

    def __init__(self, source: Source, *, block: int = 2 << 20, keep: int = 8) -> None:
        self.name = source.name
        self.size = source.size
        self._source = source
        self._block = block
        self._keep = keep
        self._lock = Lock()
        self._blocks: OrderedDict[int, Future[bytes | memoryview]] = OrderedDict()

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """See Source."""
        if offset + length > self.size:
            raise truncated(self, offset, length)
        first, last = offset // self._block, (offset + max(length, 1) - 1) // self._block
        if first == last:
            start = offset - first * self._block
            return memoryview(self._at(first))[start : start + length]
        whole = bytearray()
        for number in range(first, last + 1):
            start = max(offset - number * self._block, 0)
            whole += memoryview(self._at(number))[start : offset + length - number * self._block]
        return memoryview(whole).toreadonly()

    def _at(self, number: int) -> bytes | memoryview:
        """A block: from memory, from a thread that is just fetching it, or fetched here."""
        with self._lock:
            found = self._blocks.get(number)
            mine = found is None
            if found is None:
                found = self._blocks[number] = Future()
                while len(self._blocks) > self._keep:
                    self._blocks.popitem(last=False)
            else:
                self._blocks.move_to_end(number)
        if mine:
            start = number * self._block
            try:
                found.set_result(self._source.read(start, min(self._block, self.size - start)))
            except BaseException as error:
                with self._lock:
                    if self._blocks.get(number) is found:
                        del self._blocks[number]
                found.set_exception(error)
        return found.result()

    def close(self) -> None:
        """See Source."""
        self._blocks.clear()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
