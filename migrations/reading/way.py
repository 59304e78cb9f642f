"""A statement of MariaDB's, with the way it is to be made put into it: WAIT, ALGORITHM, LOCK."""

from __future__ import annotations

from collections.abc import Sequence

from core.sql import Engine
from migrations.changes import Parsed, Verb
from migrations.ddl import parse
from migrations.reading.common import algorithm as way
from migrations.reading.common import exists, waits
from migrations.reading.words import Reader, Word, text_of, words_of


def takes_a_way(parsed: Parsed) -> bool:
    """Whether ALGORITHM and LOCK may be said of it: ALTER TABLE (but not for parts of partitions), indexes."""
    if parsed.engine is not Engine.MARIADB:
        return False
    if any(
        each.verb is Verb.UNKNOWN or (each.verb is Verb.PARTITION and each.name not in ("by", "remove"))
        for each in parsed.changes
    ):
        return False
    if all(each.verb is Verb.RENAME_TABLE for each in parsed.changes):
        return False  # done at once by itself; with an ALGORITHM the server would look at the rows
    words = [each.upper for each in words_of(parsed.sql, parsed.engine)[:4]]
    return (words[0] == "ALTER" and "TABLE" in words) or (words[0] in ("CREATE", "DROP") and _of_index(parsed))


def _of_index(parsed: Parsed) -> bool:
    return all(each.verb in (Verb.ADD_INDEX, Verb.DROP_INDEX, Verb.DROP_PRIMARY_KEY) for each in parsed.changes)


def with_way(parsed: Parsed, *, algorithm: str = "", lock: str = "", wait: int | None = None) -> str:
    """The statement with this way in place of its own; what is empty here is left to the server. `wait`: seconds for
    the lock. A statement that takes no way comes back as it is, but for the wait. Raises Stuck for what cannot be read.
    """
    said = [f"{key}={value}" for key, value in (("ALGORITHM", algorithm), ("LOCK", lock)) if value]
    waiting = f" WAIT {wait}" if wait is not None else ""
    if not takes_a_way(parsed):
        return parsed.sql
    words = words_of(parsed.sql, parsed.engine)
    if words[0].upper == "DROP":  # DROP INDEX takes no way (MariaDB 10.11), ALTER TABLE does
        return with_way(parse(_drop_index(parsed, words), parsed.engine), algorithm=algorithm, lock=lock, wait=wait)
    if words[0].upper != "ALTER":
        return f"{text_of(parsed.sql, _without(parsed, words))}{waiting} {' '.join(said)}".rstrip()
    head, clauses = _alter(parsed, words)
    first = ", ".join(said)
    body = ", ".join(text_of(parsed.sql, each) for each in clauses)
    bare_partition = any(each.verb is Verb.PARTITION for each in parsed.changes) and len(clauses) == 1
    between = " " if bare_partition and clauses[0][0].upper in ("PARTITION", "REMOVE") else ", "
    return f"{head}{waiting} {first}{between if first and body else ''}{body}"


def _alter(parsed: Parsed, words: Sequence[Word]) -> tuple[str, list[Sequence[Word]]]:
    """``ALTER TABLE t`` without its WAIT, and the clauses without ALGORITHM and LOCK."""
    reader = Reader(parsed.sql, words, parsed.engine)
    while reader.next().upper != "TABLE":
        pass
    exists(reader, {})
    reader.qualified()
    head = text_of(parsed.sql, words[: reader.at])
    waits(reader, {})
    return head, [each.words for each in reader.clauses() if not way(each.over(each.words), {})]


def _drop_index(parsed: Parsed, words: Sequence[Word]) -> str:
    """DROP INDEX … ON t, said as ALTER TABLE."""
    on = max(at for at, word in enumerate(words) if word.upper == "ON")
    table = Reader(parsed.sql, words[on + 1 :], parsed.engine)
    table.qualified()
    return f"ALTER TABLE {text_of(parsed.sql, table.words[: table.at])} {text_of(parsed.sql, words[:on])}"


def _without(parsed: Parsed, words: Sequence[Word]) -> Sequence[Word]:
    """CREATE INDEX without the way at its end."""
    end = len(words)
    for at in range(len(words) - 1, 0, -1):
        ahead, said = Reader(parsed.sql, words[at:end], parsed.engine), dict[str, str]()
        waits(ahead, said)
        if not ahead.done:
            way(ahead, said)
        if said and ahead.done:
            end = at
    return words[:end]
