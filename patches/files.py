"""Copying the operator's files from the running root into another one, without ever leaving that other root."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from core.files import inside


def copy_into(paths: Iterable[Path], source: Path, target: Path) -> list[Path]:
    """Copy files and directories (absolute `paths` within `source`) to the same places within `target`.

    Owner, mode, times and extended attributes are kept; what is there already is replaced, other files in the same
    directories stay. Symlinks are copied as such. Parents are followed as a chroot into `target` would follow them.
    Sockets, pipes and devices are passed over. Returns the paths copied. Raises OSError.
    """
    copied: list[Path] = []
    for path in paths:
        origin = source / path.relative_to("/")
        if not os.path.lexists(origin):
            continue
        place = inside(target, path.parent)
        _make_parents(source, path.parent, target, place)
        _copy(origin, place / path.name)
        copied.append(path)
    return copied


def _make_parents(source: Path, path: Path, target: Path, place: Path) -> None:
    """Create the missing parents with the owner and mode that they have in the source."""
    missing = []
    while not place.exists():
        missing.append((source / path.relative_to("/"), place))
        path, place = path.parent, place.parent
    for origin, directory in reversed(missing):
        directory.mkdir()
        _keep(origin, directory)


def _copy(origin: Path, place: Path) -> None:
    mode = origin.lstat().st_mode
    if stat.S_ISDIR(mode):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            place.unlink()
        place.mkdir(exist_ok=True)
        _keep(origin, place)
        for child in sorted(origin.iterdir()):
            _copy(child, place / child.name)
    elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        temporary = place.with_name(f".{place.name}.updater")
        temporary.unlink(missing_ok=True)
        shutil.copyfile(origin, temporary, follow_symlinks=False)
        _keep(origin, temporary)
        temporary.replace(place)


def _keep(origin: Path, place: Path) -> None:
    found = origin.lstat()
    os.chown(place, found.st_uid, found.st_gid, follow_symlinks=False)
    shutil.copystat(origin, place, follow_symlinks=False)
