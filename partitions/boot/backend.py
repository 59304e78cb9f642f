"""The one place where a boot loader is chosen."""

from __future__ import annotations

from pathlib import Path

from core.errors import ConfigError
from partitions.boot.contract import BootBackend, BootLayout


def open_backend(
    kind: str, esp: Path, *, layout: BootLayout | None = None, plain_filesystem: bool = True
) -> BootBackend:
    """The boot loader named in node.toml (``grub`` or ``systemd-boot``), with its ESP mounted at `esp`.

    `layout` is needed by systemd-boot to prepare a slot. `plain_filesystem`: False for a sandbox, where the ESP is any
    directory. Raises ConfigError on other kinds.
    """
    if kind == "grub":
        from partitions.boot.grub import GrubBackend

        return GrubBackend(esp, plain_filesystem=plain_filesystem)
    if kind == "systemd-boot":
        from partitions.boot.systemd_boot import SystemdBootBackend

        return SystemdBootBackend(esp, layout=layout, plain_filesystem=plain_filesystem)
    raise ConfigError(f"boot backend {kind!r} is not known", next="use grub or systemd-boot in [boot] of node.toml")
