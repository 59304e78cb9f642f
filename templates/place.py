"""Puts rendered files into a root, whichever it is, and can take them back.

First everything is looked at and validated; then what the files held before is saved, durably; only then are they
replaced, one by one, each whole. Interrupted anywhere, both going on (render again) and going back (undo) work: what
was begun is on record until the units have taken notice (`History.finish`), and is taken up by the next rendering.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from core.errors import ModificationConflict
from core.faults import point
from core.files import fsync_dir, inside, write_atomic
from templates.history import Before, Change, History, Record, hashed
from templates.masking import Mask, diff
from templates.render import Rendered
from templates.validate import validate

_AT_ONCE = 16


class Action(StrEnum):
    """What became of a file."""

    UNCHANGED = "unchanged"
    WRITTEN = "written"
    WOULD_WRITE = "would write"
    REMOVED = "removed"
    WOULD_REMOVE = "would remove"
    LEFT = "left"  # not ours to touch: changed by hand


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResult:
    """One file. `diff` is for people, without secrets."""

    target: str
    action: Action
    diff: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done, or would be. `restart`, `reload`: units whose files changed, now or in a rendering that was not
    finished. `record`: for undo (0: none).
    """

    files: tuple[FileResult, ...]
    restart: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()
    units_changed: bool = False
    record: int = 0

    @property
    def changed(self) -> tuple[FileResult, ...]:
        """The files that are not as they were."""
        return tuple(each for each in self.files if each.action not in (Action.UNCHANGED, Action.LEFT))


