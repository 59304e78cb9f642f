"""Patches against the files of a root: tried without touching anything, and applied all or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from core.errors import ConfigError, ModificationConflict
from patches.diff import DiffError, FilePatch, parse
from patches.hunks import Fit, HunkReport, apply_hunks
from patches.replace import Content, Replaced, recover, replace_all
from patches.roots import Refused, place_in

#: Nobody patches larger files by hunks; a hostile tree may have one.
LARGEST = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A patch with how it is to be taken. `strip`: leading parts of names to leave off; None: one of git's a/ and b/,
    none of others. `path`: the file it is for, or the directory that its names begin in. `fuzz`: lines of context
    that may be disregarded. `package`: whose files they are, for people.
    """

    name: str
    data: bytes
    strip: int | None = None
    path: str | None = None
    fuzz: int = 0
    package: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """How a patch stands to one file. `action`: change, create, delete, rename, copy or mode. `why`: in a conflict of
    the file as a whole.
    """

    path: str
    action: str
    fit: Fit
    hunks: tuple[HunkReport, ...] = ()
    why: str = ""
    to: str | None = None

    def conflicts(self) -> list[str]:
        """A line for each thing that does not fit."""
        lines = [f"{self.path}: {self.why}"] if self.why else []
        bad = [hunk for hunk in self.hunks if hunk.fit is Fit.CONFLICTS]
        return lines + [f"{self.path}, hunk {hunk.number} of {len(self.hunks)}: {hunk}" for hunk in bad]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchReport:
    """How a patch stands to a root."""

    name: str
    files: tuple[FileReport, ...]

    @property
    def fit(self) -> Fit:
        """Of the patch as a whole."""
        return _whole([file.fit for file in self.files])

    def conflicts(self) -> list[str]:
        """A line for each thing that does not fit."""
        return [line for file in self.files for line in file.conflicts()]

    def __str__(self) -> str:
        hunks = [hunk for file in self.files for hunk in file.hunks]
        what = f"{_count(len(self.files), 'file')}, {_count(len(hunks), 'hunk')}"
        if self.fit is Fit.CONFLICTS:
            return f"{what}: CONFLICTS"
        moved = sum(bool(hunk.offset) for hunk in hunks)
        note = f" ({_count(moved, 'hunk')} moved)" if moved and self.fit is Fit.APPLIES else ""
        return f"{what}, already in the release" if self.fit is Fit.ALREADY else f"{what}, applies cleanly{note}"


def check(patches: Iterable[Patch], root: Path) -> list[PatchReport]:
    """Try the patches on the root, each upon those before it, and change nothing. Raises ConfigError for a patch that
    cannot be read, OSError.
    """
    return _Try(root).all(patches)


def apply(patches: Sequence[Patch], root: Path, journal: Path) -> list[Replaced]:
    """Apply the patches in their order, all of them or none; returns the files with their hashes before and after.

    What is there already is passed over. `journal`: a file outside of the root; while it exists, files are being
    replaced. After a crash the next call begins by restoring them. Owner, mode and extended attributes stay.
    Raises ModificationConflict before anything is changed; OSError after everything was restored.
    """
    recover(root, journal)
    tried = _Try(root)
    reports = tried.all(patches)
    if any(report.fit is Fit.CONFLICTS for report in reports):
        raise conflict(reports)
    return replace_all(root, tried.contents.values(), journal)


def conflict(reports: Iterable[PatchReport], target: str = "the release") -> ModificationConflict:
    """The error that says which patches do not fit, and what can be done."""
    bad = [report for report in reports if report.fit is Fit.CONFLICTS]
    name = bad[0].name
    what = [line if len(bad) == 1 else f"{report.name}: {line}" for report in bad for line in report.conflicts()]
    return ModificationConflict(
        f"patch {name} does not apply to {target}" if len(bad) == 1 else f"{len(bad)} patches do not apply to {target}",
        what=what[:20] + ([f"… and {len(what) - 20} more"] if len(what) > 20 else []),
        state="no file was changed by patches",
        next=[
            f"updater patch check BUNDLE --show {name}    see all hunks",
            f"updater stage … --without {name}    leave it out this once",
            f"updater patch add --replace {name} FILE    carry a new version",
            f"updater patch expire {name} RELEASE    when the release no longer needs it",
        ],
    )


