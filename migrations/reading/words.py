"""The words of a statement, and a reader that goes over them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from core.sql import Engine
from migrations.changes import Change, Verb

#: Pairs that rules ask for as one.
_PAIRS: Final = frozenset({("NOT", "NULL"), ("PRIMARY", "KEY"), ("FOREIGN", "KEY"), ("NOT", "VALID"), ("ON", "UPDATE")})

_SPACE_OR_LINE: Final = re.compile(r"\s+|--[^\n]*")
_MYSQL_LINE: Final = re.compile(r"\s+|--(?=\s|$)[^\n]*|#[^\n]*")


class Stuck(Exception):
    """These words are not in our grammar."""


@dataclass(frozen=True, slots=True)
class Word:
    """`text`: what it says (a quoted name without its quotes). `upper`: in capitals, but empty for strings and quoted
    names, which are never keywords. `start` and `end`: where it stands, the end not included.
    """

    text: str
    upper: str
    start: int
    end: int
    string: bool = False

    @property
    def nameable(self) -> bool:
        """Whether it can be a name: quoted, or a word that begins like one."""
        return not self.string and (not self.upper or self.upper[0].isalpha() or self.upper[0] == "_")


def words_of(sql: str, engine: Engine) -> list[Word]:
    """The words of one statement, without semicolons at its end. Raises Stuck when something between the words would
    be read by the server but not by us (executable comments, for example); SqlUnreadable from the tokenizer.
    """
    from sqlglot.tokens import TokenType

    from migrations.text import tokens

    found: list[Word] = []
    position = 0
    for token in tokens(sql, engine):
        begin, position = position, token.end + 1
        if token.token_type is TokenType.STRING and sql[begin:position].strip() == token.text.strip():
            found += _words_from(begin, sql[begin:position], engine)
            continue
        _only_comments(sql[begin : token.start], engine)
        raw = sql[token.start : position]
        if token.token_type is TokenType.IDENTIFIER:
            found.append(Word(token.text, "", token.start, position))
        elif token.token_type is TokenType.NUMBER:
            found.append(Word(raw, raw.upper(), token.start, position))
        elif not re.fullmatch(r"[\w$]+(\s+[\w$]+)*|[^\w\s'\"$]+", raw):
            found.append(Word(token.text, "", token.start, position, string=True))
        else:
            found += [
                Word(
                    _folded(match[0], engine), match[0].upper(), token.start + match.start(), token.start + match.end()
                )
                for match in re.finditer(r"\S+", raw)
            ]
    _only_comments(sql[position:], engine)
    while found and found[-1].upper == ";":
        found.pop()
    return found


def _words_from(begin: int, rest: str, engine: Engine) -> list[Word]:
    """The tokenizer gives all that follows RENAME, CALL and the like as one string, without quotes around it."""
    return [replace(each, start=each.start + begin, end=each.end + begin) for each in words_of(rest, engine)]


def _folded(text: str, engine: Engine) -> str:
    """PostgreSQL's names are small unless they are quoted."""
    return text.lower() if engine is Engine.POSTGRESQL else text


def _only_comments(gap: str, engine: Engine) -> None:
    """What stands between words must be nothing to the server, too."""
    line = _MYSQL_LINE if engine is Engine.MARIADB else _SPACE_OR_LINE
    position = 0
    while position < len(gap):
        if match := line.match(gap, position):
            position = match.end()
        elif gap.startswith("/*", position):
            if engine is Engine.MARIADB and gap.startswith(("/*!", "/*M!"), position):
                raise Stuck("a comment that the server executes")
            position = _end_of_comment(gap, position, nested=engine is Engine.POSTGRESQL)
        else:
            raise Stuck("text that is no comment to the server")


def _end_of_comment(gap: str, position: int, *, nested: bool) -> int:
    depth = 0
    for match in re.compile(r"/\*|\*/").finditer(gap, position):
        depth += (1 if nested or depth == 0 else 0) if match[0] == "/*" else -1
        if depth == 0:
            return match.end()
    raise Stuck("a comment that does not end")


