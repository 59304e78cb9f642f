"""Releases that do not come up at all: the machine falls back without their help."""

from __future__ import annotations

from tests.vm.guest import settled, states, trick
from vagrant.qemu import Machine


def test_a_kernel_that_panics_and_a_boot_that_hangs_fall_back(ready: Machine) -> None:
    trick(ready, "panic", "hang", tries=2)
    before = len(ready.boots)
    ready.run("updater activate")
    panics, hangs = (ready.wait_for_kernel(before + number, timeout=180) for number in (1, 2))
    assert [(boot.slot, boot.trying) for boot in (panics, hangs)] == [("b", 1), ("b", 0)]
    assert "Kernel panic" in ready.serial.read_text(errors="replace")
    back = ready.wait_for_kernel(before + 3, timeout=240)  # its deadline is met, though nothing of it answers
    assert (back.slot, back.trying) == ("a", None)
    ready.wait_for_boot()
    found = settled(ready)
    assert states(ready) == {"a": ("MR95-1", "good"), "b": ("MR96-1", "bad")}
    assert "never came up" in found["problems"][0]
