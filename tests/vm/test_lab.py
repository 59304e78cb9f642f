"""The lab itself: a machine boots, is what it should be, and goes off."""

from __future__ import annotations

import time

import pytest

from vagrant.qemu import Machine


def test_boots_into_slot_a_and_switches_off(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    machine.start()
    boot = machine.wait_for_boot()
    seconds = time.monotonic() - started

    assert boot.slot == "a"
    assert boot.trying is None
    assert machine.boots == [boot]
    assert machine.run("hostname").stdout == "node\n"
    assert machine.run("cat /etc/updater-release").stdout == "MR95-1\n"
    assert machine.run("ls /dev/disk/by-partlabel").stdout.split() == ["data", "esp", "slot-a", "slot-b"]
    assert machine.run("findmnt -no FSTYPE /data; findmnt -no FSTYPE /efi").stdout.split() == ["ext4", "vfat"]
    assert machine.run("systemctl --failed --no-legend --plain").stdout == ""
    agent = (
        "import sys; sys.path.insert(0, '/usr/lib/updater/site-packages'); import core.schema, blake3, zstandard, sh"
    )
    machine.run(f'/usr/bin/python3 -Ic "{agent}"')
    machine.push("hello", "/data/x/y", mode=0o600)
    assert machine.run("stat -c '%a %s' /data/x/y").stdout == "600 5\n"

    machine.power_off()
    assert not machine.running
    with capsys.disabled():
        print(f"\n  boot to SSH {seconds:.1f} s")


def test_a_frozen_machine_goes_on_where_it_was(booted: Machine) -> None:
    assert [boot.slot for boot in booted.boots] == ["a"]
    assert booted.run("cat /etc/updater-release").stdout == "MR95-1\n"
    booted.push("kept", "/data/here")
    booted.run("sync")
    booted.kill()
    assert not booted.running
