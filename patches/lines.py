"""Long lists on disk: one JSON array a line, compressed with zstd, read and written as they go. The last line is the
number of the others: without it the list is not whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import NotReady
from core.files import fsync_dir


@contextmanager
def writer(path: Path) -> Iterator[Callable[[list[Any]], None]]:
    """Yields a function that adds a line. The file is in place, durably, when the context is left without an error."""
    import zstandard

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as raw:
            with zstandard.ZstdCompressor(level=1).stream_writer(raw, closefd=False) as out:
                count = 0

                def add(line: list[Any]) -> None:
                    nonlocal count
                    count += 1
                    out.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

                yield add
                out.write(f"{count}\n".encode())
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def read(path: Path, *, what: str, next: str) -> Iterator[list[Any]]:
    """The lines. Raises NotReady that says `what` is not known, and what to do `next`."""
    import zstandard

    try:
        with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as packed:
            pending, count, whole = b"", 0, False
            while block := packed.read(1 << 18):
                *lines, pending = (pending + block).split(b"\n")
                for line in lines:
                    values = json.loads(line)
                    if isinstance(values, list) and not whole:
                        count += 1
                        yield values
                    elif values == count and not whole:
                        whole = True
                    else:
                        raise ValueError(f"line {count + 1} makes no sense")
            if pending or not whole:
                raise ValueError("it is cut off")
    except (OSError, ValueError, zstandard.ZstdError) as error:
        raise NotReady(
            f"{what} is not known", what=f"{path}: {error}", state="nothing was changed", next=next
        ) from error
