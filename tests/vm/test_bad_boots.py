"""Releases that do not come up at all: the machine falls back without their help."""

from __future__ import annotations

from tests.vm.guest import settled, states, trick
from vagrant.qemu import Machine


def test_a_kernel_that_panics_falls_back(ready: Machine) -> None:
    trick(ready, "panic", tries=1)
    before = len(ready.boots)
    ready.run("updater activate")
    seen = [ready.wait_for_kernel(before + number, timeout=180) for number in (1, 2)]
    assert [boot.slot for boot in seen] == ["b", "a"]
    ready.wait_for_boot()
    found = settled(ready)
    assert states(ready) == {"a": ("MR95-1", "good"), "b": ("MR96-1", "bad")}
    assert "never came up" in found["problems"][0]
    assert "Kernel panic" in ready.serial.read_text(errors="replace")


def test_a_boot_that_hangs_meets_its_deadline_and_falls_back(ready: Machine) -> None:
    trick(ready, "hang", tries=1)
    before = len(ready.boots)
    ready.run("updater activate")
    seen = [ready.wait_for_kernel(before + number, timeout=240) for number in (1, 2)]
    assert [boot.slot for boot in seen] == ["b", "a"]
    ready.wait_for_boot()
    settled(ready)
    assert states(ready) == {"a": ("MR95-1", "good"), "b": ("MR96-1", "bad")}
