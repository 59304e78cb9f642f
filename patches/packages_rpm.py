"""The seam to RPM: what a package says of itself, what is installed in a root, who signed a package.

Headers are read through rpm's Python binding where it can be imported (the system's ``python3-rpm``), through the
`rpm` command otherwise; both format them with the same query, so both give the same. What enters a root or runs
scriptlets is always the command, in a process of its own (packages_transaction): rpm changes the root directory of the
process that runs a transaction.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from core.errors import CommandFailed, NotPermitted, NotReady
from core.files import inside
from core.run import run
from patches.packages_version import Evr

#: A file that does not begin so is taken by rpm for a list of further files and URLs: it never gets such a one.
MAGIC = b"\xed\xab\xee\xdb"

_SCRIPTLETS = ("PRETRANS", "PREIN", "POSTIN", "POSTTRANS", "PREUN", "POSTUN", "VERIFYSCRIPT", "TRIGGERSCRIPTS")
_FIELD, _ITEM, _END = "\x1f", "\x1e", "\x1d"
_CONFIG_OR_GHOST = 1 | 64

#: Seconds. Packages can be large, and disks slow.
LONG = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a package says of itself. Dependencies as rpm writes them: ``name``, or ``name >= [epoch:]version-release``.

    `size`: bytes when installed. `files`: absolute paths; `overwriting`: those of them that would replace what lies
    there (no configuration files, which rpm saves, and no ghosts). `signature`: what it says it is signed with, not
    checked, or empty.
    """

    name: str
    epoch: int
    version: str
    release: str
    architecture: str
    summary: str = ""
    size: int = 0
    signature: str = ""
    provides: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    obsoletes: tuple[str, ...] = ()
    scriptlets: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    overwriting: tuple[str, ...] = ()

    @property
    def evr(self) -> Evr:
        """Epoch, version, release."""
        return Evr(self.epoch, self.version, self.release)

    @property
    def nevra(self) -> str:
        """name-[epoch:]version-release.architecture, as rpm names it in its messages."""
        return f"{self.name}-{self.evr}.{self.architecture}"


def _format(*, whole: bool) -> str:
    """The query for one package; without `whole` only what is asked of installed ones."""
    signature = "%|DSAHEADER?{%{DSAHEADER:pgpsig}}:{%|RSAHEADER?{%{RSAHEADER:pgpsig}}|}|"
    lists = ["PROVIDENEVRS", "OBSOLETENEVRS", "CONFLICTNEVRS"] + (["REQUIRENEVRS"] if whole else [])
    scriptlets = "".join(f"%|{tag}?{{{tag.lower()}{_ITEM}}}|" for tag in _SCRIPTLETS)
    fields = ["%{NAME}", "%{EPOCHNUM}", "%{VERSION}", "%{RELEASE}", "%{ARCH}", "%{SUMMARY}", "%{LONGSIZE}", signature]
    fields += [scriptlets if whole else "", f"[%{{FILEFLAGS}} %{{FILENAMES}}{_ITEM}]" if whole else ""]
    return _FIELD.join([*fields, *(f"[%{{{tag}}}{_ITEM}]" for tag in lists)]) + _END


def _parse(text: str) -> Header:
    name, epoch, version, release, architecture, summary, size, signature, *lists = text.split(_FIELD)
    scriptlets, flagged, provides, obsoletes, conflicts, *requires = (tuple(each.split(_ITEM)[:-1]) for each in lists)
    files = [(int(flags), path) for flags, _, path in (each.partition(" ") for each in flagged)]
    return Header(
        name=name,
        epoch=int(epoch),
        version=version,
        release=release,
        architecture=architecture,
        summary=summary,
        size=int(size) if size.isdecimal() else 0,
        signature=signature,
        provides=provides,
        requires=requires[0] if requires else (),
        conflicts=conflicts,
        obsoletes=obsoletes,
        scriptlets=scriptlets,
        files=tuple(path for _, path in files),
        overwriting=tuple(path for flags, path in files if not flags & _CONFIG_OR_GHOST),
    )


# -- where a root keeps its database

