"""The files of jobs: one use of a verb each, under a name that the asker chose.

In ``<data>/jobs``: ``ID.json`` what was asked for, ``ID.jsonl`` the verb's JSON lines, ``ID.log`` what it said besides,
``ID.outcome`` how it ended, and ``ID.lock``, which its process holds as long as it lives: so a job whose process is
gone is known as such, whatever ended it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from core.errors import NotReady
from core.faults import point
from core.files import fsync_dir, write_atomic
from core.schema import SchemaError, structure

T = TypeVar("T")

#: Bytes of events in one answer, and jobs that are kept.
LARGEST: Final = 4 << 20
KEPT: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for. `boot`: the boot in which it was."""

    id: str
    verb: tuple[str, ...]
    fence: int
    at: str
    boot: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How it ended, as its process said last."""

    exit_code: int
    at: str


class Jobs:
    """The jobs of a node."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def ids(self) -> list[str]:
        """All jobs that are kept, the oldest first."""
        every = self.directory.iterdir() if self.directory.is_dir() else ()
        found = [path for path in every if path.suffix == ".json"]
        return [path.stem for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))]

    def asked(self, job: str) -> Asked | None:
        """What was asked for under this name; None: nothing. Raises NotReady when the file is damaged."""
        return _load(self._file(job, "json"), Asked)

    def ended(self, job: str) -> Ended | None:
        """How it ended, if it said so."""
        return _load(self._file(job, "outcome"), Ended)

    def began(self, job: str) -> bool:
        """Whether its process got as far as the verb."""
        return self._file(job, "jsonl").exists()

    def lives(self, job: str) -> bool:
        """Whether its process is there."""
        try:
            fd = os.open(self._file(job, "lock"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def write(self, asked: Asked) -> None:
        """Make the job known, before anything of it is begun. Its words may hold a password."""
        write_atomic(self._file(asked.id, "json"), json.dumps(asdict(asked)), mode=0o600)

    @contextmanager
    def claimed(self, job: str) -> Iterator[bool]:
        """Be the process of the job. False: another one is, or was: there is no second one."""
        fd = os.open(self._file(job, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if self.began(job):
                yield False
                return
            os.close(os.open(self._file(job, "jsonl"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            fsync_dir(self.directory)
            point("job:began")
            yield True
        finally:
            os.close(fd)

    def finish(self, job: str, code: int) -> None:
        """Write down how it ended; before that, what it said gets to the disk."""
        fd = os.open(self._file(job, "jsonl"), os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        point("job:ended")
        ended = Ended(exit_code=code, at=now_text())
        write_atomic(self._file(job, "outcome"), json.dumps(asdict(ended)))

    def events(self, job: str, since: int) -> tuple[list[dict[str, Any]], int, bool]:
        """Its JSON lines from an offset in bytes on, the next offset, and whether there is more already. A line that is
        being written is left for the next time.
        """
        try:
            with self._file(job, "jsonl").open("rb") as stream:
                stream.seek(since)
                raw = stream.read(LARGEST)
                more = bool(stream.read(1))
        except FileNotFoundError:
            return [], 0, False
        whole = raw[: raw.rfind(b"\n") + 1]
        return [event for line in whole.splitlines() if (event := _object(line))], since + len(whole), more

    def last(self, job: str) -> dict[str, Any]:
        """The last line that it wrote, if it is a result or an error."""
        try:
            with self._file(job, "jsonl").open("rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - LARGEST))
                lines = stream.read().splitlines()
        except FileNotFoundError:
            return {}
        return _object(lines[-1]) if lines else {}

    def said(self, job: str) -> list[str]:
        """The last lines of what it said besides its events: a traceback, mostly."""
        try:
            lines = self._file(job, "log").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        return [line for line in lines if line.strip()][-8:]

    def output(self, job: str) -> tuple[Path, Path]:
        """Where its process writes: events, and what it says besides."""
        return self._file(job, "jsonl"), self._file(job, "log")

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Hold the directory while looking at a fence and acting on it; waits for whoever holds it."""
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.directory.chmod(0o700)  # agents before this one made it readable by everybody
        fd = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def forget_old(self) -> None:
        """Remove the oldest ones that have ended, beyond those that are kept."""
        for job in self.ids()[:-KEPT]:
            if not self.lives(job):
                for ending in ("jsonl", "log", "outcome", "lock", "json"):
                    self._file(job, ending).unlink(missing_ok=True)

    def _file(self, job: str, ending: str) -> Path:
        return self.directory / f"{job}.{ending}"


def jobs_of(data: Path) -> Jobs:
    """The jobs of the node with this data directory."""
    return Jobs(data / "jobs")


def _load(path: Path, shape: type[T]) -> T | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = {key: value for key, value in data.items() if key in shape.__dataclass_fields__}  # type: ignore[attr-defined]
        return structure(known, shape)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, SchemaError) as error:
        raise NotReady(
            f"{path} cannot be read",
            what=str(error),
            state="the job itself is not touched by this",
            next=["updater status    what the node itself says", "updater history"],
        ) from error


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # the last one before a power cut
        return {}
    return found if isinstance(found, dict) else {}


def now_text() -> str:
    """UTC, as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
