"""The fast writer: an image into a slot, past the page cache, on all cores; and the proofs that it is there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from core import faults
from core.errors import BundleInvalid, DeviceFailed, NoSpace
from core.image import Image
from core.report import Report
from partitions.direct import ALIGNMENT, Direct, aligned_buffer
from partitions.disks import refuse_if_used
from partitions.parallel import Pace, each

#: Holes are zeroed in pieces of at most this many bytes: some devices need long for it, and Ctrl-C must not wait.
LONGEST_HOLE = 256 << 20

#: What `seal` reads at a time; the same as the chunks of a bundle.
SEAL_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a run of the writer did, in bytes of the image: written, made zero, found there already."""

    bytes_written: int
    holes: int
    kept: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of `length` bytes at `offset`: one chunk with data, or holes next to each other (`zero`)."""

    chunk: int
    offset: int
    length: int
    zero: bool


def spans(image: Image, longest_hole: int = LONGEST_HOLE) -> Iterator[Span]:
    """The image as spans in order, without gaps: each chunk with data by itself, holes joined up to `longest_hole`."""
    most = max(longest_hole // image.chunk_size, 1)
    chunk = 0
    while chunk < image.count:
        after = chunk + 1
        zero = image.is_zero(chunk)
        while zero and after < image.count and after - chunk < most and image.is_zero(after):
            after += 1
        offset = chunk * image.chunk_size
        yield Span(chunk=chunk, offset=offset, length=min(after * image.chunk_size, image.size) - offset, zero=zero)
        chunk = after


def write_image(
    image: Image,
    device: Path,
    *,
    report: Report,
    step: str = "write",
    rate_limit: int = 0,
    keep_verified: bool = False,
    threads: int | None = None,
) -> Written:
    """Make the first `image.size` bytes of `device` (a block device, or a file of the slot's size) equal to the image,
    durably. Does not read back: see `read_back`.

    `rate_limit`: bytes per second, 0 for none. `keep_verified`: leave chunks alone that the device holds already, by
    their hash (for going on after a cut). Progress counts the bytes that are not in holes.
    Raises NotReady when the device is in use, NoSpace, DeviceFailed, and what the image raises. After an error some
    chunks are written and some not.
    """
    begun = time.monotonic()
    refuse_if_used(device)
    total = sum(span.length for span in spans(image) if not span.zero)
    stopped = threading.Event()
    pace = Pace(rate_limit, stopped)
    with Direct(device, write=True) as target:
        _require_room(image, target)
        tally = _Tally(report, step, total)

        def worker() -> Callable[[Span], None]:
            buffer = aligned_buffer(image.chunk_size)

            def handle(span: Span) -> None:
                if span.zero:
                    target.zero(span.offset, span.length)
                    tally.add(holes=span.length)
                elif keep_verified and _holds(target, image, span, buffer, pace):
                    tally.add(kept=span.length)
                else:
                    data = buffer[: image.load(span.chunk, buffer[: span.length])]
                    _require_whole(data, span)
                    pace.take(span.length)
                    target.write(data, span.offset)
                    tally.add(written=span.length)
                faults.point("write:chunk")

            return handle

        each(spans(image), worker, threads=threads or _threads(), stopped=stopped)
        faults.point("write:before-flush")
        target.flush()
        faults.point("write:flushed")
    return tally.result(time.monotonic() - begun)


def read_back(
    image: Image, device: Path, *, report: Report, step: str = "verify", rate_limit: int = 0, threads: int | None = None
) -> float:
    """Compare every chunk, holes included, with what the device holds now; returns the seconds it took.

    Raises DeviceFailed naming the first offset that differs or cannot be read.
    """
    begun = time.monotonic()
    tally = _Tally(report, step, image.size)

    def check(chunk: int, data: memoryview) -> None:
        if _blake3(data) != image.digest(chunk):
            raise DeviceFailed(
                f"{device} does not hold what was written",
                what=f"bytes {chunk * image.chunk_size} to {chunk * image.chunk_size + len(data) - 1} differ",
                state="the slot is incomplete and must not be booted",
                next=["stage again: if it differs again, the device is failing", "updater doctor"],
            )
        tally.add(written=len(data))

    _read_chunks(device, image.size, image.chunk_size, check, rate_limit, threads)
    return time.monotonic() - begun


def matches_image(image: Image, device: Path, *, threads: int | None = None) -> bool:
    """Whether the device holds exactly the image now. Stops at the first difference. Raises DeviceFailed."""

    def check(chunk: int, data: memoryview) -> None:
        if _blake3(data) != image.digest(chunk):
            raise _DiffersError

    try:
        _read_chunks(device, image.size, image.chunk_size, check, 0, threads)
    except _DiffersError:
        return False
    return True


def seal(
    device: Path, size: int, *, free: Iterable[range] = (), rate_limit: int = 0, threads: int | None = None
) -> str:
    """The identity, in hex, of the first `size` bytes of the device as they are now: BLAKE3 over the size (8 bytes,
    big endian) and the BLAKE3 of each MiB, as an image's `content`. Tells later whether anything has changed.

    A MiB that lies within `free` (see `filesystems.free_space`) is not read, and counts as 32 zero bytes.
    Raises DeviceFailed, also when the device is shorter.
    """
    digests = [bytes(32)] * -(-size // SEAL_CHUNK)
    skipped = {chunk for part in free for chunk in range(-(-part.start // SEAL_CHUNK), part.stop // SEAL_CHUNK)}

    def note(chunk: int, data: memoryview) -> None:
        digests[chunk] = _blake3(data)

    _read_chunks(device, size, SEAL_CHUNK, note, rate_limit, threads, skipped)
    return _blake3(size.to_bytes(8, "big") + b"".join(digests)).hex()


class _DiffersError(Exception):
    pass


class _Tally:
    """Counts over all threads, and tells the report, whose sinks then never run in two threads at once."""

    def __init__(self, report: Report, step: str, total: int) -> None:
        self._report, self._step, self._total = report, step, total
        self._lock = threading.Lock()
        self._written = self._holes = self._kept = 0
        report.progress(step, 0, total)

    def add(self, *, written: int = 0, holes: int = 0, kept: int = 0) -> None:
        with self._lock:
            self._written += written
            self._holes += holes
            self._kept += kept
            if not holes:
                self._report.progress(self._step, self._written + self._kept, self._total)

    def result(self, seconds: float) -> Written:
        return Written(bytes_written=self._written, holes=self._holes, kept=self._kept, seconds=seconds)


def _threads() -> int:
    # Twice as many as cores: while half of them wait for the disk, the others decompress.
    return min(2 * len(os.sched_getaffinity(0)), 16)


def _blake3(data: bytes | memoryview) -> bytes:
    from blake3 import blake3

    return blake3(data).digest()


def _require_room(image: Image, target: Direct) -> None:
    if image.size > target.size:
        raise NoSpace(
            f"the image is larger than {target.path}",
            what=f"image {image.size} bytes, slot {target.size} bytes",
            state="nothing was written to it",
            next="make a smaller image, or give the slots more room",
        )
    if image.chunk_size % ALIGNMENT:
        raise ValueError(f"chunks of {image.chunk_size} bytes: not a multiple of {ALIGNMENT}")


def _require_whole(data: memoryview, span: Span) -> None:
    if len(data) != span.length:
        raise BundleInvalid(
            "the image is inconsistent", what=f"chunk {span.chunk} has {len(data)} bytes instead of {span.length}"
        )


def _holds(target: Direct, image: Image, span: Span, buffer: memoryview, pace: Pace) -> bool:
    """Whether the device holds the chunk. What cannot be read does not count as an error here: a sector torn by a
    power cut is mended by writing it.
    """
    pace.take(span.length)
    try:
        return _blake3(target.read_into(buffer, span.length, span.offset)) == image.digest(span.chunk)
    except DeviceFailed:
        return False


def _read_chunks(
    device: Path,
    size: int,
    chunk_size: int,
    use: Callable[[int, memoryview], None],
    rate_limit: int,
    threads: int | None,
    skipped: Container[int] = (),
) -> None:
    """Read `size` bytes past the page cache in parallel, and call `use` with each chunk's number and bytes, but for
    those `skipped`.
    """
    stopped = threading.Event()
    pace = Pace(rate_limit, stopped)
    with Direct(device, write=False) as source:

        def worker() -> Callable[[int], None]:
            buffer = aligned_buffer(chunk_size)

            def handle(chunk: int) -> None:
                length = min(chunk_size, size - chunk * chunk_size)
                pace.take(length)
                use(chunk, source.read_into(buffer, length, chunk * chunk_size))

            return handle

        chunks = (chunk for chunk in range(-(-size // chunk_size)) if chunk not in skipped)
        each(chunks, worker, threads=threads or _threads(), stopped=stopped)
