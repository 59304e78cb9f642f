"""A first node.toml from what is on the disks; systemd units and boot configuration."""

from __future__ import annotations

import socket
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from core.errors import NotReady
from core.files import write_atomic
from core.image import BootFiles
from core.run import run
from partitions import checks, disks
from partitions.boot.backend import open_backend
from partitions.boot.state import SLOTS, Slot, fresh
from partitions.layout import propose as propose_layout
from updater.layout import boot_layout, running_root
from updater.machine import machine_of
from updater.node_toml import NodeConfig, load_node

UNITS = ("updater-confirm.service", "updater-deadline.timer")
_RENDERED = (*UNITS, "updater-deadline.service")


def propose(compatible: str) -> str:
    """The text of a first node.toml. Raises NotReady, with what was found, where no two slots can be made out."""
    found = disks.devices()
    layout = propose_layout(found)
    if not layout.slots or not layout.esp or not layout.data:
        raise NotReady(
            "the disks do not show two slots, a boot partition and a data partition",
            what=[f"{d.path} {d.size >> 20} MiB {d.partlabel or '-'} {d.fstype or '-'}" for d in found] or "no disks",
            next="make partitions labelled esp, slot-a, slot-b (of equal size) and data; see docs/node-toml.md",
        )
    a, b = layout.slots[0]
    return render(
        "node.toml.j2",
        name=socket.gethostname(),
        compatible=compatible,
        a=disks.stable_name(a, found),
        b=disks.stable_name(b, found),
    )


def write(path: Path, text: str) -> Path:
    """Put a first node.toml in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text, mode=0o644)
    return path


def install(config_file: Path, root: Path, *, units_only: bool, dry_run: bool) -> list[Path]:
    """Write the systemd units (into `root`) and, unless `units_only`, the boot loader's configuration of this machine;
    enable the units. An existing boot environment stays. Returns what was written.
    """
    config = None if units_only else load_node(config_file)
    config_file = config_file.absolute()  # the units run elsewhere
    deadline = config.boot.deadline if config else 300
    mounts = f"{config.data} {config.boot.esp}" if config else "/data /efi"
    units = {
        root / "etc/systemd/system" / name: render(f"{name}.j2", deadline=deadline, config=config_file, mounts=mounts)
        for name in _RENDERED
    }
    if dry_run:
        return list(units)
    for path, text in units.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    run("systemctl", f"--root={root}", "enable", *UNITS)
    if config is None:
        return list(units)
    config.data.mkdir(parents=True, exist_ok=True)
    layout = boot_layout(config)
    booted = running_slot(config)
    backend = open_backend(config.boot.backend, config.boot.esp, layout=layout)
    running = running_root(config)
    files = {booted: running_boot_files(running)}
    return [*units, *backend.install(layout, fresh(booted), files, {booted: running})]


def running_slot(config: NodeConfig) -> Slot:
    """The slot that runs. Before our boot configuration is in place the kernel is not told, so the root device says.

    Raises NotReady.
    """
    try:
        return machine_of(config).booted_slot()
    except NotReady:
        for slot in SLOTS:
            with suppress(NotReady):
                checks.runs_from(config.slots[slot].device)
                return slot
        raise


def running_boot_files(root: Path) -> BootFiles:
    """Kernel and initrd of the running root: the newest there are. Raises NotReady."""
    kernels = sorted((root / "boot").glob("vmlinuz-*"), key=lambda path: path.stat().st_mtime)
    if not kernels:
        raise NotReady("there is no kernel in /boot", next="install the kernel's package")
    version = kernels[-1].name.removeprefix("vmlinuz-")
    names = (f"initrd.img-{version}", f"initramfs-{version}.img")
    initrds = [f"/boot/{name}" for name in names if (root / "boot" / name).exists()]
    return BootFiles(kernel=f"/boot/{kernels[-1].name}", initrd=initrds[0] if initrds else None)


def render(template: str, **values: Any) -> str:
    """A template of this package with its values. A value that is missing is an error."""
    from jinja2 import Environment, StrictUndefined

    text = (files("templates") / template).read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(text).render(**values)
