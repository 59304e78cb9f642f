"""The catalogue: the migrations that come with a release, read from a directory with every fault named at once.

One TOML file per migration, ``NNNN-name.toml``, beside the SQL files it names, and ``catalogue.toml`` about the
databases (docs/migrations.md has the form). Pure, except for reading the directory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

from blake3 import blake3

from core.errors import CatalogueInvalid
from core.files import inside
from core.schema import SchemaError, structure
from core.sql import Engine
from migrations.phase import Phase as Phase
from migrations.text import Piece, SqlUnreadable, single, split

T = TypeVar("T")

_NAME = re.compile(r"([0-9]{4,8})-([a-z0-9][a-z0-9-]{0,62})\.toml")
_RELEASE = re.compile(r"MR(0|[1-9][0-9]{0,5})")

#: The file that says what the databases are.
ABOUT: Final = "catalogue.toml"


class Strategy(StrEnum):
    """How a change of a table is made."""

    NATIVE = "native"  # by the engine itself
    ONLINE_COPY = "online-copy"  # by pt-online-schema-change (MariaDB)


class Direction(StrEnum):
    """Forth or back."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One SQL statement. `probe`: a query whose first value is true when its effect is there already (empty: found
    out by the engine). `where`: file and line it stands at.
    """

    sql: str
    probe: str = ""
    where: str = ""

    @property
    def checksum(self) -> str:
        """Changes when the statement does, or a comment within it (those around it, white space, and its place are
        free).
        """
        return _checksum("statement", " ".join(self.sql.split()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A change of many rows in small transactions. `statement` has ``:low`` and ``:high``: it works on the rows whose
    `key` (unique, ordered) is above `low` and not above `high`; `rows` of them at a time, `pause` seconds in between.
    `max_running`: wait while the server executes more statements than that (0: no limit).
    """

    table: str
    key: str
    statement: str
    rows: int = 1000
    pause: float = 0.05
    max_running: int = 0
    where: str = ""

    def __post_init__(self) -> None:
        for name in ("table", "key"):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$]*", getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)!r} is not a plain name")
        for mark in (":low", ":high"):
            if not re.search(rf"{mark}\b", self.statement):
                raise ValueError(f"statement: {mark} does not occur in it")
        if not 1 <= self.rows <= 100_000:
            raise ValueError("rows: must be from 1 to 100000")
        if not math.isfinite(self.pause) or self.pause < 0:
            raise ValueError("pause: must be a number of seconds, and not negative")
        if self.max_running < 0:
            raise ValueError("max_running: must not be negative")

    @property
    def checksum(self) -> str:
        """Changes when the work does; the pace is free."""
        return _checksum("batch", self.table, self.key, " ".join(self.statement.split()))


Action = Statement | Batch


@dataclass(frozen=True, kw_only=True)
class Migration:
    """One numbered change of one database. `expected`: seconds on a database of production size. `readable_from`: the
    number of the oldest release that can read the result (None: as the release policy says).
    """

    number: int
    name: str
    database: str
    phase: Phase
    up: tuple[Action, ...]
    down: tuple[Action, ...] = ()
    summary: str = ""
    expected: float = 1.0
    readable_from: int | None = None
    strategy: Strategy = Strategy.NATIVE

    @property
    def id(self) -> str:
        """As its file is called: 0961-add-xdr-index."""
        return f"{self.number:04}-{self.name}"

    @property
    def reversible(self) -> bool:
        """Whether it says how to take it back."""
        return bool(self.down)

    def actions(self, direction: Direction) -> tuple[Action, ...]:
        """What is done, in order."""
        return self.up if direction is Direction.UP else self.down

    @cached_property
    def checksum(self) -> str:
        """Changes when what is done on the way up does."""
        return _checksum(*(action.checksum for action in self.up))


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the vendor knows of a database: `version` of the oldest server in the field, `schema`: a file that makes the
    old release's schema, `queries`: a file with the statements that the old release sends.
    """

    engine: Engine
    version: str = ""
    schema: Path | None = None
    queries: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All migrations of a release, by number, and what is known of their databases."""

    migrations: tuple[Migration, ...] = ()
    databases: dict[str, About] = field(default_factory=dict)
    directory: Path | None = None

    def of(self, *phases: Phase, database: str | None = None) -> tuple[Migration, ...]:
        """The migrations of these phases (all, if none is given), in order."""
        return tuple(
            each
            for each in self.migrations
            if (not phases or each.phase in phases) and database in (None, each.database)
        )

    def engine(self, migration: Migration) -> Engine:
        """What its database runs on."""
        return self.databases[migration.database].engine


# -- the files


