"""Replacing several files of a root, all or none, also across a crash.

While it goes on, a journal outside of the root lists the places. Each file that is replaced keeps its old inode under a
second name beside it until all are done, so restoring is a rename and brings back everything of it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.faults import point
from core.files import fsync_dir, write_atomic
from patches.files import copy_identity
from patches.roots import Refused, place_in

#: Says in the root that the journal is about it.
_MARKER = ".updater-patching"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a file is to become. `before`: its bytes (None: not there), `data_after` likewise, `mode` its permissions.
    `like`: the file whose owner and attributes it gets. `names`: who wants it so.
    """

    place: Path
    path: str
    before: bytes | None
    data_after: bytes | None
    mode: int
    like: Path | None = None
    names: tuple[str, ...] = ()

    @property
    def data(self) -> bytes:
        """The bytes to go on with."""
        return self.data_after or b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """A file that was changed: BLAKE3 (hex) before and after (None: not there), and by which patches."""

    path: str
    before: str | None
    after: str | None
    patches: tuple[str, ...]


def replace_all(root: Path, contents: Iterable[Content], journal: Path) -> list[Replaced]:
    """Put all contents in place; on any failure none. Raises OSError, with everything as it was."""
    wanted = [each for each in contents if each.before is not None or each.data_after is not None]
    places = [
        {"path": str(each.place.relative_to(root)), "was": os.path.lexists(each.place), "made": _missing(root, each)}
        for each in wanted
    ]
    if not places:
        return []
    for each in wanted:  # names of ours that are there before we began are nobody's
        _kept(each.place).unlink(missing_ok=True)
        _fresh(each.place).unlink(missing_ok=True)
    token = secrets.token_hex(8)
    write_atomic(root / _MARKER, token, mode=0o600)
    record = {"token": token, "places": places}
    write_atomic(journal, json.dumps(record), mode=0o600)
    point("patch:begun")
    try:
        for each in wanted:
            _replace(each)
            point("patch:replaced")
    except Exception:
        _restore(root, places)
        _forget(root, journal)
        raise
    for directory in sorted({each.place.parent for each in wanted}):
        fsync_dir(directory)
    point("patch:all-replaced")
    write_atomic(journal, json.dumps(record | {"done": True}), mode=0o600)
    point("patch:committed")
    _tidy(root, places)
    _forget(root, journal)
    return [
        Replaced(path=each.path, before=_hash(each.before), after=_hash(each.data_after), patches=each.names)
        for each in wanted
    ]


def recover(root: Path, journal: Path) -> None:
    """End what a crash interrupted: back to the files as they were, or, if all were replaced, tidied up."""
    try:
        record = json.loads(journal.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    if _token(root) == record["token"]:  # else the root was written anew since, and none of it is in there
        if record.get("done"):
            _tidy(root, record["places"])
        else:
            _restore(root, record["places"])
    _forget(root, journal)


def _replace(each: Content) -> None:
    place = each.place
    if os.path.lexists(place):
        os.link(place, _kept(place), follow_symlinks=False)
        point("patch:kept")
    if each.data_after is None:
        place.unlink()
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = _fresh(place)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(each.data_after)
        out.flush()  # now: a write takes capabilities away
        like = each.like and (_kept(each.like) if _kept(each.like).exists() else each.like)
        if like is not None:
            copy_identity(like, fresh)
        os.fchmod(out.fileno(), each.mode)
        os.fsync(out.fileno())
    point("patch:written")
    fresh.replace(place)


def _restore(root: Path, places: Iterable[dict[str, Any]]) -> None:
    for record in reversed(list(places)):
        with suppress(Refused):
            place = place_in(root, record["path"])
            if os.path.lexists(_kept(place)):
                _kept(place).replace(place)
                _kept(place).unlink(missing_ok=True)  # two names of one file: then a rename does nothing
            elif not record["was"]:
                place.unlink(missing_ok=True)
            _fresh(place).unlink(missing_ok=True)
            for made in reversed(record["made"]):
                with suppress(OSError):  # somebody else's files are in it by now
                    place_in(root, made).rmdir()
            if place.parent.is_dir():
                fsync_dir(place.parent)


def _tidy(root: Path, places: Iterable[dict[str, Any]]) -> None:
    for record in places:
        with suppress(Refused):
            _kept(place_in(root, record["path"])).unlink(missing_ok=True)


def _token(root: Path) -> str:
    marker = root / _MARKER
    return marker.read_text(errors="replace") if marker.is_file() and not marker.is_symlink() else ""


def _forget(root: Path, journal: Path) -> None:
    (root / _MARKER).unlink(missing_ok=True)
    fsync_dir(root)
    journal.unlink(missing_ok=True)
    fsync_dir(journal.parent)


def _missing(root: Path, each: Content) -> list[str]:
    """The directories that will be made for it, outermost first."""
    made = []
    here = each.place.parent
    while here != root and not here.exists():
        made.append(str(here.relative_to(root)))
        here = here.parent
    return made[::-1]


def _kept(place: Path) -> Path:
    return place.with_name(f".{place.name}.updater-before")


def _fresh(place: Path) -> Path:
    return place.with_name(f".{place.name}.updater-after")


def _hash(data: bytes | None) -> str | None:
    from blake3 import blake3

    return None if data is None else blake3(data).hexdigest()
