"""What comes in as a package file, before anything believes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from core.errors import ConfigError
from patches.packages_rpm import MAGIC


def files_of(paths: Sequence[Path]) -> Iterator[Path]:
    """The package files that are meant: files, and the built packages of directories. Raises ConfigError."""
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(each for each in path.glob("*.rpm") if not each.name.endswith(".src.rpm"))
        if not found:
            raise ConfigError(f"there are no packages in {path}", what="no *.rpm file", state="nothing was changed")
        yield from found


def refuse_others(files: Sequence[Path], copies: Sequence[Path]) -> None:
    """Raise ConfigError for what is no package, or a source package. `copies` are read, `files` are named."""
    for path, copy in zip(files, copies, strict=True):
        with copy.open("rb") as file:
            lead = file.read(8)
        if lead[:4] != MAGIC:
            raise ConfigError(f"{path} is not an RPM package", state="nothing was changed", next=f"file {path}")
        if lead[6:8] == b"\0\1":
            raise ConfigError(
                f"{path} is a source package", what="only built packages are carried", state="nothing was changed"
            )


def digest(path: Path) -> str:
    """BLAKE3 of a file, in hex."""
    from blake3 import blake3

    return blake3().update_mmap(path).hexdigest()
