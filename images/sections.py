"""Sections of a bundle: a directory as a tar whose bytes depend on names, executable bits and contents only."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path, PurePosixPath

from core.errors import BundleInvalid, ConfigError


def pack(path: Path, at: int) -> bytes:
    """A file's bytes, or a tar of the directory: sorted, owned by root, all times `at` (seconds since 1970).

    Raises ConfigError for anything in it but files and directories.
    """
    if path.is_file():
        return path.read_bytes()
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for each in sorted(path.rglob("*")):
            if each.is_symlink() or not (each.is_file() or each.is_dir()):
                raise ConfigError("a section holds files and directories only", what=f"{each} is neither")
            member = tarfile.TarInfo(each.relative_to(path).as_posix())
            member.mtime = at
            member.uname = member.gname = "root"
            member.mode = 0o755 if each.is_dir() or each.stat().st_mode & 0o100 else 0o644
            if each.is_dir():
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                data = each.read_bytes()
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return target.getvalue()


def unpack(data: bytes, target: Path) -> None:
    """Unpack a packed directory into `target`, which must exist and be empty. Everything is looked at before anything
    is written: only files and directories, nothing outside.

    Raises BundleInvalid; OSError when it cannot be written.
    """
    # tarfile's own filters came after Python 3.11.2
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members = archive.getmembers()
            for member in members:
                path = PurePosixPath(member.name)
                inside = not path.is_absolute() and ".." not in path.parts and path.parts and "\0" not in member.name
                if not inside or not (member.isreg() or member.isdir()):
                    raise BundleInvalid("a section cannot be unpacked", what=f"not allowed in it: {member.name!r:.200}")
            contents = [(member, _content(archive, member)) for member in members]
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise BundleInvalid("a section cannot be unpacked", what=str(error)[:300]) from error
    for member, content in contents:
        path_in = target / member.name
        if member.isdir():
            path_in.mkdir(parents=True, exist_ok=True)
            continue
        path_in.parent.mkdir(parents=True, exist_ok=True)
        path_in.write_bytes(content)
        path_in.chmod(0o755 if member.mode & 0o100 else 0o644)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member) if member.isreg() else None
    content = file.read() if file is not None else b""
    if member.isreg() and len(content) != member.size:
        raise ValueError(f"{member.name} is cut short")
    return content
