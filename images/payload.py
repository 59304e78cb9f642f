"""The payload of a bundle: chunks compressed one by one, and the index that holds their lengths and hashes.

One index entry per chunk, in the order of the image, 68 bytes: stored length (u32, big-endian; 0 = nothing but zero
bytes, nothing is stored), BLAKE3 of the stored bytes (zeros for a zero chunk), BLAKE3 of the plain bytes.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from threading import local
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from core.errors import BundleInvalid

if TYPE_CHECKING:
    from zstandard import ZstdCompressor, ZstdDecompressor

ENTRY: Final = struct.Struct(">I32s32s")
CHUNK: Final = 1 << 20
LEVEL: Final = 9
_NO_DIGEST: Final = bytes(32)
_of_thread: Final = local()


def content_of(size: int, plain_digests: Iterable[bytes]) -> str:
    """Identity of an image: BLAKE3 (hex) over its size (u64, big-endian) and the plain digests of all its chunks."""
    hasher = blake3(size.to_bytes(8, "big"))
    for digest in plain_digests:
        hasher.update(digest)
    return hasher.hexdigest()


def stored_limit(plain: int) -> int:
    """Most bytes that `plain` bytes may take when compressed (zstd's own bound, a little rounded up)."""
    return plain + plain // 128 + 1024


class Index:
    """The decoded index. Costs little more memory than its bytes."""

    def __init__(self, raw: bytes, size: int, chunk_size: int) -> None:
        """Check `raw` for an image of `size` bytes in chunks of `chunk_size`. Raises BundleInvalid."""
        self.raw = raw
        self.size = size
        self.chunk_size = chunk_size
        self.count = -(-size // chunk_size)
        if len(raw) != self.count * ENTRY.size:
            raise BundleInvalid(
                "the chunk index has the wrong length", what=f"{len(raw)} bytes for {self.count} chunks of {ENTRY.size}"
            )
        self._offsets = array("Q", [0])
        zero_digests: dict[int, bytes] = {}
        for chunk in range(self.count):
            length, stored, plain = ENTRY.unpack_from(raw, chunk * ENTRY.size)
            width = self.length(chunk)
            if length > stored_limit(width):
                raise BundleInvalid("the chunk index is malformed", what=f"chunk {chunk} is stored in {length} bytes")
            if length == 0:
                if width not in zero_digests:
                    zero_digests[width] = blake3(bytes(width)).digest()
                if plain != zero_digests[width] or stored != _NO_DIGEST:
                    raise BundleInvalid("the chunk index is malformed", what=f"chunk {chunk} is empty but not zero")
            self._offsets.append(self._offsets[-1] + length)

    def length(self, chunk: int) -> int:
        """Plain bytes of the chunk."""
        return min(self.chunk_size, self.size - chunk * self.chunk_size)

    def stored(self, chunk: int) -> tuple[int, int, bytes]:
        """Where the chunk's stored bytes lie, counted from the first chunk's: offset, length, BLAKE3."""
        length, digest, _ = ENTRY.unpack_from(self.raw, chunk * ENTRY.size)
        return self._offsets[chunk], length, digest

    def digest(self, chunk: int) -> bytes:
        """BLAKE3 of the chunk's plain bytes."""
        return self.raw[(chunk + 1) * ENTRY.size - 32 : (chunk + 1) * ENTRY.size]

    def is_zero(self, chunk: int) -> bool:
        """Whether nothing is stored for it."""
        return self._offsets[chunk] == self._offsets[chunk + 1]

    @property
    def stored_total(self) -> int:
        """Bytes of all stored chunks together."""
        return self._offsets[-1]

    @cached_property
    def content(self) -> str:
        """Identity of the image, see `content_of`."""
        return content_of(self.size, map(self.digest, range(self.count)))


def plain_chunks(fd: int, size: int, chunk_size: int) -> Iterator[bytes | int]:
    """The chunks of an open file in order: their bytes, or the length of a chunk that lies in a hole and was not read.

    Raises OSError; EOFError when the file is shorter than `size`.
    """
    data_from = 0
    for offset in range(0, size, chunk_size):
        width = min(chunk_size, size - offset)
        if data_from < offset:
            data_from = offset
        if data_from == offset:
            data_from = _next_data(fd, offset, size)
        if data_from >= offset + width:
            yield width
            continue
        pieces = bytearray()
        while len(pieces) < width:
            piece = os.pread(fd, width - len(pieces), offset + len(pieces))
            if not piece:
                raise EOFError(f"the file ends at {offset + len(pieces)}, before its {size} bytes")
            pieces += piece
        yield bytes(pieces)


def _next_data(fd: int, offset: int, size: int) -> int:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        import errno

        if error.errno == errno.ENXIO:  # nothing but a hole up to the end
            return size
        return offset  # a device, or a filesystem that knows no holes: read everything


def compress(
    chunks: Iterable[bytes | int], *, chunk_size: int = CHUNK, level: int = LEVEL, threads: int | None = None
) -> Iterator[tuple[bytes, bytes]]:
    """Compress chunks on several threads; yields (index entry, stored bytes) in their order.

    Holds a few chunks per thread at a time, whatever the size of the image. The same input gives the same bytes,
    whatever the number of threads.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    import zstandard

    workers = threads or os.cpu_count() or 1
    zeros = bytes(chunk_size)
    zero_entries: dict[int, bytes] = {}
    mine = local()

    def compressor() -> ZstdCompressor:
        if not hasattr(mine, "compressor"):
            mine.compressor = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
        made: ZstdCompressor = mine.compressor
        return made

    def one(plain: bytes | int) -> tuple[bytes, bytes]:
        if isinstance(plain, int) or plain == zeros[: len(plain)]:
            width = plain if isinstance(plain, int) else len(plain)
            if width not in zero_entries:
                zero_entries[width] = ENTRY.pack(0, _NO_DIGEST, blake3(zeros[:width]).digest())
            return zero_entries[width], b""
        stored = compressor().compress(plain)
        return ENTRY.pack(len(stored), blake3(stored).digest(), blake3(plain).digest()), stored

    pending: deque[Future[tuple[bytes, bytes]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for chunk in chunks:
            pending.append(pool.submit(one, chunk))
            if len(pending) >= 3 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def decompress(stored: memoryview | bytes, out: memoryview, length: int) -> None:
    """Put exactly `length` plain bytes into the beginning of `out`. Raises BundleInvalid when `stored` is not one zstd
    frame of that length; allocates nothing that the frame asks for.
    """
    import zstandard

    try:
        frame = zstandard.get_frame_parameters(stored)
        if frame.content_size != length or frame.dict_id:
            raise BundleInvalid("a chunk has the wrong length", what=f"{frame.content_size} bytes in place of {length}")
        # With the whole frame at hand and room for all of it, zstd decodes straight into `out`.
        with _decoder().stream_reader(stored) as reader:
            done = 0
            while done < length:
                got = reader.readinto(out[done:length])
                if not got:
                    raise BundleInvalid("a chunk ends early", what=f"{done} bytes in place of {length}")
                done += got
    except zstandard.ZstdError as error:
        raise BundleInvalid("a chunk cannot be decompressed", what=str(error)) from error


def _decoder() -> ZstdDecompressor:
    """This thread's own, used again for each chunk."""
    import zstandard

    if not hasattr(_of_thread, "decoder"):
        _of_thread.decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    found: ZstdDecompressor = _of_thread.decoder
    return found
