"""Events to the system journal, with structured fields (``journalctl UPDATER_RUN=2026-11-20-a``)."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from core.report import Event, Kind, Sink

SOCKET = Path("/run/systemd/journal/socket")

_PRIORITY = {Kind.FAILED: 3, Kind.WARNING: 4, Kind.UNDONE: 4}


def encode(fields: dict[str, str]) -> bytes:
    """Fields in the journal's native protocol (systemd, "Native Journal Protocol")."""
    raw = b""
    for key, value in fields.items():
        data = value.encode()
        if b"\n" in data:
            raw += key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            raw += key.encode() + b"=" + data + b"\n"
    return raw


def system_journal(run_id: str, verb: str) -> Sink | None:
    """A sink to the system journal, or None on a machine without one."""
    if not SOCKET.exists():
        return None
    out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def sink(event: Event) -> None:
        if event.kind is Kind.PROGRESS:
            return
        fields = {
            "MESSAGE": f"{verb} {event.step} {event.kind}: {event.text}".replace("  ", " ").rstrip(": "),
            "PRIORITY": str(_PRIORITY.get(event.kind, 6)),
            "SYSLOG_IDENTIFIER": "updater",
            "UPDATER_RUN": run_id,
            "UPDATER_VERB": verb,
            "UPDATER_STEP": event.step,
            "UPDATER_EVENT": event.kind.value,
            **{f"UPDATER_{key.upper()}": str(value) for key, value in event.data.items()},
        }
        try:
            out.sendto(encode(fields), str(SOCKET))
        except OSError:
            pass  # the journal is a courtesy here: the node's own history is the record

    return sink
