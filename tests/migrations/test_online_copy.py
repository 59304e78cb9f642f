"""Altering a table by copying, with pt-online-schema-change on a real server and writers on the table."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import core.run
from core import faults
from core.errors import MigrationFailed, MigrationStopped, NoSpace
from core.report import Event, Kind, Report
from core.run import Result
from core.sql import Connection, Database, Reason, SqlError
from migrations import copy_tool
from migrations.catalogue import Migration, Phase, Statement, Strategy
from migrations.copy_fit import Copy
from migrations.engines import Effect, Holder, Presence, probed
from migrations.guards import Budget, Clock, Limits
from migrations.ledger import Who
from migrations.online_copy import clear, online_copy
from migrations.servers import open_server
from migrations.session import Session
from tests.migrations.runlab import Lab, migration
from tests.migrations.traffic import Traffic, writers

ALTER = "ALTER TABLE cdr MODIFY COLUMN account BIGINT NOT NULL"
PROBE = (
    "SELECT data_type = 'bigint' FROM information_schema.columns"
    " WHERE table_schema = DATABASE() AND table_name = 'cdr' AND column_name = 'account'"
)


class Plain:
    """As much of a server as the copy asks for."""

    def __init__(self, database: Database) -> None:
        self.connection = Connection.open(database)
        self.kept: list[Holder] = []

    def presence(self, statement: Statement) -> Presence:
        return probed(self.connection, statement) or Presence(effect=Effect.UNKNOWN)

    def free(self, tables: Sequence[str]) -> bool:
        return not self.kept

    def holders(self, tables: Sequence[str], *, older: float = 1.0) -> list[Holder]:
        return self.kept


class Bench:
    """A session, a table, and what was reported."""

    def __init__(self, database: Database, limits: Limits | None = None) -> None:
        self.database = database
        self.server = Plain(database)
        self.events: list[Event] = []
        server: Any = self.server
        self.session = Session(
            server=server,
            who=Who(run_id="r", host="h", pid=1),
            budget=Budget(limits=limits or Limits(), clock=Clock()),
            report=Report(self.events.append),
        )

    def fill(self, rows: int = 20_000) -> None:
        self.server.connection.execute(
            "CREATE TABLE cdr"
            " (id INT PRIMARY KEY AUTO_INCREMENT, account INT NOT NULL, note VARCHAR(40), KEY (account))"
        )
        self.server.connection.execute(
            f"INSERT INTO cdr (account, note) SELECT seq % 100, md5(seq) FROM seq_1_to_{rows}"
        )

    def copy(self, sql: str = ALTER, probe: str = PROBE) -> None:
        statement = Statement(sql=sql, probe=probe)
        migration = Migration(
            number=961,
            name="wider",
            database="b",
            phase=Phase.NON_BLOCKING,
            up=(statement,),
            strategy=Strategy.ONLINE_COPY,
        )
        online_copy(self.session, migration, statement, "0961-wider")

    def one(self, query: str) -> Any:
        row = self.server.connection.one(query)
        return row and row[0]

    def leftovers(self) -> list[str]:
        connection = self.server.connection
        tables = connection.execute("SHOW TABLES LIKE '%updater%'").rows
        triggers = connection.execute("SHOW TRIGGERS").rows
        return [str(row[0]) for row in (*tables, *triggers)]


@pytest.fixture
def bench(mariadb: Database) -> Iterator[Bench]:
    made = Bench(mariadb)
    yield made
    made.server.connection.close()


class Books:
    """Writers that keep books of what the server acknowledged."""

    def __init__(self) -> None:
        self.inserted: set[int] = set()
        self.deleted: set[int] = set()
        self.updated: dict[int, int] = {}
        self._lock = threading.Lock()

    def write(self, connection: Connection, number: int) -> None:
        kind = number // 2 % 3
        if kind == 0:
            connection.execute("INSERT INTO cdr (account, note) VALUES (%s, 'new')", (number,))
            (made,) = connection.one("SELECT LAST_INSERT_ID()") or (0,)
            with self._lock:
                self.inserted.add(made)
        elif kind == 1:
            id = number % 5000 + 1
            connection.execute("UPDATE cdr SET account = %s WHERE id = %s", (number, id))
            with self._lock:
                self.updated[id] = number
        else:
            id = 10_000 + number % 5000
            if connection.execute("DELETE FROM cdr WHERE id = %s", (id,)).changed:
                with self._lock:
                    self.deleted.add(id)


def test_no_row_is_lost_while_others_write(bench: Bench) -> None:
    bench.fill()
    books = Books()
    traffic: Traffic
    with writers(bench.database, books.write) as traffic:
        bench.copy()
        more = traffic.acknowledged + 50
        while traffic.acknowledged < more and not traffic.failures:
            time.sleep(0.01)
    assert traffic.failures == []
    rows = dict(bench.server.connection.execute("SELECT id, account FROM cdr").rows)
    assert books.inserted and books.deleted and books.updated
    assert set(rows) == (set(range(1, 20_001)) | books.inserted) - books.deleted
    assert all(rows[id] == value for id, value in books.updated.items())
    assert bench.one(PROBE) == 1 and bench.leftovers() == []
    assert traffic.longest < 10
    assert [e.data["done"] for e in bench.events if e.kind is Kind.PROGRESS][-1] == 100


def test_again_does_nothing(bench: Bench) -> None:
    bench.fill(100)
    bench.copy()
    bench.server.connection.execute("INSERT INTO cdr (account) VALUES (4294967296)")
    bench.events.clear()
    bench.copy()
    assert bench.events == []
    assert bench.one("SELECT max(account) FROM cdr") == 4294967296


def test_the_password_is_on_no_command_line_and_its_file_is_gone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.fill(100)
    seen: dict[str, Any] = {}
    real = core.run.run

    def watched(*argv: str, **options: Any) -> Result:
        seen["argv"] = argv
        file = Path(argv[-1].removeprefix("F=").split(",")[0])
        seen.update(mode=file.stat().st_mode & 0o777, text=file.read_text(), file=file)
        return real(*argv, **options)

    monkeypatch.setattr("migrations.copy_tool.run", watched)
    bench.copy()
    secret = bench.database.password()
    assert secret in seen["text"] and not any(secret in word for word in seen["argv"])
    assert seen["mode"] == 0o600 and not seen["file"].parent.exists()


def test_a_password_with_every_kind_of_character(bench: Bench, tmp_path: Path) -> None:
    bench.fill(100)
    odd = "a\"b'c\\d #;=,é"
    file = tmp_path / "password"
    file.write_text(odd)
    file.chmod(0o600)
    user = bench.database.database[:20]
    bench.server.connection.execute(f"CREATE USER {user} IDENTIFIED BY %s", (odd,))
    bench.server.connection.execute(f"GRANT ALL ON *.* TO {user}")
    try:
        other = Bench(replace(bench.database, user=user, password_file=file))
        other.copy()
        other.server.connection.close()
        assert bench.one(PROBE) == 1
    finally:
        bench.server.connection.execute(f"DROP USER {user}")


@pytest.mark.parametrize(
    ("schema", "sql", "why"),
    [
        (["CREATE TABLE child (c INT, FOREIGN KEY (c) REFERENCES cdr (id))"], ALTER, "foreign keys point at cdr"),
        (["ALTER TABLE cdr ADD FOREIGN KEY (account) REFERENCES other (id)"], ALTER, "cdr has foreign keys"),
        (["CREATE TRIGGER t BEFORE INSERT ON cdr FOR EACH ROW SET NEW.note = 'x'"], ALTER, "cdr has triggers"),
        (["ALTER TABLE cdr MODIFY id INT, DROP PRIMARY KEY, ADD UNIQUE (note)"], ALTER, "cdr has no primary key"),
        ([], "ALTER TABLE gone MODIFY a INT", "the table gone does not exist"),
        ([], "ALTER TABLE cdr ADD UNIQUE (account)", "could get lost"),
        ([], "ALTER TABLE cdr RENAME COLUMN note TO remark", "could get lost"),
        ([], "CREATE INDEX i ON cdr (note)", "only ALTER TABLE"),
    ],
)  # fmt: skip
def test_refused(bench: Bench, schema: list[str], sql: str, why: str) -> None:
    bench.fill(10)
    bench.server.connection.execute("CREATE TABLE other (id INT PRIMARY KEY)")
    bench.server.connection.execute("DELETE FROM cdr")
    for each in schema:
        bench.server.connection.execute(each)
    with pytest.raises(MigrationFailed, match="cannot be done by online copy") as caught:
        bench.copy(sql, "SELECT 0")
    assert why in caught.value.what[0]


ROWS = "SELECT GROUP_CONCAT(CONCAT(id, '=', note) ORDER BY id) FROM cdr"
UNIQUE = "ALTER TABLE cdr MODIFY note VARCHAR(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin, ADD UNIQUE (note)"


@pytest.mark.parametrize(
    ("schema", "sql", "why"),
    [
        ([], "ALTER TABLE cdr MODIFY note VARCHAR(3)", "not all values fit"),
        ([], "ALTER TABLE cdr MODIFY account TINYINT NOT NULL", "ended with"),
        (["ALTER TABLE cdr MODIFY id INT"], "ALTER TABLE cdr ADD n SERIAL", "the unique key n is new"),
        ([UNIQUE], "ALTER TABLE cdr CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci", "note changes"),
        ([UNIQUE], "ALTER TABLE cdr MODIFY note VARCHAR(40) COLLATE utf8mb4_general_ci", "note changes"),
        ([UNIQUE], "ALTER TABLE cdr MODIFY note VARCHAR(30) COLLATE utf8mb4_bin", "note changes"),
        (["ALTER TABLE cdr MODIFY account BIGINT, ADD UNIQUE (account)"], "ALTER TABLE cdr MODIFY account DOUBLE",
         "account changes"),
    ],
)  # fmt: skip
def test_what_does_not_fit_or_becomes_the_same_is_refused_and_no_row_changes(
    bench: Bench, schema: list[str], sql: str, why: str
) -> None:
    bench.fill(2)
    connection = bench.server.connection
    connection.execute("UPDATE cdr SET note = IF(id = 1, 'aaaa', 'AAAA'), account = 1000 + id")
    for each in schema:
        connection.execute(each)
    form, rows = connection.one("SHOW CREATE TABLE cdr"), bench.one(ROWS)
    with pytest.raises(MigrationFailed) as caught:
        bench.copy(sql, "SELECT 0")
    assert why in "\n".join((str(caught.value), *caught.value.what))
    assert (connection.one("SHOW CREATE TABLE cdr"), bench.one(ROWS)) == (form, rows)
    assert rows == "1=aaaa,2=AAAA" and bench.leftovers() == []


def test_a_unique_key_may_grow(bench: Bench) -> None:
    bench.fill(100)
    bench.server.connection.execute(UNIQUE)
    bench.copy(
        "ALTER TABLE cdr MODIFY id BIGINT AUTO_INCREMENT, MODIFY note VARCHAR(80) COLLATE utf8mb4_bin",
        "SELECT data_type = 'bigint' FROM information_schema.columns"
        " WHERE table_schema = DATABASE() AND table_name = 'cdr' AND column_name = 'id'",
    )
    assert bench.one("SELECT COUNT(*) FROM cdr") == 100


def test_what_is_written_meanwhile_is_not_cut_off_either(bench: Bench) -> None:
    """Whatever mode the server's default is: the triggers keep the tool's."""
    bench.fill(10)
    bench.server.connection.execute("UPDATE cdr SET note = 'abc'")
    refused: list[SqlError] = []

    def write(name: str) -> None:
        if name == "migrate:copied":
            with Connection.open(bench.database) as other:
                other.execute("SET SESSION sql_mode = ''")
                try:
                    other.execute("UPDATE cdr SET note = 'abcdef' WHERE id = 1")
                except SqlError as error:
                    refused.append(error)

    mode = bench.one("SELECT @@GLOBAL.sql_mode")
    bench.server.connection.execute("SET GLOBAL sql_mode = ''")
    faults.arm(write)
    try:
        bench.copy(
            "ALTER TABLE cdr MODIFY note VARCHAR(3)",
            "SELECT character_maximum_length = 3 FROM information_schema.columns"
            " WHERE table_schema = DATABASE() AND table_name = 'cdr' AND column_name = 'note'",
        )
    finally:
        faults.arm(None)
        bench.server.connection.execute("SET GLOBAL sql_mode = %s", (mode,))
    assert refused and bench.one("SELECT note FROM cdr WHERE id = 1") == "abc"


def test_the_tool_says_no(bench: Bench) -> None:
    bench.fill(100)
    with pytest.raises(MigrationFailed, match="pt-online-schema-change ended with") as caught:
        bench.copy("ALTER TABLE cdr CHANGE COLUMN note remark VARCHAR(40)", "SELECT 0")
    assert any("--check-alter failed" in line for line in caught.value.what)
    assert bench.leftovers() == []


def test_the_server_says_no(bench: Bench) -> None:
    bench.fill(100)
    with pytest.raises(SqlError, match="nothing"):
        bench.copy("ALTER TABLE cdr MODIFY COLUMN nothing BIGINT", "SELECT 0")
    assert bench.leftovers() == []


def test_no_space(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.fill(1000)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("migrations.copy_fit.shutil.disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(NoSpace, match="no space for a copy of cdr"):
        bench.copy()
    assert bench.leftovers() == []


def test_an_idle_transaction_holds_up_the_triggers_but_not_the_writers(bench: Bench) -> None:
    """The worst case: nobody knew of the transaction beforehand."""
    bench.fill(2000)

    def write(connection: Connection, number: int) -> None:
        connection.execute("UPDATE cdr SET account = account + 1 WHERE id = %s", (number % 2000 + 1,))

    with Connection.open(bench.database) as idle, writers(bench.database, write) as traffic:
        idle.execute("BEGIN")
        idle.execute("SELECT COUNT(*) FROM cdr")
        with pytest.raises(SqlError) as caught:
            bench.copy()
        assert caught.value.reason is Reason.LOCKED
        assert traffic.longest < 10 and not traffic.failures
        idle.execute("ROLLBACK")
        bench.copy()
    assert bench.one(PROBE) == 1 and bench.leftovers() == []


def test_an_idle_transaction_that_is_known_is_waited_for(bench: Bench) -> None:
    bench.fill(100)
    bench.session.budget = Budget(limits=Limits(deadline=1.5), clock=Clock())
    bench.server.kept = [Holder(id="7", who="billing@h", seconds=60, idle=True, certain=True)]
    with pytest.raises(MigrationStopped, match="deadline") as caught:
        bench.copy()
    assert "billing@h, session 7" in caught.value.what[0]
    assert bench.leftovers() == []


def test_the_deadline_ends_the_tool(bench: Bench) -> None:
    bench.fill(400_000)
    bench.session.budget = Budget(limits=Limits(deadline=0.8), clock=Clock())
    with pytest.raises(MigrationStopped, match=r"the deadline of 0\.8 s has passed"):
        bench.copy()
    assert bench.leftovers() == [] and bench.one(PROBE) == 0


def test_a_server_that_is_too_busy(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.fill(20_000)
    monkeypatch.setattr(
        copy_tool, "_load_limits", lambda *_: ["--critical-load=Threads_running=1", "--recursion-method=none"]
    )
    with Connection.open(bench.database) as other:
        thread = threading.Thread(target=lambda: other.execute("SELECT SLEEP(4)"))
        thread.start()
        with pytest.raises(MigrationStopped, match="too busy"):
            bench.copy()
        thread.join()
    assert bench.leftovers() == []


def test_a_connection_of_the_tool_that_is_killed(bench: Bench) -> None:
    bench.fill(100_000)
    stop = threading.Event()

    def kill() -> None:
        with Connection.open(bench.database) as killer:
            while not stop.is_set():
                rows = killer.execute(
                    "SELECT id FROM information_schema.processlist WHERE info LIKE '%copy nibble%'"
                    " AND info NOT LIKE '%processlist%'"
                ).rows
                for (id,) in rows:
                    try:
                        killer.execute(f"KILL CONNECTION {id}")
                    except SqlError:
                        continue
                time.sleep(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        bench.copy()  # it may come through, by its own new tries
    except (SqlError, MigrationFailed):
        pass
    finally:
        stop.set()
        thread.join()
    assert bench.leftovers() == []
    bench.copy()
    assert bench.one("SELECT COUNT(*) FROM cdr") == 100_000 and bench.one(PROBE) == 1


@pytest.mark.parametrize("place", ["migrate:copied", "migrate:swapped", "migrate:old-kept"])
def test_killed_at_a_point_and_run_again(bench: Bench, place: str) -> None:
    bench.fill(3000)
    checksum = bench.one("SELECT SUM(CRC32(CONCAT(id, account, note))) FROM cdr")

    class Cut(BaseException):
        pass

    def cut(name: str) -> None:
        if name == place:
            raise Cut

    faults.arm(cut)
    try:
        with pytest.raises(Cut):
            bench.copy()
    finally:
        faults.arm(None)
    bench.copy()
    assert bench.leftovers() == [] and bench.one(PROBE) == 1
    assert bench.one("SELECT SUM(CRC32(CONCAT(id, account, note))) FROM cdr") == checksum


def test_killed_in_the_midst_of_copying_the_tool_ends_and_the_rest_is_cleared(bench: Bench) -> None:
    """kill -9 of our process: the tool dies with it, writers go on, and the next run begins by clearing up."""
    bench.fill(200_000)
    code = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path.cwd())!r})
        from pathlib import Path
        from core.sql import Database, Engine
        from tests.migrations.test_online_copy import Bench
        Bench(Database(engine=Engine.MARIADB, database={bench.database.database!r}, user={bench.database.user!r},
              socket=Path({str(bench.database.socket)!r}),
              password_file=Path({str(bench.database.password_file)!r}))).copy()
    """)

    def write(connection: Connection, number: int) -> None:
        connection.execute("UPDATE cdr SET note = %s WHERE id = %s", (str(number), number % 1000 + 1))

    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as child:
        copying = (
            "SELECT 1 FROM information_schema.processlist WHERE info LIKE '%copy nibble%' AND id <> CONNECTION_ID()"
        )
        wait_for(lambda: bench.one(copying))
        os.kill(child.pid, signal.SIGKILL)
    wait_for(lambda: not tools(bench.database))
    assert bench.leftovers() != []
    with writers(bench.database, write) as traffic:
        bench.copy()
    assert traffic.failures == []
    assert bench.leftovers() == [] and bench.one(PROBE) == 1
    assert bench.one("SELECT COUNT(*) FROM cdr") == 200_000