def read(patch: Patch) -> tuple[FilePatch, ...]:
    """The files of a patch. Raises ConfigError."""
    try:
        return parse(patch.data)
    except DiffError as error:
        raise ConfigError(f"patch {patch.name} cannot be read", what=str(error), state="nothing was changed") from error


def names(patch: Patch, file: FilePatch, *, single: bool) -> tuple[str | None, str | None]:
    """The paths, absolute within a root, that a file of the patch is about: before and after. `single`: it is the
    patch's only one. Raises Refused.
    """
    if patch.path is not None and single and not patch.path.endswith("/") and not file.renamed:
        return (None if file.old is None else patch.path), (None if file.new is None else patch.path)
    return _path(patch, file, file.old), _path(patch, file, file.new)


def _path(patch: Patch, file: FilePatch, name: bytes | None) -> str | None:
    if name is None:
        return None
    text = os.fsdecode(name)
    strip = patch.strip
    if strip is None:
        both = [each for each in (file.old, file.new) if each is not None]
        prefixed = all(each[1:2] == b"/" and each[:1].isalpha() for each in both)
        known = all(each[:2] in (b"a/", b"b/") for each in both)
        strip = int((file.git and prefixed) or known) if not file.bare else 0
    elif file.bare:
        strip = max(strip - 1, 0)
    parts = text.split("/")
    if text.startswith("/") and (strip or patch.path):
        raise Refused(f"{text} is absolute; without --path and --strip it is taken within the slot")
    if ".." in parts or "\0" in text:
        raise Refused(f"{text!r} leads out of its directory")
    kept = [part for part in parts if part not in ("", ".")][strip:]
    if not kept:
        raise Refused(f"nothing is left of the name {text!r} without its first {_count(strip, 'part')}")
    return str(PurePosixPath(patch.path or "/", *kept))


