"""The real systemd-boot, started in QEMU, obeys the entries that we write, as `systemd_boot_model` says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import systemd_boot_model
from loader_machine import ESP_AT, LAYOUT, OVMF, SYSTEMD_BOOT, make_disk, run, stub_efi_program

from core.image import BootFiles
from partitions.boot import state
from partitions.boot.systemd_boot import ENTRIES, SystemdBootBackend

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None or not OVMF.exists(), reason="no QEMU with OVMF here"
    ),
    pytest.mark.skipif(not SYSTEMD_BOOT.exists(), reason="no systemd-boot here"),
]


def test_a_slot_that_never_confirms_gives_way_after_its_tries(tmp_path: Path) -> None:
    esp, root = tmp_path / "node", tmp_path / "root"
    root.mkdir()
    backend = SystemdBootBackend(esp, layout=LAYOUT, plain_filesystem=False)
    files = BootFiles(kernel="/vmlinuz")
    (root / "vmlinuz").write_bytes(stub_efi_program("started-a", tmp_path))
    backend.install(LAYOUT, state.fresh("a"), {"a": files}, {"a": root})
    (root / "vmlinuz").write_bytes(stub_efi_program("started-b", tmp_path))
    backend.prepare("b", files, root)
    backend.write(state.flip(backend.read(), "b", 1))
    content = {str(path.relative_to(esp)): path.read_bytes() for path in esp.rglob("*") if path.is_file()}
    disk = tmp_path / "disk.img"
    make_disk(disk, "systemd-boot", content, {})

    heard = run(disk, "systemd-boot", lambda text: "started-a" in text)

    assert re.findall(r"started-[ab]", heard)[:2] == ["started-b", "started-a"]
    names = tmp_path / "after"
    subprocess.run(["mcopy", "-s", "-i", f"{disk}@@{ESP_AT}", f"::{ENTRIES}", names], check=True)
    for _ in range(2):
        systemd_boot_model.boot(esp / ENTRIES)
    assert sorted(path.name for path in names.iterdir()) == sorted(path.name for path in (esp / ENTRIES).iterdir())
    assert state.fell_back(backend.read(), "a")
