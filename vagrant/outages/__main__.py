"""`python -m vagrant.outages [N] [--seed S] [--seconds T]`: N power cuts at random instants through whole update cycles
of a machine. A line for each cut, a table, and the figures vm_cuts and vm_cuts_bad; exit 1 if any was bad.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random, SystemRandom

from vagrant import frozen
from vagrant.disk import overlay
from vagrant.outages import guest
from vagrant.outages.cuts import Outages, table
from vagrant.outages.driver import Bundles, Operator, Wrong
from vagrant.outages.power import VolatileMachine
from vagrant.qemu import MachineError
from vagrant.serve import Server
from vagrant.tree import Variant


def main(arguments: list[str] | None = None) -> int:
    """Run it; 0 when no cut was bad."""
    parser = argparse.ArgumentParser(prog="python -m vagrant.outages", description=__doc__)
    parser.add_argument("cuts", type=int, nargs="?", default=100, help="how many cuts (default: 100)")
    parser.add_argument("--seed", type=int, default=None, help="repeat the choices of an earlier run")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cut after so many seconds")
    options = parser.parse_args(arguments)
    seed = SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="updater-outages-") as work:
        return _run(Path(work), options.cuts, seed, options.seconds)


def _run(work: Path, count: int, seed: int, seconds: float) -> int:
    rng, lab = Random(seed), frozen.QUICK
    sound, sick = lab.bundle("MR96-1"), lab.bundle(guest.SICK, variant=Variant.UNHEALTHY)
    begin = rng.choice((frozen.running, frozen.staged))(lab)
    disk = overlay(begin / "disk", work / "disk")
    with Server(sound.parent) as server, VolatileMachine(disk, work / "machine", rng) as machine:
        bundles = Bundles(sound=server.url(sound.name, guest=True), sick=server.url(sick.name, guest=True))
        outages = Outages(Operator(machine, bundles, rng), rng)
        broken = False
        try:
            outages.begin(begin)
            outages.run(count, seconds)
        except (MachineError, Wrong) as error:
            broken = True
            print(f"it cannot go on: {error}", file=sys.stderr)
            for cut in outages.cuts[-1:]:  # what was looked at after it was not all there is
                cut.wrong.append(f"afterwards: {error}")
    for line in table(outages.cuts):
        print(line)
    bad = sum(bool(cut.wrong) for cut in outages.cuts)
    print(f"vm_cuts {len(outages.cuts)}\nvm_cuts_bad {bad}")
    return 1 if bad or broken else 0


if __name__ == "__main__":
    sys.exit(main())
