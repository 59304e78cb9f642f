"""A whole bundle: round trip, reproducibility, and that no changed, missing or added byte goes unnoticed."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BundleInvalid, ConfigError, SignatureInvalid, SourceUnreachable
from images import keys, payload
from images.build import build
from images.manifest import canonical
from images.read import HEAD, MAGIC, Bundle, BundleImage
from images.source import truncated
from tests.images.bundlelab import CHUNK, CREATED, NOW, Made


class Memory:
    """A source in memory, for speed."""

    name = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise truncated(self, offset, length)
        return self.data[offset : offset + length]

    def close(self) -> None:
        pass


def read_all(bundle: Bundle) -> bytes:
    room = memoryview(bytearray(bundle.image.chunk_size))
    return b"".join(bytes(room[: bundle.image.load(chunk, room)]) for chunk in range(bundle.image.count))


def test_round_trip(made: Made) -> None:
    with Bundle.open(made.bundle, made.trust, now=NOW) as bundle:
        assert bundle.signers == ("release",)
        assert bundle.manifest.release == "MR95-1"
        assert bundle.manifest.image.filesystem == "ext4"
        assert bundle.section("notes") == b"a section\n"
        assert read_all(bundle) == made.plain
        assert any(map(bundle.image.is_zero, range(bundle.image.count)))
        for chunk in range(bundle.image.count):
            plain = made.plain[chunk * CHUNK : (chunk + 1) * CHUNK]
            assert bundle.image.digest(chunk) == blake3(plain).digest()
            assert bundle.image.is_zero(chunk) == (not any(plain))
        bundle.verify_all()


def test_threads(made: Made) -> None:
    with Bundle.open(made.bundle, made.trust, now=NOW) as bundle, ThreadPoolExecutor(4) as pool:

        def one(chunk: int) -> bytes:
            room = memoryview(bytearray(CHUNK))
            return bytes(room[: bundle.image.load(chunk, room)])

        assert b"".join(pool.map(one, range(bundle.image.count))) == made.plain


def test_same_input_same_bytes(made: Made, tmp_path: Path) -> None:
    build(made.spec, tmp_path / "again", [keys.load_signer(str(made.key))])
    assert (tmp_path / "again").read_bytes() == made.raw
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_inspect_believes_nothing_but_reads(made: Made) -> None:
    with Bundle.inspect(made.bundle) as bundle:
        assert bundle.signers == ()
        assert bundle.manifest.changelog == "first"


def test_unknown_key(made: Made, tmp_path: Path) -> None:
    _, public = keys.generate(tmp_path / "other.pem")
    with pytest.raises(SignatureInvalid):
        Bundle.open(made.bundle, keys.load_trust([public]), now=NOW)


def test_expired_and_clock(made: Made, tmp_path: Path) -> None:
    spec = dataclasses.replace(made.spec, expires=CREATED + timedelta(days=30))
    path = build(spec, tmp_path / "b", [keys.load_signer(str(made.key))])
    Bundle.open(path, made.trust, now=CREATED + timedelta(days=29)).close()
    with pytest.raises(SignatureInvalid, match="expired"):
        Bundle.open(path, made.trust, now=CREATED + timedelta(days=30))
    with pytest.raises(SignatureInvalid, match="clock is wrong"):
        Bundle.open(path, made.trust, now=CREATED - timedelta(days=1))


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_any_flipped_bit(made: Made, data: st.DataObject) -> None:
    """Before the payload it is found on opening, in the payload when that very chunk is loaded."""
    bit = data.draw(st.integers(0, len(made.raw) * 8 - 1) | st.integers(0, HEAD * 8 - 1) | st.integers(0, 4000 * 8))
    raw = bytearray(made.raw)
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((BundleInvalid, SignatureInvalid)):
        Bundle.open(Memory(bytes(raw)), made.trust, now=NOW).verify_all()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_truncation_or_addition(made: Made, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(made.raw) - 1))
    for raw in (made.raw[:length], made.raw + made.raw[: 1 + length % 50]):
        with pytest.raises((BundleInvalid, SignatureInvalid)):
            Bundle.open(Memory(raw), made.trust, now=NOW)


@given(st.binary(max_size=300))
def test_any_bytes(made: Made, data: bytes) -> None:
    for raw in (data, MAGIC + data, MAGIC + len(data).to_bytes(4, "big") + data):
        with pytest.raises((BundleInvalid, SignatureInvalid)):
            Bundle.inspect(Memory(raw))


def signed_anew(made: Made, **changes: object) -> bytes:
    """The bundle with another manifest, properly signed: a hostile or mistaken signer."""
    import json

    length = int.from_bytes(made.raw[len(MAGIC) : HEAD], "big")
    manifest = json.loads(keys.parse(made.raw[HEAD : HEAD + length]).content()) | changes
    envelope = keys.sign(canonical(manifest), [keys.load_signer(str(made.key))])
    return MAGIC + len(envelope).to_bytes(4, "big") + envelope + made.raw[HEAD + length :]


@pytest.mark.parametrize(
    "image",
    [
        {"size": 4 << 30},
        {"size": 4096},
        {"chunk_size": 4096},
        {"content": "0" * 64},
    ],
    ids=str,
)
def test_signed_but_inconsistent(made: Made, image: dict[str, object]) -> None:
    with Bundle.inspect(made.bundle) as bundle:
        info = dataclasses.asdict(bundle.manifest.image)
    with pytest.raises(BundleInvalid):
        Bundle.open(Memory(signed_anew(made, image=info | image)), made.trust, now=NOW)


@given(st.binary(max_size=400), st.integers(1, 6))
def test_any_index(raw: bytes, count: int) -> None:
    padded = raw.ljust(count * payload.ENTRY.size, b"\0")[: count * payload.ENTRY.size]
    for data in (raw, padded):
        try:
            payload.Index(data, 4096 * count, 4096)
        except BundleInvalid:
            pass


@settings(deadline=None)
@given(st.binary(max_size=5000), st.data())
def test_hostile_frames(plain: bytes, data: st.DataObject) -> None:
    """Whatever is stored, `decompress` fills exactly what it was asked to, or says BundleInvalid."""
    import zstandard

    frame = bytearray(zstandard.ZstdCompressor().compress(plain))
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    room = bytearray(b"\xaa" * 6000)
    try:
        payload.decompress(bytes(frame), memoryview(room), len(plain))
    except BundleInvalid:
        pass
    assert room[len(plain) :] == b"\xaa" * (6000 - len(plain))


def test_frame_that_asks_for_everything() -> None:
    huge = b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(BundleInvalid):
        payload.decompress(huge, memoryview(bytearray(4096)), 4096)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_paths_that_are_no_bundle(tmp_path: Path, made: Made, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(SourceUnreachable):
        Bundle.open(path, made.trust, now=NOW)


def test_file_that_shrinks_while_open(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(made.raw)
    with Bundle.open(path, made.trust, now=NOW) as bundle:
        os.truncate(path, len(made.raw) - 1)
        with pytest.raises(BundleInvalid):
            bundle.verify_all()


def test_build_lists_what_is_wrong(made: Made, tmp_path: Path) -> None:
    spec = dataclasses.replace(made.spec, release="95", tree=tmp_path, level=99)
    with pytest.raises(ConfigError) as caught:
        build(spec, tmp_path / "b", [])
    assert len(caught.value.what) == 4
    assert not (tmp_path / "b").exists()


def test_an_interrupt_stops_all_readers(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def check(self: Bundle, chunk: int, room: memoryview) -> None:
        read.append(chunk)
        if len(read) == 6:  # by now all of them are at work
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        time.sleep(0.1)

    monkeypatch.setattr(Bundle, "_check", check)
    monkeypatch.setattr(BundleImage, "is_zero", lambda self, chunk: False)
    with Bundle.open(made.bundle, made.trust, now=NOW) as bundle:
        with pytest.raises(KeyboardInterrupt):
            bundle.verify_all()
        assert len(read) < bundle.image.count / 2, "they went on"
