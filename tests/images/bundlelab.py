"""What the tests of bundles share: a small real filesystem, and how a server answers properly."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.run import run
from images import keys
from images.build import BuildSpec

CHUNK = 64 << 10
CREATED = datetime(2026, 9, 2, 1, 0, tzinfo=UTC)
NOW = datetime(2026, 10, 1, tzinfo=UTC)


@dataclass(frozen=True, repr=False)
class Made:
    """A built bundle and what it was built of."""

    bundle: Path
    raw: bytes
    plain: bytes
    trust: keys.Trust
    key: Path
    spec: BuildSpec


def make_ext4(path: Path, *, size: int = 2 << 20) -> bytes:
    """A real ext4 filesystem with holes and data that does not compress; returns its bytes."""
    tree = path.with_name("content")
    tree.mkdir()
    (tree / "noise").write_bytes(random.Random(1).randbytes(300_000))
    (tree / "text").write_text("call\n" * 50_000)
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", tree, path)
    return path.read_bytes()


@dataclass
class Web:
    """What the server serves and how. `mood` is called with the handler, first and last byte asked for; it answers and
    returns True, or returns False to let the server answer properly.
    """

    url: str
    data: bytes
    mood: Callable[[Any, int, int], bool] = lambda handler, first, last: False
    etag: str = '"1"'
    asked: list[tuple[int, int]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


def answer(handler: Any, served: Web, first: int, last: int, **changed: str) -> None:
    """The proper answer, with some headers changed."""
    headers = {
        "Content-Range": f"bytes {first}-{last}/{len(served.data)}",
        "Content-Length": str(last - first + 1),
        "ETag": served.etag,
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    handler.send_response(206)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(served.data[first : last + 1])
