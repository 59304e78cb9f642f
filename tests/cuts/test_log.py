"""The reader of write logs, on logs that QEMU itself wrote, and on broken ones."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.cuts.logs import MAGIC, make_log, recorded
from vagrant.cuts.log import Entry, Kind, LogError, WriteLog


def test_what_qemu_logged(tmp_path: Path) -> None:
    log = recorded(
        tmp_path,
        size=8 << 20,
        commands=["write -P 0xaa 0 4k", "flush", "write -P 0xbb 4k 1k", "discard 128k 64k", "write -P 0xcc 1k 512"],
    )
    with WriteLog(log) as opened:
        entries = list(opened)
        done = [(e.kind, e.offset, e.length) for e in entries if e.kind is not Kind.FLUSH]
        assert done == [
            (Kind.WRITE, 0, 4096),
            (Kind.WRITE, 4096, 1024),
            (Kind.DISCARD, 128 << 10, 64 << 10),
            (Kind.WRITE, 1024, 512),
        ]
        kinds = [entry.kind for entry in entries]
        assert kinds.index(Kind.FLUSH) == 1
        assert all(entry.flush and entry.length == 0 for entry in entries if entry.kind is Kind.FLUSH)
        content = {entry.offset: opened.read(entry) for entry in entries if entry.length}
    assert content[4096] == b"\xbb" * 1024
    assert content[1024] == b"\xcc" * 512
    assert content[128 << 10] == bytes(64 << 10)


def test_zeros_are_a_hole_in_the_log(tmp_path: Path) -> None:
    log = recorded(tmp_path, size=80 << 20, commands=["write -z 64k 64m", "write -P 1 0 512", "flush"])
    with WriteLog(log) as opened:
        zeros, one = [entry for entry in opened if entry.length]
        assert (zeros.length, zeros.data_at) == (64 << 20, -1)
        assert opened.read(one) == b"\x01" * 512


def test_flags_and_marks(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", [("fua", 8, b"x" * 512), ("mark", 0, b"the upgrade begins"), ("flush", 0, b"")])
    with WriteLog(log) as opened:
        assert list(opened) == [
            Entry(0, Kind.WRITE, 8 * 512, 512, 1024, fua=True),
            Entry(1, Kind.MARK, 0, 0, -1, text="the upgrade begins"),
            Entry(2, Kind.FLUSH, 0, 0, -1, flush=True),
        ]


def test_a_log_that_grows_counts_up_to_its_last_flush(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", [("write", 0, b"x" * 512), ("flush", 0, b""), ("write", 1, b"y" * 512)], count=2)
    with WriteLog(log) as opened:
        assert len(opened) == len(list(opened)) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(512),
        struct.pack("<QQQL", MAGIC, 2, 0, 512).ljust(512, b"\0"),
        struct.pack("<QQQL", MAGIC, 1, 0, 100).ljust(512, b"\0"),
    ],
)
def test_no_log(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "log").write_bytes(raw)
    with pytest.raises(LogError):
        WriteLog(tmp_path / "log")


def test_a_log_that_is_cut_off(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", [("write", 0, b"x" * 4096)])
    with log.open("r+b") as file:
        file.truncate(2048)
    with WriteLog(log) as opened, pytest.raises(LogError, match="cut off"):
        list(opened)