def tools(database: Database) -> list[str]:
    """The tool's processes that work on this database."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_bytes()
        except OSError:
            continue
        if b"pt-online-schema-change" in words and database.database.encode() in words:
            found.append(each.parent.name)
    return found


@pytest.mark.parametrize("user", ["ours", "billing"])
def test_clearing_up_ends_no_session_of_an_application(bench: Bench, user: str) -> None:
    """While the tool's trigger runs for it, its session shows the trigger's statement, which names the copy."""
    bench.fill(10)
    database, other = bench.database, f"b{bench.database.database}"
    connection, new = bench.server.connection, f"`{database.database}`.`_updater_0961_new`"
    connection.execute(f"CREATE TABLE {new} LIKE cdr")
    connection.execute(
        f"CREATE TRIGGER pt_osc_x_ins AFTER INSERT ON cdr FOR EACH ROW REPLACE INTO {new} (id, account, note)"
        " VALUES (NEW.id, NEW.account, SLEEP(2))"
    )
    connection.execute(f"CREATE USER {other} IDENTIFIED BY %s", (database.password(),))
    connection.execute(f"GRANT ALL ON *.* TO {other}")
    statement = "INSERT INTO cdr (account) VALUES (1)"
    if user == "billing":
        statement = f"INSERT LOW_PRIORITY IGNORE INTO {new} (account) VALUES (SLEEP(2))"
    failures: list[SqlError] = []

    def use() -> None:
        with Connection.open(replace(database, user=other if user == "billing" else database.user)) as session:
            try:
                session.execute(statement)
            except SqlError as error:
                failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    try:
        wait_for(lambda: bench.one(
            "SELECT 1 FROM information_schema.processlist WHERE info LIKE '%0961%' AND id <> CONNECTION_ID()"
        ))  # fmt: skip
        with suppress(SqlError):  # it may meet the lock of that session
            clear(connection, Copy(schema=database.database, table="cdr", alter="", number=961))
    finally:
        thread.join()
        connection.execute(f"DROP USER {other}")
    assert failures == []


def test_old_rows_beside_a_table_that_is_not_what_it_should_be(bench: Bench) -> None:
    bench.fill(10)
    bench.server.connection.execute("CREATE TABLE _updater_0961_old (id INT)")
    with pytest.raises(MigrationFailed, match="not what the statement asks for") as caught:
        bench.copy()
    assert "_updater_0961_old" in caught.value.state
    assert bench.leftovers() == ["_updater_0961_old"]


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.01)


# -- under the runner itself


def test_in_the_story_of_a_run(mariadb: Database) -> None:
    lab = Lab(
        mariadb,
        migration(1, ["CREATE TABLE cdr (id INT PRIMARY KEY, account INT NOT NULL)", "INSERT INTO cdr VALUES (1, 1)"]),
        migration(2, [ALTER], strategy=Strategy.ONLINE_COPY),
    )
    assert lab.run() == ["0001-m1", "0002-m2"]
    assert lab.run() == []
    with Connection.open(mariadb) as connection:
        assert connection.one(PROBE) == (1,)
        assert connection.execute("SHOW TABLES LIKE '%\\_old'").rows == []
        assert connection.execute("SHOW TRIGGERS").rows == []


@pytest.mark.parametrize("place", ["migrate:intended", "migrate:copied", "migrate:swapped", "migrate:old-kept"])
def test_a_run_that_dies_there_is_gone_on_with(mariadb: Database, place: str) -> None:
    lab = Lab(
        mariadb,
        migration(1, ["CREATE TABLE cdr (id INT PRIMARY KEY, account INT NOT NULL)", "INSERT INTO cdr VALUES (1, 1)"]),
        migration(2, [ALTER], strategy=Strategy.ONLINE_COPY),
    )
    lab.run(migrations=lab.migrations[:1])

    class Cut(BaseException):
        pass

    def cut(name: str) -> None:
        if name == place:
            raise Cut

    server = open_server(mariadb)
    faults.arm(cut)
    try:
        with pytest.raises(Cut):
            lab.run(server=server)
    finally:
        faults.arm(None)
        server.close()
    assert lab.run() == ["0002-m2"]
    with Connection.open(mariadb) as connection:
        assert connection.one(PROBE) == (1,)
        assert connection.execute("SHOW TABLES LIKE '\\_updater%'").rows == []
        assert connection.execute("SHOW TRIGGERS").rows == []
        assert connection.execute("SELECT id, account FROM cdr").rows == [(1, 1)]
