"""Whether a replica holds what its main database holds: checksums of all tables on both, made at the same position."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from core.errors import DatabaseFailed
from core.sql import Connection, Database
from zdu import gtid

#: How often a table is looked at again that differs while something is being written, and the pause before that.
TRIES: Final = 5
PAUSE: Final = 0.2


class Match(StrEnum):
    """What came of comparing a table."""

    SAME = "same"
    DIFFERS = "differs"
    MISSING = "missing"  # on one side
    UNSETTLED = "unsettled"  # it differed at each look, and was written to meanwhile: no proof either way


@dataclass(frozen=True, slots=True, kw_only=True)
class TableMatch:
    """A table (``database.table``); rows are counted only where it is not the same."""

    table: str
    match: Match
    main_rows: int | None = None
    replica_rows: int | None = None


def compare(
    main: Database,
    replica: Database,
    databases: Sequence[str] = (),
    *,
    domain: int = 7,
    timeout: float = 60.0,
    tries: int = TRIES,
) -> list[TableMatch]:
    """Every base table of these databases (none given: all but the server's own, and those that only the replica has).

    A table that differs is looked at again when the replica has caught up, within `timeout` seconds; only what differs
    while nothing was written on the main database in between is said to differ. Views and sequences are left out.
    Both servers read each table once: choose the hour. Raises SqlError, DatabaseFailed.
    """
    with Connection.open(main) as there, Connection.open(replica) as here:
        wanted = list(databases) or _databases(there)
        main_tables, replica_tables = _tables(there, wanted), _tables(here, wanted)
        found = [
            TableMatch(table=_shown(table), match=Match.MISSING)
            for table in sorted(set(main_tables) ^ set(replica_tables))
        ]
        shared = sorted(set(main_tables) & set(replica_tables))
        return found + [_compare(there, here, table, domain, timeout, tries) for table in shared]


def _compare(
    there: Connection, here: Connection, table: tuple[str, str], domain: int, timeout: float, tries: int
) -> TableMatch:
    quiet = False
    for attempt in range(tries):
        if attempt:
            time.sleep(PAUSE)
        before = _written(there)
        if (wanted := gtid.without(before, domain)) and not _reached(here, wanted, timeout):
            break
        with ThreadPoolExecutor(max_workers=2) as both:
            sums = list(both.map(lambda side: _checksum(side, table), (there, here)))
        if sums[0] == sums[1]:
            return TableMatch(table=_shown(table), match=Match.SAME)
        quiet = gtid.parse(_written(there)) == gtid.parse(before)
        if quiet:
            break
    return TableMatch(
        table=_shown(table),
        match=Match.DIFFERS if quiet else Match.UNSETTLED,
        main_rows=_rows(there, table),
        replica_rows=_rows(here, table),
    )


def _reached(here: Connection, wanted: str, timeout: float) -> bool:
    row = here.one("SELECT MASTER_GTID_WAIT(%s, %s)", (wanted, timeout))
    return row is not None and row[0] == 0


def _databases(there: Connection) -> list[str]:
    own = ("information_schema", "performance_schema", "mysql", "sys")
    rows = there.execute("SELECT schema_name FROM information_schema.schemata ORDER BY schema_name").rows
    return [str(name) for (name,) in rows if name not in own]


def _tables(side: Connection, databases: Sequence[str]) -> list[tuple[str, str]]:
    if not databases:
        return []
    places = ", ".join(["%s"] * len(databases))
    rows = side.execute(
        "SELECT table_schema, table_name FROM information_schema.tables "
        f"WHERE table_type = 'BASE TABLE' AND table_schema IN ({places})",
        databases,
    ).rows
    return [(str(database), str(table)) for database, table in rows]


def _checksum(side: Connection, table: tuple[str, str]) -> int:
    row = side.one(f"CHECKSUM TABLE {_quoted(table)} EXTENDED")
    if row is None or row[1] is None:
        raise DatabaseFailed(f"{side.database} gives no checksum of {_shown(table)}")
    return int(row[1])


def _rows(side: Connection, table: tuple[str, str]) -> int:
    row = side.one(f"SELECT COUNT(*) FROM {_quoted(table)}")
    return int(row[0]) if row else 0


def _written(there: Connection) -> str:
    row = there.one("SELECT @@gtid_binlog_pos")
    return str(row[0] or "") if row else ""


def _quoted(table: tuple[str, str]) -> str:
    return ".".join("`" + part.replace("`", "``") + "`" for part in table)


def _shown(table: tuple[str, str]) -> str:
    return ".".join(table)