@dataclass(slots=True)
class _Try:
    """The root as it would be after the patches tried so far."""

    root: Path
    contents: dict[Path, Content] = field(default_factory=dict)

    def all(self, patches: Iterable[Patch]) -> list[PatchReport]:
        return [self._patch(patch) for patch in patches]

    def _patch(self, patch: Patch) -> PatchReport:
        before = dict(self.contents)
        files = read(patch)
        reports = []
        for file in files:
            shown = os.fsdecode(file.new or file.old or b"?")
            try:
                old, new = names(patch, file, single=len(files) == 1)
                shown = new or old or shown
                reports.append(self._file(patch, file, old, new))
            except Refused as error:
                reports.append(FileReport(path=shown, action="change", fit=Fit.CONFLICTS, why=str(error)))
        report = PatchReport(name=patch.name, files=tuple(reports))
        if report.fit is Fit.CONFLICTS:
            self.contents = before
        return report

    def _file(self, patch: Patch, file: FilePatch, old: str | None, new: str | None) -> FileReport:
        if file.renamed and old and new:
            return self._rename(patch, file, old, new)
        if old is None:
            return self._create(patch, file, new or "")
        if not file.git and new and new != old and self._get(new) is None and self._get(old) is not None:
            new = old  # a plain diff of x.orig and x, where only the former is there
        path = new or old
        here = self._get(path)
        action = "delete" if new is None else "change" if file.hunks else "mode"
        if here is None:
            if new is None:
                return FileReport(path=path, action=action, fit=Fit.ALREADY)
            return FileReport(path=path, action=action, fit=Fit.CONFLICTS, why="there is no such file")
        content, hunks = apply_hunks(here.data, file.hunks, patch.fuzz)
        if content is None:
            return FileReport(path=path, action=action, fit=Fit.CONFLICTS, hunks=hunks)
        if new is None:
            if content:
                why = "is to be deleted, but has more in it than the patch knows"
                return FileReport(path=path, action=action, fit=Fit.CONFLICTS, hunks=hunks, why=why)
            self._put(patch, path, None, 0, here)
            return FileReport(path=path, action=action, fit=Fit.APPLIES, hunks=hunks)
        mode = _mode(here.mode, file.new_mode)
        if content == here.data and mode == here.mode:
            return FileReport(path=path, action=action, fit=Fit.ALREADY, hunks=hunks)
        self._put(patch, path, content, mode, here)
        return FileReport(path=path, action=action, fit=Fit.APPLIES, hunks=hunks)

    def _create(self, patch: Patch, file: FilePatch, path: str) -> FileReport:
        content, hunks = apply_hunks(b"", file.hunks)
        here = self._get(path)
        if content is None:
            return FileReport(path=path, action="create", fit=Fit.CONFLICTS, hunks=hunks)
        if here is not None and here.data == content and here.mode == _mode(here.mode, file.new_mode):
            return FileReport(path=path, action="create", fit=Fit.ALREADY)
        if here is not None and here.data:
            why = "is to be created, but is there with other content"
            return FileReport(path=path, action="create", fit=Fit.CONFLICTS, why=why)
        self._put(patch, path, content, _mode(0o644, file.new_mode), here)
        return FileReport(path=path, action="create", fit=Fit.APPLIES, hunks=hunks)

    def _rename(self, patch: Patch, file: FilePatch, old: str, new: str) -> FileReport:
        action = "copy" if file.copied else "rename"
        here, there = self._get(old), self._get(new)

        def told(fit: Fit, hunks: tuple[HunkReport, ...] = (), why: str = "") -> FileReport:
            return FileReport(path=old, to=new, action=action, fit=fit, hunks=hunks, why=why)

        if there is not None and (here is None or file.copied):
            content, hunks = apply_hunks(there.data, file.hunks)
            if content is not None and all(hunk.fit is Fit.ALREADY for hunk in hunks):
                return told(Fit.ALREADY, hunks)
        if there is not None:
            return told(Fit.CONFLICTS, why=f"cannot become {new}, which is there already")
        if here is None:
            return told(Fit.CONFLICTS, why="there is no such file")
        content, hunks = apply_hunks(here.data, file.hunks, patch.fuzz)
        if content is None:
            return told(Fit.CONFLICTS, hunks)
        if not file.copied:
            self._put(patch, old, None, 0, here)
        self._put(patch, new, content, _mode(here.mode, file.new_mode), None, like=here)
        return told(Fit.APPLIES, hunks)

    def _get(self, path: str) -> Content | None:
        """The file as it is after the patches so far; None where there is none. Raises Refused."""
        place = place_in(self.root, path)
        if place in self.contents:
            known = self.contents[place]
            return None if known.data_after is None else known
        try:
            found = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(found.st_mode):
            raise Refused(f"is a symlink to {place.readlink()}; patch the file itself")
        if not stat.S_ISREG(found.st_mode):
            raise Refused("is no regular file")
        if found.st_size > LARGEST:
            raise Refused(f"is larger than {LARGEST >> 20} MiB")
        data = place.read_bytes()
        return Content(place=place, path=path, before=data, data_after=data, mode=stat.S_IMODE(found.st_mode))

    def _put(
        self, patch: Patch, path: str, data: bytes | None, mode: int, here: Content | None, like: Content | None = None
    ) -> None:
        place = place_in(self.root, path)
        first = self.contents.get(place) or here
        source = like or first
        self.contents[place] = Content(
            place=place,
            path=path,
            before=first.before if first else None,
            data_after=data,
            mode=mode,
            like=source.like or (source.place if source.before is not None else None) if source else None,
            names=(*(first.names if first else ()), patch.name),
        )


def _mode(now: int, wanted: int | None) -> int:
    """A patch only says whether a file can be executed; all else of its mode stays."""
    if wanted is None:
        return now
    return now | (now & 0o444) >> 2 if wanted & 0o100 else now & ~0o111


def _whole(fits: Sequence[Fit]) -> Fit:
    if Fit.CONFLICTS in fits:
        return Fit.CONFLICTS
    return Fit.ALREADY if all(fit is Fit.ALREADY for fit in fits) else Fit.APPLIES


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
