"""All measurements, explained as they come; one line per figure at the end: ``figure NAME VALUE UNIT``.

    python -m bench [stage] [carry] [configuration] [migrations] [zdu]

Needs root, about 12 GB in /var/tmp while it runs, RAUC, rpm, GNU patch, MariaDB, PostgreSQL and percona-toolkit.
Everything it makes goes away, also on Ctrl-C. All contenders run at the low priority of our writer, so that other load
on the machine meets all alike.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import carry, configuration, floor, image, migrations, rauc, startup, zdu_controller, zdu_plan, zdu_sync
from bench.devices import loop_device
from bench.stage import node, stager
from bench.timing import Figure, Sample, in_turns, said, seconds, table

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is measured. Bytes of the image and of the files in it, how many times larger the larger image is, and
    how many turns.
    """

    size: int = 1536 * MIB
    content: int = 560 * MIB
    larger: int = 4
    turns: int = 5
    starts: int = 15


def measure(extent: Extent, place: Path) -> list[Figure]:
    """Make the images in a directory inside `place`, measure everything, print it; returns the figures."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="updater-bench-", dir=place)))
        tree, private, public = folder / "tree", *image.key_pair(folder)
        with said("a root tree, its image, our bundle and RAUC's"):
            image.root_tree(tree, extent.content)
            image.ext4(tree, folder / "image", extent.size)
            ours = image.bundle(folder / "image", folder / "ours.bundle", "MR96-1", private)
            theirs = rauc.rauc_bundle(folder / "image", folder / "rauc")
        data = floor.data_size(ours)
        print(f"  image {extent.size / 1e6:.0f} MB, {data / 1e6:.0f} MB of it in chunks that are not zero")
        print(f"  our bundle {ours.stat().st_size / 1e6:.0f} MB, RAUC's {theirs.stat().st_size / 1e6:.0f} MB")
        with said("loop devices, every block written once"):
            device, other = (
                stack.enter_context(loop_device(folder / name, extent.size, filled=True)) for name in ("slot", "other")
            )
        config = node(folder / "node", device, public)
        install = stack.enter_context(rauc.installer(theirs, other))
        contenders = [
            seconds("rauc install", install),
            seconds("floor: direct write", lambda: floor.write_plainly(other, data)),
            seconds("floor: decompression", floor.unpacker(ours)),
            stager(config, ours),
        ]
        with said(f"{extent.turns} turns of RAUC, the two floors and `updater stage`"):
            found = in_turns(contenders, extent.turns)
        print(table({name: sample for name, sample in found.items() if name != "peak"}, "s"))
        print(table({"stage: peak memory": found["peak"]}, "MB"))
        starts = startup.measure(folder, config, extent.starts)
        print(table(starts, "s"))
        larger = _larger(folder, tree, extent, private, public)
    return _figures(found, starts, larger)


def _larger(folder: Path, tree: Path, extent: Extent, private: Path, public: Path) -> float:
    """Peak memory in MB of staging an image several times as large, with as many times the data in it."""
    with said(f"an image {extent.larger} times as large, staged once"):
        for used in ("image", "rauc/content/rootfs.ext4"):
            (folder / used).unlink()
        image.multiplied(tree, folder / "multiplied", extent.larger)
        shutil.rmtree(tree)
        image.ext4(folder / "multiplied", folder / "larger", extent.larger * extent.size)
        shutil.rmtree(folder / "multiplied")
        bundle = image.bundle(folder / "larger", folder / "larger.bundle", "MR96-2", private, level=3)
        (folder / "larger").unlink()
        with loop_device(folder / "larger-slot", extent.larger * extent.size, filled=False) as device:
            staged = stager(node(folder / "larger-node", device, public), bundle)()
    print(f"  write {staged['stage: write']:.3f} s, whole stage {staged['stage']:.3f} s, peak {staged['peak']:.1f} MB")
    return staged["peak"]


def measure_zdu(place: Path) -> list[Figure]:
    """What an upgrade across sites is made of, without a network. ``make zdu`` measures the rest of its figures."""
    with said("40,000 xDRs of a site that was on its own, posted on one MariaDB"):
        posted = zdu_sync.measure_sync(place=place)
    with said("a run of 100 steps whose actions take no time"):
        overhead = zdu_controller.measure_step_overhead()
    with said("three plans of 50 sites with 40 servers each"):
        planned = zdu_plan.measure_plan()
    return [
        Figure("sync_xdrs_per_s", posted, "xDRs/s", ">= 5000"),
        Figure("step_overhead_ms", overhead, "ms", "<= 500"),
        Figure("plan_50x40_s", planned, "s", "<= 2"),
    ]


def _figures(found: dict[str, Sample], starts: dict[str, Sample], larger: float) -> list[Figure]:
    write, bare = found["stage: write"], starts["bare Typer --help"]
    floors = zip(found["floor: direct write"].values, found["floor: decompression"].values, strict=True)
    physics = Sample(tuple(map(max, floors)))
    peak = max(found["peak"].values)
    print(f"  whole `updater stage`, read-back and seal included: {found['stage'].over(physics):.2f} times the floor,")
    print(
        f"  `rauc install`, which does not read back, takes {found['rauc install'].over(found['stage']):.2f} times that"
    )
    print(f"  `updater --help` over plain Typer: {starts['updater --help'].over(starts['plain Typer --help']):.2f}")
    return [
        Figure("stage_vs_rauc", found["rauc install"].over(write), "times faster", ">= 4"),
        Figure("stage_vs_floor", write.over(physics), "times the floor", "<= 1.5"),
        Figure("stage_peak_mb", peak, "MB", "<= 150"),
        Figure("stage_peak_growth", larger / peak, "times", "<= 1.1"),
        Figure("help_vs_bare_typer", starts["updater --help"].over(bare), "times", "<= 1.3"),
        Figure("status_vs_bare_typer", starts["updater status"].over(bare), "times", "<= 1.5"),
    ]


#: What can be measured by itself: `python -m bench carry configuration`.
PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    "stage": lambda place: measure(Extent(), place),
    "carry": lambda place: carry.measure(carry.Extent(), place),
    "configuration": lambda place: configuration.measure(configuration.Extent(), place),
    "migrations": lambda place: migrations.measure(migrations.Extent(), place),
    "zdu": measure_zdu,
}


def main(*parts: str) -> None:
    """Measure these parts, or all, and print."""
    if unknown := set(parts) - PARTS.keys():
        sys.exit(f"bench: there is no part {unknown.pop()}; there are {', '.join(PARTS)}")
    if os.geteuid() != 0:
        sys.exit("bench: needs root, for loop devices and root trees")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.nice(10)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before it begins")
    try:
        figures = [figure for part in parts or PARTS for figure in PARTS[part](Path("/var/tmp"))]
    except KeyboardInterrupt:
        sys.exit("bench: interrupted; everything it made is gone")
    print(f"load {os.getloadavg()[0]:.1f} at the end; wanted: {', '.join(f'{f.name} {f.wanted}' for f in figures)}")
    for figure in figures:
        print(f"figure {figure.name} {figure.value:.2f} {figure.unit}")


if __name__ == "__main__":
    main(*sys.argv[1:])