class Reader:
    """Goes over words from left to right."""

    def __init__(self, sql: str, words: Sequence[Word], engine: Engine) -> None:
        self.sql = sql
        self.words = words
        self.engine = engine
        self.at = 0

    @property
    def done(self) -> bool:
        """Nothing is left."""
        return self.at >= len(self.words)

    @property
    def left(self) -> Sequence[Word]:
        """The words not yet read."""
        return self.words[self.at :]

    def peek(self, ahead: int = 0) -> str:
        """The word there in capitals; empty for strings, quoted names, and behind the end."""
        return self.words[self.at + ahead].upper if self.at + ahead < len(self.words) else ""

    def accept(self, *keywords: str) -> bool:
        """Read these words, if it is them that follow."""
        if all(self.peek(index) == keyword for index, keyword in enumerate(keywords)):
            self.at += len(keywords)
            return True
        return False

    def any_of(self, *keywords: str) -> str:
        """Read one of these words; empty when none of them follows."""
        word = self.peek()
        if word and word in keywords:
            self.at += 1
            return word
        return ""

    def expect(self, *keywords: str) -> None:
        """Read these words, or be stuck."""
        if not self.accept(*keywords):
            raise Stuck(" ".join(keywords))

    def end(self) -> None:
        """Be stuck unless all is read."""
        if not self.done:
            raise Stuck(self.rest())

    def next(self) -> Word:
        """Read any word."""
        if self.done:
            raise Stuck("nothing follows")
        self.at += 1
        return self.words[self.at - 1]

    def name(self) -> str:
        """Read a name."""
        word = self.next()
        if not word.nameable:
            raise Stuck(word.text)
        return word.text

    def qualified(self) -> str:
        """Read a name that may have its schema before it: ``schema.name``."""
        found = self.name()
        while self.accept("."):
            found += "." + self.name()
        return found

    def group(self) -> Sequence[Word]:
        """Read what stands between parentheses, which are left off."""
        self.expect("(")
        begin, depth = self.at, 1
        while depth:
            word = self.next().upper
            depth += (word == "(") - (word == ")")
        return self.words[begin : self.at - 1]

    def over(self, words: Sequence[Word]) -> Reader:
        """A reader over some of the words."""
        return Reader(self.sql, words, self.engine)

    def clauses(self, words: Sequence[Word] | None = None) -> Iterator[Reader]:
        """A reader for each part between the commas that are in no parentheses (of what is left, as a rule)."""
        depth, part = 0, list[Word]()
        for word in self.left if words is None else words:
            depth += (word.upper == "(") - (word.upper == ")")
            if depth < 0:
                raise Stuck(")")
            if word.upper == "," and not depth:
                yield self.over(part)
                part = []
            else:
                part.append(word)
        if depth:
            raise Stuck("(")
        yield self.over(part)
        if words is None:
            self.at = len(self.words)

    def names(self) -> tuple[str, ...]:
        """Read a list of columns in parentheses; of an expression, its text."""
        return tuple(_column(each) for each in self.clauses(self.group()))

    def rest(self) -> str:
        """Read all that is left, as it was written."""
        found = text_of(self.sql, self.left)
        self.at = len(self.words)
        return found

    def change(self, verb: Verb, table: str = "", name: str = "", **more: object) -> Change:
        """A change whose definition is all that is left."""
        words = keywords(self.left)
        if extra := more.pop("words", None):
            words |= frozenset(extra)  # type: ignore[call-overload]
        return Change(verb=verb, table=table, name=name, definition=self.rest(), words=words, **more)  # type: ignore[arg-type]


def _column(item: Reader) -> str:
    first = item.words[0] if item.words else None
    if first is None:
        raise Stuck("an empty list")
    return first.text if first.nameable and item.peek(1) not in (".", "::") and not _call(item) else item.rest()


def _call(item: Reader) -> bool:
    """``lower(name)`` is an expression, ``name(20)`` a prefix."""
    return item.peek(1) == "(" and not item.peek(2).isdigit()


def text_of(sql: str, words: Sequence[Word]) -> str:
    """As it was written."""
    return sql[words[0].start : words[-1].end] if words else ""


def keywords(words: Sequence[Word]) -> frozenset[str]:
    """The words in capitals that are in no parentheses, and the pairs that rules ask for."""
    depth, found = 0, list[str]()
    for word in words:
        depth -= word.upper == ")"
        if not depth and word.upper and word.upper not in ("(", ")", ","):
            found.append(word.upper)
        depth += word.upper == "("
    return frozenset(found) | {f"{a} {b}" for a, b in pairwise(found) if (a, b) in _PAIRS}
