"""Differences and three-way merges of file contents, by diffutils. Any bytes go through unchanged."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from core.run import run

_LABELS = ("ours", "base", "theirs")
_CONFLICT = re.compile(r"^<<<<<<< ours\n(.*?)^\|\|\|\|\|\|\| base\n.*?^=======\n(.*?)^>>>>>>> theirs\n", re.M | re.S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """`content`: the merge, or None when both sides changed the same lines; then `conflicts` has one line each."""

    content: bytes | None
    conflicts: tuple[str, ...] = ()


def is_binary(content: bytes) -> bool:
    """Whether it has bytes that no text has."""
    return b"\0" in content


def merge(base: bytes, ours: bytes, theirs: bytes) -> Merged:
    """The three-way merge: what each side changed against the base. Raises CommandFailed."""
    if ours in (base, theirs):
        return Merged(content=theirs)
    if theirs == base:
        return Merged(content=ours)
    if any(map(is_binary, (base, ours, theirs))):
        return Merged(content=None, conflicts=("both sides changed it, and it is not text",))
    with tempfile.TemporaryDirectory(prefix="updater-merge-") as directory:
        paths = [_written(Path(directory) / n, each) for n, each in zip(_LABELS, (ours, base, theirs), strict=True)]
        # -E and not the default: what both sides changed alike is no conflict.
        told = run("diff3", "-m", "-E", "-a", *_labels(), *paths, check=False)
        if told.code == 0:
            return Merged(content=_bytes(told.stdout))
        shown = run("diff3", "-m", "-A", "-a", *_labels(), *paths, check=False).stdout if told.code == 1 else ""
    lines = []
    for found in _CONFLICT.finditer(shown):
        mine, other = (_first(found[n]) for n in (1, 2))
        if mine != other:
            lines.append(f"near line {_line(shown, found.start())}: ours has {mine}, the release has {other}")
    return Merged(content=None, conflicts=tuple(lines) or ("both sides changed the same lines",))


def unified(old: bytes, new: bytes, old_name: str, new_name: str) -> bytes:
    """The unified diff of two texts; empty where they are equal. Raises CommandFailed."""
    if old == new:
        return b""
    with tempfile.TemporaryDirectory(prefix="updater-diff-") as directory:
        paths = [_written(Path(directory) / n, each) for n, each in (("old", old), ("new", new))]
        told = run("diff", "-u", "-a", "--label", "old", "--label", "new", *paths, check=False)
    body = _bytes(told.stdout).split(b"\n", 2)[2]
    return f"--- {old_name}\n+++ {new_name}\n".encode("utf-8", "surrogateescape") + body


def _labels() -> list[str]:
    return [word for label in _LABELS for word in ("-L", label)]


def _written(path: Path, content: bytes) -> Path:
    # What a program prints is taken as UTF-8. Each byte as the character of its number survives that in both ways.
    path.write_bytes(content.decode("latin-1").encode())
    return path


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _first(block: str) -> str:
    lines = [_bytes(line).decode("utf-8", errors="backslashreplace") for line in block.splitlines()]
    more = f" and {len(lines) - 1} more lines" if len(lines) > 1 else ""
    return f"`{lines[0]}`{more}" if lines else "nothing"


def _line(shown: str, at: int) -> int:
    """The line number in ours, of a place in a merge with its markers."""
    before = re.sub(r"^(?:\|\|\|\|\|\|\| base\n.*?^>>>>>>> theirs\n|<<<<<<< ours\n)", "", shown[:at], flags=re.M | re.S)
    return before.count("\n") + 1
