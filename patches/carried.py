"""From the registry's entries to what `check` and `apply`, or `check` and `carry`, take; and back into its records."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from core.errors import ConfigError
from core.files import inside
from core.release import Release
from patches.files import copy_file
from patches.keep import Base, Earlier, Fate, Kept, carry
from patches.kept_paths import Keep, Policy
from patches.kept_record import Edited, record
from patches.lifetime import Decision
from patches.packages import package_of
from patches.packages_solve import known_as
from patches.patch import Patch
from patches.registry import Entry, Kind, Registry, matching
from patches.replace import Replaced


class ChosenPatches(NamedTuple):
    """The patches for a release, in their order, and the decision on every one that there is."""

    patches: list[Patch]
    decisions: list[Decision]


class ChosenKeeps(NamedTuple):
    """The kept paths for a release, and the decision on every one that there is."""

    keeps: list[Keep]
    decisions: list[Decision]


def patch_of(entry: Entry, data: bytes) -> Patch:
    """The patch of an entry."""
    facts = entry.facts
    return Patch(
        name=entry.name,
        data=data,
        strip=facts.get("strip"),
        path=facts.get("path"),
        fuzz=facts.get("fuzz", 0),
        package=facts.get("package"),
    )


def keep_of(entry: Entry) -> Keep:
    """The kept path of an entry."""
    return Keep(pattern=entry.name, policy=Policy(entry.facts.get("policy", Policy.ASK)))


def choose_patches(registry: Registry, target: Release, without: Collection[str] = ()) -> ChosenPatches:
    """The patches that a release gets; `without`: names left out this once. Raises NotReady for damaged ones."""
    entries, decisions = _chosen(registry, Kind.PATCH, target, without)
    return ChosenPatches([patch_of(entry, registry.content(entry)) for entry in entries], decisions)


def choose_keeps(registry: Registry, target: Release, without: Collection[str] = ()) -> ChosenKeeps:
    """The kept paths that a release gets; `without`: paths left out this once."""
    entries, decisions = _chosen(registry, Kind.FILE, target, without)
    return ChosenKeeps([keep_of(entry) for entry in entries], decisions)


def base_of(registry: Registry, slot: str) -> Base:
    """The content that the release in a slot shipped for a kept file, as noted when the slot was staged."""
    digests = {became.name: became.facts.get("shipped") for became in registry.outcomes(slot, Kind.FILE)}

    def base(path: str) -> bytes | None:
        digest = digests.get(path)
        return registry.kept(digest) if digest else None

    return base


def earlier_of(registry: Registry, slot: str, edited: Iterable[Edited]) -> Earlier:
    """What the copy of `stage` left in the slot, for the copy after it; `edited`: what happened to the files since."""
    became = {each.name: each for each in registry.outcomes(slot, Kind.FILE)}
    new = {each.path for each in edited if each.how == "added"}

    def earlier(path: str) -> tuple[bool, bytes | None]:
        found = became.get(path)
        if path in new or (found is not None and found.state == Fate.THEIRS):
            return False, None
        digest = found.facts.get("shipped") if found else None
        return True, registry.kept(digest) if digest else None

    return earlier


def take_out(edited: Iterable[Edited], earlier: Earlier, target: Path) -> None:
    """Kept files that were removed since they were copied go from the slot too; where the release has one, that is
    what is there then. Raises OSError.
    """
    for each in edited:
        if each.how != "removed":
            continue
        copied, original = earlier(each.path)
        parent, _, name = each.path.rpartition("/")
        place = inside(target, parent or "/") / name
        if not copied or (place.is_dir() and not place.is_symlink()):
            continue
        if original is not None and place.is_file() and not place.is_symlink():
            copy_file(place, place, content=original)
        elif original is None:
            place.unlink(missing_ok=True)


def note_patches(registry: Registry, slot: str, decisions: Iterable[Decision], replaced: Iterable[Replaced]) -> None:
    """Record what became of the patches in a slot, with the hashes of each file before and after."""
    files: dict[str, list[dict[str, object]]] = {}
    for each in replaced:
        for name in each.patches:
            files.setdefault(name, []).append({"path": each.path, "before": each.before, "after": each.after})
    outcomes = [(each.name, "applied" if each.name in files else _state(each)) for each in decisions]
    registry.set_outcomes(slot, Kind.PATCH, [(name, state, {"files": files.get(name, [])}) for name, state in outcomes])


def patched_files(registry: Registry, slot: str) -> dict[str, str | None]:
    """The files that patches changed in a slot, with the BLAKE3 that they left (None: deleted): for `drift`."""
    files = [file for became in registry.outcomes(slot, Kind.PATCH) for file in became.facts.get("files", ())]
    return {file["path"]: file["after"] for file in files}


def stage_keeps(
    registry: Registry,
    keeps: Iterable[Keep],
    source: Path,
    target: Path,
    *,
    old_slot: str,
    slot: str,
    book: Path,
    earlier: Earlier | None = None,
) -> dict[Fate, int]:
    """Carry the kept files into the slot mounted at `target`. Records what the release shipped in their place (the base
    of the next merge) and, in the file `book`, what was staged (for `changed_since`). `earlier`: where the slot has
    them from an earlier copy. Returns how many of each fate.

    Raises ModificationConflict, OSError.
    """
    counts: dict[Fate, int] = {}
    notable: list[Kept] = []
    for kept in record(carry(keeps, source, target, base_of(registry, old_slot), earlier), book):
        if kept.directory:
            continue
        counts[kept.fate] = counts.get(kept.fate, 0) + 1
        if kept.fate is not Fate.KEPT or kept.shipped is not None:
            notable.append(kept)
    registry.set_outcomes(
        slot,
        Kind.FILE,
        [
            (
                kept.path,
                kept.fate,
                {"why": kept.why} | ({"shipped": registry.keep(kept.shipped)} if kept.shipped is not None else {}),
            )
            for kept in notable
        ],
    )
    return counts


def by_kind(registry: Registry, without: Collection[str]) -> dict[Kind, list[str]]:
    """The names that are to be left out, sorted by what they name. Raises ConfigError for one that names nothing."""
    left: dict[Kind, list[str]] = {kind: [] for kind in Kind}
    for word in without:
        kinds = [kind for kind in Kind if named(registry, kind, [word])]
        if not kinds:
            raise ConfigError(
                f"nothing that is carried is called {word}",
                state="nothing was changed",
                next=["updater rpm list", "updater patch list", "updater keep list"],
            )
        for kind in kinds:
            left[kind].append(word)
    return left


def named(registry: Registry, kind: Kind, words: Iterable[str]) -> list[str]:
    """Those of the words that name something of the kind which is carried, as the kind's own commands take names."""
    entries = registry.entries(kind)
    if kind is Kind.PACKAGE:
        packages = [package_of(entry) for entry in entries]
        return [word for word in words if any(known_as(package, word) for package in packages)]
    return [word for word in words if len(matching(kind, entries, word)) == 1]


def _chosen(
    registry: Registry, kind: Kind, target: Release, without: Collection[str]
) -> tuple[list[Entry], list[Decision]]:
    left = {registry.get(kind, name).name for name in without}
    decisions = [
        Decision(kind=each.kind, name=each.name, carried=False, why="left out this once") if each.name in left else each
        for each in registry.decide(kind, target)
    ]
    wanted = {each.name for each in decisions if each.carried}
    return [entry for entry in registry.entries(kind) if entry.name in wanted], decisions


def _state(decision: Decision) -> str:
    return "already in the release" if decision.carried else "not carried"
