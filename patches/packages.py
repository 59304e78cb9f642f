"""The operator's own packages: kept, decided on for a release, tried on its root, installed into it.

Nothing is kept or installed that one of the operator's trusted keys has not signed: there is no option to go around it.
The signature is checked when a package is added, and again before it is installed, so that a key that was taken away no
longer counts.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError, ModificationConflict, NotReady, SignatureInvalid
from core.faults import point
from core.files import write_atomic
from core.release import Release
from core.report import Report
from patches import packages_transaction as transaction
from patches.lifetime import Lifetime
from patches.packages_faults import conflict, overwritten, ways_out
from patches.packages_intake import digest, files_of, refuse_others
from patches.packages_keys import keyring
from patches.packages_rpm import Database, Header, database_of, reader
from patches.packages_solve import Choice, Package, State, blamed, choose, in_words, known_as
from patches.registry import Entry, Kind, Registry

STEP = "packages"
_NOTHING = "nothing was changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A package that was added, or was there already (`new` is false)."""

    package: Package
    signer: str
    new: bool


class Packages:
    """The carried packages of a node. `keys`: directory of the trusted OpenPGP keys."""

    def __init__(self, registry: Registry, keys: Path) -> None:
        self._registry = registry
        self._keys = keys

    # -- what is carried

    def all(self) -> list[Package]:
        """All carried packages, in the order in which they were added."""
        return [package_of(entry) for entry in self._registry.entries(Kind.PACKAGE)]

    def named(self, word: str) -> list[Package]:
        """The packages that the operator means by a name, name-version-release, or nevra. Raises ConfigError."""
        known = self.all()
        found = [package for package in known if known_as(package, word)]
        if not found:
            raise ConfigError(
                f"no carried package is called {word}",
                what=[package.name for package in known][:20] or "no packages are carried",
                state=_NOTHING,
                next="updater rpm list",
            )
        return found

    def add(
        self, paths: Sequence[Path], *, lifetime: Lifetime | None = None, reason: str = "", replace: bool = False
    ) -> list[Added]:
        """Carry package files, or all packages of a directory, from now on. All or none: every one is checked first.

        Raises SignatureInvalid naming each package without a good signature, ConfigError, NotPermitted, OSError.
        """
        files = list(files_of(paths))
        with tempfile.TemporaryDirectory(prefix="updater-rpm-") as scratch:
            # What is checked is what is kept: a copy, under a name in which rpm sees no pattern and no option.
            copies = [Path(shutil.copyfile(path, Path(scratch, f"{n:04}.rpm"))) for n, path in enumerate(files)]
            refuse_others(files, copies)
            signers = self._signers(copies, [path.name for path in files])
            headers = reader().headers(copies)
            known = {package.name: package for package in self.all()}
            self._refuse_doubles(files, headers, copies, known, replace)
            added = []
            for header, copy, signer in zip(headers, copies, signers, strict=True):
                before = known.get(header.nevra)
                if before is not None and before.entry.blob == digest(copy):
                    added.append(Added(package=before, signer=signer, new=False))
                    continue
                entry = self._registry.add(
                    Kind.PACKAGE,
                    header.nevra,
                    lifetime=lifetime,
                    reason=reason,
                    facts={"header": _kept(header), "signed_by": signer},
                    content=copy,
                    replace=before is not None,
                )
                known[header.nevra] = package_of(entry)  # a file may be named twice
                added.append(Added(package=known[header.nevra], signer=signer, new=True))
        return added

    def remove(self, word: str, *, why: str = "") -> list[Package]:
        """Carry the packages that are meant no longer. Raises ConfigError."""
        found = self.named(word)
        for package in found:
            self._registry.remove(Kind.PACKAGE, package.name, why=why)
        return found

    def expire(self, word: str, until: str, *, reason: str = "") -> list[Package]:
        """End the lifetime of the packages that are meant at a release or build. Raises ConfigError."""
        found = self.named(word)
        return [
            package_of(self._registry.expire(Kind.PACKAGE, package.name, until, reason=reason)) for package in found
        ]

    # -- what becomes of them in a release

    def decide(self, target: Release, root: Path, without: Collection[str] = ()) -> list[Choice]:
        """What becomes of each package in the release whose root this is. Nothing is tried yet: see `examine`.

        Raises ConfigError when `without` has a name that is none's, NotReady when the root's database cannot be read.
        """
        for word in without:
            self.named(word)
        packages = self.all()
        database = database_of(root) if packages else None
        installed = reader().installed(database) if database is not None else []
        return choose(packages, target, installed, without)

    def recall(self, names: Collection[str]) -> list[Choice]:
        """The choices of a plan as it was recorded: these packages, and no others, also where one was removed since."""
        found = {entry.name: entry for entry in self._registry.entries(Kind.PACKAGE, ended=True)}
        known = [package_of(found[name]) for name in names if name in found]
        return [Choice(package=package, state=State.CARRIED, why="as planned") for package in known]

    def examine(self, choices: Sequence[Choice], root: Path) -> None:
        """Make sure that what is to be carried can be installed into the root, which is not changed.

        Raises ModificationConflict with every package that cannot, the rule it breaks and the ways out;
        SignatureInvalid when a key was taken away since; NotReady when a kept copy is damaged.
        """
        wanted = [each.package for each in choices if each.state in (State.CARRIED, State.CONFLICTING)]
        faults = [(each.package, each.why) for each in choices if each.state is State.CONFLICTING]
        if not wanted:
            return
        database = _database(root, wanted)
        with self._checked(wanted) as files:
            installed = reader().installed(database)
            for problem in transaction.try_install(database, files):
                words = in_words(problem, wanted, installed)
                faults += [(package, words) for package in blamed(problem, wanted, installed) or wanted]
            faults += overwritten(database, wanted, reader().headers(files))
        if faults:
            raise conflict(faults)

    def install(self, choices: Sequence[Choice], root: Path, report: Report) -> str:
        """Install what is to be carried into the root, in one transaction; returns a line on it.

        Raises ModificationConflict naming package and scriptlet; the slot has then to be written anew, as it has after
        a cut: NotReady says so when it is run again. When all went well, running it again does nothing.
        """
        if _torn(root):
            raise NotReady(
                "an earlier installation of packages into this slot was cut short",
                what="some of them are there, perhaps without what their scriptlets do",
                state="the slot is marked bad",
                next="updater abort    then stage again: the image is written anew",
            )
        present = self._present(choices, root)
        missing = [package for package in _carried(choices) if package.name not in present]
        if missing:
            database = _database(root, missing)
            with self._checked(missing) as files:
                mark = _mark(database)
                write_atomic(mark, "")
                point(f"{STEP}:transaction")
                transaction.install(database, files, [package.name for package in missing], report, STEP)
                point(f"{STEP}:installed")
                mark.unlink()
        return f"{len(_carried(choices))} installed"

    def is_installed(self, choices: Sequence[Choice], root: Path) -> bool:
        """Whether all that is to be carried is in the root's database, and no installation was cut short."""
        return not _torn(root) and {package.name for package in _carried(choices)} <= self._present(choices, root)

    def _present(self, choices: Sequence[Choice], root: Path) -> set[str]:
        database = database_of(root) if _carried(choices) else None
        return {each.nevra for each in reader().installed(database)} if database is not None else set()

    # -- inside

    @contextmanager
    def _checked(self, packages: Sequence[Package]) -> Iterator[list[Path]]:
        """The kept copies, whole by their hash and well signed."""
        files = [self._registry.blob(package.entry) for package in packages]
        self._signers(files, [package.name for package in packages])
        yield files

    def _signers(self, files: Sequence[Path], names: Sequence[str]) -> list[str]:
        if not files:
            return []
        with keyring(self._keys) as ring:
            signatures = ring.check(files)
        bad = [f"{name}: {each.why}" for name, each in zip(names, signatures, strict=True) if not each.good]
        if bad:
            raise SignatureInvalid(
                f"{'a package is' if len(bad) == 1 else f'{len(bad)} packages are'} not signed by a trusted key",
                what=bad,
                state=_NOTHING,
                next=[f"ls {self._keys}    the keys that are trusted", "rpmsign --addsign FILE    sign it yourself"],
            )
        return [each.signer for each in signatures]

    def _refuse_doubles(
        self,
        files: Sequence[Path],
        headers: Sequence[Header],
        copies: Sequence[Path],
        known: dict[str, Package],
        replace: bool,
    ) -> None:
        seen: dict[str, str] = {}
        for path, header, copy in zip(files, headers, copies, strict=True):
            content = digest(copy)
            before = known.get(header.nevra)
            other = seen.setdefault(header.nevra, content) != content
            if other or (before is not None and before.entry.blob != content and not replace):
                raise ConfigError(
                    f"{header.nevra} is carried already, with other content"
                    if before
                    else f"{header.nevra} comes twice",
                    what=f"{path}: a package of this version with other bytes",
                    state=_NOTHING,
                    next="updater rpm add FILE --replace" if before else (),
                )


