"""The tables: those of the ledger on the main database, and those of the delta database; on MariaDB and SQLite.

A form is numbered and only grows: a table or a column is added in a form of its own, never changed or removed, so that
the release before and the release after read the same tables. Money is DECIMAL(20,6) on MariaDB, and whole micro-units
on SQLite, in STRICT tables, which take no floats. The CHECKs hold what no error in a program may break: nothing is held
or locked below zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from core.errors import DatabaseFailed
from zdu.standalone.session import Session

_MARIADB: Final = {
    "id": "VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL",
    "optional_id": "VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    "word": "VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
    "money": "DECIMAL(20,6) NOT NULL DEFAULT 0",
    "number": "BIGINT NOT NULL DEFAULT 0",
    "text": "TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL",
    "moment": "DATETIME(6) NOT NULL",
    "made": "made_at DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)",
    "serial": "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY",
    "end": "ENGINE = InnoDB",
}
_SQLITE: Final = {
    "id": "TEXT NOT NULL",
    "optional_id": "TEXT",
    "word": "TEXT NOT NULL",
    "money": "INTEGER NOT NULL DEFAULT 0",
    "number": "INTEGER NOT NULL DEFAULT 0",
    "text": "TEXT NOT NULL",
    "moment": "TEXT NOT NULL",
    "made": "made_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))",
    "serial": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "end": "STRICT",
}

#: One tuple of statements per form, oldest first. Each statement may meet its own effect.
MAIN: Final[Sequence[Sequence[str]]] = (
    (
        """CREATE TABLE IF NOT EXISTS ledger_accounts (
            id {id} PRIMARY KEY, balance {money}, credit_limit {money}, reserved {money}, locked {money},
            CHECK (credit_limit >= 0), CHECK (reserved >= 0), CHECK (locked >= 0)) {end}""",
        """CREATE TABLE IF NOT EXISTS ledger_reservations (
            call_id {id} PRIMARY KEY, account {id}, amount {money}, price {money}, seconds {number}, origin {id},
            {made}, CHECK (amount >= 0)) {end}""",
        "CREATE INDEX IF NOT EXISTS ledger_reservations_account ON ledger_reservations (account)",
        """CREATE TABLE IF NOT EXISTS ledger_xdrs (
            id {id} PRIMARY KEY, account {id}, call_id {id}, amount {money}, seconds {number}, started {moment},
            detail {text}, origin {id}, {made}, CHECK (amount >= 0)) {end}""",
        "CREATE INDEX IF NOT EXISTS ledger_xdrs_origin ON ledger_xdrs (origin)",
        """CREATE TABLE IF NOT EXISTS ledger_adjustments (
            seq {serial}, account {id}, amount {money}, kind {word}, xdr {optional_id}, origin {id}, {made}) {end}""",
        "CREATE UNIQUE INDEX IF NOT EXISTS ledger_adjustments_xdr ON ledger_adjustments (kind, xdr)",
        "CREATE INDEX IF NOT EXISTS ledger_adjustments_account ON ledger_adjustments (account)",
        """CREATE TABLE IF NOT EXISTS ledger_locks (
            run {id}, account {id}, amount {money}, PRIMARY KEY (run, account), CHECK (amount >= 0)) {end}""",
        "CREATE TABLE IF NOT EXISTS ledger_runs (run {id} PRIMARY KEY, phase {word}, {made}) {end}",
        """CREATE TABLE IF NOT EXISTS ledger_state (
            id {number}, mode {word}, run {id}, pending {id}, fence {number}, PRIMARY KEY (id)) {end}""",
    ),
)
DELTA: Final[Sequence[Sequence[str]]] = (
    (
        """CREATE TABLE IF NOT EXISTS delta_accounts (
            run {id}, account {id}, charged {money}, reserved {money}, changes {number}, copied {number},
            PRIMARY KEY (run, account), CHECK (charged >= 0), CHECK (reserved >= 0)) {end}""",
        "CREATE INDEX IF NOT EXISTS delta_accounts_account ON delta_accounts (account)",
        """CREATE TABLE IF NOT EXISTS delta_reservations (
            call_id {id} PRIMARY KEY, run {id}, account {id}, amount {money}, price {money}, seconds {number}, {made},
            CHECK (amount >= 0)) {end}""",
        "CREATE INDEX IF NOT EXISTS delta_reservations_account ON delta_reservations (run, account)",
        """CREATE TABLE IF NOT EXISTS delta_taken (
            run {id}, call_id {id}, account {id}, PRIMARY KEY (run, call_id)) {end}""",
        "CREATE INDEX IF NOT EXISTS delta_taken_account ON delta_taken (run, account)",
        """CREATE TABLE IF NOT EXISTS delta_xdrs (
            seq {serial}, id {id}, run {id}, account {id}, call_id {id}, amount {money}, seconds {number},
            started {moment}, detail {text}, transferred {number}, {made}, CHECK (amount >= 0)) {end}""",
        "CREATE UNIQUE INDEX IF NOT EXISTS delta_xdrs_id ON delta_xdrs (id)",
        "CREATE INDEX IF NOT EXISTS delta_xdrs_open ON delta_xdrs (run, transferred, seq)",
        """CREATE TABLE IF NOT EXISTS delta_adjustments (
            xdr {id} PRIMARY KEY, run {id}, account {id}, amount {money}, {made}) {end}""",
        "CREATE INDEX IF NOT EXISTS delta_adjustments_run ON delta_adjustments (run)",
        """CREATE TABLE IF NOT EXISTS delta_runs (
            run {id} PRIMARY KEY, state {word}, counts {number}, {made}) {end}""",
        """CREATE TABLE IF NOT EXISTS delta_state (
            id {number}, mode {word}, run {id}, fence {number}, until {number}, PRIMARY KEY (id)) {end}""",
    ),
)


def install_main(session: Session) -> None:
    """Make or extend the ledger's tables on the main database. Safe to repeat, and after dying half-way.

    Raises DatabaseFailed when the tables are of a newer form than this program knows.
    """
    _install(session, "ledger", MAIN, "(id, mode, run, pending, fence) VALUES (1, 'open', '', '', 0)")


def install_delta(session: Session) -> None:
    """Make or extend the tables of the delta database. As `install_main`."""
    _install(session, "delta", DELTA, "(id, mode, run, fence, until) VALUES (1, 'normal', '', 0, 0)")


def _install(session: Session, prefix: str, forms: Sequence[Sequence[str]], first_state: str) -> None:
    words = _MARIADB if session.is_mariadb else _SQLITE
    session.execute(f"CREATE TABLE IF NOT EXISTS {prefix}_form (version {words['number']}) {words['end']}")
    row = session.one(f"SELECT max(version) FROM {prefix}_form")
    there = int(row[0] or 0) if row else 0
    if there > len(forms):
        raise DatabaseFailed(
            f"the tables {prefix}_* in {session.database} are of a newer release",
            what=f"they have form {there}, this release knows {len(forms)}",
            state="nothing was changed",
        )
    for version, statements in enumerate(forms[there:], there + 1):
        for statement in statements:
            session.execute(statement.format_map(words))
        if version == 1:
            session.execute(
                f"INSERT INTO {prefix}_state {first_state} "
                + ("ON DUPLICATE KEY UPDATE id = id" if session.is_mariadb else "ON CONFLICT DO NOTHING")
            )
        session.execute(f"INSERT INTO {prefix}_form (version) VALUES ({version})")
