"""The lab itself: a machine boots from cold, is what it should be, and goes off."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vagrant.node import Lab
from vagrant.qemu import Machine, accelerator, firmware_speaks


def test_the_accelerator_that_is_chosen_runs_guests() -> None:
    assert firmware_speaks(accelerator())


def test_boots_into_slot_a_and_switches_off(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Machine(lab.fresh_disk("MR95-1", tmp_path / "disk"), tmp_path / "machine") as machine:
        started = time.monotonic()
        machine.start()
        boot = machine.wait_for_boot()
        seconds = time.monotonic() - started

        assert boot.slot == "a"
        assert boot.trying is None
        assert machine.boots == [boot]
        assert machine.run("cat /etc/updater-release").stdout == "MR95-1\n"
        assert machine.run("ls /dev/disk/by-partlabel").stdout.split() == ["data", "esp", "slot-a", "slot-b"]
        assert machine.run("findmnt -no FSTYPE /data; findmnt -no FSTYPE /efi").stdout.split() == ["ext4", "vfat"]
        assert machine.run("updater --version").stdout.startswith("updater ")
        machine.run("systemctl is-system-running --wait", check=False, timeout=120)
        assert machine.run("systemctl --failed --no-legend --plain").stdout == ""
        machine.power_off()
        assert not machine.running
    with capsys.disabled():
        print(f"\n  boot to SSH {seconds:.1f} s")