@dataclass(frozen=True, slots=True, kw_only=True)
class _ActionFile:
    """One entry of ``[[up]]`` or ``[[down]]``: `sql` (one statement), `file` (statements), or `batch`."""

    sql: str = ""
    file: str = ""
    probe: str = ""
    batch: Batch | None = None

    def __post_init__(self) -> None:
        if sum((bool(self.sql), bool(self.file), self.batch is not None)) != 1:
            raise ValueError("sql: give exactly one of sql, file, batch")
        if self.probe and not self.sql:
            raise ValueError(
                "probe: belongs to sql; in a file write a comment `-- probe: SELECT …` above the statement"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _MigrationFile:
    database: str
    phase: Phase
    up: tuple[_ActionFile, ...]
    down: tuple[_ActionFile, ...] = ()
    summary: str = ""
    expected: float = 1.0
    readable_from: str = ""
    strategy: Strategy = Strategy.NATIVE

    def __post_init__(self) -> None:
        if not self.up:
            raise ValueError("up: missing")
        if not math.isfinite(self.expected) or self.expected <= 0:
            raise ValueError("expected: must be a number of seconds, and more than 0")
        if self.readable_from and not _RELEASE.fullmatch(self.readable_from):
            raise ValueError("readable_from: must be a release such as MR95")


@dataclass(frozen=True, slots=True, kw_only=True)
class _AboutFile:
    engine: Engine
    version: str = ""
    schema: str = ""
    queries: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _CatalogueFile:
    databases: dict[str, _AboutFile]


def load(directory: Path) -> Catalogue:
    """Read a catalogue. Raises CatalogueInvalid that lists every fault by file and key."""
    faults: list[str] = []
    databases = _databases(directory, faults)
    migrations: list[Migration] = []
    for path in sorted(directory.glob("*.toml")):
        if path.name == ABOUT:
            continue
        found = _NAME.fullmatch(path.name)
        if found is None:
            faults.append(f"{path.name}: must be called NNNN-name.toml (small letters, digits, hyphens)")
            continue
        raw = _structured(path, _MigrationFile, faults)
        if raw is None:
            continue
        if raw.database not in databases:
            faults.append(f"{path.name}: database: {raw.database!r} is not in {ABOUT}")
            continue
        made = _migration(directory, path.name, found, raw, databases[raw.database].engine, faults)
        migrations += [made] if made else []
    migrations.sort(key=lambda each: each.number)
    for one, other in pairwise(migrations):
        if one.number == other.number:
            faults.append(f"{other.id}.toml: number {one.number} is taken by {one.id}.toml")
    if faults:
        raise CatalogueInvalid(
            f"the catalogue of migrations {directory.name} has {len(faults)} fault{'s' * (len(faults) != 1)}",
            what=faults[:50],
            state="nothing was changed",
            next="updater migrate lint DIR    after mending them",
        )
    return Catalogue(migrations=tuple(migrations), databases=databases, directory=directory)


def _databases(directory: Path, faults: list[str]) -> dict[str, About]:
    raw = _structured(directory / ABOUT, _CatalogueFile, faults)
    databases = {}
    for name, about in (raw.databases if raw else {}).items():
        paths: dict[str, Path | None] = {}
        for key, value in (("schema", about.schema), ("queries", about.queries)):
            paths[key] = _file(directory, value, f"{ABOUT}: databases.{name}.{key}", faults) if value else None
        databases[name] = About(engine=about.engine, version=about.version, **paths)
    return databases


def _migration(
    directory: Path, file: str, found: re.Match[str], raw: _MigrationFile, engine: Engine, faults: list[str]
) -> Migration | None:
    before = len(faults)
    up = tuple(_actions(directory, file, "up", raw.up, engine, faults))
    down = tuple(_actions(directory, file, "down", raw.down, engine, faults))
    if raw.strategy is Strategy.ONLINE_COPY and engine is not Engine.MARIADB:
        faults.append(f"{file}: strategy: online-copy is for MariaDB and MySQL only")
    if len(faults) > before:
        return None
    return Migration(
        number=int(found[1]),
        name=found[2],
        database=raw.database,
        phase=raw.phase,
        up=up,
        down=down,
        summary=raw.summary,
        expected=raw.expected,
        readable_from=int(raw.readable_from[2:]) if raw.readable_from else None,
        strategy=raw.strategy,
    )


def _actions(
    directory: Path, file: str, side: str, entries: tuple[_ActionFile, ...], engine: Engine, faults: list[str]
) -> Iterator[Action]:
    for index, entry in enumerate(entries):
        place = f"{file}: {side}[{index}]"
        try:
            if entry.batch is not None:
                yield Batch(**{**_fields(entry.batch), "where": place})
            elif entry.sql:
                yield _statement(single(entry.sql, engine), place, entry.probe)
            else:
                path = _file(directory, entry.file, f"{place}.file", faults)
                if path is not None:
                    for piece in split(path.read_text(encoding="utf-8"), engine):
                        yield _statement(piece, f"{entry.file}:{piece.line}", piece.probe)
        except (SqlUnreadable, OSError, UnicodeDecodeError) as error:
            faults.append(f"{place}: {error}")


def _statement(piece: Piece, where: str, probe: str) -> Statement:
    return Statement(sql=piece.sql, probe=probe or piece.probe, where=where)


def _fields(batch: Batch) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in Batch.__dataclass_fields__}


def _file(directory: Path, name: str, place: str, faults: list[str]) -> Path | None:
    """A file of the catalogue; never one outside of it."""
    try:
        path = inside(directory, name)
    except (ValueError, OSError) as error:
        faults.append(f"{place}: {error}")
        return None
    if not path.is_file():
        faults.append(f"{place}: {name} does not exist")
        return None
    return path


def _structured(path: Path, shape: type[T], faults: list[str]) -> T | None:
    import tomllib

    try:
        return structure(tomllib.loads(path.read_text(encoding="utf-8")), shape)
    except FileNotFoundError:
        faults.append(f"{path.name}: missing")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        faults.append(f"{path.name}: {error}")
    except SchemaError as error:
        faults += [f"{path.name}: {fault}" for fault in error.faults]
    return None


def _checksum(*parts: str) -> str:
    return blake3("\0".join(parts).encode()).hexdigest(length=16)
