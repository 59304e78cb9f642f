"""Where a path lies in a root whose content nobody vouches for."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

#: Directories of old that are symlinks into /usr in merged trees. They are followed; no other directory symlink is.
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


class Refused(ValueError):
    """A path is not followed; the message says why."""


def place_in(root: Path, path: str) -> Path:
    """The place of `path` (absolute within `root`), whose parents are real directories inside the root or missing.
    What lies at the place itself is not looked at.

    Directory symlinks are refused, for what they lead to has another name; only /bin, /sbin and /lib* → /usr/… are
    followed. Raises Refused.
    """
    parts = list(PurePosixPath("/", path).parts[1:])
    if not parts or ".." in parts or "\0" in path:
        raise Refused(f"{path!r} leads out of its directory")
    here = root
    for number, part in enumerate(parts[:-1]):
        here = here / part
        if here.is_symlink():
            target = here.readlink()
            if number == 0 and part in _MERGED and str(target).lstrip("/") == f"usr/{part}":
                here = root / "usr" / part
                if not (root / "usr").is_symlink() and not here.is_symlink():
                    continue
            raise Refused(f"goes through the symlink /{'/'.join(parts[: number + 1])} → {target}; name the real path")
        if here.exists() and not here.is_dir():
            raise Refused(f"/{'/'.join(parts[: number + 1])} is no directory")
    return here / parts[-1]
