"""What the servers' own programs are told about a server, without its password on a command line: files for our eyes
only, in a directory that goes when we do (`migrations.transient`).
"""

from __future__ import annotations

from pathlib import Path

from core.sql import DEFAULT_PORT, Database, Engine


def write_client_file(file: Path, database: Database) -> None:
    """An option file of MariaDB's programs: where the server is and who asks."""
    lines = {"user": database.user, "password": database.password(), "default-character-set": "utf8mb4"}
    if database.socket is not None:
        lines["socket"] = str(database.socket)
    else:
        lines |= {"host": database.host, "port": str(database.port or DEFAULT_PORT[Engine.MARIADB])}
    if database.tls_ca is not None:
        lines |= {"ssl-ca": str(database.tls_ca), "ssl-verify-server-cert": "1"}
    escaped = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in lines.items() if value}
    _write(file, "[client]\n" + "".join(f'{name}="{value}"\n' for name, value in escaped.items()))


def libpq(file: Path, database: Database) -> dict[str, str]:
    """The environment by which PostgreSQL's programs find the server; the password is written to `file`."""
    password = database.password().replace("\\", "\\\\").replace(":", "\\:")
    _write(file, f"*:*:*:*:{password}\n")
    port = database.port or DEFAULT_PORT[Engine.POSTGRESQL]
    if database.socket is not None and database.socket.name.startswith(".s.PGSQL."):
        port = int(database.socket.name.rpartition(".")[2])
    known = {
        "PGPASSFILE": str(file),
        "PGHOST": str(database.socket.parent if database.socket else database.host),
        "PGPORT": str(port),
        "PGUSER": database.user,
        "PGAPPNAME": "updater",
    }
    if database.tls_ca is not None:
        known |= {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": str(database.tls_ca)}
    return {name: value for name, value in known.items() if value}


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text, encoding="utf-8")
