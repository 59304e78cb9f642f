"""Reading unified diffs, git's and plain ones. Bytes, not text: a file that is patched may be in any encoding. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Final

_HUNK: Final = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)")
_GIT: Final = re.compile(rb'diff --git ("(?:[^"\\]|\\.)*"|.+?) ("(?:[^"\\]|\\.)*"|.+)')
_NOTHING: Final = b"/dev/null"
_NO_NEWLINE: Final = b"\\"
#: A file that is not there has this date in plain diffs.
_EPOCH: Final = re.compile(rb"19(?:69-12-31|70-01-01) \d\d:\d\d:00(?:\.0+)?(?: [+-]\d{4})?")
_ESCAPES: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


class DiffError(ValueError):
    """The patch cannot be read, or asks for something that is not done; the message names the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunk:
    """One hunk. `lines`: (b" ", b"-" or b"+", the line with its end). `old_start`, `new_start`: line numbers from 1;
    of an empty side, the line that it stands after.
    """

    old_start: int
    new_start: int
    lines: tuple[tuple[bytes, bytes], ...]
    section: str = ""

    @property
    def old(self) -> list[bytes]:
        """What the file must have."""
        return [line for sign, line in self.lines if sign != b"+"]

    @property
    def new(self) -> list[bytes]:
        """What it gets in its place."""
        return [line for sign, line in self.lines if sign != b"-"]

    def context(self) -> tuple[int, int]:
        """How many lines of context there are before the first and after the last change."""
        signs = b"".join(sign for sign, _ in self.lines)
        return len(signs) - len(signs.lstrip(b" ")), len(signs) - len(signs.rstrip(b" "))


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePatch:
    """What a patch does to one file. `old`, `new`: names as the patch has them, None where there is no such file
    (created, deleted); with `git` they still begin with a/ and b/ unless `bare`. Modes are git's (0o100644, 0o100755).
    """

    old: bytes | None
    new: bytes | None
    hunks: tuple[Hunk, ...] = ()
    old_mode: int | None = None
    new_mode: int | None = None
    git: bool = False
    bare: bool = False
    copied: bool = False

    @property
    def renamed(self) -> bool:
        """Whether the file gets another name (its prefixes aside)."""
        return self.git and self.bare and self.old != self.new


def split(content: bytes) -> list[bytes]:
    """The lines with their ends; only a newline ends a line."""
    lines = content.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def parse(data: bytes) -> tuple[FilePatch, ...]:
    """Read a patch: any number of files, with whatever text between them. Raises DiffError."""
    lines = split(data)
    if any(line.startswith(b"@@ -") and line.endswith(b"\r\n") for line in lines):
        # The patch itself went through a system that ends lines so; the files it is for may not.
        lines = [line[:-2] + b"\n" if line.endswith(b"\r\n") else line for line in lines]
    files = _Parser(lines).files()
    if not files:
        raise DiffError("no unified diff is in it (context diffs and ed scripts are not read)")
    return files


