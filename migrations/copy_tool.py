"""pt-online-schema-change: how it is called, what it says of its progress, and why it breaks off."""

from __future__ import annotations

import re
import shutil
import time
from typing import Final

from core.errors import CommandFailed, MigrationFailed
from core.report import Report
from core.run import Result, run
from core.sql import Reason, SqlError
from migrations.client_file import write_client_file
from migrations.copy_fit import Copy
from migrations.engines.mariadb import SQL_MODE
from migrations.guards import stopped
from migrations.session import Session
from migrations.transient import transient_directory

TOOL: Final = "pt-online-schema-change"

#: Seconds that one step of the copying may take: rows are locked meanwhile.
CHUNK: Final = 0.2

#: Seconds for the tool where the run has no deadline.
LONGEST: Final = 7 * 86400.0

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

#: What it only mentions, and ends well nevertheless: a value was cut off.
_CUT_OFF: Final = re.compile(r"Copying rows caused a MySQL error")

#: Its triggers keep the mode that it has: what does not fit into the copy is refused, not cut off. Commas are escaped.
_STRICT: Final = "sql_mode='{}'".format(SQL_MODE.replace(",", r"\,"))


def fill(session: Session, copy: Copy, step: str) -> None:
    """Have the tool make the copy and fill it, every value whole; its triggers stay."""
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
            f"--set-vars=lock_wait_timeout={max(1, round(limits.lock_wait))},innodb_lock_wait_timeout=1,{_STRICT}",
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
    if cut := [line for line in result.stdout.splitlines() if _CUT_OFF.search(line)]:
        raise MigrationFailed(
            f"{step} failed: not all values fit",
            what=cut[:8],
            state=f"the copy of {copy.table} was thrown away; the table is as it was",
            next=["find the rows that do not fit, and change them in a migration before this one"],
        )


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


def _in_dsn(name: str) -> str:
    return name.replace("\\", "\\\\").replace(",", "\\,")
