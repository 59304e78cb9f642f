"""A node of the lab: a machine with the agent, its configuration, and a release installed in slot a from its bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from core.report import Report
from images.build import BuildSpec, build
from images.keys import Trust, generate, load_signer, load_trust
from images.read import Bundle
from partitions.write import write_image
from updater.init import UNITS, render
from vagrant import cache, data
from vagrant.disk import Layout, make_disk, overlay
from vagrant.loader import esp_files
from vagrant.tree import File, Files, Variant, enabled, release_tree

COMPATIBLE = "acme-switch"
IMAGE_SIZE = 560 << 20

#: Seconds within which a slot on trial must be confirmed. Emulation takes about twenty for a boot.
BOOT_DEADLINE = 150

NODE_TOML = """\
name = "lab-1"
site = "A"
role = "billing"
compatible = "acme-switch"
data = "/data/updater"

[slots]
a.device = "/dev/disk/by-partlabel/slot-a"
b.device = "/dev/disk/by-partlabel/slot-b"

[boot]
backend = "{backend}"
esp = "/efi"
tries = {tries}
deadline = {deadline}

[trust]
keys = ["/etc/updater/keys/release.pub"]

[health]
deadline = {health}
interval = 1

[[health.checks]]
name = "acme"
kind = "unit"
unit = "acme.service"

[[health.checks]]
name = "acme answers"
kind = "command"
command = ["/usr/bin/acme-health"]

[[health.checks]]
name = "ssh"
kind = "tcp"
port = 22
"""


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Where the lab's keys and bundles are made once and kept. `tries`, `health` (seconds): of the node."""

    tries: int = 3
    health: int = 15
    deadline: int = BOOT_DEADLINE
    backend: str = "grub"
    disk: Layout = field(default_factory=Layout)

    @cached_property
    def keys(self) -> Path:
        """The directory of the release key: release.pem, release.pub."""

        def make(part: Path) -> None:
            part.mkdir(mode=0o700)
            generate(part / "release.pem")

        return cache.cached("release-key", cache.key("ed25519"), make)

    @property
    def trust(self) -> Trust:
        """What the nodes trust."""
        return load_trust([self.keys / "release.pub"], 1)

    def files(self, first: bool) -> Files:
        """What goes into a release's tree: the agent's units, and into the first one the node's configuration."""
        found = dict(agent_units(self.deadline))
        if first:
            text = NODE_TOML.format(backend=self.backend, tries=self.tries, health=self.health, deadline=self.deadline)
            text += data.NODE_TOML
            found["/etc/updater/node.toml"] = File(content=text)
            found["/etc/updater/keys/release.pub"] = File(content=(self.keys / "release.pub").read_text())
        return found

    def tree(self, release: str, *, variant: Variant = Variant.SOUND, first: bool = False) -> Path:
        """The root tree of a release."""
        return release_tree(release, variant=variant, files=self.files(first))

    def bundle(self, release: str, *, variant: Variant = Variant.SOUND, first: bool = False) -> Path:
        """The signed bundle of a release, from the cache if it was made before."""
        tree = self.tree(release, variant=variant, first=first)

        def make(part: Path) -> None:
            with TemporaryDirectory(prefix="updater-catalogue-") as scratch:
                migrations = data.catalogue(release, Path(scratch, "migrations"))
                sections = {"migrations": migrations} if migrations else {}
                build(spec(release, tree, sections=sections), part, [load_signer(str(self.keys / "release.pem"))])

        return cache.cached("bundle", cache.key(tree.name, self.keys.name, *data.CATALOGUE.values()), make)

    def base_disk(self, release: str, bundle: Path) -> Path:
        """The disk of a node on which `release` is installed in slot a, as a cached raw file."""

        esp = esp_files(self.disk)

        def make(part: Path) -> None:
            slot = part.with_name(f"{part.name}.slot")
            try:
                install(bundle, self.trust, slot, self.disk.slot << 20)
                kept: Files = {
                    "/updater/README": File(content="the agent's journal; survives every update\n"),
                    f"/{data.PLACE.relative_to('/data')}": File(content=data.fresh()),
                }
                make_disk(part, slot_a=slot, esp=esp, data=kept, layout=self.disk)
            finally:
                slot.unlink(missing_ok=True)

        return cache.cached("disk", cache.key(bundle, repr(self.disk), *esp, *esp.values()), make)

    def fresh_disk(self, release: str, into: Path, *, bundle: Path | None = None) -> Path:
        """A disk of its own for one machine, starting from `base_disk`."""
        return overlay(self.base_disk(release, bundle or self.bundle(release, first=True)), into)


def spec(release: str, tree: Path, **more: Any) -> BuildSpec:
    """How the lab's bundles are built."""
    return BuildSpec(
        release=release, compatible=COMPATIBLE, tree=tree, size=IMAGE_SIZE, kernel="/boot/vmlinuz",
        initrd="/boot/initrd.img", level=3, **more,
    )  # fmt: skip


def install(bundle: Path, trust: Trust, slot: Path, size: int) -> None:
    """Write the image of a bundle into a file of `size` bytes: the first installation, before there is an agent."""
    with slot.open("xb") as file:
        file.truncate(size)
    with Bundle.open(str(bundle), trust) as opened:
        write_image(opened.image, slot, report=Report())


def agent_units(deadline: int) -> Files:
    """The systemd units as `updater init --install` renders and enables them."""
    values = {"deadline": deadline, "config": "/etc/updater/node.toml", "mounts": "/data /efi"}
    wanted = {"updater-confirm.service": "multi-user.target", "updater-deadline.timer": "sysinit.target"}
    assert set(wanted) == set(UNITS)
    found: dict[str, Any] = {}
    for unit, target in wanted.items():
        found |= enabled(unit, render(f"{unit}.j2", **values), wanted_by=target)
    service = "updater-deadline.service"
    found[f"/etc/systemd/system/{service}"] = File(content=render(f"{service}.j2", **values))
    return found
