"""The application's data on the lab's node: an SQLite database on the data partition, what each release migrates in it,
and the program with which each release reads it, in its own way.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from core.release import Release

#: On the running node.
PLACE = PurePosixPath("/data/acme/billing.sqlite")

NODE_TOML = f"""
[databases.billing]
engine = "sqlite"
path = "{PLACE}"
"""

ACCOUNTS = 500

#: What the releases from MR96 on bring: a column that is filled in batches, then a change that stops other queries.
CATALOGUE = {
    "catalogue.toml": '[databases.billing]\nengine = "sqlite"\n',
    "0961-balance-in-micros.toml": """\
database = "billing"
phase = "non-blocking"
summary = "balances as whole numbers"

[[up]]
sql = "ALTER TABLE accounts ADD COLUMN micros INTEGER"

[[up]]
[up.batch]
table = "accounts"
key = "id"
statement = "UPDATE accounts SET micros = balance * 1000000 WHERE id > :low AND id <= :high"
rows = 100
pause = 0.01
""",
    "0962-no-account-twice.toml": """\
database = "billing"
phase = "blocking"
summary = "a name is given once"

[[up]]
sql = "CREATE UNIQUE INDEX accounts_name ON accounts (name)"

[[down]]
sql = "DROP INDEX accounts_name"
""",
}

_PROGRAM = """\
#!/usr/bin/python3 -I
import sqlite3
accounts, balance = sqlite3.connect("{place}").execute("{query}").fetchone()
print(f"{release} reads {{accounts}} accounts, {{balance:.2f}}")
"""


def answer(release: str) -> str:
    """What /usr/bin/acme-balance prints where the data is whole, and the release can read it."""
    return f"{release} reads {ACCOUNTS} accounts, {ACCOUNTS * (ACCOUNTS + 1) / 8:.2f}"


def program(release: str) -> str:
    """What /usr/bin/acme-balance is in a release: MR95 reads the old column, the later ones read the new one."""
    column = "balance" if Release.parse(release).number < 96 else "micros / 1000000.0"
    return _PROGRAM.format(place=PLACE, release=release, query=f"SELECT count({column}), sum({column}) FROM accounts")


def catalogue(release: str, into: Path) -> Path | None:
    """The release's catalogue of migrations, written into a directory that is made; None where it has none."""
    if Release.parse(release).number < 96:
        return None
    into.mkdir(parents=True)
    for name, text in CATALOGUE.items():
        (into / name).write_text(text)
    return into


def fresh() -> bytes:
    """The database as MR95 made it."""
    with TemporaryDirectory(prefix="updater-data-") as scratch:
        path = Path(scratch, "billing.sqlite")
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT NOT NULL, balance NUMERIC NOT NULL)")
        rows = ((number, f"acme-{number}", number / 4) for number in range(1, ACCOUNTS + 1))
        db.executemany("INSERT INTO accounts VALUES (?, ?, ?)", rows)
        db.commit()
        db.close()
        return path.read_bytes()
