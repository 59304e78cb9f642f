"""A node made of plain files in a directory, for trying the verbs without a virtual machine and without touching the
host: two slots, an environment, data, and a model of the boot loader in place of a reboot.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from core.errors import WrongState
from core.files import write_atomic
from core.image import BootFiles
from core.journal import Journal
from core.release import Release
from images.keys import load_trust
from partitions.boot.backend import open_backend
from partitions.boot.contract import BootLayout, SlotPlace
from partitions.boot.state import fresh
from updater.init import render
from updater.machine import Sandbox
from updater.node_toml import load_node

CONFIG = "node.toml"


def create(directory: Path, *, slot_size: int, keys: list[Path], release: str, compatible: str) -> Path:
    """Make a sandbox whose slot a "runs" `release`; slots are sparse files of `slot_size` bytes. Returns its node.toml.

    Raises WrongState when there is something at `directory` already, ConfigError when a key cannot be read, ValueError.
    """
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise WrongState(
            f"{directory} is not an empty directory",
            state="nothing was changed",
            next="choose another directory, or remove it",
        )
    load_trust(keys)
    Release.parse(release)
    root = directory.resolve()
    for name in ("data", "esp", "keys", "health.d", "hooks", "slots"):
        (root / name).mkdir(parents=True)
    for key in keys:
        shutil.copyfile(key, root / "keys" / key.name)
    for slot in "ab":
        with (root / "slots" / f"{slot}.img").open("wb") as device:
            device.truncate(slot_size)
    write_atomic(root / CONFIG, render("sandbox.toml.j2", root=root, keys=keys, compatible=compatible))
    check = root / "health.d" / "10-release"
    write_atomic(check, render("sandbox-health.j2", root=root), mode=0o755)
    config = load_node(root / CONFIG)
    backend = open_backend("grub", config.boot.esp, plain_filesystem=False)
    place = SlotPlace(root="none", partition=1)
    backend.install(BootLayout(a=place, b=place), fresh("a"), {"a": BootFiles(kernel="/vmlinuz")})
    Sandbox(config).start("a")
    with Journal.open(config.journal) as journal:
        journal.set_slot("a", {"release": release})
    return root / CONFIG
