"""What goes wrong in a rehearsal: a replica breaks, a line between sites is cut, a dispatcher dies."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from core.sql import Connection, SqlError
from tests.zdu.lab import Host, until
from tests.zdu.whole import databases
from tests.zdu.whole.installation import Installation
from tests.zdu.whole.services import pid_of


def break_replica(made: Installation) -> None:
    """Something was changed on the replica by hand; the next change that comes from the main database does not fit."""
    _on(made.a.db, "CREATE TABLE by_hand (id INT PRIMARY KEY)")
    by_hand = ("SET SESSION sql_log_bin = 0", "INSERT INTO by_hand VALUES (1)")
    until(lambda: _worked(made.b.db, *by_hand), "the table is on the replica")
    _on(made.a.db, "INSERT INTO by_hand VALUES (1)")
    until(lambda: not _applies(made), "the replica is broken")


def mend_replica(made: Installation) -> None:
    """What was changed by hand is taken back, and it goes on."""
    _on(made.b.db, "SET SESSION sql_log_bin = 0", "DELETE FROM by_hand", "START SLAVE")


def cut_between_sites(made: Installation) -> None:
    """The secondary site and the main one, and the controller, do not reach each other any more; callers reach both."""
    _routes(made, "add")


def join_sites(made: Installation) -> None:
    """The line is mended."""
    _routes(made, "del")


def die(host: Host) -> None:
    """A host goes down, as by a power cut: nothing hears it any more, and nothing on it goes on."""
    host.cut()
    for service in (host.directory / "run").iterdir():
        with suppress(ProcessLookupError):
            os.kill(pid_of(host, service.name), signal.SIGKILL)


def come_back(host: Host) -> None:
    """It has booted: all its services were started anew since `die`."""
    host.join()


def _routes(made: Installation, verb: str) -> None:
    for here in (made.controller, made.a.db.host, made.a.sip):
        for there in (made.b.db.host, made.b.sip):
            here.run("ip", "route", verb, "blackhole", there.address)


def _applies(made: Installation) -> bool:
    with made.controller.inside(), Connection.open(made.b.db.database(databases.BOOKS)) as here:
        (row,) = here.execute("SHOW ALL SLAVES STATUS").tables
    return str(row["Slave_SQL_Running"]) == "Yes"


def _worked(server: databases.Server, *statements: str) -> bool:
    try:
        _on(server, *statements)
    except SqlError:
        return False
    return True


def _on(server: databases.Server, *statements: str) -> None:
    with server.host.inside(), Connection.open(server.database(databases.BOOKS)) as there:
        for statement in statements:
            there.execute(statement)
