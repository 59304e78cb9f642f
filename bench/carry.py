"""What carrying costs over the bare tools: packages and patches as the steps of `stage` carry them into a root, against
one `rpm -U --root` of the same packages, and GNU `patch` with the same patches one after the other.
"""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.timing import Contender, Figure, Sample, in_turns, said, table
from core.release import Release
from core.report import Report
from patches import packages_platform, patch
from patches.carried import choose_patches, note_patches
from patches.packages import Packages, outcomes
from patches.packages_rpm import database_of
from patches.registry import Kind, Registry
from vagrant.rpms import Rpms, shell_root

RELEASE = Release.parse("MR96-1")
#: Of one package, of a few KB each; and lines in a file that is patched.
FILES, LINES = 20, 400
_PATCH_ALL = 'for each in "$2"/*.patch; do patch --quiet --strip=1 --directory="$1" --input="$each"; done'


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is carried, and how many turns."""

    packages: int = 50
    patches: int = 100
    turns: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lab:
    """The root to copy, the packages and the directory of patches for it, and where both are carried from."""

    folder: Path
    root: Path
    rpms: list[Path]
    patches: Path
    keys: Path
    data: Path


def measure(extent: Extent, place: Path) -> list[Figure]:
    """Make packages, patches and a root in a directory inside `place`, measure, print; returns the figure."""
    with TemporaryDirectory(prefix="updater-bench-", dir=place) as scratch:
        with said(f"a root with an RPM database, {extent.packages} signed packages, {extent.patches} patches"):
            lab = _lab(extent, Path(scratch))
        contenders = [_on_a_copy(lab, "bare", _bare(lab)), _on_a_copy(lab, "carried", _carried(lab))]
        for contender in contenders:  # reads what is to be read, imports what is to be imported
            contender()
        with said(f"{extent.turns} turns of the bare tools and of carrying"):
            found = in_turns(contenders, extent.turns)
    print(table(found, "s"))
    whole = {
        who: Sample(
            tuple(map(sum, zip(*(found[f"{who}: {what}"].values for what in ("packages", "patches")), strict=True)))
        )
        for who in ("bare", "carried")
    }
    return [Figure("carry_overhead_pct", 100 * (whole["carried"].over(whole["bare"]) - 1), "percent", "<= 10")]


def _lab(extent: Extent, folder: Path) -> _Lab:
    root, data, patches = folder / "root", folder / "data", folder / "patches"
    shell_root(root)
    packages_platform.prepare(root)
    data.mkdir()
    patches.mkdir()
    with closing(Rpms(folder)) as maker, Registry.of(data) as registry:
        rpms = [_package(maker, number) for number in range(extent.packages)]
        Packages(registry, maker.keys).add(rpms)
        for number in range(extent.patches):
            made = patches / f"{number:03}.patch"
            made.write_text(_patch(root, f"opt/vendor/{number:03}.conf"))
            registry.add(Kind.PATCH, made.stem, content=made)
        return _Lab(folder=folder, root=root, rpms=rpms, patches=patches, keys=maker.keys, data=data)


def _package(maker: Rpms, number: int) -> Path:
    files = {f"/opt/p{number}/{each}": f"{number} {each}\n" * 700 for each in range(FILES)}
    return maker.make(f"p{number}", files=files, scriptlets={"post": ":"})


def _patch(root: Path, name: str) -> str:
    """Put a vendor's file into the root; returns a patch that changes it in two places."""
    old = [f"option_{number} = {name}\n" for number in range(LINES)]
    new = [line.replace("=", "= our own", 1) if number % 200 == 100 else line for number, line in enumerate(old)]
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(old))
    return "".join(difflib.unified_diff(old, new, f"a/{name}", f"b/{name}"))


_Works = dict[str, Callable[[Path], object]]


def _on_a_copy(lab: _Lab, who: str, works: _Works) -> Contender:
    """What times the works one after the other on a copy of the root that is on the disk already; and the processors'
    time of those that count, which waits for nobody.
    """

    def timed() -> dict[str, float]:
        root = lab.folder / "copy"
        subprocess.run(["cp", "-a", lab.root, root], check=True)
        subprocess.run(["sync", "--file-system", root], check=True)
        found = {}
        used = 0.0
        for name, work in works.items():
            begun, before = time.perf_counter(), sum(os.times()[:4])
            work(root)
            found[name] = time.perf_counter() - begun
            used += sum(os.times()[:4]) - before if name.startswith(who) else 0
        found[f"{who}: both, processor time"] = used
        shutil.rmtree(root)
        return found

    return timed


def _bare(lab: _Lab) -> _Works:
    def install(root: Path) -> None:
        database = database_of(root)
        assert database is not None
        _run("rpm", *database.options, "-U", *lab.rpms)

    return {
        "bare: packages": install,
        "bare: patches": lambda root: _run("sh", "-ec", _PATCH_ALL, "sh", root, lab.patches),
    }


def _run(*command: str | Path) -> None:
    """Like everything that is timed here: what it says is of no interest, unless it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: exit {done.returncode}\n{done.stdout[-2000:]}")


def _carried(lab: _Lab) -> _Works:
    """As in the steps of `stage`, records included; and what `stage` tries before it writes anything."""

    def attempt(root: Path) -> None:
        with Registry.of(lab.data) as registry:
            packages = Packages(registry, lab.keys)
            packages.examine(packages.decide(RELEASE, root), root)
            patch.check(choose_patches(registry, RELEASE).patches, root)

    def install(root: Path) -> None:
        with Registry.of(lab.data) as registry:
            packages = Packages(registry, lab.keys)
            choices = packages.recall([each.name for each in packages.all()])
            packages.install(choices, root, Report())
            registry.set_outcomes("b", Kind.PACKAGE, outcomes(choices, root))

    def apply(root: Path) -> None:
        with Registry.of(lab.data) as registry:
            chosen = choose_patches(registry, RELEASE)
            note_patches(registry, "b", chosen.decisions, patch.apply(chosen.patches, root, lab.data / "patching.json"))

    return {"tried beforehand (not counted)": attempt, "carried: packages": install, "carried: patches": apply}
