"""Scratch servers: a private MariaDB or PostgreSQL in a directory of its own, for questions and rehearsals, that is
gone afterwards whatever happens. Never the machine's own server.

It listens on a socket in its directory (with `tcp` on a free port of 127.0.0.1 instead), asks for a random password,
and runs as the engine's own user when we are root. It dies with our process, and its directory with it.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from core.errors import CommandFailed, DatabaseFailed
from core.run import Started, run, started
from core.sql import Connection, Database, Engine, SqlError
from migrations.transient import transient_directory

#: The empty database that a scratch server begins with, and the user who may do everything on it.
NAME: Final = "scratch"

#: Seconds for a server to answer, or to end.
START: Final = 60
STOP: Final = 10

#: What a server's user has to itself in a directory of ours. Short, for the path of the socket.
OWN: Final = "o"

_PACKAGE: Final = {Engine.MARIADB: "mariadb-server", Engine.POSTGRESQL: "postgresql"}
_USER: Final = {Engine.MARIADB: "mysql", Engine.POSTGRESQL: "postgres"}

#: What keeps it small and quick to start. What makes data durable stays as the server ships it.
_MARIADB: Final = (
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=32M",
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=8M",
    "--performance-schema=OFF",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--character-set-server=utf8mb4",
)
_POSTGRESQL: Final = (
    "shared_buffers=32MB",
    "max_connections=50",
    "autovacuum_naptime=5s",
    "log_statement=none",
    "dynamic_shared_memory_type=mmap",  # files in its data directory: in /dev/shm they would stay after a SIGKILL
)


class ScratchServer:
    """A scratch server's life: `start`, `stop`, `kill`, any number of times. `database` is where it listens;
    `directory` holds all that it has: `data`, its data directory, `own`, where it keeps its socket and temporary files
    (these two are its user's), and what is ours: its password and its log.
    """

    def __init__(self, engine: Engine, directory: Path, options: Sequence[str], port: int) -> None:
        self.engine = engine
        self.directory = directory
        self.data = directory / "data"
        self.own = directory / OWN
        self.log = directory / "log"
        self.options = tuple(options)
        self._process: Started | None = None
        self._life = ExitStack()
        password = directory / "password"
        where = Database(engine=engine, database=NAME, user=NAME, password_file=password, host="127.0.0.1", port=port)
        listens = self.own / ("s" if engine is Engine.MARIADB else ".s.PGSQL.5432")
        self.database = where if port else replace(where, host="", socket=listens)

    @property
    def pid(self) -> int:
        """The server's process. Raises DatabaseFailed when it does not run."""
        if self._process is None or not self._process.running:
            raise DatabaseFailed(f"the scratch server {self.engine} does not run", what=self._last_words())
        return self._process.pid

    def start(self) -> None:
        """Start it on the data that is there, and wait until it answers. Raises DatabaseFailed with its last words."""
        command = _mariadb(self) if self.engine is Engine.MARIADB else _postgresql(self)
        with ExitStack() as life:
            # Of PostgreSQL only SIGQUIT ends the whole family at once; MariaDB's shutdown has nothing to save here.
            end = signal.SIGQUIT if self.engine is Engine.POSTGRESQL else signal.SIGKILL
            running = started(*command, log_file=self.log, user=_owner(self.engine), dies_with_us=end, end=end)
            self._process = life.enter_context(running)
            self._wait()
            self._life = life.pop_all()

    def stop(self) -> None:
        """End it in good order: everything is in its files then."""
        if self._process is not None:
            self._process.end(signal.SIGINT if self.engine is Engine.POSTGRESQL else signal.SIGTERM, wait=STOP)
        self._life.close()

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.end(signal.SIGKILL, wait=STOP)
        self._life.close()

    def end(self) -> None:
        """End it quickly, for good."""
        self._life.close()

    def _wait(self) -> None:
        """Until it takes connections, and the scratch database exists."""
        assert self._process is not None
        until = time.monotonic() + START
        entrance = "postgres" if self.engine is Engine.POSTGRESQL else NAME
        while True:
            try:
                with Connection.open(replace(self.database, database=entrance)) as connection:
                    if self.engine is Engine.POSTGRESQL and not connection.one(
                        "SELECT 1 FROM pg_database WHERE datname = %s", (NAME,)
                    ):
                        connection.execute(f"CREATE DATABASE {NAME}")
                    return
            except SqlError as error:
                if not self._process.running or time.monotonic() > until:
                    raise DatabaseFailed(
                        f"the scratch server {self.engine} does not start",
                        what=[str(error), *self._last_words()],
                        state="it was private to this command; nothing else was touched",
                    ) from error
                time.sleep(0.01)

    def _last_words(self) -> list[str]:
        try:
            return self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        except OSError:
            return []


@contextmanager
def scratch_server(
    engine: Engine,
    directory: Path | None = None,
    *,
    options: Sequence[str] = (),
    tcp: bool = False,
    template: Path | None = None,
    empty: bool = False,
) -> Iterator[ScratchServer]:
    """A running server with an empty database, that may be stopped, killed and started again.

    `directory`: where its own directory is made (it must be open to the engine's user; default: the temporary one).
    `options`: more arguments for mariadbd; for postgres settings as name=value. `template`: see `make_template`.
    `empty`: neither data nor a start; the caller puts data into `data` (a backup, say) and starts it; its password is
    then the template's, or that of the server whose directory is given as one.
    Raises DatabaseFailed, or CommandFailed saying which package is missing.
    """
    program(engine)
    with transient_directory(directory, visitor=_owner(engine)) as home:
        server = ScratchServer(engine, home, options, _free_port() if tcp else 0)
        _prepare(engine, home, (template / "password").read_text() if template else secrets.token_hex(16))
        try:
            if not empty:
                if template is not None:
                    run("cp", "--archive", "--reflink=auto", "--sparse=always", template / "data", server.data)
                else:
                    _initialise(engine, home)
                server.start()
            yield server
        finally:
            server.end()


@contextmanager
def scratch(
    engine: Engine,
    directory: Path | None = None,
    *,
    options: Sequence[str] = (),
    tcp: bool = False,
    template: Path | None = None,
) -> Iterator[Database]:
    """An empty database named `scratch` on a server of its own (a file of its own with SQLite). As `scratch_server`."""
    if engine is Engine.SQLITE:
        with transient_directory(directory) as home:
            path = home / f"{NAME}.sqlite"
            path.touch(mode=0o600)
            yield Database(engine=engine, path=path)
        return
    with scratch_server(engine, directory, options=options, tcp=tcp, template=template) as server:
        yield server.database


@contextmanager
def make_template(engine: Engine, directory: Path | None = None) -> Iterator[Path]:
    """A data directory to copy for each of many scratch servers: a tenth of a second instead of two."""
    with transient_directory(directory, visitor=_owner(engine)) as home:
        _prepare(engine, home, secrets.token_hex(16))
        _initialise(engine, home)
        yield home


def program(engine: Engine, name: str = "", *, package: str = "") -> str:
    """Where a program of the engine is (default: the server itself). Raises CommandFailed naming the package."""
    names = (name,) if name else ("mariadbd", "mysqld") if engine is Engine.MARIADB else ("postgres",)
    places = [Path("/usr/sbin"), Path("/usr/bin"), Path("/usr/libexec")]
    if engine is Engine.POSTGRESQL:  # distributions keep one directory per version; the newest first
        versions = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
        places = [*sorted(versions, key=_version, reverse=True), *places]
    for place in places:
        for each in names:
            if os.access(place / each, os.X_OK):
                return str(place / each)
    raise CommandFailed(
        f"{names[0]} is not installed",
        what="the engine's own programs are needed on this machine; a server need not run",
        state="nothing was changed",
        next=f"apt-get install {package or _PACKAGE[engine]}",
    )


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in "".join(c if c.isdigit() else " " for c in str(path)).split())


