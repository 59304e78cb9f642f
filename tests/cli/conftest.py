"""Fixtures of the neighbours (sandboxes in memory, loop devices, small filesystems), and a server that misbehaves."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.images.bundlelab import Web, answer
from tests.partitions.conftest import loop, small_tmpfs
from tests.updater.conftest import lab, memory, node, place

__all__ = ["lab", "loop", "memory", "node", "place", "small_tmpfs", "web"]


@pytest.fixture
def web() -> Iterator[Web]:
    """A range-capable server on 127.0.0.1 in the mood that the test gives it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            assert found
            first, last = int(found[1]), min(int(found[2]), len(served.data) - 1)
            served.asked.append((first, last))
            if not served.mood(self, first, last):
                answer(self, served, first, last)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    served = Web(f"http://127.0.0.1:{server.server_port}/release.bundle", b"")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join(5)
