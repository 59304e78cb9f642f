"""SQLite files of ours: durable commits, a form that only grows, and errors in our words.

A store is read by the agents of the release before and the release after: tables and columns are added, never
changed, and JSON values tolerate unknown keys.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from core.errors import Busy, NoSpace, NotPermitted, NotReady
from core.files import read_only, remount


class Store:
    """An open SQLite file, for classes with methods that mean something. Use as a context manager.

    `WHAT` names it in errors; `FORM` is the SQL that makes its tables where they are missing (IF NOT EXISTS), `NEWEST`
    the last one of them; `READERS` the table of `oldest_reader`: files that ask for more than `VERSION` are refused.
    """

    WHAT: ClassVar[str]
    FORM: ClassVar[str]
    NEWEST: ClassVar[str]
    READERS: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self.path = path

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file, creating it where there is none.

        Raises NotReady when it is damaged or from a release too new to be understood, NotPermitted without rights.
        """
        with translated(path, cls.WHAT):
            fresh = not path.exists()
            db = sqlite3.connect(path, isolation_level=None, timeout=10)
            db.row_factory = sqlite3.Row
            # A rollback journal whose deletion is synced as well: a commit that returned survives any power cut.
            db.execute("PRAGMA journal_mode = DELETE")
            db.execute("PRAGMA synchronous = EXTRA")
            if fresh or not db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (cls.NEWEST,)).fetchone():
                db.executescript(f"BEGIN IMMEDIATE; {cls.FORM} COMMIT")
            row = db.execute(f"SELECT max(oldest_reader) FROM {cls.READERS}").fetchone()
        if row[0] is not None and row[0] > cls.VERSION:
            db.close()
            raise NotReady(
                f"{cls.WHAT} {path} was written by a newer agent",
                what=f"it asks for readers of form {row[0]}, this one knows {cls.VERSION}",
                next="use the agent of the newer release: boot its slot, or install its package",
            )
        return cls(db, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def _one(self, query: str, *values: Any) -> sqlite3.Row | None:
        with translated(self.path, self.WHAT):
            row: sqlite3.Row | None = self._db.execute(query, values).fetchone()
            return row

    def _all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with translated(self.path, self.WHAT):
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it, durable when the context is left, or nothing of it."""
        with translated(self.path, self.WHAT):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")  # fails too, as while another process reads, and leaves all of it open
            except BaseException:
                if self._db.in_transaction:  # a full disk has SQLite roll back by itself
                    self._db.execute("ROLLBACK")
                raise


@contextmanager
def translated(path: Path, what: str) -> Iterator[None]:
    """SQLite's errors as ours; IntegrityError passes, for those who ask for it."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except PermissionError as error:
        raise NotPermitted(
            f"no permission to look into {path.parent}", state="nothing was changed", next="run it as root (sudo)"
        ) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorname", "")
        if code.startswith("SQLITE_FULL"):
            raise NoSpace(f"no space left to write {what} {path}", next="free space on the data partition") from error
        if code.startswith("SQLITE_BUSY"):
            raise Busy(f"{what} {path} is in use", what=str(error), next="try again in a moment") from error
        if read_only(path.parent):
            raise NotReady(
                f"cannot write {what} {path}: it is mounted read-only",
                what=str(error),
                next=remount(path.parent),
            ) from error
        if code.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN")):
            raise NotPermitted(f"cannot open {what} {path}", what=str(error), next="run it as root (sudo)") from error
        raise NotReady(
            f"{what} {path} cannot be used",
            what=f"{code} {error}".strip(),
            state="slots and boot environment are untouched by this",
            next="updater doctor    checks the data partition",
        ) from error
