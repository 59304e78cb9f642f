"""Why a statement failed, in our words: what the drivers raise, sorted by what to do next."""

from __future__ import annotations

import sqlite3
from enum import StrEnum
from typing import Any, Final, TypeAlias

from core.errors import DatabaseFailed


class Reason(StrEnum):
    """Why a statement failed, as far as what to do next depends on it."""

    UNREACHABLE = "unreachable"  # no server, no route, too many connections
    DENIED = "denied"  # wrong password, missing privilege
    GONE = "gone"  # the connection broke or was killed in mid-statement: what was done is not known
    LOCKED = "locked"  # a lock was not granted in time
    DEADLOCK = "deadlock"  # the server took the transaction back
    OVERRAN = "overran"  # the statement took longer than it was allowed to
    KILLED = "killed"  # somebody had the statement broken off; the connection lives
    READ_ONLY = "read-only"
    FULL = "full"
    EXISTS = "exists"  # what the statement makes is there already
    MISSING = "missing"  # what it works on is not there
    REFUSED = "refused"  # the server cannot do it in the way that was asked for (ALGORITHM, LOCK)
    SYNTAX = "syntax"
    OTHER = "other"


class SqlError(DatabaseFailed):
    """A statement or a connection failed. `code`: the engine's own (errno, SQLSTATE, SQLite's name)."""

    def __init__(self, message: str, *, reason: Reason, code: str, **said: Any) -> None:
        super().__init__(message, **said)
        self.reason = reason
        self.code = code


#: Why it failed, and the engine's own code. None: the error is not one of the driver's.
Judgement: TypeAlias = tuple[Reason, str] | None

_MARIADB: Final = {
    **dict.fromkeys((1040, 2002, 2003, 2005), Reason.UNREACHABLE),
    **dict.fromkeys((1044, 1045, 1142, 1143, 1227, 1370, 1698), Reason.DENIED),
    **dict.fromkeys((1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 2006, 2013), Reason.GONE),
    **dict.fromkeys((1205, 1637), Reason.LOCKED),
    1213: Reason.DEADLOCK,
    1317: Reason.KILLED,
    **dict.fromkeys((1969, 3024), Reason.OVERRAN),
    **dict.fromkeys((1036, 1290, 1792, 1836), Reason.READ_ONLY),
    **dict.fromkeys((1021, 1030, 1114, 1041), Reason.FULL),
    **dict.fromkeys((1007, 1022, 1050, 1060, 1061, 1068, 1304, 1359, 1517, 1826), Reason.EXISTS),
    **dict.fromkeys((1008, 1049, 1051, 1054, 1072, 1091, 1146, 1176, 1305, 1360, 1507), Reason.MISSING),
    **dict.fromkeys((1221, 1845, 1846), Reason.REFUSED),
    **dict.fromkeys((1064, 1149), Reason.SYNTAX),
}

#: By SQLSTATE, or by its class (the first two letters).
_POSTGRESQL: Final = {
    "08": Reason.GONE,
    "57P01": Reason.GONE,
    "57P02": Reason.GONE,
    "57P03": Reason.UNREACHABLE,
    "57P05": Reason.GONE,
    "25P03": Reason.GONE,
    "53300": Reason.UNREACHABLE,
    "28": Reason.DENIED,
    "3D000": Reason.MISSING,
    "42501": Reason.DENIED,
    "55P03": Reason.LOCKED,
    "55006": Reason.LOCKED,
    "40P01": Reason.DEADLOCK,
    "40001": Reason.DEADLOCK,
    "57014": Reason.OVERRAN,
    "25006": Reason.READ_ONLY,
    "53": Reason.FULL,
    "42P07": Reason.EXISTS,
    "42701": Reason.EXISTS,
    "42710": Reason.EXISTS,
    "42P06": Reason.EXISTS,
    "42723": Reason.EXISTS,
    "42P01": Reason.MISSING,
    "42703": Reason.MISSING,
    "42704": Reason.MISSING,
    "42883": Reason.MISSING,
    "3F000": Reason.MISSING,
    "42601": Reason.SYNTAX,
}

_SQLITE: Final = {
    "SQLITE_CANTOPEN": Reason.UNREACHABLE,
    "SQLITE_PERM": Reason.DENIED,
    "SQLITE_AUTH": Reason.DENIED,
    "SQLITE_BUSY": Reason.LOCKED,
    "SQLITE_LOCKED": Reason.LOCKED,
    "SQLITE_READONLY": Reason.READ_ONLY,
    "SQLITE_FULL": Reason.FULL,
    "SQLITE_IOERR": Reason.FULL,
    "SQLITE_INTERRUPT": Reason.OVERRAN,
}


def of_mariadb(error: Exception) -> Judgement:
    """By errno; a full disk has several of them, and words of its own."""
    import pymysql

    if isinstance(error, pymysql.err.InterfaceError):
        return Reason.GONE, "connection"
    if not isinstance(error, pymysql.Error):
        return None
    number = int(error.args[0]) if error.args and isinstance(error.args[0], int) else 0
    full = any(words in str(error.args[-1]) for words in ("No space left", "Temp file write failure", "Disk full"))
    return Reason.FULL if full else _MARIADB.get(number, Reason.OTHER), str(number)


def of_postgresql(error: Exception) -> Judgement:
    """By SQLSTATE; a connection that fails has none, only words."""
    import psycopg

    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ""
    if not state and isinstance(error, psycopg.OperationalError):
        text = str(error)
        if "authentication failed" in text or "no password supplied" in text:
            return Reason.DENIED, "connection"
        lost = "closed the connection" in text or "connection is closed" in text or "connection is lost" in text
        return (Reason.GONE if lost else Reason.UNREACHABLE), "connection"
    if state == "57014" and "user request" in str(error):  # pg_cancel_backend; the rest of this code is time limits
        return Reason.KILLED, state
    return _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:2]) or Reason.OTHER, state


def of_sqlite(error: Exception) -> Judgement:
    """By the name of the error; one of them stands for all that is wrong with a statement, so the text says which."""
    if not isinstance(error, sqlite3.Error):
        return None
    code = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
    by_code = next((reason for start, reason in _SQLITE.items() if code.startswith(start)), None)
    return by_code or _sqlite_by_text(str(error)), code


def _sqlite_by_text(text: str) -> Reason:
    if "already exists" in text or "duplicate column" in text:
        return Reason.EXISTS
    if "no such" in text:
        return Reason.MISSING
    return Reason.SYNTAX if "syntax error" in text else Reason.OTHER