@dataclass(slots=True)
class _Plan:
    """A file on its way: where it really is, what is there, what shall be there."""

    target: str
    path: Path
    before: Before | None
    content: bytes | None
    owner: tuple[int, int] = (0, 0)
    mode: int = 0o644
    sensitive: bool = False
    restart: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    left: bool = False

    @property
    def is_change(self) -> bool:
        if self.left:
            return False
        if self.content is None or self.before is None:
            return (self.content is None) != (self.before is None)
        return (self.before.content, self.before.owner, self.before.mode, self.before.link) != (
            self.content,
            self.owner,
            self.mode,
            "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ours:
    """Which files are ours. `hashes`: by target, as the last finished rendering left it and those since would have.
    `written`: what the newest one leaves. `sensitive`: targets that hold, or held, a secret. `begun`: not finished.
    """

    hashes: dict[str, frozenset[str]]
    written: dict[str, tuple[str, bool]]
    sensitive: frozenset[str]
    begun: tuple[Change, ...]

    def expects(self, target: str, found: Before) -> bool:
        """Whether this is what we wrote, or what was there when a rendering began that did not come to it."""
        return hashed(found.content) in self.hashes[target] or any(
            change.target == target and change.before == found for change in self.begun
        )


def _ours(history: History) -> _Ours:
    done, begun = history.latest_done()
    records = [*begun, *([done] if done else [])]
    hashes: dict[str, frozenset[str]] = {}
    for record in records:
        for target, (content, _) in record.written.items():
            hashes[target] = hashes.get(target, frozenset()) | {content}
    return _Ours(
        hashes=hashes,
        written=history.written(),
        sensitive=frozenset(target for each in records for target, (_, secret) in each.written.items() if secret),
        begun=tuple(change for record in begun for change in record.changes),
    )


def place(
    rendered: Sequence[Rendered], root: Path, history: History, mask: Mask, *, dry_run: bool = False, what: str = ""
) -> Outcome:
    """Bring the root's files to what was rendered; `what` (configuration and release) goes on record. The caller has
    the units take notice, and then calls `History.finish`.

    Raises ModificationConflict when a file cannot be put there or does not pass its validator (nothing was written
    then); OSError when the disk fails or is full, after which calling again, or `undo`, is safe.
    """
    ours = _ours(history)
    plans, faults = [], []
    users, groups = _numbers(root, "etc/passwd"), _numbers(root, "etc/group")
    for each in rendered:
        try:
            plans.append(_plan(each, root, users, groups, ours))
        except ValueError as error:
            faults.append(f"{each.target}: {error}")
    wanted = {plan.target for plan in plans if plan.content is not None}
    plans += [_gone(target, root, ours) for target in sorted(ours.hashes.keys() - {plan.target for plan in plans})]
    specs = {each.target: each.spec for each in rendered}
    for plan in plans:
        spec = specs.get(plan.target)
        if spec is None or spec.validate is None or plan.content is None or not plan.is_change:
            continue
        verdict = validate(spec.validate, plan.content, plan.target, root, owner=plan.owner, mode=plan.mode)
        if verdict.fault:
            faults.append(f"{plan.target}: {mask(verdict.fault)}")
        if verdict.note:
            plan.notes.append(verdict.note)
    if faults:
        raise ModificationConflict(
            f"{len(faults)} rendered file{'s do' if len(faults) != 1 else ' does'} not fit",
            what=faults,
            state="nothing was written",
            next=["updater render --diff --dry-run    shows what would be written", "updater config validate"],
        )
    changes = [plan for plan in plans if plan.is_change]
    after = {plan.target: (hashed(plan.content or b""), plan.sensitive) for plan in plans if plan.target in wanted}
    number = 0
    if not dry_run and (changes or after != ours.written):
        number = history.begin(Record(what=what, changes=tuple(_recorded(plan) for plan in changes), written=after))
        point("render:recorded")
        for parent in {plan.path.parent for plan in changes if plan.content is not None}:
            parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:  # each waits for the disk most of the time
            for _ in pool.map(_put_planned, changes):
                point("render:file")
    return _outcome(plans, number, mask, dry_run, begun=ours.begun)


def undo(root: Path, history: History, mask: Mask, *, dry_run: bool = False) -> Outcome:
    """Give the files that the latest `place` changed back what they held before. What was changed by hand since then is
    left, with a note. The caller has the units take notice, and then calls `History.undone`; interrupted before that,
    calling again is safe, and names the units again.

    Raises WrongState when there is nothing to take back.
    """
    number, record = history.latest()
    plans = []
    for change in record.changes:
        path = _locate(root, change.target)
        now = _look(path)
        before = change.before
        plan = _Plan(
            target=change.target,
            path=path,
            before=now,
            content=before.content if before else None,
            owner=before.owner if before else (0, 0),
            mode=before.mode if before else 0,
            sensitive=change.sensitive,
            restart=change.restart,
            reload=change.reload,
        )
        held = hashed(now.content) if now and not now.link else None
        if held != change.after and (now != before):
            plan.left = True
            plan.notes.append("changed by hand since it was rendered: left as it is")
        if before and before.link:
            plan.notes.append(f"was a symbolic link to {before.link}")
        plans.append((plan, before))
    if not dry_run:
        for plan, before in plans:
            if plan.left or plan.before == before:
                continue
            if before is not None and before.link:
                _link(plan.path, before.link)
            else:
                _put(plan.path, plan.content, plan.owner, plan.mode)
            point("render:undone-file")
    begun = [change for change, (plan, _) in zip(record.changes, plans, strict=True) if not plan.left]
    return _outcome([plan for plan, _ in plans], number, mask, dry_run, back=True, begun=begun)


def _plan(
    each: Rendered,
    root: Path,
    users: dict[str, int],
    groups: dict[str, int],
    ours: _Ours,
) -> _Plan:
    path = _locate(root, each.target)
    if path.is_dir() and not path.is_symlink():
        raise ValueError("there is a directory in its place")
    before = _look(path)
    if each.content is None:
        gone = _gone(each.target, root, ours)
        gone.restart, gone.reload = each.restart, each.reload
        return gone
    known = each.target in ours.hashes
    private = before is not None and not before.mode & 0o004
    plan = _Plan(
        target=each.target,
        path=path,
        before=before,
        content=each.content,
        owner=(_number(each.spec.owner, users, "user"), _number(each.spec.group, groups, "group")),
        mode=int(each.spec.mode, 8),
        sensitive=each.sensitive or (each.target in ours.sensitive if known else private),
        restart=each.restart,
        reload=each.reload,
    )
    if each.sensitive and plan.mode & 0o004:
        raise ValueError(f"holds a secret, and its mode {each.spec.mode} lets everybody read it")
    if before and before.link:
        plan.notes.append(f"replaces a symbolic link to {before.link}")
    elif before and known and not ours.expects(each.target, before) and plan.is_change:
        plan.notes.append("was changed by hand; what it held is saved: updater render --undo")
    return plan


def _gone(target: str, root: Path, ours: _Ours) -> _Plan:
    """A file that the release does not want: removed if it is as we wrote it; else it is none of our business."""
    path = _locate(root, target)
    before = _look(path)
    known = ours.hashes.get(target, frozenset())
    plan = _Plan(target=target, path=path, before=before, content=None, sensitive=target in ours.sensitive)
    if before is not None and (before.link or hashed(before.content) not in known):
        plan.left = True
        plan.notes.append("no longer written by us, " + ("changed by hand: left" if known else "and never was: left"))
    return plan


def _locate(root: Path, target: str) -> Path:
    """Where the file itself lies: its directory followed inside the root, its own name not followed."""
    pure = PurePosixPath(target)
    return inside(root, pure.parent) / pure.name


def _look(path: Path) -> Before | None:
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    owner, mode = (found.st_uid, found.st_gid), stat.S_IMODE(found.st_mode)
    if stat.S_ISLNK(found.st_mode):
        return Before(content=b"", owner=owner, mode=mode, link=str(path.readlink()))
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("what is in its place is no file")
    return Before(content=path.read_bytes(), owner=owner, mode=mode)


def _put_planned(plan: _Plan) -> None:
    _put(plan.path, plan.content, plan.owner, plan.mode)


def _put(path: Path, content: bytes | None, owner: tuple[int, int], mode: int) -> None:
    if content is None:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            fsync_dir(path.parent)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content, mode=mode, owner=owner if os.geteuid() == 0 else None)


