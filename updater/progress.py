"""How far a long write has come, for those who look after a power cut. A courtesy: nothing relies on it, so it is
neither flushed nor trusted.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

from core.report import Event, Kind, Sink
from updater.node_toml import NodeConfig

_EVERY = 1.0


def _file(config: NodeConfig) -> Path:
    return config.data / "write-progress.json"


def note_progress(config: NodeConfig, step: str) -> Sink:
    """A sink that notes, once a second, how far the step is."""
    path = _file(config)
    spoke = 0.0

    def sink(event: Event) -> None:
        nonlocal spoke
        if event.kind is Kind.PROGRESS and event.step == step and time.monotonic() - spoke >= _EVERY:
            spoke = time.monotonic()
            percent = 100 * event.data["done"] // max(1, event.data["total"])
            try:
                path.write_text(json.dumps({"percent": percent, "at": event.at.isoformat()}))
            except OSError:
                pass

    return sink


def last_progress(config: NodeConfig) -> tuple[int, str] | None:
    """Percent, and the local time of day when it was noted; None where nothing sensible is there."""
    try:
        found = json.loads(_file(config).read_text())
        at = datetime.fromisoformat(found["at"]).astimezone(UTC).astimezone()
        return int(found["percent"]), f"{at:%H:%M}"
    except (OSError, ValueError, KeyError, TypeError):
        return None
