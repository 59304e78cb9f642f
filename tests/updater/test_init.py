"""What `updater init --install` puts on a node's ESP."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.boot.backend import open_backend
from partitions.boot.contract import BootLayout, SlotPlace
from partitions.boot.state import fresh
from updater import init

LAYOUT = BootLayout(a=SlotPlace(root="PARTUUID=aaaa", partition=2), b=SlotPlace(root="PARTUUID=bbbb", partition=3))


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox has neither partitions nor systemd."""
    monkeypatch.setattr(init, "boot_layout", lambda config: LAYOUT)
    monkeypatch.setattr(init, "run", lambda *command: None)


@pytest.mark.parametrize("kind", ["grub", "systemd-boot"])
def test_a_node_boots_after_its_first_installation(kind: str, node: Path, place: Path, disks: None) -> None:
    esp, boot = place / "esp", node.parent / "root/boot"
    node.write_text(
        node.read_text().replace(f'esp = "{node.parent}/esp"', f'esp = "{esp}"').replace('"grub"', f'"{kind}"')
    )
    boot.mkdir(parents=True, exist_ok=True)
    (boot / "vmlinuz-6.1").write_text("kernel")
    (boot / "initrd.img-6.1").write_text("initrd")
    (esp / "loader").mkdir(parents=True)
    (esp / "loader/loader.conf").write_text("#timeout 3\n")  # as `bootctl install` leaves it
    written = init.install(node, place / "installed", units_only=False, dry_run=False)
    assert all(path.exists() for path in written)
    backend = open_backend(kind, esp, plain_filesystem=False)
    assert backend.read() == fresh("a")
    assert backend.check() == []
    if kind == "systemd-boot":
        assert [(esp / "updater/a" / name).read_text() for name in ("linux", "initrd")] == ["kernel", "initrd"]
        assert "default updater-*\n" in (esp / "loader/loader.conf").read_text()


def test_the_units_find_a_configuration_that_was_named_by_a_relative_path(
    node: Path, place: Path, disks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(node.parent)
    init.install(Path(node.name), place, units_only=True, dry_run=False)
    assert f"--config {node} confirm" in (place / "etc/systemd/system/updater-confirm.service").read_text()
