"""The databases of two sites: a main one, its replica beside which the delta database lies, with what a billing engine
and the controller need in them.
"""

from __future__ import annotations

import secrets
import shutil
from contextlib import closing, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from core.run import run
from core.sql import Connection, Database, Engine, SqlError
from migrations.scratch import program
from tests.zdu.lab import HOME, OWN, Host, until
from tests.zdu.programs import favoured
from tests.zdu.replicalab import options, point_at
from tests.zdu.whole.services import keep
from vagrant.rehearsal.sites_charging import account_of
from zdu.standalone.schema import install_delta, install_main
from zdu.standalone.session import Binlog, Session

USER, BOOKS, DELTA = "updater", "billing", "delta"

#: Subscribers, whose table the new release changes.
SUBSCRIBERS = 20_000

_SMALL = (
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=32M",
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=8M",
    "--performance-schema=OFF",
    "--skip-name-resolve",
    "--character-set-server=utf8mb4",
    "--skip-innodb-doublewrite",
)


@dataclass(frozen=True)
class Server:
    """A MariaDB on a host. `password`: a file that is on all hosts at the same place."""

    host: Host
    password: Path

    def database(self, name: str) -> Database:
        """One of its databases, from another host's point of view."""
        return Database(
            engine=Engine.MARIADB, host=self.host.address, database=name, user=USER, password_file=self.password
        )

    def start(self, template: Path, number: int, *extra: str) -> None:
        """Start it on a copy of an initialised data directory."""
        data = self.host.directory / "db"
        data.mkdir()
        shutil.chown(data, "mysql")
        for above in (HOME, self.host.directory):
            above.chmod(0o711)  # whatever our umask: the server is not root
        run("cp", "--archive", "--reflink=auto", "--sparse=always", template / "data", data / "data")
        init = data / "init.sql"
        init.write_text(
            "SET SESSION sql_log_bin = 0;\n"
            f"CREATE USER IF NOT EXISTS {USER} IDENTIFIED BY '{self.password.read_text()}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO {USER};\n"
        )
        shutil.chown(init, "mysql")
        places = {"datadir": "data", "socket": "s", "pid-file": "pid", "init-file": "init.sql", "tmpdir": ""}
        files = [f"--{key}={OWN / 'db' / name}" for key, name in places.items()]
        listens = ("--port=3306", f"--bind-address={self.host.address}")
        argv = [
            *favoured(),
            program(Engine.MARIADB),
            "--no-defaults",
            "--user=mysql",
            *files,
            *_SMALL,
            *listens,
            *options(number),
        ]
        keep(self.host, "mariadb", [*argv, *extra])

    def answers(self) -> bool:
        """Whether it takes connections."""
        with suppress(SqlError), self.host.inside(), Connection.open(self.database("mysql")):
            return True
        return False


def password_file(directory: Path) -> Path:
    """A file with a new password."""
    path = directory / "password"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(12))
    return path


def set_up(main: Server, replica: Server, accounts: int) -> None:
    """Books on the main database, a replica that follows it, and a delta database beside that."""
    for server in (main, replica):
        until(server.answers, f"MariaDB on {server.host.name}", 60)
    with main.host.inside(), Connection.open(main.database("mysql")) as there:
        there.execute("RESET MASTER")
    with replica.host.inside():
        with Connection.open(replica.database("mysql")) as here:
            here.execute("RESET MASTER")
            point_at(replica.database("mysql"), main.database("mysql"))
            here.execute("SET SESSION gtid_domain_id = 7")
            here.execute(f"CREATE DATABASE {DELTA}")
            here.execute("START SLAVE")
        with closing(Session(replica.database(DELTA), binlog=Binlog.DOMAIN)) as delta:
            install_delta(delta)
    with main.host.inside():
        with Connection.open(main.database("mysql")) as there:
            there.execute(f"CREATE DATABASE {BOOKS}")
        with closing(Session(main.database(BOOKS))) as books:
            install_main(books)
            names = sorted({account_of(str(number), accounts) for number in range(50 * accounts)})
            assert len(names) == accounts
            limit = Decimal(1_000_000)
            books.insert("ledger_accounts", "id, credit_limit", [(name, books.put(limit)) for name in names])
            books.execute(
                "CREATE TABLE subscribers (id INT AUTO_INCREMENT PRIMARY KEY, account VARCHAR(16) NOT NULL,"
                " number VARCHAR(20) NOT NULL, tariff INT NOT NULL DEFAULT 1) ENGINE = InnoDB"
            )
            books.insert(
                "subscribers",
                "account, number",
                [(names[n % accounts], f"+431555{n:06d}") for n in range(SUBSCRIBERS)],
            )
