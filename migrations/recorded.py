"""Statements that a release was seen to send: a file of SQL, MariaDB's general log, or PostgreSQL's log in CSV form."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.errors import CatalogueInvalid
from core.sql import Engine
from migrations.text import SqlUnreadable, split

#: A line of the general log that begins an entry: when (may be left out), the connection, the command, its argument.
_GENERAL: Final = re.compile(
    r"(?:\d{6}\s+\d{1,2}:\d\d:\d\d|\d{4}-\d\d-\d\dT\S+)?\s*\t\s*(\d+) "
    r"(Query|Execute|Prepare|Connect|Quit|Init DB|Close stmt|Reset stmt|Field List|Statistics|Ping|Change user|Fetch"
    r"|Long Data|Bulk execute|Refresh|Shutdown|Error|Set option|Sleep|Binlog Dump|Kill|Debug|Processlist)(?:\t(.*))?\n?"
)
_STATEMENTS: Final = ("Query", "Execute")

_SEVERITY, _MESSAGE, _COLUMNS = 11, 13, 22
_LOGGED: Final = re.compile(r"(?:duration: [\d.]+ ms\s+)?(?:statement|execute [^:]*): (.*)", re.DOTALL)

_REPLAYED: Final = re.compile(
    r"\(*\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH|VALUES|CALL|TABLE|MERGE)\b", re.IGNORECASE
)


#: What is no place for placeholders (strings, quoted names, comments), and the placeholders.
_NO_PLACE: Final = r"'(?:[^'\\]|''|\\.)*'|\"(?:[^\"\\]|\\.)*\"|`[^`]*`|--[^\n]*|/\*.*?\*/"
_STANDARD: Final = r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/"
_MARKS: Final = {
    Engine.MARIADB: re.compile(rf"{_NO_PLACE}|(?P<mark>\?)", re.DOTALL),
    Engine.POSTGRESQL: re.compile(rf"{_STANDARD}|\$(\w*)\$.*?\$\1\$|(?P<mark>\$\d+)", re.DOTALL),
    Engine.SQLITE: re.compile(rf"{_STANDARD}|(?P<mark>\?\d*|[:@$][A-Za-z_]\w*)", re.DOTALL),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One statement and where it stands (file:line). `times`: how often it is in the file."""

    sql: str
    where: str
    times: int = 1

    @property
    def replayable(self) -> bool:
        """Whether it reads or writes rows; what else an application sends (SET, BEGIN, DDL) is left alone."""
        return _REPLAYED.match(_bare(self.sql)) is not None

    def is_open(self, engine: Engine) -> bool:
        """Whether it has placeholders instead of values: then it can be prepared, but not run."""
        return any(found["mark"] for found in _MARKS[engine].finditer(self.sql))

    def closed(self, engine: Engine) -> str:
        """The same with NULL in place of them."""
        return _MARKS[engine].sub(lambda found: "NULL" if found["mark"] else found[0], self.sql)


def read_recorded(file: Path, engine: Engine) -> list[Recorded]:
    """The statements of a file, each text once, in the order of their first lines. Raises CatalogueInvalid."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        found = list(_statements(text, file, engine))
    except (OSError, SqlUnreadable, csv.Error) as error:
        raise CatalogueInvalid(
            f"the recorded statements {file} cannot be read",
            what=str(error),
            state="nothing was started",
            next="statements that end with semicolons, MariaDB's general log, or PostgreSQL's log_destination = csvlog",
        ) from error
    once: dict[str, list[str]] = {}
    for sql, where in found:
        once.setdefault(sql, []).append(where)
    return [Recorded(sql=sql, where=places[0], times=len(places)) for sql, places in once.items()]


def _statements(text: str, file: Path, engine: Engine) -> Iterator[tuple[str, str]]:
    """Text and place of every statement."""
    if engine is Engine.MARIADB and any(_GENERAL.match(line) for line in text.splitlines()[:20]):
        entries = _general_log(text)
    elif engine is Engine.POSTGRESQL and _is_csv_log(text):
        entries = _csv_log(text)
    else:
        entries = ((piece.sql, piece.line) for piece in split(text, engine))
    for sql, line in entries:
        if sql.strip():
            yield sql.strip().rstrip(";").rstrip(), f"{file.name}:{line}"


def _general_log(text: str) -> Iterator[tuple[str, int]]:
    """The argument of a statement goes on until the next entry begins."""
    current: list[str] | None = None
    begun = 0
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        found = _GENERAL.match(line)
        if found is None:
            if current is not None:
                current.append(line)
            continue
        if current is not None:
            yield "".join(current), begun
        current = [found[3] or "", "\n"] if found[2] in _STATEMENTS else None
        begun = number
    if current is not None:
        yield "".join(current), begun


def _is_csv_log(text: str) -> bool:
    row = next(csv.reader(io.StringIO(text)), [])
    return len(row) >= _COLUMNS and row[_SEVERITY].isupper()


def _csv_log(text: str) -> Iterator[tuple[str, int]]:
    rows = csv.reader(io.StringIO(text))
    begun = 1
    for row in rows:
        if len(row) > _MESSAGE and row[_SEVERITY] == "LOG" and (found := _LOGGED.fullmatch(row[_MESSAGE])):
            yield found[1], begun
        begun = rows.line_num + 1


def _bare(sql: str) -> str:
    """Without the comments before its first word."""
    return re.sub(r"\A(\s+|--[^\n]*(\n|\Z)|#[^\n]*(\n|\Z)|/\*.*?\*/)*", "", sql, flags=re.DOTALL)
