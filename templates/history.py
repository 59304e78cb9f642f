"""What rendering changed in one root, and what the files held before: a file per rendering, mode 0600, the latest ten.

Kept on the data partition. A record is durable before the first file is touched, and done when the units have taken
notice of the last. Until then nobody knows which of its files are in place.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import NotReady, WrongState
from core.files import write_atomic

_KEPT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """A file as it was. `link`: its target, where it was a symbolic link."""

    content: bytes
    owner: tuple[int, int]
    mode: int
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One changed file. `before`: None where there was none; `after`: hash of what was written (None: removed)."""

    target: str
    before: Before | None
    after: str | None
    sensitive: bool
    restart: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One rendering. `written`: all files that are ours after it: target → hash, and whether it holds a secret."""

    what: str
    changes: tuple[Change, ...]
    written: dict[str, tuple[str, bool]]
    state: str = "begun"
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


def hashed(content: bytes) -> str:
    """BLAKE3 of a file's content."""
    from blake3 import blake3

    return blake3(content).hexdigest()


class History:
    """The records of one root, in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def written(self) -> dict[str, tuple[str, bool]]:
        """The files that are ours after the newest rendering, by target."""
        done, begun = self.latest_done()
        newest = begun[0] if begun else done
        return newest.written if newest else {}

    def latest_done(self) -> tuple[Record | None, list[Record]]:
        """The newest record that was carried out to its end, and those that were begun since, newest first."""
        begun = []
        for number in reversed(self._numbers()):
            record = self._read(number)
            if record.state == "begun":
                begun.append(record)
            elif record.state != "undone":
                return record, begun
        return None, begun

    def latest(self) -> tuple[int, Record]:
        """The newest record that changed something and was not undone. Raises WrongState."""
        for number in reversed(self._numbers()):
            record = self._read(number)
            if record.state != "undone" and record.changes:
                return number, record
        raise WrongState("there is no rendering to take back", state="nothing was changed")

    def begin(self, record: Record) -> int:
        """Save a record durably, before anything is changed; returns its number."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        numbers = self._numbers()
        number = (numbers[-1] if numbers else 0) + 1
        self._write(number, record)
        for old in numbers[: max(0, len(numbers) + 1 - _KEPT)]:
            self._path(old).unlink(missing_ok=True)
        return number

    def finish(self) -> None:
        """All files of all that was begun are in place, and the units have taken notice."""
        for number in self._numbers():
            if self._read(number).state == "begun":
                self._set_state(number, "done")

    def undone(self, number: int) -> None:
        """Its files are as they were before."""
        self._set_state(number, "undone")

    def forget(self) -> None:
        """The root is a new one (its slot was written): nothing in it is ours yet."""
        for number in self._numbers():
            self._path(number).unlink(missing_ok=True)

    def _set_state(self, number: int, state: str) -> None:
        data = json.loads(self._path(number).read_text())
        write_atomic(self._path(number), json.dumps({**data, "state": state}), mode=0o600)

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self.directory.glob("*.json") if path.stem.isdecimal())

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:06}.json"

    def _write(self, number: int, record: Record) -> None:
        data = {
            "what": record.what,
            "state": record.state,
            "at": record.at.isoformat(),
            "written": record.written,
            "changes": [_plain(change) for change in record.changes],
        }
        write_atomic(self._path(number), json.dumps(data), mode=0o600)

    def _read(self, number: int) -> Record:
        path = self._path(number)
        try:
            data = json.loads(path.read_text())
            return Record(
                what=data["what"],
                state=data["state"],
                at=datetime.fromisoformat(data["at"]),
                written={target: (digest, bool(secret)) for target, (digest, secret) in data["written"].items()},
                changes=tuple(map(_change, data["changes"])),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise NotReady(
                f"the record {path} cannot be read", what=str(error), next=f"remove {path}: that undo is lost with it"
            ) from error


def _plain(change: Change) -> dict[str, Any]:
    before = change.before
    return {
        "target": change.target,
        "after": change.after,
        "sensitive": change.sensitive,
        "restart": change.restart,
        "reload": change.reload,
        "before": before
        and {
            "content": base64.b64encode(before.content).decode(),
            "owner": before.owner,
            "mode": before.mode,
            "link": before.link,
        },
    }


def _change(data: dict[str, Any]) -> Change:
    before = data["before"]
    return Change(
        target=data["target"],
        after=data["after"],
        sensitive=data["sensitive"],
        restart=tuple(data["restart"]),
        reload=tuple(data["reload"]),
        before=before
        and Before(
            content=base64.b64decode(before["content"]),
            owner=(before["owner"][0], before["owner"][1]),
            mode=before["mode"],
            link=before["link"],
        ),
    )
