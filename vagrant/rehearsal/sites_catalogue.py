"""What the rehearsed release changes in the database: an index and a filled column while calls are charged, then a
change that stops every writer, on the emptied site.
"""

from __future__ import annotations

from pathlib import Path

CATALOGUE = {
    "catalogue.toml": '[databases.billing]\nengine = "mariadb"\nversion = "10.11"\n',
    # While calls are charged: an index on the table that gets a row for each of them.
    "0961-xdr-started.toml": """
database = "billing"
phase = "non-blocking"
summary = "xDRs can be looked up by time"

[[up]]
sql = "ALTER TABLE ledger_xdrs ADD INDEX by_started (started)"

[[down]]
sql = "ALTER TABLE ledger_xdrs DROP INDEX by_started"
""",
    "0962-tariff-name.toml": """
database = "billing"
phase = "non-blocking"
summary = "tariffs have names"

[[up]]
sql = "ALTER TABLE subscribers ADD COLUMN tariff_name VARCHAR(32) NULL"

[[up]]
[up.batch]
table = "subscribers"
key = "id"
statement = "UPDATE subscribers SET tariff_name = CONCAT('tariff-', tariff) WHERE id > :low AND id <= :high"
rows = 2000
pause = 0.01

[[down]]
sql = "ALTER TABLE subscribers DROP COLUMN tariff_name"
""",
    # On the site that has been emptied: a change that stops every writer.
    "0963-longer-numbers.toml": """
database = "billing"
phase = "blocking"
summary = "numbers may be longer"
readable_from = "MR95"

[[up]]
sql = "ALTER TABLE subscribers MODIFY number VARCHAR(300) NOT NULL"
""",
}


def write_catalogue(directory: Path) -> Path:
    """What the new release changes in the database."""
    directory.mkdir()
    for name, text in CATALOGUE.items():
        (directory / name).write_text(text.lstrip())
    return directory
