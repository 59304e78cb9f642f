"""Opening a bundle: nothing of it is believed before its signature, and each byte only after its hash.

Layout of the file: magic, length of the envelope (u32, big-endian), envelope (DSSE, JSON; its payload is the manifest),
chunk index, sections in the order of their names, stored chunks. Nothing may follow.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Final, Self

from blake3 import blake3

from core.errors import BundleInvalid
from core.report import Report
from images import keys, payload
from images.manifest import Blob, Manifest, check_dates, parse
from images.source import Source, open_source

MAGIC: Final = b"UPDBNDL1"
HEAD: Final = len(MAGIC) + 4
MAX_ENVELOPE: Final = 4 << 20


class BundleImage:
    """The image in a bundle, as `core.image.Image`."""

    def __init__(self, source: Source, base: int, index: payload.Index) -> None:
        """`base`: where in the source the first stored chunk begins."""
        self._source = source
        self._base = base
        self._index = index
        self.size = index.size
        self.chunk_size = index.chunk_size
        self.count = index.count

    def is_zero(self, chunk: int) -> bool:
        """See core.image.Image."""
        return self._index.is_zero(chunk)

    def digest(self, chunk: int) -> bytes:
        """See core.image.Image."""
        return self._index.digest(chunk)

    def load(self, chunk: int, out: memoryview) -> int:
        """See core.image.Image. The stored bytes are checked before they are decompressed, straight into `out`."""
        length = self._index.length(chunk)
        if len(out) < length:
            raise ValueError(f"chunk {chunk} has {length} bytes, room is for {len(out)}")
        if self._index.is_zero(chunk):
            out[:length] = bytes(length)
            return length
        offset, stored_length, wanted = self._index.stored(chunk)
        stored = self._source.read(self._base + offset, stored_length)
        if blake3(stored).digest() != wanted:
            raise BundleInvalid(
                f"chunk {chunk} of the image is damaged",
                what=f"{self._source.name}: {stored_length} bytes at {self._base + offset} do not have their BLAKE3",
                next="copy the bundle again from where it is released",
            )
        payload.decompress(stored, out, length)
        return length

    def stored_bytes(self) -> int:
        """Bytes that all chunks take in the bundle."""
        return self._index.stored_total


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An open bundle. `signers`: names of the trusted keys that signed it; empty when opened with `inspect`."""

    manifest: Manifest
    image: BundleImage
    signers: tuple[str, ...]
    key_ids: tuple[str, ...]
    _source: Source
    _sections: dict[str, tuple[int, Blob]]

    @classmethod
    def open(cls, where: str | Path | Source, trust: keys.Trust, *, now: datetime | None = None) -> Self:
        """Open a bundle by path, http(s) URL or source, and verify signatures, dates, manifest and index; chunks and
        sections are verified as they are read.

        Raises SourceUnreachable, BundleInvalid, SignatureInvalid. `now`: default is the clock.
        """
        return cls._open(where, trust, now or datetime.now(UTC))

    @classmethod
    def inspect(cls, where: str | Path | Source) -> Self:
        """Open a bundle only to look at it: signatures and dates are NOT checked, all else as in `open`."""
        return cls._open(where, None, None)

    @classmethod
    def _open(cls, where: str | Path | Source, trust: keys.Trust | None, now: datetime | None) -> Self:
        source = open_source(where) if isinstance(where, str | Path) else where
        try:
            signed, at = _envelope(source)
            signers = keys.verify(signed, trust) if trust is not None else ()
            manifest = parse(signed.content())
            if now is not None:
                check_dates(manifest, now)
            raw = _blob(source, at, manifest.index, "the chunk index")
            index = payload.Index(raw, manifest.image.size, manifest.image.chunk_size)
            if index.content != manifest.image.content:
                raise BundleInvalid("the chunk index is not that of the image", what="content hashes differ")
            at += len(raw)
            sections: dict[str, tuple[int, Blob]] = {}
            for name, blob in sorted(manifest.sections.items()):
                sections[name] = (at, blob)
                at += blob.size
            end = at + index.stored_total
            if source.size != end:
                raise BundleInvalid(
                    "the bundle is truncated" if source.size < end else "something follows the bundle's end",
                    what=f"{source.name} has {source.size} bytes, the manifest says {end}",
                    next="copy it again, completely",
                )
            return cls(
                manifest=manifest,
                image=BundleImage(source, at, index),
                signers=signers,
                key_ids=tuple(each.keyid for each in signed.signatures),
                _source=source,
                _sections=sections,
            )
        except BaseException:
            if source is not where:
                source.close()
            raise

    @property
    def name(self) -> str:
        """Where it comes from, without credentials."""
        return self._source.name

    def section(self, name: str) -> bytes:
        """A section's bytes, verified. Raises KeyError when there is none, BundleInvalid, SourceUnreachable."""
        at, blob = self._sections[name]
        return _blob(self._source, at, blob, f"section {name}")

    def verify_all(self, report: Report | None = None) -> None:
        """Read and check every section and chunk, stored and plain bytes both. Raises as `load` does."""
        report = report or Report()
        for name in self._sections:
            self.section(name)
        chunks = [chunk for chunk in range(self.image.count) if not self.image.is_zero(chunk)]
        pending = iter(chunks)
        lock = Lock()
        done = 0
        stopped = False

        def work() -> None:
            nonlocal done, stopped
            room = memoryview(bytearray(self.image.chunk_size))
            try:
                while not stopped:
                    with lock:
                        chunk = next(pending, None)
                    if chunk is None:
                        return
                    self._check(chunk, room)
                    with lock:
                        done += 1
                    report.progress("verify", done, len(chunks), "chunks")
            except BaseException:
                stopped = True
                raise

        workers = min(4, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            try:
                for each in [pool.submit(work) for _ in range(workers)]:
                    each.result()
            finally:
                stopped = True  # an interrupt comes to this thread only, and the pool waits for the others

    def _check(self, chunk: int, room: memoryview) -> None:
        length = self.image.load(chunk, room)
        if blake3(room[:length]).digest() != self.image.digest(chunk):
            raise BundleInvalid(f"chunk {chunk} of the image is damaged", what="its plain bytes have another BLAKE3")

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _envelope(source: Source) -> tuple[keys.Signed, int]:
    """The envelope and where it ends."""
    if source.size < HEAD:
        raise BundleInvalid("this is not a bundle", what=f"{source.name} has only {source.size} bytes")
    head = bytes(source.read(0, HEAD))
    if head[: len(MAGIC)] != MAGIC:
        raise BundleInvalid("this is not a bundle", what=f"{source.name} does not begin with {MAGIC.decode()}")
    length = int.from_bytes(head[len(MAGIC) :], "big")
    if length > MAX_ENVELOPE:
        raise BundleInvalid("the signature envelope is malformed", what=f"its length is given as {length} bytes")
    return keys.parse(bytes(source.read(HEAD, length))), HEAD + length


def _blob(source: Source, at: int, blob: Blob, what: str) -> bytes:
    data = bytes(source.read(at, blob.size))
    if blake3(data).hexdigest() != blob.digest:
        raise BundleInvalid(
            f"{what} is damaged",
            what=f"{source.name}: {blob.size} bytes at {at} do not have their BLAKE3",
            next="copy the bundle again from where it is released",
        )
    return data