@dataclass(slots=True)
class _Parser:
    lines: list[bytes]
    at: int = 0
    found: list[FilePatch] = field(default_factory=list)

    def files(self) -> tuple[FilePatch, ...]:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line.startswith(b"diff --git "):
                self._git()
            elif line.startswith(b"--- ") and self._ahead(1).startswith(b"+++ ") and self._ahead(2).startswith(b"@@ "):
                self._plain()
            elif _HUNK.match(line):
                raise self._error("a hunk without the names of its file before it")
            else:
                self.at += 1
        return tuple(self.found)

    def _ahead(self, count: int) -> bytes:
        return self.lines[self.at + count] if self.at + count < len(self.lines) else b""

    def _plain(self) -> None:
        old, new = _plain_name(self._ahead(0)[4:]), _plain_name(self._ahead(1)[4:])
        if old is None and new is None:
            raise self._error("neither side names a file")
        self.at += 2
        hunks = self._hunks()
        # The date alone may be wrong: an empty side can only have empty hunks.
        if old is None and any(hunk.old for hunk in hunks):
            old = new
        if new is None and any(hunk.new for hunk in hunks):
            new = old
        self.found.append(FilePatch(old=old, new=new, hunks=hunks))

    def _git(self) -> None:
        header = self.lines[self.at].rstrip(b"\n")
        old, new = _git_names(header)
        patch = FilePatch(old=old, new=new, git=True)
        self.at += 1
        while self.at < len(self.lines):
            line = self.lines[self.at].rstrip(b"\n")
            word, _, rest = line.partition(b" ")
            if line.startswith((b"rename from ", b"copy from ")):
                copied = word == b"copy"
                patch = replace(patch, old=_unquote(line.split(b" ", 2)[2]), bare=True, copied=copied)
            elif line.startswith((b"rename to ", b"copy to ")):
                patch = replace(patch, new=_unquote(line.split(b" ", 2)[2]), bare=True)
            elif line.startswith(b"old mode "):
                patch = replace(patch, old_mode=self._mode(line))
            elif line.startswith(b"new mode "):
                patch = replace(patch, new_mode=self._mode(line))
            elif line.startswith(b"new file mode "):
                patch = replace(patch, old=None, new_mode=self._mode(line))
            elif line.startswith(b"deleted file mode "):
                patch = replace(patch, new=None, old_mode=self._mode(line))
            elif line.startswith((b"Binary files ", b"GIT binary patch")):
                raise self._error("binary changes are not carried as patches; `updater keep add` carries whole files")
            elif line.startswith(b"--- ") and self._ahead(1).startswith(b"+++ "):
                if not patch.bare:
                    patch = self._names(patch)
                self.at += 2
                patch = replace(patch, hunks=self._hunks())
                break
            elif word not in (b"index", b"similarity", b"dissimilarity"):
                break
            elif word == b"index" and rest[-7:-6] == b" ":
                self._mode(b"index mode " + rest[-6:])
            self.at += 1
        if (patch.old is None and patch.new is None) or patch.old == b"" or patch.new == b"":
            raise self._error("the names of the file cannot be made out")
        self.found.append(patch)

    def _names(self, patch: FilePatch) -> FilePatch:
        old, new = (_unquote(_cut(self._ahead(n)[4:])) for n in (0, 1))
        return replace(patch, old=None if old == _NOTHING else old, new=None if new == _NOTHING else new)

    def _mode(self, line: bytes) -> int:
        text = line.rsplit(b" ", 1)[1]
        if text not in (b"100644", b"100755", b"100600", b"100640", b"100750"):
            kinds = {b"120000": "a symlink", b"160000": "a submodule"}
            raise self._error(f"{kinds.get(text, 'mode ' + text.decode(errors='replace'))} is not carried as a patch")
        return int(text, 8)

    def _hunks(self) -> tuple[Hunk, ...]:
        hunks: list[Hunk] = []
        while self.at < len(self.lines) and self.lines[self.at].startswith(b"@@ "):
            hunks.append(self._hunk())
            if len(hunks) > 1 and hunks[-1].old_start < hunks[-2].old_start:
                raise self._error("hunks are not in the order of their lines")
        return tuple(hunks)

    def _hunk(self) -> Hunk:
        head = _HUNK.fullmatch(self.lines[self.at].rstrip(b"\n"))
        if head is None:
            raise self._error("a malformed hunk header")
        old_left, new_left = (1 if head[n] is None else int(head[n]) for n in (2, 4))
        lines: list[tuple[bytes, bytes]] = []
        self.at += 1
        while old_left > 0 or new_left > 0 or self._ahead(0).startswith(_NO_NEWLINE):
            line = self._ahead(0)
            sign, text = line[:1], line[1:]
            if sign == b"\n":  # some mailers cut the blank off empty lines of context
                sign, text = b" ", b"\n"
            if sign == _NO_NEWLINE:
                if not lines:
                    raise self._error("a remark on the end of a line that is not there")
                lines[-1] = (lines[-1][0], lines[-1][1].removesuffix(b"\n"))
            elif sign in (b" ", b"-", b"+") and sign:
                old_left -= sign != b"+"
                new_left -= sign != b"-"
                lines.append((sign, text if text.endswith(b"\n") else text + b"\n"))
            else:
                raise self._error("the hunk ends before its header says")
            if old_left < 0 or new_left < 0:
                raise self._error("the hunk is longer than its header says")
            self.at += 1
        section = head[5].decode(errors="replace").strip()
        return Hunk(old_start=int(head[1]), new_start=int(head[3]), lines=tuple(lines), section=section)

    def _error(self, what: str) -> DiffError:
        return DiffError(f"line {min(self.at, len(self.lines)) + 1}: {what}")


def _cut(name: bytes) -> bytes:
    """The name in a ``---`` or ``+++`` line, without the tab and the date that may follow."""
    name = name.rstrip(b"\r\n")
    return name if name.startswith(b'"') else name.partition(b"\t")[0]


def _plain_name(rest: bytes) -> bytes | None:
    name, _, date = rest.rstrip(b"\r\n").partition(b"\t")
    if name == _NOTHING or (date and _EPOCH.fullmatch(date.strip())):
        return None
    return _unquote(name)


def _git_names(header: bytes) -> tuple[bytes, bytes]:
    """The names of ``diff --git a/x b/x``, which only make sense where both are the same (or quoted)."""
    rest = header.removeprefix(b"diff --git ")
    half = len(rest) // 2
    if rest[half : half + 1] == b" " and rest[2:half] == rest[half + 3 :] and not rest.startswith(b'"'):
        return rest[:half], rest[half + 1 :]
    found = _GIT.fullmatch(header)
    return (_unquote(found[1]), _unquote(found[2])) if found else (b"", b"")


def _unquote(name: bytes) -> bytes:
    if len(name) < 2 or not (name.startswith(b'"') and name.endswith(b'"')):
        return name

    def plain(found: re.Match[bytes]) -> bytes:
        escape = found[1]
        return bytes([int(escape, 8) & 255]) if escape.isdigit() else _ESCAPES.get(escape, escape)

    return re.sub(rb"\\([0-7]{3}|.)", plain, name[1:-1], flags=re.DOTALL)
