"""Where things stand in the files of a catalogue, and what their comments say to the linter."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from migrations.catalogue import Migration

#: ``-- lint: ignore RULE reason`` in SQL, ``# lint: ignore RULE reason`` in TOML.
_IGNORE: Final = re.compile(r"(?:#|--)\s*lint:\s*ignore\s+([a-z][a-z-]*)[\s:]*(.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A line of a file; the file's name is relative to the catalogue."""

    file: str
    line: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A rule that is not to be applied: to the whole migration, or to the statement that begins at or behind the line
    (in a file of SQL).
    """

    rule: str
    reason: str
    place: Place


class Places:
    """The files of one catalogue."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._lines = cache(self._read)
        self._raw = cache(self._parse)

    def of(self, migration: Migration, where: str = "") -> Place:
        """The place of an action (`where` as the catalogue has it), or of the migration."""
        own = f"{migration.id}.toml"
        if found := re.fullmatch(r"(.+):(\d+)", where):
            return Place(file=found[1], line=int(found[2]))
        if found := re.fullmatch(r".+: (up|down)\[(\d+)\]", where):
            return Place(file=own, line=self._entry(own, found[1], int(found[2])))
        return Place(file=own)

    def key(self, migration: Migration, key: str) -> Place:
        """The place of a key of the migration; its first line if it is not there."""
        own = f"{migration.id}.toml"
        for number, line in enumerate(self._lines(own), 1):
            if re.match(rf"\s*{key}\s*=", line):
                return Place(file=own, line=number)
        return Place(file=own)

    def says(self, migration: Migration, key: str) -> bool:
        """Whether the migration's file has the key."""
        return not self.directory or key in self._raw(f"{migration.id}.toml")

    def ignored(self, migration: Migration) -> list[Ignored]:
        """What its comments, and those of the SQL files that it names, say of rules."""
        own = f"{migration.id}.toml"
        names = {own} | {self.of(migration, each.where).file for each in (*migration.up, *migration.down)}
        return [
            Ignored(rule=found[1], reason=found[2].strip(), place=Place(file=name, line=number))
            for name in sorted(names)
            for number, line in enumerate(self._lines(name), 1)
            if (found := _IGNORE.search(line))
        ]

    def _entry(self, name: str, side: str, index: int) -> int:
        lines = self._lines(name)
        tables = [n for n, line in enumerate(lines, 1) if re.match(rf"\s*\[\[\s*{side}\s*\]\]", line)]
        if index < len(tables):
            return tables[index]
        return next((n for n, line in enumerate(lines, 1) if re.match(rf"\s*{side}\s*=", line)), 1)

    def _read(self, name: str) -> tuple[str, ...]:
        if self.directory is None:
            return ()
        try:
            return tuple((self.directory / name).read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError):
            return ()

    def _parse(self, name: str) -> dict[str, Any]:
        try:
            return tomllib.loads("\n".join(self._lines(name)))
        except tomllib.TOMLDecodeError:
            return {}
