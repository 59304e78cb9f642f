"""Why carried packages do not fit a release, told as one error; and the one rule that rpm itself does not look at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.errors import ModificationConflict
from core.files import inside
from core.run import run
from patches.packages_rpm import LONG, Database, Header
from patches.packages_solve import Package


def overwritten(
    database: Database, packages: Sequence[Package], headers: Sequence[Header]
) -> Iterator[tuple[Package, str]]:
    """Files of the root that belong to no package, and would be replaced without rpm noticing."""
    parents: dict[Path, Path] = {}

    def place(path: str) -> Path:
        parent = Path(path).parent
        if parent not in parents:
            parents[parent] = inside(database.root, parent)
        return parents[parent] / Path(path).name

    met = {
        place(path): (package, path)
        for package, header in zip(packages, headers, strict=True)
        for path in header.overwriting
        if os.path.lexists(place(path)) and (place(path).is_symlink() or not place(path).is_dir())
    }
    if not met:
        return
    # Asked for a path, rpm would look for it outside of the root; and a directory can have two names (/bin, /usr/bin).
    listed = run(*database.rpm, "-qal", timeout=LONG).stdout.splitlines()
    owned = {place(path) for path in listed if path.startswith("/")}
    for here, (package, path) in met.items():
        if here not in owned:
            yield package, f"{package.name} would overwrite {path}, which the release has outside of its packages"


def ways_out(packages: Sequence[Package]) -> list[str]:
    """Commands that leave packages out."""
    names = list(dict.fromkeys(package.header.name for package in packages))[:3]
    return [f"updater stage … --without {name}    leave it out this once" for name in names]


def conflict(faults: Sequence[tuple[Package, str]]) -> ModificationConflict:
    """One error for all packages that do not fit, each with the rules it breaks."""
    culprits = list({package.name: package for package, _ in faults}.values())
    one = culprits[0]
    many = f"{len(culprits)} carried packages do not fit the release"
    return ModificationConflict(
        f"package {one.name} does not fit the release" if len(culprits) == 1 else many,
        what=dict.fromkeys(words for _, words in faults),
        state="nothing was changed",
        next=[
            *ways_out(culprits),
            "updater rpm add FILE    carry a version that fits, beside it or with --replace",
            f"updater rpm expire {one.header.name} RELEASE    carry it no longer from that release on",
        ],
    )
