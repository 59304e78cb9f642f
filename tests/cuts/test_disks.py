"""What a power cut leaves: against a plain model of a drive with a cache, and on logs of QEMU's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cuts.logs import make_log, recorded
from vagrant.cuts.disks import CutDisk, Extents, How, as_raw, survive
from vagrant.cuts.log import SECTOR, Entry, Kind, WriteLog
from vagrant.disk import overlay

SECTORS = 24

_writes = st.tuples(
    st.sampled_from(["write", "write", "write", "fua", "discard", "flush"]),
    st.integers(0, SECTORS - 1),
    st.integers(1, 20),
)


def _entries(steps: list[tuple[str, int, int]]) -> list[tuple[str, int, bytes]]:
    """Entries whose bytes tell which one they are of."""
    found = []
    for number, (kind, sector, length) in enumerate(steps, start=1):
        length = 0 if kind == "flush" else min(length, SECTORS - sector)
        found.append(
            (kind, 0 if kind == "flush" else sector, bytes([0 if kind == "discard" else number]) * (length * SECTOR))
        )
    return found


def _disk(work: Path, entries: list[tuple[str, int, bytes]]) -> tuple[Path, Path]:
    base = work / "base"
    base.write_bytes(b"\xff" * (SECTORS * SECTOR))
    return base, make_log(work / "log", entries)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(_writes, max_size=12), data=st.data())
def test_every_sector_has_a_version_that_it_had_since_the_last_flush(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    entries = _entries(steps)
    base, log_file = _disk(tmp_path_factory.mktemp("cut"), entries)
    with WriteLog(log_file) as log, CutDisk(base, log) as disk:
        for _ in range(4):  # forwards and backwards
            point = data.draw(st.integers(0, len(entries)))
            how = data.draw(st.sampled_from(How))
            before = disk.read(0, disk.size)
            changed = disk.cut(point, how, seed := data.draw(st.text(max_size=4)))
            content = disk.read(0, disk.size)
            flushed = max((at for at in range(point) if entries[at][0] == "flush"), default=0)
            for sector in range(SECTORS):
                found = content[sector * SECTOR : (sector + 1) * SECTOR]
                # the versions of this sector, the latest durable one first
                versions, least = [b"\xff" * SECTOR], 0
                for at, (kind, first, written) in enumerate(entries[:point]):
                    if first * SECTOR <= sector * SECTOR < first * SECTOR + len(written):
                        start = (sector - first) * SECTOR
                        versions.append(written[start : start + SECTOR])
                        if at < flushed or kind == "fua":
                            least = len(versions) - 1
                allowed = versions[least:]
                assert found in (allowed[:1] if how is How.NONE else allowed[-1:] if how is How.ALL else allowed)
            for at in range(0, disk.size, SECTOR):
                if before[at : at + SECTOR] != content[at : at + SECTOR]:
                    assert any(offset <= at < offset + length for offset, length in changed)
            disk.cut(point, how, seed)
            assert disk.read(0, disk.size) == content


def test_some_survive_in_every_way() -> None:
    pending = [Entry(index, Kind.WRITE, index * 4096, 4096, index) for index in range(3)]
    seen = {tuple(survive(pending, How.SOME, str(seed))) for seed in range(400)}
    whole = [{p.entry.index for p in pieces if p.length == 4096} for pieces in seen]
    assert set() in whole
    assert {2} in whole  # the last one alone: reordered
    assert {0, 1, 2} in whole
    assert any(p.length < 4096 for pieces in seen for p in pieces)  # torn
    assert any(p.offset > p.entry.offset for pieces in seen for p in pieces)  # and not only at its end
    assert survive(pending, How.SOME, "7") == survive(pending, How.SOME, "7")


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(-1, 9)), max_size=30))
def test_extents_are_like_a_row_of_bytes(puts: list[tuple[int, int, int]]) -> None:
    extents, plain = Extents(), [None] * 100
    row: list[int | None] = list(plain)
    for start, length, source in puts:
        at = -1 if source < 0 else source * 1000
        extents.put(start, start + length, at)
        row[start : start + length] = [-1 if at < 0 else at + step for step in range(length)]
    found: list[int | None] = []
    for first, end, begin in extents.within(0, 100):
        found += [begin if begin is None or begin < 0 else begin + step for step in range(end - first)]
    assert found == row


def test_it_is_the_disk_that_qemu_wrote(tmp_path: Path) -> None:
    commands = [
        "write -P 1 0 64k",
        "flush",
        "write -P 2 4k 8k",
        "write -z 32k 16k",
        "discard 512k 64k",
        "write -P 3 1m 1m",
    ]
    log_file = recorded(tmp_path, size=4 << 20, commands=commands)
    base = tmp_path / "base"
    with base.open("xb") as file:
        file.truncate(4 << 20)
    with WriteLog(log_file) as log, CutDisk(base, log) as disk:
        disk.cut(len(disk.entries), How.ALL)
        expected = (tmp_path / "disk").read_bytes()
        assert disk.read(0, disk.size) == expected
        assert disk.materialise(tmp_path / "whole").read_bytes() == expected
        part = disk.materialise(tmp_path / "part", start=8192, end=1 << 20).read_bytes()
        assert part == expected[8192 : 1 << 20]
        first = disk.flushes[0]
        disk.cut(first + 1)
        assert disk.read(0, 64 << 10) == b"\x01" * (64 << 10)
        assert disk.read(1 << 20, 512) == bytes(512)


def test_a_copy_follows(tmp_path: Path) -> None:
    entries = _entries([("write", 0, 8), ("flush", 0, 0), ("write", 2, 8), ("discard", 0, 4), ("flush", 0, 0)])
    base, log_file = _disk(tmp_path, entries)
    with WriteLog(log_file) as log, CutDisk(base, log) as disk, (tmp_path / "copy").open("w+b") as copy:
        copy.write(base.read_bytes())
        copy.flush()
        for point, how in ((2, How.NONE), (3, How.ALL), (4, How.SOME), (5, How.NONE), (1, How.ALL)):
            disk.write_changes(copy.fileno(), disk.cut(point, how, "x"))
            copy.seek(0)
            assert copy.read() == disk.read(0, disk.size)


def test_an_overlay_as_raw(tmp_path: Path) -> None:
    (tmp_path / "below").write_bytes(b"\x05" * (1 << 20))
    assert as_raw(overlay(tmp_path / "below", tmp_path / "above"), tmp_path / "raw").read_bytes() == b"\x05" * (1 << 20)
