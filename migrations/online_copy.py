"""Strategy online-copy: pt-online-schema-change fills an altered copy of a table, triggers keep it in step with what is
written meanwhile, and one rename puts it in the table's place.

The tool copies; the rename is ours: under the lock limits of the run, and with names that nobody else uses. So what is
left of a copy that broke off can be told from everything else, and is removed before the next try.
"""

from __future__ import annotations

import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Final

from core.errors import CommandFailed, MigrationFailed, NoSpace
from core.faults import point
from core.report import Report
from core.run import Result, run
from core.sql import Connection, Engine, Reason, SqlError
from migrations.catalogue import Migration, Statement
from migrations.client_file import write_client_file
from migrations.ddl import Verb, parse
from migrations.engines import Effect
from migrations.guards import stopped
from migrations.session import Session
from migrations.transient import transient_directory

TOOL: Final = "pt-online-schema-change"

#: Seconds that one step of the copying may take: rows are locked meanwhile.
CHUNK: Final = 0.2

#: Seconds for the tool where the run has no deadline.
LONGEST: Final = 7 * 86400.0

#: Part of the table's size that must be free beyond it.
MARGIN: Final = 0.2

_PROGRESS: Final = re.compile(r"^Copying `.*`:\s+(\d+)% ")

#: What the tool's last words mean for what to do next.
_WORDS: Final = (
    (re.compile(r"Lock wait timeout exceeded"), Reason.LOCKED),
    (re.compile(r"Deadlock found"), Reason.DEADLOCK),
    (re.compile(r"Access denied|command denied|you need \(at least one of\)"), Reason.DENIED),
    (re.compile(r"Can't connect|Too many connections"), Reason.UNREACHABLE),
    (re.compile(r"Lost connection|gone away|Connection was killed|shutdown in progress"), Reason.GONE),
    (re.compile(r"is full|No space left"), Reason.FULL),
    (re.compile(r"read-only"), Reason.READ_ONLY),
)
_TOO_BUSY: Final = re.compile(r"exceeds its critical threshold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A table that is to be altered by copying. `alter`: what stands behind its name in the ALTER TABLE."""

    schema: str
    table: str
    alter: str
    number: int

    @property
    def new(self) -> str:
        """The altered copy."""
        return f"_updater_{self.number:04}_new"

    @property
    def old(self) -> str:
        """The table's own rows, once the copy has taken its place."""
        return f"_updater_{self.number:04}_old"

    def quoted(self, name: str) -> str:
        """A table beside it."""
        return f"{_quoted(self.schema)}.{_quoted(name)}"


def online_copy(session: Session, migration: Migration, statement: Statement, step: str) -> None:
    """Make the change of an ALTER TABLE by copying, or find that it is made. Nothing is left of the copy then.

    Raises MigrationFailed where the table does not allow it, MigrationStopped when a limit of the run is reached,
    NoSpace when the server's disk has no room for a second table, and SqlError when it is worth another try.
    """
    connection = session.server.connection
    copy = _read(connection, migration, statement)
    clear(connection, copy)
    if _is_made(session, copy, statement, step):
        _drop_old(connection, copy)
        return
    _require_fit(connection, copy, migration)
    _require_space(session, copy)
    try:
        _wait_until_free(session, copy, step)
        _fill(session, copy, step)
        point("migrate:copied")
        _swap(session, copy, step)
    except BaseException:
        with suppress(SqlError):  # if not now, then at the next try
            clear(session.server.connection, copy)
        raise
    point("migrate:swapped")
    _is_made(session, copy, statement, step)
    _drop_old(session.server.connection, copy)


def clear(connection: Connection, copy: Copy) -> None:
    """Remove what a copy that broke off has left: the tool's own sessions, its triggers, and the copy. Triggers first:
    without the copy they would refuse every write.
    """
    for (thread,) in connection.execute(
        "SELECT id FROM information_schema.processlist WHERE info LIKE %s AND id <> CONNECTION_ID()",
        (f"%{copy.new}%",),
    ).rows:
        with suppress(SqlError):  # it has just ended
            connection.execute(f"KILL CONNECTION {int(thread)}")
    with _short_waits(connection):
        for (trigger,) in connection.execute(
            "SELECT trigger_name FROM information_schema.triggers WHERE event_object_schema = %s"
            " AND event_object_table = %s AND trigger_name LIKE 'pt\\\\_osc\\\\_%%' AND action_statement LIKE %s",
            (copy.schema, copy.table, f"%{copy.new}%"),
        ).rows:
            connection.execute(f"DROP TRIGGER IF EXISTS {copy.quoted(str(trigger))}")
            point("migrate:copy-cleared")
        connection.execute(f"DROP TABLE IF EXISTS {copy.quoted(copy.new)}")


# -- before


def _is_made(session: Session, copy: Copy, statement: Statement, step: str) -> bool:
    """Whether the copy is in the table's place: then the old rows stand beside it. Raises MigrationFailed when they do,
    and the table is not what the statement asks for.
    """
    found = session.server.presence(statement)
    replaced = session.server.connection.one(f"SELECT 1 FROM {_TABLES}", (copy.schema, copy.old)) is not None
    if replaced and found.effect not in (Effect.THERE, Effect.UNKNOWN):
        raise MigrationFailed(
            f"{step}: a copy has replaced {copy.table}, but it is not what the statement asks for",
            what=found.text.splitlines(),
            state=f"its rows as they were are in {copy.old}; what was written since is in {copy.table} only",
            next=[f"compare by hand: SHOW CREATE TABLE {copy.table}; SHOW CREATE TABLE {copy.old}"],
        )
    return replaced or found.effect is Effect.THERE


def _read(connection: Connection, migration: Migration, statement: Statement) -> Copy:
    """What is to be copied. Raises MigrationFailed unless the statement is one ALTER TABLE that can be done so."""
    from migrations.reading.words import Reader, Stuck, words_of

    parsed = parse(statement.sql, Engine.MARIADB)
    uniques = [each for each in parsed.changes if each.verb in _UNSAFE or "UNIQUE" in each.words]
    if uniques:
        raise _refused(migration, f"{uniques[0].verb}: rows that differ in nothing else could get lost in the copy")
    try:
        reader = Reader(statement.sql, words_of(statement.sql, Engine.MARIADB), Engine.MARIADB)
        reader.expect("ALTER")
        reader.any_of("ONLINE", "OFFLINE")
        reader.accept("IGNORE")
        reader.expect("TABLE")
        reader.accept("IF", "EXISTS")
        schema, _, table = reader.qualified().rpartition(".")
        if reader.accept("WAIT"):
            reader.next()
        reader.accept("NOWAIT")
        alter = statement.sql[reader.left[0].start :].strip().rstrip(";")
    except (Stuck, ValueError, IndexError) as error:
        raise _refused(migration, "only ALTER TABLE can be done by online copy") from error
    return Copy(schema=schema or connection.database.database, table=table, alter=alter, number=migration.number)


#: Changes that a copy by INSERT IGNORE cannot make without danger to rows, or that the tool cannot make at all.
_UNSAFE: Final = frozenset({Verb.ADD_PRIMARY_KEY, Verb.RENAME_TABLE, Verb.RENAME_COLUMN, Verb.PARTITION, Verb.UNKNOWN})


def _require_fit(connection: Connection, copy: Copy, migration: Migration) -> None:
    """Raises MigrationFailed for tables that lose something when a copy takes their place."""
    where = (copy.schema, copy.table)
    if not connection.one(f"SELECT 1 FROM {_TABLES}", where):
        raise _refused(migration, f"the table {copy.table} does not exist")
    children = connection.execute(
        "SELECT DISTINCT table_name FROM information_schema.key_column_usage"
        " WHERE referenced_table_schema = %s AND referenced_table_name = %s",
        where,
    ).rows
    if children:
        names = ", ".join(sorted(str(name) for (name,) in children))
        raise _refused(migration, f"foreign keys point at {copy.table}, and would follow its old rows: {names}")
    if connection.one(
        "SELECT 1 FROM information_schema.key_column_usage"
        " WHERE table_schema = %s AND table_name = %s AND referenced_table_name IS NOT NULL LIMIT 1",
        where,
    ):
        raise _refused(migration, f"{copy.table} has foreign keys, whose names the copy would change")
    if connection.one(
        "SELECT 1 FROM information_schema.triggers WHERE event_object_schema = %s AND event_object_table = %s LIMIT 1",
        where,
    ):
        raise _refused(migration, f"{copy.table} has triggers, which the copy would not have")
    if not connection.one(_UNIQUE, where):
        raise _refused(migration, f"{copy.table} has no primary key, nor a unique one that is never NULL")


_TABLES: Final = "information_schema.tables WHERE table_schema = %s AND table_name = %s AND table_type = 'BASE TABLE'"
_UNIQUE: Final = (
    "SELECT index_name FROM information_schema.statistics"
    " WHERE table_schema = %s AND table_name = %s AND non_unique = 0"
    " GROUP BY index_name HAVING sum(nullable = 'YES') = 0 LIMIT 1"
)


def _require_space(session: Session, copy: Copy) -> None:
    """Room for a second table, where the server's disk is ours to look at. Raises NoSpace."""
    connection = session.server.connection
    row = connection.one("SELECT @@datadir")
    if connection.database.socket is None or row is None:
        return
    with suppress(OSError):
        free = shutil.disk_usage(str(row[0])).free
        size = connection.one(f"SELECT data_length + index_length FROM {_TABLES}", (copy.schema, copy.table))
        wanted = int(float(size[0] or 0) * (1 + MARGIN)) if size else 0
        if free < wanted:
            raise NoSpace(
                f"no space for a copy of {copy.table}",
                what=f"it takes about {wanted >> 20} MiB in {row[0]}, {free >> 20} MiB are free",
                state="the table was not touched",
                next=f"df -h {row[0]}",
            )


def _wait_until_free(session: Session, copy: Copy, step: str) -> None:
    """Until no long transaction would keep the tool's triggers, and everybody behind them, waiting."""
    for attempt in count():
        if session.server.free([copy.table]):
            return
        _rest(session, copy, step, attempt)


# -- the copying


def _fill(session: Session, copy: Copy, step: str) -> None:
    """Have the tool make the copy and fill it; its triggers stay."""
    budget = session.budget
    limits = budget.limits
    database = session.server.connection.database
    with transient_directory() as directory:
        secrets = directory / "client.cnf"
        write_client_file(secrets, database)
        options = [
            "--config=/dev/null",
            f"--alter={copy.alter}",
            f"--new-table-name={copy.new}",
            "--no-swap-tables",
            "--no-drop-triggers",
            "--no-drop-new-table",
            "--no-drop-old-table",
            "--no-version-check",
            f"--chunk-time={CHUNK}",
            f"--set-vars=lock_wait_timeout={max(1, round(limits.lock_wait))},innodb_lock_wait_timeout=1",
            "--tries=create_triggers:3:2",
            "--progress=time,1",
            *_load_limits(limits.max_running, limits.max_lag),
            "--execute",
        ]
        target = f"F={secrets},D={_in_dsn(copy.schema)},t={_in_dsn(copy.table)}"
        left = budget.left()
        session.server.connection.execute(f"SET SESSION wait_timeout = {round(LONGEST)}")
        try:
            result = _run_tool([*options, target], LONGEST if left is None else max(left, 0.1), session.report, step)
        except CommandFailed as error:
            if why := budget.spent(trying=False):
                raise stopped(
                    f"{step} was stopped: {why}",
                    what=list(error.what),
                    state=f"the copy of {copy.table} was thrown away; the table is as it was",
                ) from error
            raise
    if result.code != 0:
        raise _failed(session, copy, result, step)


def _run_tool(arguments: list[str], timeout: float, report: Report, step: str) -> Result:
    """Run it to its end; it ends with us. Its progress becomes ours."""
    program = shutil.which(TOOL, path="/usr/local/bin:/usr/bin:/bin")
    if program is None:
        raise CommandFailed(
            f"{TOOL} is not installed",
            what="the strategy online-copy is done by it",
            state="the table was not touched",
            next="apt-get install percona-toolkit",
        )

    def each(line: str) -> None:
        if found := _PROGRESS.match(line):
            report.progress(step, min(int(found[1]), 99), 100, "%")
        elif line.startswith(("Pausing", "Sleeping", "Replica lag", "Cannot connect")):
            report.note(f"{step}: {line}")

    begun = time.monotonic()
    # One stream: it says how far it is on one, and what went wrong on either.
    one_stream = ("sh", "-c", 'exec "$@" 2>&1', "sh")
    ends_with_us = ("setpriv", "--pdeathsig=KILL", "--")
    result = run(*ends_with_us, *one_stream, program, *arguments, timeout=timeout, check=False, on_line=each)
    if result.code == 0:
        report.progress(step, 100, 100, "%")
    report.note(f"{step}: the copy took {time.monotonic() - begun:.1f} s")
    return result


def _load_limits(max_running: int | None, max_lag: float | None) -> list[str]:
    """The run's limits in the tool's words. It breaks off at four times what makes it pause."""
    most = max_running or 1_000_000
    lag = [f"--max-lag={max_lag:g}"] if max_lag else ["--recursion-method=none"]
    return [f"--max-load=Threads_running={most}", f"--critical-load=Threads_running={4 * most}", *lag]


def _failed(session: Session, copy: Copy, result: Result, step: str) -> Exception:
    """Why the tool broke off, in our words."""
    lines = [line for line in result.stdout.splitlines() if line.strip() and not _PROGRESS.match(line)]
    text = "\n".join(lines[-12:])
    if _TOO_BUSY.search(text):
        return stopped(
            f"{step} was stopped: the server was too busy",
            what=lines[-3:],
            state=f"the copy of {copy.table} was thrown away; the table is as it was",
        )
    for pattern, reason in _WORDS:
        if found := pattern.search(text):
            said = next(line for line in lines[::-1] if found[0] in line)
            database = session.server.connection.database
            return SqlError(f"{database}: {said[:300]}", reason=reason, code=TOOL, what=lines[-5:])
    return MigrationFailed(
        f"{step} failed: {TOOL} ended with {result.code}",
        what=lines[-8:],
        state=f"the copy of {copy.table} was thrown away; the table is as it was",
        next=["mend it in a new build of the release, or take the strategy native in the blocking phase"],
    )


# -- the copy takes the table's place


def _swap(session: Session, copy: Copy, step: str) -> None:
    """Rename both tables at once, as soon as the lock is granted within the limits."""
    connection, budget = session.server.connection, session.budget
    swap = (
        f"RENAME TABLE {copy.quoted(copy.table)} TO {copy.quoted(copy.old)}, "
        f"{copy.quoted(copy.new)} TO {copy.quoted(copy.table)}"
    )
    for attempt in count():
        if session.server.free([copy.table]) or attempt % 3 == 2:
            begun = budget.clock.steady()
            try:
                with _short_waits(connection, budget.limits.lock_wait):
                    connection.execute(swap)
                return
            except SqlError as error:
                if error.reason not in (Reason.LOCKED, Reason.DEADLOCK):
                    raise
                budget.waits += 1
                budget.stall(budget.clock.steady() - begun)
        _rest(session, copy, step, attempt)


def _rest(session: Session, copy: Copy, step: str, attempt: int) -> None:
    """Wait before the next try, and say for whom. Raises MigrationStopped at a limit."""
    holders = session.server.holders([copy.table])
    if attempt == 0 and holders:
        session.report.note(f"{step} waits for {holders[0]}")
    if why := session.budget.spent():
        raise stopped(
            f"{step} was stopped: {why}",
            what=[f"held by: {holder}" for holder in holders[:5]],
            state=f"the copy of {copy.table} was thrown away; the table is as it was",
        )
    session.budget.clock.sleep(session.budget.rest(attempt))


def _drop_old(connection: Connection, copy: Copy) -> None:
    """Drop the table's old rows, which a copy known to be good has replaced, and the triggers on them."""
    point("migrate:old-kept")
    with _short_waits(connection):
        connection.execute(f"DROP TABLE IF EXISTS {copy.quoted(copy.old)}")


class _short_waits:
    """Within it a statement waits for a lock for so many seconds (at least one), and then gives up."""

    def __init__(self, connection: Connection, seconds: float = 1.0) -> None:
        self.connection = connection
        self.seconds = max(1, round(seconds))

    def __enter__(self) -> None:
        row = self.connection.one("SELECT @@SESSION.lock_wait_timeout")
        self.before = int(row[0]) if row else 86400
        self.connection.execute(f"SET SESSION lock_wait_timeout = {self.seconds}")

    def __exit__(self, *_: object) -> None:
        with suppress(SqlError):
            self.connection.execute(f"SET SESSION lock_wait_timeout = {self.before}")


def _refused(migration: Migration, why: str) -> MigrationFailed:
    return MigrationFailed(
        f"{migration.id} cannot be done by online copy",
        what=why,
        state="the table was not touched",
        next=["take the strategy native in the blocking phase", "updater migrate lint DIR"],
    )


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _in_dsn(name: str) -> str:
    return name.replace("\\", "\\\\").replace(",", "\\,")
