"""What physics asks for: the same bytes written one after the other without any work, and the same chunks unpacked on
all cores without writing them. No installer that stores what we store can be faster than the longer of the two.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from images.read import Bundle
from images.source import Source, open_source
from partitions.direct import Direct, aligned_buffer
from partitions.parallel import each
from partitions.write import spans

#: Bytes per write; larger ones are not faster.
BLOCK = 4 << 20


def data_size(bundle: Path) -> int:
    """Bytes of the image's chunks that are not all zero."""
    with Bundle.inspect(bundle) as opened:
        return sum(span.length for span in spans(opened.image) if not span.zero)


def write_plainly(device: Path, size: int) -> None:
    """`size` bytes of noise, sequentially, past the page cache, then flushed."""
    noise = aligned_buffer(BLOCK)
    noise[:] = os.urandom(BLOCK)
    with Direct(device, write=True) as target:
        for offset in range(0, size, BLOCK):
            target.write(noise[: min(BLOCK, size - offset)], offset)
        target.flush()


class _Recorder:
    """A source that remembers all that was read from it."""

    def __init__(self, source: Source) -> None:
        self._source, self.name, self.size = source, source.name, source.size
        self.told: list[bytes] = []

    def read(self, offset: int, length: int) -> bytes:
        """See images.source.Source."""
        self.told.append(bytes(self._source.read(offset, length)))
        return self.told[-1]

    def close(self) -> None:
        """See images.source.Source."""
        self._source.close()


def unpacker(bundle: Path) -> Callable[[], None]:
    """What decompresses every stored chunk, from memory into a buffer that is used again, in a thread per core."""
    import zstandard

    recorder = _Recorder(open_source(bundle))
    with Bundle.inspect(recorder) as opened:
        recorder.told.clear()
        chunk_size = opened.image.chunk_size
        room = aligned_buffer(chunk_size)
        for span in spans(opened.image):
            if not span.zero:
                opened.image.load(span.chunk, room)
    stored = recorder.told

    def worker() -> Callable[[bytes], None]:
        room = aligned_buffer(chunk_size)
        decoder = zstandard.ZstdDecompressor()

        def unpack(chunk: bytes) -> None:
            with decoder.stream_reader(chunk) as reader:
                reader.readinto(room)

        return unpack

    def unpack_all() -> None:
        each(stored, worker, threads=len(os.sched_getaffinity(0)), stopped=threading.Event())

    return unpack_all