#: In a mount namespace of its own, so that nothing is left of it. /sys is any directory that rpm does not need.
_OVERLAY = """
mount -t tmpfs tmpfs /sys
mkdir /sys/upper /sys/work
cd "$1"
mount -t overlay -o lowerdir=.,upperdir=/sys/upper,workdir=/sys/work overlay "$1"
cd /
shift
exec "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """The database of installed packages of a root. `path`: absolute, inside `root`; no symlinks in it."""

    root: Path
    path: str
    backend: str

    @property
    def read_only(self) -> bool:
        """Whether the root is mounted so: rpm cannot even read a database there."""
        return bool(os.statvfs(self.root).f_flag & os.ST_RDONLY)

    @property
    def rpm(self) -> tuple[str, ...]:
        """An rpm command for questions to this root; where it is read-only, it sees it under an overlay in memory."""
        over = ("unshare", "--mount", "sh", "-ec", _OVERLAY, "sh", str(self.root)) if self.read_only else ()
        return (*over, "rpm", *self.options)

    @property
    def options(self) -> tuple[str, ...]:
        """What every rpm command needs to work on this root and its database."""
        return "--root", str(self.root), "--dbpath", self.path, "--define", f"_db_backend {self.backend}"


#: Fedora and its kin since 36; before, and Debian; what Debian's rpm does where nobody tells it otherwise.
_PLACES = ("usr/lib/sysimage/rpm", "var/lib/rpm", "root/.rpmdb")
_BACKENDS = {"rpmdb.sqlite": "sqlite", "Packages.db": "ndb", "Packages": "bdb"}


def database_of(root: Path) -> Database | None:
    """The database of a root, or None where it has none (a release that was not made of RPM packages)."""
    real = root.resolve()
    for place in _PLACES:
        directory = inside(real, place)
        for name, backend in _BACKENDS.items():
            if (directory / name).is_file() and not (directory / name).is_symlink():
                return Database(root=real, path=f"/{directory.relative_to(real)}", backend=backend)
    return None


# -- reading headers


class Reader(Protocol):
    """How headers are read."""

    def headers(self, paths: Sequence[Path]) -> list[Header]:
        """Of package files, in their order. Raises CommandFailed."""
        ...

    def installed(self, database: Database) -> list[Header]:
        """Of what is installed, without files, requirements and scriptlets. Raises NotReady."""
        ...


class CommandReader:
    """Through the `rpm` command."""

    def headers(self, paths: Sequence[Path]) -> list[Header]:
        if not paths:
            return []
        done = run("rpm", "-qp", "--nosignature", "--qf", _format(whole=True), *plain(paths), timeout=LONG)
        found = [_parse(each) for each in done.stdout.split(_END)[:-1]]
        if len(found) != len(paths):
            raise CommandFailed("rpm did not read all packages", what=done.stderr.splitlines())
        return found

    def installed(self, database: Database) -> list[Header]:
        try:
            done = run(*database.rpm, "-qa", "--qf", _format(whole=False), timeout=LONG)
        except CommandFailed as error:
            raise _unreadable(database, error.what) from error
        return _packages(_parse(each) for each in done.stdout.split(_END)[:-1])


class BindingReader:
    """Through rpm's Python binding."""

    def __init__(self, rpm: Any) -> None:
        self._rpm = rpm
        rpm.setVerbosity(rpm.RPMLOG_CRIT)  # what goes wrong comes as exceptions; the screen is not rpm's

    def headers(self, paths: Sequence[Path]) -> list[Header]:
        transactions = self._rpm.TransactionSet()
        transactions.setVSFlags(self._rpm._RPMVSF_NOSIGNATURES)
        found = []
        for path in plain(paths):
            with path.open("rb") as file:
                try:
                    header = transactions.hdrFromFdno(file.fileno())
                except self._rpm.error as error:
                    raise CommandFailed(f"rpm cannot read {path.name}", what=str(error)) from error
            found.append(_parse(header.format(_format(whole=True)).removesuffix(_END)))
        return found

    def installed(self, database: Database) -> list[Header]:
        if database.read_only:
            return CommandReader().installed(database)
        macros = {"_dbpath": database.path, "_db_backend": database.backend}
        for name, value in macros.items():
            self._rpm.addMacro(name, value)
        try:
            transactions = self._rpm.TransactionSet(str(database.root))
            transactions.setVSFlags(self._rpm._RPMVSF_NOSIGNATURES)
            found = transactions.dbMatch()
            headers = [_parse(each.format(_format(whole=False)).removesuffix(_END)) for each in found]
            transactions.closeDB()
        except self._rpm.error as error:
            raise _unreadable(database, [str(error)]) from error
        finally:
            for name in macros:
                self._rpm.delMacro(name)
        return _packages(headers)


@cache
def reader() -> Reader:
    """The binding where it can be imported, the command otherwise."""
    try:
        rpm = import_module("rpm")
    except Exception:  # a shim without the system's binding has errors of its own
        return CommandReader()
    return BindingReader(rpm) if hasattr(rpm, "TransactionSet") else CommandReader()


def _packages(headers: Iterable[Header]) -> list[Header]:
    """Without imported keys, which rpm lists as packages."""
    return [each for each in headers if each.name != "gpg-pubkey"]


def plain(paths: Sequence[Path]) -> list[Path]:
    """The paths, fit for rpm: it would take other files for lists, and patterns and dashes in names for its own.

    Raises CommandFailed, OSError.
    """
    for path in paths:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise CommandFailed(f"{path.name} is not an RPM package")
        if not path.is_absolute() or set(str(path)) & set("*?[]{}\\\n"):
            raise CommandFailed("rpm would misread the name of a file", what=str(path))
    return list(paths)


def _unreadable(database: Database, what: Sequence[str]) -> NotReady:
    return NotReady(
        "the package database of the release cannot be read",
        what=[f"{database.path} (form {database.backend})", *what],
        next="build the release with a database that this rpm reads (sqlite or ndb)",
    )


def need_root(purpose: str) -> None:
    """Raise NotPermitted unless we are root."""
    if os.geteuid() != 0:
        raise NotPermitted(f"only root can {purpose}", state="nothing was changed", next="run it as root (sudo)")
