"""A small signed bundle, its keys, and an HTTP server that behaves as badly as it is told to."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from images import keys
from images.build import BuildSpec, build
from tests.images.bundlelab import CHUNK, CREATED, Made, Web, answer, make_ext4


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle of a small ext4 image with one section, signed by one key. Do not change its files."""
    home = tmp_path_factory.mktemp("bundle")
    plain = make_ext4(home / "image")
    (home / "notes").write_text("a section\n")
    key, public = keys.generate(home / "release.pem")
    spec = BuildSpec(
        release="MR95-1",
        compatible="acme-switch",
        architecture="x86_64",
        image=home / "image",
        kernel="/vmlinuz",
        created=CREATED,
        sections={"notes": home / "notes"},
        chunk_size=CHUNK,
        level=3,
        changelog="first",
    )
    bundle = build(spec, home / "mr95-1.bundle", [keys.load_signer(str(key))])
    return Made(bundle, bundle.read_bytes(), plain, keys.load_trust([public]), key, spec)


@pytest.fixture
def web() -> Iterator[Web]:
    """A range-capable server on 127.0.0.1; every connection of its is closed when the test ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            assert found
            first, last = int(found[1]), min(int(found[2]), len(served.data) - 1)
            served.asked.append((first, last))
            served.headers.append({name.lower(): value for name, value in self.headers.items()})
            if not served.mood(self, first, last):
                answer(self, served, first, last)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    served = Web(f"http://127.0.0.1:{server.server_port}/mr95-1.bundle", b"")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join(5)