def _owner(engine: Engine) -> str | None:
    """Whom the server runs as: servers refuse to be root. None: ourselves."""
    if os.geteuid() != 0 or engine is Engine.SQLITE:
        return None
    with suppress(KeyError):
        return pwd.getpwnam(_USER[engine]).pw_name
    return "nobody"


def _prepare(engine: Engine, home: Path, secret: str) -> None:
    """The password for us, and for the server. What is its user's is given away when all is written: in there root
    would follow any link that it finds.
    """
    _write(home / "password", secret)
    own = home / OWN
    own.mkdir(mode=0o700)
    if engine is Engine.MARIADB:  # said at each start, by the server itself: not on a command line
        file = own / "init.sql"
        secret = (
            f"CREATE DATABASE IF NOT EXISTS {NAME};\n"
            f"CREATE OR REPLACE USER {NAME} IDENTIFIED BY '{secret}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO {NAME} WITH GRANT OPTION;\n"
        )
    else:
        file = own / "password"
    _write(file, secret)
    _give_away(engine, file, own)


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text, encoding="ascii")


def _give_away(engine: Engine, *paths: Path) -> None:
    if (owner := _owner(engine)) is not None:
        for each in paths:
            shutil.chown(each, owner)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _initialise(engine: Engine, home: Path) -> None:
    """Make the data directory `home`/data."""
    (home / "data").mkdir(mode=0o700)
    _give_away(engine, home / "data")
    if engine is Engine.MARIADB:
        command = [
            program(engine, "mariadb-install-db"),
            "--no-defaults",
            f"--datadir={home / 'data'}",
            f"--tmpdir={home / OWN}",  # where others have theirs, it would remove what they use
            "--auth-root-authentication-method=socket",
            f"--auth-root-socket-user={_owner(engine) or pwd.getpwuid(os.geteuid()).pw_name}",
            "--skip-test-db",
            *_MARIADB,
        ]
    else:
        command = [
            program(engine, "initdb"),
            f"--pgdata={home / 'data'}",
            f"--username={NAME}",
            f"--pwfile={home / OWN / 'password'}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]
    if (owner := _owner(engine)) is not None:
        command = ["runuser", "-u", owner, "--", *command]
    run(*command, timeout=START * 2, cwd=home)


def _mariadb(server: ScratchServer) -> list[str]:
    own = server.own
    return [
        program(Engine.MARIADB),
        "--no-defaults",
        f"--datadir={server.data}",
        f"--socket={own / 's'}",
        f"--pid-file={own / 'pid'}",
        f"--tmpdir={own}",
        f"--secure-file-priv={own}",
        f"--init-file={own / 'init.sql'}",
        *_MARIADB,
        *((f"--port={server.database.port}", "--bind-address=127.0.0.1") if server.database.port else ()),
        *(("--skip-networking",) if not server.database.port else ()),
        *server.options,
    ]


def _postgresql(server: ScratchServer) -> list[str]:
    tcp = bool(server.database.port)
    settings = [
        f"unix_socket_directories={'' if tcp else server.own}",
        f"listen_addresses={'127.0.0.1' if tcp else ''}",
        f"port={server.database.port or 5432}",
        *_POSTGRESQL,
        *server.options,
    ]
    return [program(Engine.POSTGRESQL), "-D", str(server.data), *(word for each in settings for word in ("-c", each))]
