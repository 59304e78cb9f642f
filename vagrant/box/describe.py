"""What the Vagrantfile has to know of an installation, from its sites file; ``python -m vagrant.box.describe
sites.toml`` prints it as JSON.
"""

from __future__ import annotations

import json
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from core.errors import UpdaterError
from vagrant.qemu import accelerator
from zdu.sites import Server, Sites, load_sites


def describe(sites: Sites) -> dict[str, Any]:
    """Machines in the order in which they should come up: sites as they stand in the file, then the dispatchers.

    `addresses`: those of the machine by the sites file, in its private network; a server that is reached by name, or
    through other hosts, has none. `memory` in MiB.
    """
    machines = [_machine(server, site.name) for site in sites.sites for server in site.servers]
    machines += [_machine(server, "") for server in sites.dispatchers.servers]
    return {"installation": sites.name, "machines": machines}


def _machine(server: Server, site: str) -> dict[str, Any]:
    roles = [str(role) for role in server.roles]
    database = any(role.startswith("db-") for role in roles)
    return {
        "name": server.name,
        "site": site,
        "roles": roles,
        "address": server.host if _is_address(server.host) else "",
        "memory": 1024 if database else 768,
        "cpus": 1,
    }


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def main(argv: list[str]) -> int:
    """Print it, with the kind of virtualisation that works on this machine."""
    if len(argv) != 1:
        print("usage: python -m vagrant.box.describe SITES.toml", file=sys.stderr)
        return 2
    try:
        told = describe(load_sites(Path(argv[0])))
    except UpdaterError as error:
        print(f"error: {error}", *error.what, sep="\n  ", file=sys.stderr)
        return error.exit_code
    print(json.dumps({**told, "driver": "kvm" if accelerator() == "kvm" else "qemu"}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
