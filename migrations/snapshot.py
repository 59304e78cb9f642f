"""A backup of a database before the blocking phase: whole, consistent, checked, and marked complete only at the end.

Each is a directory of its own with the data and ``snapshot.json``, which says what it is and how to restore it. While
it is being made its name begins with a dot; what a crash leaves under such a name is removed by the next try.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from core.errors import DatabaseFailed, NoSpace, NotPermitted, UpdaterError
from core.faults import point
from core.files import fsync_dir, write_atomic
from core.report import Report
from core.run import run
from core.sql import Database, Engine
from migrations.snapshot_ways import BY_ENGINE, DATA, by_command, bytes_of, known, size_of

#: Beyond the data's size: a tenth of it, and this many bytes for logs that grow meanwhile.
RESERVE: Final = 64 << 20

#: Seconds for a backup where nobody says otherwise.
DEADLINE: Final = 6 * 3600.0

ABOUT: Final = "snapshot.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A complete backup. `path`: its directory. `made_at`: UTC. `bytes`: its size. `restore`: what to do, step by step,
    to have it back. `said`: the last line of the operator's own program.
    """

    path: Path
    label: str
    engine: str
    database: str
    version: str
    made_at: str
    seconds: float
    bytes: int
    restore: tuple[str, ...] = ()
    said: str = ""

    @property
    def data(self) -> Path:
        """The data: a directory that the server starts on, or SQLite's file."""
        return self.path / DATA


def take(
    database: Database,
    directory: Path,
    *,
    label: str,
    report: Report,
    command: Sequence[str] = (),
    deadline: float = DEADLINE,
) -> Snapshot:
    """Back up the whole server (SQLite: the file) into ``directory/label``; one that is complete there stays as it is.

    `command`: the operator's own program, which gets what it must know as JSON on its standard input, and does the
    work instead. `deadline`: seconds. Raises NoSpace before anything is done, DatabaseFailed, CommandFailed; then
    nothing is left that could be taken for a backup.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", label):
        raise ValueError(f"label: {label!r} must be letters, digits, dots, hyphens")
    if found := find(directory, label):
        return found
    with _translated(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = directory / f".{label}.part"
        shutil.rmtree(part, ignore_errors=True)
        version, home = known(database)
        size = 0
        if not command:
            size = require_space(database, directory)
        part.mkdir(mode=0o700)
        point("snapshot:begun")
        begun = time.monotonic()
        try:
            said = ""
            with _progress(part, size, report):
                if command:
                    said = by_command(command, database, part, label, deadline)
                else:
                    BY_ENGINE[database.engine](database, part, deadline)
            point("snapshot:copied")
            run("sync", "--file-system", part, timeout=deadline)
            made = Snapshot(
                path=directory / label,
                label=label,
                engine=str(database.engine),
                database=str(database),
                version=version,
                made_at=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(time.monotonic() - begun, 3),
                bytes=size_of(part),
                restore=() if command else _restore(database, directory / label / DATA, home),
                said=said,
            )
            about = {name: value for name, value in asdict(made).items() if name != "path"}
            write_atomic(part / ABOUT, json.dumps(about, indent=1) + "\n", mode=0o600)
            point("snapshot:marked")
            shutil.rmtree(made.path, ignore_errors=True)  # what is left of one that was being removed
            part.rename(made.path)
            fsync_dir(directory)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return made


def find(directory: Path, label: str) -> Snapshot | None:
    """The complete backup of this label, or None."""
    path = directory / label
    try:
        about: dict[str, Any] = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        told = {name: about[name] for name in Snapshot.__slots__ if name not in ("path", "restore", "said")}
        return Snapshot(path=path, restore=tuple(about.get("restore", ())), said=str(about.get("said", "")), **told)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def every(directory: Path) -> list[Snapshot]:
    """The complete backups there, the oldest first."""
    names = [path.name for path in directory.iterdir() if not path.name.startswith(".")] if directory.is_dir() else []
    return sorted((each for each in (find(directory, name) for name in names) if each), key=lambda each: each.made_at)


def remove(snapshot: Snapshot) -> None:
    """Remove a backup: first what marks it as complete."""
    (snapshot.path / ABOUT).unlink(missing_ok=True)
    fsync_dir(snapshot.path)
    shutil.rmtree(snapshot.path)


# -- small things


def require_space(database: Database, directory: Path) -> int:
    """The bytes that will be copied. Raises NoSpace when they do not fit, DatabaseFailed when they are not here."""
    size = bytes_of(database)
    wanted = size + size // 10 + RESERVE
    free = shutil.disk_usage(next(each for each in (directory, *directory.parents) if each.exists())).free
    if free < wanted:
        raise NoSpace(
            f"no space for a backup of {database}",
            what=f"it takes up to {wanted >> 20} MiB in {directory}, {free >> 20} MiB are free",
            state="nothing was begun",
            next=[f"df -h {directory}", f"ls {directory}    older backups can go"],
        )
    return size


def _restore(database: Database, data: Path, home: str) -> tuple[str, ...]:
    """For people, at night."""
    if database.engine is Engine.SQLITE:
        logs = " ".join(f"{database.path}-{each}" for each in ("wal", "shm", "journal"))  # they would be rolled into it
        return ("stop what uses the database", f"rm -f {logs}", f"cp {data} {database.path}")
    unit, user = ("mariadb", "mysql") if database.engine is Engine.MARIADB else ("postgresql", "postgres")
    home = home or "DIRECTORY"
    return (
        f"systemctl stop {unit}",
        f"mv {home} {home}.before",
        f"cp -a {data} {home}",
        f"chown -R {user}:{user} {home}",
        f"systemctl start {unit}",
    )


@contextmanager
def _progress(part: Path, total: int, report: Report) -> Iterator[None]:
    """Tell once a second how much is copied."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(1):
            report.progress("backup", min(size_of(part), total), total)

    teller = threading.Thread(target=tell, daemon=True)
    if total:
        teller.start()
    try:
        yield
    finally:
        ended.set()
        if total:
            teller.join()


@contextmanager
def _translated(directory: Path) -> Iterator[None]:
    """Faults of the file system and of SQLite in our words."""
    try:
        yield
    except UpdaterError:
        raise
    except PermissionError as error:
        raise NotPermitted(
            f"no permission to write backups to {directory}", what=str(error), next="run it as root (sudo)"
        ) from error
    except (OSError, sqlite3.Error) as error:
        full = "no space" in str(error).lower() or "full" in str(error).lower()
        kind = NoSpace if full else DatabaseFailed
        what, state = str(error), "nothing was migrated"
        raise kind(f"the backup into {directory} failed", what=what, state=state, next="df -h") from error
