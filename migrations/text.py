"""SQL text cut into statements, by the tokenizer of each engine's dialect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from core.sql import Engine

if TYPE_CHECKING:
    from sqlglot.tokens import Token

#: sqlglot's names of the dialects.
DIALECT: Final = {Engine.MARIADB: "mysql", Engine.POSTGRESQL: "postgres", Engine.SQLITE: "sqlite"}

_PROBE: Final = "probe:"


class SqlUnreadable(ValueError):
    """The text does not even fall into words (a string that does not end, for example)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One statement, without the semicolon at its end. `line`: where it begins, from 1. `probe`: the query of the
    comment ``-- probe: …`` above it.
    """

    sql: str
    line: int = 1
    probe: str = ""


def tokens(text: str, engine: Engine) -> list[Token]:
    """The words of the text. Raises SqlUnreadable."""
    from sqlglot import Dialect
    from sqlglot.errors import TokenError

    try:
        return list(Dialect.get_or_raise(DIALECT[engine]).tokenize(text))
    except TokenError as error:
        raise SqlUnreadable(str(error).splitlines()[0]) from error


def split(text: str, engine: Engine) -> list[Piece]:
    """The statements of a file, which end with semicolons. Bodies of procedures and triggers are not understood: each
    belongs into a `sql` of its own. Raises SqlUnreadable.
    """
    from sqlglot.tokens import TokenType

    pieces: list[Piece] = []
    current: list[Token] = []
    for token in tokens(text, engine):
        if token.token_type is TokenType.SEMICOLON:
            pieces += [_piece(text, current)] if current else []
            current = []
        else:
            current.append(token)
    return [*pieces, *([_piece(text, current)] if current else [])]


def single(text: str, engine: Engine) -> Piece:
    """The whole text as one statement. Raises SqlUnreadable when there is none in it."""
    words = tokens(text, engine)
    if not words:
        raise SqlUnreadable("there is no statement in it")
    piece = _piece(text, words)
    return Piece(sql=piece.sql.rstrip(";").rstrip(), line=piece.line, probe=piece.probe)


def _piece(text: str, words: Sequence[Token]) -> Piece:
    probe = next((c.strip() for c in words[0].comments if c.strip().lower().startswith(_PROBE)), "")
    sql = text[words[0].start : words[-1].end + 1]
    line = text.count("\n", 0, words[0].start) + 1
    return Piece(sql=sql, line=line, probe=probe[len(_PROBE) :].strip().rstrip(";"))
