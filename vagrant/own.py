"""What the operator of the lab's node carries: one package, two patches (one past its lifetime), a directory of
files and a configuration; and how to see from inside a machine that all of it arrived.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from vagrant import data
from vagrant.qemu import Machine, MachineError
from vagrant.rpms import Rpms

#: On the data partition: what is handed to `updater rpm add` and `updater patch add`.
PLACE = "/data/own"

VERBS = (
    f"rpm add {PLACE}/acme-probe-1-1.noarch.rpm --reason monitoring",
    f"patch add {PLACE}/0002-longer-timeout.patch --path / --until MR98 --reason 'ticket 4711'",
    f"patch add {PLACE}/0007-rounding.patch --path / --until MR96-1 --reason 'fixed upstream, ref 18223'",
    "keep add /etc/acme.d --policy ours",
    "config clone",
    "config set system.domain example.net",
    "config instance lab-1 --application billing",
    "config set system.address 192.0.2.10 --instance lab-1",
    "config apply --no-render --reason 'first configuration'",
)

_TIMEOUT = """\
--- a/etc/acme.conf
+++ b/etc/acme.conf
@@ -1,2 +1,2 @@
 # The application's settings, as the vendor ships them
-timeout = 30
+timeout = 60
"""

_ROUNDING = """\
--- a/usr/bin/acme-bill
+++ b/usr/bin/acme-bill
@@ -1 +1 @@
-round down
+round half to even
"""


def declare(machine: Machine) -> None:
    """Put the files where the verbs of `VERBS` look for them."""
    with tempfile.TemporaryDirectory(prefix="updater-own-") as scratch:
        rpms = Rpms(Path(scratch))
        try:
            probe = rpms.make("acme-probe", files={"/usr/bin/acme-probe": "#!/bin/sh\necho probing\n"})
            machine.push(probe.read_bytes(), f"{PLACE}/acme-probe-1-1.noarch.rpm")
            machine.push((rpms.keys / "acme.asc").read_bytes(), "/etc/updater/rpm-keys/acme.asc")
        finally:
            rpms.close()
    machine.push(_TIMEOUT, f"{PLACE}/0002-longer-timeout.patch")
    machine.push(_ROUNDING, f"{PLACE}/0007-rounding.patch")
    machine.push("route = 7\n", "/etc/acme.d/local.conf", mode=0o640)


def seen(machine: Machine) -> list[str]:
    """Look for all of it in the running root; a line for each. Raises MachineError for what is not there."""
    wanted = {
        "the package": ("rpm --dbpath $(dirname $(find / -xdev -name rpmdb.sqlite)) -q acme-probe", "acme-probe-1-1"),
        "its file": ("cat /usr/bin/acme-probe", "echo probing"),
        "the patch": ("cat /etc/acme.conf", "timeout = 60"),
        "the kept file": ("stat -c %a /etc/acme.d/local.conf; cat /etc/acme.d/local.conf", "640\nroute = 7"),
        "the configuration": ("cat /etc/hosts", "192.0.2.10 lab-1.example.net lab-1"),
    }
    lines = []
    for what, (command, expected) in wanted.items():
        found = machine.run(command, check=False).stdout
        if expected not in found:
            raise MachineError(f"{what} did not arrive: `{command}` says {found!r}")
        lines.append(f"{what}: {expected!r}")
    return lines


def data_read(machine: Machine, release: str) -> str:
    """Have the running release read the application's data. Raises MachineError when it reads something else."""
    wanted, found = data.answer(release), machine.run("acme-balance", check=False)
    if found.stdout.strip() != wanted:
        raise MachineError(f"the data: wanted {wanted!r}, `acme-balance` says {found.stdout + found.stderr!r}")
    return wanted
