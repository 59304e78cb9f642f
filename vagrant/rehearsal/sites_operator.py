"""What vendor and operator of the rehearsed sites bring along: the release's migrations, and a switch for the states
of a site.
"""

from __future__ import annotations

from pathlib import Path, PurePath

#: An index and a filled column while calls are charged, then a change that stops every writer, on the emptied site.
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


def switch(directory: PurePath) -> str:
    """A program that remembers in a directory how a site stands: maintenance, standalone, billing."""
    return f"""#!/bin/sh
set -e
file={directory}/state-$1
case "$1 $2" in
    *" status") cat $file; exit;;
    "maintenance enter") word=maintenance;;
    "maintenance leave") word=open;;
    "standalone enter") word=alone; echo active > {directory}/state-billing;;
    "standalone leave") word=normal;;
    "billing active") word=active;;
    "billing standby") word=standby;;
    *) echo "$1 cannot $2" >&2; exit 2;;
esac
echo $word > $file.new
mv $file.new $file
echo "$(date +%s.%N) $word" >> $file.history
"""