def states(choices: Sequence[Choice], root: Path) -> list[Choice]:
    """The choices as they came true in a root: what is in its database is `INSTALLED`."""
    database = database_of(root)
    present = {each.nevra for each in reader().installed(database)} if database is not None else set()
    return [
        dataclasses.replace(choice, state=State.INSTALLED, why="installed")
        if choice.package.name in present
        else choice
        for choice in choices
    ]


def size_of(choices: Sequence[Choice]) -> int:
    """Bytes that the packages to be carried take when installed; the slot has to have them free beside the image."""
    return sum(package.header.size for package in _carried(choices))


def outcomes(choices: Sequence[Choice], root: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """What became of the packages in a root, as the registry records it: name, state, facts."""
    return [(choice.package.name, str(choice.state), {"why": choice.why}) for choice in states(choices, root)]


# -- inside


def package_of(entry: Entry) -> Package:
    """The package of an entry."""
    facts: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in entry.facts["header"].items()
        if key in Header.__dataclass_fields__  # another release's agent may have noted more
    }
    return Package(entry=entry, header=Header(**facts))


def _kept(header: Header) -> dict[str, object]:
    """The header as JSON, without what only the transaction needs."""
    return asdict(dataclasses.replace(header, files=(), overwriting=(), requires=()))


def _carried(choices: Sequence[Choice]) -> list[Package]:
    return [choice.package for choice in choices if choice.state is State.CARRIED]


def _database(root: Path, packages: Sequence[Package]) -> Database:
    database = database_of(root)
    if database is None:
        raise ModificationConflict(
            "packages cannot be carried to this release: it has no RPM database",
            what=[package.name for package in packages],
            state=_NOTHING,
            next=["updater rpm platform TREE    when the release is built", *ways_out(packages)],
        )
    return database


def _mark(database: Database) -> Path:
    """There while a transaction is under way: rpm can neither undo one nor go on with it."""
    return database.root / database.path.lstrip("/") / ".updater-unfinished"


def _torn(root: Path) -> bool:
    database = database_of(root)
    return database is not None and _mark(database).exists()