def _link(path: Path, target: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
    fsync_dir(path.parent)


def _numbers(root: Path, file: str) -> dict[str, int]:
    """Names of the root's own users or groups."""
    path = inside(root, file)
    try:
        lines = path.read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    parts = [line.split(":") for line in lines]
    return {part[0]: int(part[2]) for part in parts if len(part) > 2 and part[2].isdecimal()}


def _number(name: str, known: dict[str, int], what: str) -> int:
    if name.isdecimal():
        return int(name)
    if name == "root":
        return 0
    if name not in known:
        raise ValueError(f"there is no {what} {name} in that root")
    return known[name]


def _is_unit(target: str) -> bool:
    return target.startswith("/etc/systemd/system/")


def _recorded(plan: _Plan) -> Change:
    return Change(
        target=plan.target,
        before=plan.before,
        after=None if plan.content is None else hashed(plan.content),
        sensitive=plan.sensitive,
        restart=plan.restart,
        reload=plan.reload,
    )


def _outcome(
    plans: list[_Plan],
    number: int,
    mask: Mask,
    dry_run: bool,
    *,
    back: bool = False,
    begun: Sequence[Change] = (),
) -> Outcome:
    files: list[FileResult] = []
    restart = dict.fromkeys(unit for change in begun for unit in change.restart)
    reload = dict.fromkeys(unit for change in begun for unit in change.reload)
    units = any(_is_unit(change.target) for change in begun)
    for plan in plans:
        if plan.content is None and plan.before is None:
            continue
        action = Action.LEFT if plan.left else Action.UNCHANGED
        if plan.is_change:
            restart |= dict.fromkeys(plan.restart)
            reload |= dict.fromkeys(plan.reload)
            units = units or _is_unit(plan.target)
            if plan.content is None:
                action = Action.WOULD_REMOVE if dry_run else Action.REMOVED
            else:
                action = Action.WOULD_WRITE if dry_run else Action.WRITTEN
        old = plan.before.content if plan.before else None
        hidden = ("-+" if back else "-") if plan.sensitive else ""
        shown = diff(old, plan.content, plan.target, mask, hidden=hidden) if plan.is_change else ""
        if plan.is_change and plan.before and plan.content == old and not plan.before.link:
            was = plan.before
            plan.notes.append(
                f"owner {was.owner[0]}:{was.owner[1]} mode {was.mode:04o} → "
                f"{plan.owner[0]}:{plan.owner[1]} {plan.mode:04o}"
            )
        files.append(FileResult(target=plan.target, action=action, diff=shown, notes=tuple(plan.notes)))
    return Outcome(
        files=tuple(files),
        restart=tuple(restart),
        reload=tuple(unit for unit in reload if unit not in restart),
        units_changed=units,
        record=number,
    )
