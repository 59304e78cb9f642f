"""Making a patch of a file that was changed in place."""

from __future__ import annotations

import os

from core.errors import ConfigError
from patches.merge import is_binary, unified


def capture(path: str, pristine: bytes | None, current: bytes | None, *, executable: bool = False) -> bytes:
    """A patch, as git makes them, that turns the release's file into the one that is there now. None: no such file.

    Raises ConfigError where a patch cannot say it.
    """
    for content in (pristine, current):
        if content is not None and is_binary(content):
            raise ConfigError(
                f"{path} is not text, so there is no patch of it",
                state="nothing was changed",
                next=f"updater keep add {path}    carries the whole file",
            )
    if pristine == current:
        raise ConfigError(f"{path} is as in the release", state="nothing was changed")
    name = _quoted(path.lstrip("/"))
    old, new = f"a/{name}", f"b/{name}"
    head = f"diff --git {_q(old)} {_q(new)}\n"
    mode = "100755" if executable else "100644"
    if pristine is None:
        head += f"new file mode {mode}\n"
    elif current is None:
        head += f"deleted file mode {mode}\n"
    body = unified(
        pristine or b"",
        current or b"",
        "/dev/null" if pristine is None else _q(old),
        "/dev/null" if current is None else _q(new),
    )
    return head.encode() + body


def _quoted(name: str) -> str:
    """As git writes names that are not plain ASCII."""
    plain = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return "".join(
        plain[chr(c)] if chr(c) in plain else chr(c) if 0x20 <= c < 0x7F else f"\\{c:03o}" for c in os.fsencode(name)
    )


def _q(name: str) -> str:
    return f'"{name}"' if "\\" in name else name
