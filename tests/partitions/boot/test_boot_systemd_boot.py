"""What is particular to systemd-boot: names of entries, what cuts leave behind, and the room on the ESP."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import systemd_boot_model

from core import faults
from core.errors import BootEnvironment, NoSpace, WrongState
from core.image import BootFiles
from partitions.boot import state, systemd_boot
from partitions.boot.contract import BootLayout, SlotPlace
from partitions.boot.state import BAD, GOOD, BootState, SlotBoot, SlotState
from partitions.boot.systemd_boot import ENTRIES, LOADER, SystemdBootBackend, entries_in

LAYOUT = BootLayout(a=SlotPlace(root="PARTUUID=aaaa"), b=SlotPlace(root="PARTUUID=bbbb"), cmdline="quiet")
FILES = BootFiles(kernel="/boot/vmlinuz", initrd="/boot/initrd", cmdline="x=1")


class PowerCut(BaseException):
    pass


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/boot").mkdir(parents=True)
    (tmp_path / "root/boot/vmlinuz").write_text("kernel")
    (tmp_path / "root/boot/initrd").write_text("initrd")
    return tmp_path / "root"


@pytest.fixture
def backend(tmp_path: Path, root: Path) -> Iterator[SystemdBootBackend]:
    backend = SystemdBootBackend(tmp_path / "esp", layout=LAYOUT, plain_filesystem=False)
    backend.install(LAYOUT, state.fresh("a"), {"a": FILES}, {"a": root})
    yield backend
    faults.arm(None)


def names(backend: SystemdBootBackend) -> list[str]:
    return sorted(path.name for path in (backend.esp / ENTRIES).iterdir())


def both_good(backend: SystemdBootBackend, root: Path) -> None:
    """Slot b is staged, tried and confirmed."""
    backend.prepare("b", FILES, root)
    backend.write(state.flip(backend.read(), "b", 3))
    backend.write(state.confirm(backend.read(), "b"))


def test_entries_tell_the_state_by_their_names(backend: SystemdBootBackend, root: Path) -> None:
    backend.prepare("b", FILES, root)
    backend.write(state.flip(backend.read(), "b", 3))
    assert names(backend) == ["updater-000002-a.conf", "updater-000003-b+3.conf"]
    assert (backend.esp / ENTRIES / "updater-000003-b+3.conf").read_text().splitlines() == [
        "version 3",
        "title updater slot b",
        "sort-key updater",
        "linux /updater/b/linux",
        "initrd /updater/b/initrd",
        "options root=PARTUUID=bbbb panic=30 quiet",
        "options x=1 updater.slot=b",
    ]
    backend.write(state.mark_bad(backend.read(), "b"))
    assert names(backend) == ["updater-000002-a.conf"]


def test_both_names_of_a_rename_that_was_cut_count_as_not_confirmed(backend: SystemdBootBackend, root: Path) -> None:
    """FAT has no journal: of a rename both names may reach the disk."""
    both_good(backend, root)
    home = backend.esp / ENTRIES
    (home / "updater-000003-b+2-1.conf").write_bytes((home / "updater-000003-b.conf").read_bytes())
    at = backend.read()
    assert at == BootState(primary="b", a=GOOD, b=SlotBoot(state=SlotState.TRYING, tries=2))
    backend.write(state.confirm(at, "b"))
    assert names(backend) == ["updater-000002-a.conf", "updater-000003-b.conf"]


def test_what_a_cut_left_behind_does_not_come_back_to_life(backend: SystemdBootBackend, root: Path) -> None:
    both_good(backend, root)

    def cut(point: str) -> None:
        if point == "boot-environment:after":
            raise PowerCut

    faults.arm(cut)
    with pytest.raises(PowerCut):
        backend.write(state.roll_back(backend.read(), "a"))
    faults.arm(None)
    assert names(backend) == ["updater-000002-a.conf", "updater-000003-b.conf", "updater-000004-a.conf"]
    assert backend.read() == BootState(primary="a", a=GOOD, b=GOOD)
    backend.write(state.mark_bad(state.roll_back(backend.read(), "b"), "a"))
    assert backend.read() == BootState(primary="b", a=BAD, b=GOOD)
    assert systemd_boot_model.boot(backend.esp / ENTRIES) == ("b", False)


def test_names_that_are_not_ours_are_left_alone() -> None:
    found = entries_in(["debian.conf", "updater-1-c.conf", "updater-2-a+1.conf.bad", "updater-7-b+1-2.conf", ".x.tmp"])
    assert [entry.name for each in found.values() for entry in each] == ["updater-7-b+1-2.conf"]


def test_more_tries_than_we_ever_write_are_an_error(backend: SystemdBootBackend) -> None:
    (backend.esp / ENTRIES / "updater-000002-a.conf").rename(backend.esp / ENTRIES / "updater-000002-a+12.conf")
    with pytest.raises(BootEnvironment, match="makes no sense"):
        backend.read()


def test_without_room_for_the_kernel_the_slot_stays_bad(
    backend: SystemdBootBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd_boot, "_free", lambda _: 100)
    with pytest.raises(NoSpace, match="no room"):
        backend.prepare("b", FILES, root)
    assert backend.read() == state.fresh("a")
    assert not backend.prepared("b", FILES, root)
    assert any("no room" in fault.message for fault in backend.check())


def test_a_kernel_that_differs_is_not_prepared(backend: SystemdBootBackend, root: Path) -> None:
    backend.prepare("b", FILES, root)
    assert backend.prepared("b", FILES, root)
    (root / "boot/vmlinuz").write_text("newer!")
    assert not backend.prepared("b", FILES, root)
    backend.prepare("b", FILES, root)
    assert (backend.esp / "updater/b/linux").read_text() == "newer!"
    with pytest.raises(WrongState):
        backend.prepare("a", FILES, root)


def test_no_entry_is_made_for_a_slot_without_its_kernel(tmp_path: Path) -> None:
    backend = SystemdBootBackend(tmp_path / "esp", plain_filesystem=False)
    with pytest.raises(BootEnvironment, match="no kernel for slot a"):
        backend.install(LAYOUT, state.fresh("a"), {"a": FILES})
    assert names(backend) == []


def test_installing_again_brings_a_kernel_back(backend: SystemdBootBackend, root: Path) -> None:
    """The arguments of its release stay, whoever knows them no more."""
    before = (backend.esp / ENTRIES / "updater-000002-a.conf").read_text()
    (backend.esp / "updater/a/linux").unlink()
    assert [fault.message for fault in backend.check()] == [f"{backend.esp / 'updater/a/linux'} is missing"]
    backend.install(LAYOUT, state.fresh("a"), {"a": dataclasses.replace(FILES, cmdline="")}, {"a": root})
    assert (backend.esp / "updater/a/linux").read_text() == "kernel"
    assert (backend.esp / ENTRIES / "updater-000002-a.conf").read_text() == before
    assert backend.check() == []


@pytest.mark.parametrize("before", ["#timeout 3\n#console-mode keep\n", "timeout 9\neditor\tyes\nconsole-mode max", ""])
def test_loader_conf_says_what_we_need_and_keeps_the_rest(backend: SystemdBootBackend, before: str) -> None:
    """`bootctl install` makes one before us."""
    loader = backend.esp / LOADER
    loader.write_text(before)
    assert [fault.mend for fault in backend.check()] == ["updater init --install"]
    assert backend.install(LAYOUT, state.fresh("a"), {}) == [loader]
    kept = [line for line in before.splitlines() if "console-mode" in line or line.startswith("#")]
    assert loader.read_text().splitlines() == [*kept, "timeout 3", "default updater-*", "editor no"]
    assert backend.check() == []
    assert backend.install(LAYOUT, state.fresh("a"), {}) == []


def test_changed_arguments_of_the_node_come_into_all_entries(backend: SystemdBootBackend, root: Path) -> None:
    backend.prepare("b", FILES, root)
    backend.write(state.flip(backend.read(), "b", 3))
    changed = dataclasses.replace(LAYOUT, cmdline="console=ttyS0")
    backend.install(changed, state.fresh("a"), {"a": dataclasses.replace(FILES, cmdline="")}, {"a": root})
    assert backend.read() == state.flip(state.fresh("a"), "b", 3)
    for name, version, slot in (("updater-000002-a.conf", 2, "a"), ("updater-000003-b+3.conf", 3, "b")):
        text = (backend.esp / "updater" / slot / "entry").read_text()
        assert (backend.esp / ENTRIES / name).read_text() == f"version {version}\n{text}"
        assert f"panic=30 console=ttyS0\noptions x=1 updater.slot={slot}\n" in text


def test_an_entry_that_does_not_tell_whose_its_arguments_are_stays(backend: SystemdBootBackend) -> None:
    for path in (backend.esp / "updater/a/entry", backend.esp / ENTRIES / "updater-000002-a.conf"):
        path.write_text(path.read_text().replace("quiet\noptions ", "quiet "))
    changed = dataclasses.replace(LAYOUT, cmdline="console=ttyS0")
    assert backend.install(changed, state.fresh("a"), {}) == []
