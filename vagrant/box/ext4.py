"""Files put into an ext4 image without mounting it, so that nobody has to be root."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from core.run import run
from vagrant.tree import File, Files


def put(image: Path, files: Files) -> None:
    """Put files into the image, by absolute path: with their mode, as root's. One that exists is replaced, directories
    are made. Raises ValueError when not all of it arrived.
    """
    with TemporaryDirectory(prefix="updater-box-") as scratch:
        script: list[str] = []
        for number, (name, thing) in enumerate(sorted(files.items())):
            _plain(name)
            parents = [str(parent) for parent in PurePosixPath(name).parents][:-1]
            script += [f"mkdir {parent}" for parent in reversed(parents) if not _there(image, parent)]
            script += [f"rm {name}"] if _there(image, name) else []
            if isinstance(thing, File):
                content = Path(scratch, str(number))
                content.write_bytes(thing.content.encode() if isinstance(thing.content, str) else thing.content)
                script += [f"write {content} {name}", f"set_inode_field {name} mode 0{0o100000 | thing.mode:o}"]
                script += [f"set_inode_field {name} {owner} 0" for owner in ("uid", "gid")]
            else:
                _plain(thing.target)
                script.append(f"symlink {name} {thing.target}")
        commands = Path(scratch, "commands")
        commands.write_text("\n".join(dict.fromkeys(script)) + "\n")
        run("debugfs", "-w", "-f", commands, image, timeout=300)
    missing = [name for name, thing in files.items() if isinstance(thing, File) and read(image, name) is None]
    if missing:
        raise ValueError(f"not written into {image}: {', '.join(missing)}")


def read(image: Path, name: str) -> bytes | None:
    """The content of a file in the image; None when it is not there."""
    if not _there(image, name):
        return None
    with TemporaryDirectory(prefix="updater-box-") as scratch:
        out = Path(scratch, "out")
        run("debugfs", "-R", f"dump {name} {out}", image, timeout=60)
        return out.read_bytes() if out.exists() else None


def mode(image: Path, name: str) -> int:
    """The permission bits of a file in the image."""
    said = run("debugfs", "-R", f"stat {name}", image, timeout=60).stdout
    return int(said.partition("Mode:")[2].split()[0], 8)


def check(image: Path) -> None:
    """Raises CommandFailed when the filesystem has a fault."""
    run("e2fsck", "-f", "-n", image, timeout=300)


def _there(image: Path, name: str) -> bool:
    said = run("debugfs", "-R", f"stat {name}", image, timeout=60, check=False)
    return "Inode:" in said.stdout


def _plain(name: str) -> None:
    if not name or any(c.isspace() or c == '"' for c in name):
        raise ValueError(f"{name!r} is no path that debugfs can be told")


def available() -> bool:
    """Whether this machine has what is needed."""
    return all(shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") for name in ("debugfs", "e2fsck"))
