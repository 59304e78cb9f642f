"""A small HTTP server for bundles, with byte ranges, on 127.0.0.1; guests reach it through QEMU's own network."""

from __future__ import annotations

import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from core.files import inside
from vagrant.qemu import HOST_SEEN_BY_GUEST

_BLOCK = 1 << 20


class Server:
    """Serves the files of a directory while in the context. `requests` lists (path, Range header or "")."""

    def __init__(self, directory: Path) -> None:
        self.requests: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"directory": directory, "requests": self.requests})
        self._server = _Quiet(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        return int(self._server.server_address[1])

    def url(self, name: str, *, guest: bool = False) -> str:
        """Where a file is found: from here, or from inside a machine of the lab."""
        return f"http://{HOST_SEEN_BY_GUEST if guest else '127.0.0.1'}:{self.port}/{name}"


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A machine that loses its power is no fault of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    directory: Path
    requests: list[tuple[str, str]]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        name = unquote(urlsplit(self.path).path)
        wanted = self.headers.get("Range", "")
        self.requests.append((name, wanted))
        path = inside(self.directory, name)
        if not path.is_file():
            self.send_error(404)
            return
        stat = path.stat()
        try:
            first, end, status = _range(wanted, stat.st_size)
        except ValueError:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{stat.st_size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"')
        self.send_header("Content-Length", str(end - first))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{stat.st_size}")
        self.end_headers()
        if body:
            self._send(path, first, end)

    def _send(self, path: Path, first: int, end: int) -> None:
        try:
            with path.open("rb") as file:
                file.seek(first)
                while first < end and (block := file.read(min(_BLOCK, end - first))):
                    self.wfile.write(block)
                    first += len(block)
        except ConnectionError:  # the client has had enough
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `requests` has it all."""


def _range(wanted: str, size: int) -> tuple[int, int, int]:
    """First byte, end, and HTTP status for one Range header; several ranges at once count as none.

    Raises ValueError when nothing of the file is in the range.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted.strip())
    if match is None or not (match[1] or match[2]):
        return 0, size, 200
    if not match[1]:
        first, end = max(0, size - int(match[2])), size
    else:
        first, end = int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
    if first >= end:
        raise ValueError(wanted)
    return first, end, 206
