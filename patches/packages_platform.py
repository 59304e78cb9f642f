"""A package that stands for everything in a root that was not made of RPM packages (a Debian-based release).

It has no files, and provides what third-party packages ask for: programs by path, shared libraries by soname and symbol
version. With it in the root's database, their dependencies are checked as anywhere else.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from core.errors import NotReady
from core.files import inside
from core.run import run
from patches.packages_rpm import LONG, Database, database_of, need_root

_PROGRAMS = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin")
_LIBRARIES = ("lib", "lib64", "lib/*-linux-gnu*", "usr/lib", "usr/lib64", "usr/lib/*-linux-gnu*", "usr/local/lib")
#: Characters that mean nothing to a spec file.
_PLAIN = re.compile(r"[A-Za-z0-9_+.@,:/()~^\[-]+\]?")
_ELFDEPS = "/usr/lib/rpm/elfdeps"
_PLACE = "/var/lib/rpm"


def provides_of(root: Path) -> list[str]:
    """What the root's programs and libraries provide, sorted: ``/usr/bin/sh`` (and ``/bin/sh``, with a merged /usr),
    ``libc.so.6(GLIBC_2.34)(64bit)``. Raises CommandFailed.
    """
    programs = {f"/{place}/{name}" for place in _PROGRAMS for name in _programs(inside(root, place))}
    libraries = sorted({path.resolve() for place in _LIBRARIES for path in _libraries(root, place)})
    sonames: set[str] = set()
    if libraries:
        found = run(_ELFDEPS, "--provides", input="".join(f"{path}\n" for path in libraries), timeout=LONG)
        sonames.update(found.stdout.split())
    return sorted(each for each in programs | sonames if _PLAIN.fullmatch(each))


def _programs(directory: Path) -> Iterator[str]:
    if directory.is_dir():
        for path in directory.iterdir():
            if path.is_symlink() or (path.is_file() and path.stat().st_mode & 0o111):
                yield path.name


def _libraries(root: Path, place: str) -> Iterator[Path]:
    parent, _, pattern = place.rpartition("/") if "*" in place else (place, "", "")
    top = inside(root, parent)
    for directory in sorted(top.glob(pattern)) if pattern else [top]:
        if directory.is_dir() and not directory.is_symlink():
            for path in directory.glob("*.so*"):
                if path.is_file() and not path.is_symlink() and "\n" not in path.name:
                    yield path


def make_platform_rpm(root: Path, directory: Path, *, name: str = "platform", version: str = "1") -> Path:
    """Make the package for a root, in `directory`; returns its path. Needs rpmbuild. Raises CommandFailed."""
    spec = f"Name: {name}\nVersion: {version}\nRelease: 1\nSummary: What the release provides\nLicense: none\n"
    spec += "BuildArch: noarch\nAutoReqProv: no\n" + "".join(f"Provides: {each}\n" for each in provides_of(root))
    spec += "%description\nStands for all of the release that is not made of RPM packages.\n%files\n"
    with tempfile.TemporaryDirectory(prefix="updater-platform-") as scratch:
        file = Path(scratch, "platform.spec")
        file.write_text(spec, encoding="utf-8")
        where = ("--define", f"_topdir {scratch}/build", "--define", f"_rpmdir {scratch}/out")
        run("rpmbuild", "-bb", "--quiet", *where, file, timeout=LONG)
        [made] = Path(scratch, "out").rglob("*.rpm")
        target = directory / f"{name}-{version}-1.noarch.rpm"
        target.write_bytes(made.read_bytes())
    return target


def prepare(root: Path, *, version: str = "1") -> Database:
    """Give a root without RPM an RPM database with the platform package in it; nothing else of the root changes.

    For the tree of a release, before its image is made. Raises NotReady where there is a database, NotPermitted,
    CommandFailed.
    """
    need_root("prepare a root for packages")
    if database_of(root) is not None:
        raise NotReady(f"{root} has an RPM database", what="releases made of RPM packages need no platform package")
    real = root.resolve()
    place = inside(real, _PLACE)
    place.mkdir(parents=True, exist_ok=True)
    made = Database(root=real, path=f"/{place.relative_to(real)}", backend="sqlite")
    with tempfile.TemporaryDirectory(prefix="updater-platform-") as scratch:
        package = make_platform_rpm(root, Path(scratch), version=version)
        run("rpm", *made.options, "--initdb", timeout=LONG)
        run("rpm", *made.options, "-U", "--justdb", "--nosignature", package, timeout=LONG)
    return made
