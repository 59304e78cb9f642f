"""Events in the system journal's native protocol."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.report import Event, Kind
from updater import syslog


def decode(raw: bytes) -> dict[str, str]:
    """Written from systemd's "Native Journal Protocol", not from our encoder."""
    found = {}
    while raw:
        line, _, raw = raw.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", raw[:8])
            value, raw = raw[8 : 8 + size], raw[8 + size + 1 :]
        found[key.decode()] = value.decode()
    return found


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,8}", fullmatch=True), st.text(st.characters(codec="utf-8"))))
def test_fields_survive(fields: dict[str, str]) -> None:
    assert decode(syslog.encode(fields)) == fields


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    path = tmp_path / "socket"
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(path))
    server.setblocking(False)
    monkeypatch.setattr(syslog, "SOCKET", path)
    return server


def test_events_arrive_with_structured_fields(journald: socket.socket) -> None:
    with journald:
        sink = syslog.system_journal("2026-11-20-a", "stage")
        assert sink is not None
        sink(Event(kind=Kind.FAILED, step="write", text="broke", data={"offset": 4096}))
        sink(Event(kind=Kind.PROGRESS, step="write", data={"done": 1}))
        fields = decode(journald.recv(65536))
        assert fields["MESSAGE"] == "stage write failed: broke"
        assert fields["PRIORITY"] == "3" and fields["UPDATER_RUN"] == "2026-11-20-a"
        assert fields["UPDATER_STEP"] == "write" and fields["UPDATER_OFFSET"] == "4096"
        with pytest.raises(BlockingIOError):  # progress is not for the journal
            journald.recv(65536)


def test_without_a_journal_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syslog, "SOCKET", tmp_path / "none")
    assert syslog.system_journal("x", "stage") is None


def test_a_journal_that_goes_away_is_no_error(journald: socket.socket) -> None:
    sink = syslog.system_journal("x", "stage")
    assert sink is not None
    journald.close()
    syslog.SOCKET.unlink()
    sink(Event(kind=Kind.NOTE, text="hello"))
