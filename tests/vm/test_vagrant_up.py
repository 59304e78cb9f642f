"""Vagrant brings the machines of a sites file up with libvirt, and their boxes take releases like any node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from images.build import build
from images.keys import load_signer
from vagrant.box.build import build_box
from vagrant.network import Lan
from vagrant.node import Lab, spec

VIRSH = ("virsh", "--quiet", "--connect", "qemu:///system")
SITES = """
name = "acme"
[controller]
database = { engine = "sqlite", path = "/var/lib/updater/zdu.sqlite" }
[[sites]]
name = "A"
kind = "main"
calls = { kind = "command", command = ["/bin/calls"] }
maintenance = { command = ["/bin/maintenance"] }
servers = [{ name = "a1", roles = ["db-primary", "sip"], host = "10.1.0.11" }]
[dispatchers]
servers = [{ name = "d1", roles = ["dispatcher"], host = "10.1.0.21" }]
[[dispatchers.programs]]
kind = "command"
command = ["/bin/dispatch"]
targets = [{ site = "A", destinations = ["sip:10.1.0.11"] }]
[[dispatchers.vips]]
address = "10.1.0.20"
"""

Vagrant = Callable[..., str]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not all(shutil.which(name) for name in ("vagrant", "libvirtd", "virtlogd", "virsh", "dnsmasq")),
        reason="tools/install-system-packages vagrant",
    ),
]


def answers(*argv: str) -> bool:
    return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    """A network of its own with libvirt's daemons in it, so that nothing of this machine's network is touched."""
    if answers(*VIRSH, "version"):
        pytest.skip("libvirt serves this machine already")
    with Lan() as lan:
        for daemon in ("virtlogd", "libvirtd"):
            lan.start(daemon, log=tmp_path / f"{daemon}.log")
        deadline = time.monotonic() + 60
        while not answers(*VIRSH, "version"):
            assert time.monotonic() < deadline, (tmp_path / "libvirtd.log").read_text()
            time.sleep(0.2)
        yield lan


@pytest.fixture
def lab() -> Lab:
    """Its releases have time to boot on two machines of a busy computer."""
    return Lab(deadline=600)


@pytest.fixture
def vagrant(lan: Lan, lab: Lab, tmp_path: Path) -> Iterator[Vagrant]:
    """Vagrant, for two machines of a box that is made here; nothing stays of either."""
    (tmp_path / "sites.toml").write_text(SITES)
    name = f"updater-test-{os.getpid()}"
    home = {"VAGRANT_HOME": tmp_path / "home", "VAGRANT_DOTFILE_PATH": tmp_path / "dot"}
    told = {"BOX": name, "SITES": tmp_path / "sites.toml", "PYTHON": sys.executable, "VAGRANT_CHECKPOINT_DISABLE": 1}
    surroundings = os.environ | {key: str(value) for key, value in (home | told).items()}

    def run(*words: str | Path, timeout: float = 1800) -> str:
        argv = lan.command(["vagrant", *words])
        place = Path(__file__).parents[2] / "vagrant"
        done = subprocess.run(
            argv, cwd=place, env=surroundings, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    box = build_box(lab.bundle("MR95-1"), lab.keys / "release.pub", tmp_path / "node.box")
    run("box", "add", "--name", name, box)
    try:
        yield run
    finally:
        run("destroy", "--force")
        for volume in subprocess.check_output([*VIRSH, "vol-list", "default"], text=True).splitlines():
            if volume.split()[:1] and volume.split()[0].startswith(name):
                subprocess.run([*VIRSH, "vol-delete", "--pool", "default", volume.split()[0]], check=True)


def status(vagrant: Vagrant, machine: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(vagrant("ssh", machine, "-c", "updater --json status"))
    return found


def test_machines_come_up_and_take_a_release(vagrant: Vagrant, lab: Lab, tmp_path: Path) -> None:
    vagrant("up", "--no-parallel", "--provider", "libvirt")
    first = status(vagrant, "a1")
    assert (first["node"], first["booted"], first["indicator"]) == ("a1", "a", "OK")
    reached = "import socket; print(socket.create_connection(('10.1.0.21', 22), 60).recv(4))"
    assert "SSH-" in vagrant("ssh", "a1", "-c", f'python3 -c "{reached}"')

    bundle = build(spec("MR96-1", lab.tree("MR96-1")), tmp_path / "new", [load_signer(str(lab.keys / "release.pem"))])
    assert bundle
    vagrant("upload", tmp_path / "new", "/data/mr96-1.bundle", "a1")
    vagrant("ssh", "a1", "-c", "updater stage /data/mr96-1.bundle && updater activate --no-reboot")
    vagrant("reload", "a1", "--no-provision")  # by ACPI, or by force: it comes up in the other slot
    deadline = time.monotonic() + 300
    while (second := status(vagrant, "a1"))["upgrade"] is not None:
        assert time.monotonic() < deadline, second
        time.sleep(2)
    slots = {slot["slot"]: (slot["release"], slot["state"]) for slot in second["slots"]}
    assert (second["node"], second["booted"], slots["b"]) == ("a1", "b", ("MR96-1", "good"))
