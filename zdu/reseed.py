"""A replica that was seeded anew from a backup of its main database: from where it follows
(docs/zdu-databases.md, “Seeding a replica anew”).
"""

from __future__ import annotations

from core.errors import DatabaseFailed, ZduRefused
from core.sql import Connection, Database
from zdu import gtid

#: What mariadb-backup leaves in the data directory: file of the binary log, offset, and GTID position.
INFO = ("mariadb_backup_binlog_info", "xtrabackup_binlog_info")


def position_of(info: str) -> str:
    """The GTID position in mariadb-backup's file. Raises DatabaseFailed where there is none."""
    words = info.split()
    try:
        if len(words) == 3 and gtid.parse(words[2]):
            return words[2]
    except ValueError:
        pass
    raise DatabaseFailed(
        "the backup does not say at which GTID it was made",
        what=info.strip()[:200] or "the file is empty",
        state="nothing was changed",
        next="log_bin must be on where the backup is made",
    )


def follow(here: Database, main: Database, position: str) -> None:
    """Have a database that holds a backup follow the main database, from the backup's position on, read-only. `main`:
    as the replica reaches it, with the user and the password that replicate.

    Raises ZduRefused where replication is set up there already, SqlError.
    """
    with Connection.open(here) as connection:
        if connection.execute("SHOW ALL SLAVES STATUS").rows:
            raise ZduRefused(
                f"{here} replicates already",
                what="a database that was just seeded does not",
                state="nothing was changed",
                next="if it was seeded all the same: RESET SLAVE ALL",
            )
        connection.execute("SET GLOBAL read_only = 1")
        # Its binary log knows of what its own users were made with: nothing that anybody follows.
        connection.execute("RESET MASTER")
        connection.execute("SET GLOBAL gtid_slave_pos = %s", (position,))
        connection.execute(
            "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = %s, MASTER_USER = %s, MASTER_PASSWORD = %s, "
            "MASTER_USE_GTID = slave_pos",
            (main.host, main.port or 3306, main.user, main.password()),
        )
        connection.execute("START SLAVE")
