"""Machines on one network with programs of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vagrant.disk import overlay
from vagrant.network import Lan
from vagrant.node import Lab
from vagrant.qemu import Machine


@pytest.mark.long  # `make rehearse` stands on it, too
@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="there is no /dev/net/tun")
def test_a_machine_is_reached_through_its_second_card_also_after_a_power_cut(lab: Lab, tmp_path: Path) -> None:
    base = lab.base_disk("MR95-1", lab.bundle("MR95-1", first=True))
    with (
        Lan("10.9.0.5/24") as lan,
        Machine(overlay(base, tmp_path / "disk"), tmp_path / "vm", lan=lan.plug("m1")) as machine,
    ):

        def greeting() -> bytes:
            with lan.inside(), socket.create_connection(("10.9.0.31", 22), timeout=20) as link:
                return link.recv(4)

        machine.start()
        machine.wait_for_boot()
        unit = "[Service]\nType=oneshot\nExecStart=ip addr add 10.9.0.31/24 dev eth1\nExecStart=ip link set eth1 up\n"
        machine.push(f"{unit}[Install]\nWantedBy=sysinit.target\n", "/etc/systemd/system/lan.service")
        machine.run("systemctl enable --now lan && sync")
        assert greeting() == b"SSH-"
        machine.kill()
        machine.start()
        machine.wait_for_boot()
        assert greeting() == b"SSH-"
        lan.cut("m1")
        with pytest.raises(OSError):
            greeting()
        lan.join("m1")
        assert greeting() == b"SSH-"


def test_a_network_goes_with_all_that_runs_in_it_also_after_its_maker_was_killed() -> None:
    code = (
        "import os, time; from pathlib import Path; from vagrant.network import Lan\n"
        "lan = Lan('10.9.0.5/24').__enter__(); lan.plug('m1'); lan.start('sleep', '1000', log=Path('/dev/null'))\n"
        "print(lan.name, flush=True); time.sleep(1000)"
    )
    maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert maker.stdout is not None
        name = maker.stdout.readline().strip()
        assert (Path("/run/netns") / name).exists()
    finally:
        maker.kill()
        maker.wait()
    with Lan("10.9.0.6/24") as lan:
        assert not (Path("/run/netns") / name).exists()
        assert lan.name != name and str(os.getpid()) in lan.name
        ours = lan.name
    assert not (Path("/run/netns") / ours).exists()
