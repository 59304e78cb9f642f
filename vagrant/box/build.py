"""A base box from a release bundle: one disk with ESP, both slots and data, the release in slot a, and Vagrant's user.

Nothing is mounted, so nobody has to be root.
"""

from __future__ import annotations

import json
import tarfile
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from core.run import run
from images.keys import load_trust
from images.read import Bundle
from vagrant.box import ext4, guest, ovf
from vagrant.disk import Layout, make_disk
from vagrant.loader import esp_files
from vagrant.node import install
from vagrant.tree import File

#: A whole number of GiB: libvirt's metadata wants that.
LAYOUT = Layout(esp=64, slot=1024, data=4096 - 64 - 2 * 1024 - 2)

#: What boots anywhere: a serial line and a screen, no shortcuts for emulation.
CMDLINE = "panic=30 console=tty0 console=ttyS0,115200"


class Provider(StrEnum):
    """What runs the machines."""

    LIBVIRT = "libvirt"
    VIRTUALBOX = "virtualbox"


_VAGRANTFILE = """Vagrant.configure("2") do |config|
  config.ssh.username = "vagrant"
  config.ssh.insert_key = false
  # where the release has no sudo, this user is root
  config.ssh.sudo_command = "if command -v sudo > /dev/null; then sudo -E -H %c; else %c; fi"
  config.vm.synced_folder ".", "/vagrant", disabled: true
"""

_MACHINE = {
    Provider.LIBVIRT: """  config.vm.provider :libvirt do |libvirt|
    libvirt.machine_type = "q35"
    libvirt.disk_bus = "virtio"
    # code and variables in one file; of two files the second would have to be one for each machine
    libvirt.loader = ENV.fetch("FIRMWARE", "/usr/share/ovmf/OVMF.fd")
  end
end
""",
    Provider.VIRTUALBOX: """  config.vm.base_mac = "080027B0C0DE"
  config.vm.provider :virtualbox do |virtualbox|
    virtualbox.customize ["modifyvm", :id, "--firmware", "efi64"]
    virtualbox.customize ["modifyvm", :id, "--nictype1", "virtio"]
    virtualbox.check_guest_additions = false
  end
end
""",
}


def build_box(
    bundle: Path,
    key: Path,
    into: Path,
    *,
    provider: Provider = Provider.LIBVIRT,
    node_toml: str = "",
    layout: Layout = LAYOUT,
    cmdline: str = CMDLINE,
) -> Path:
    """Build `into`, a new file. `key`: the public key that has signed the bundle. `node_toml`: instead of our own.

    Raises UpdaterError when the bundle is not what it should be, or a program is missing; ValueError when the image
    does not fit the slot or is no ext4.
    """
    trust = load_trust([key], 1)
    with TemporaryDirectory(prefix="updater-box-", dir=into.parent) as scratch:
        work = Path(scratch)
        with Bundle.open(str(bundle), trust) as opened:
            manifest = opened.manifest
        slot, disk = work / "slot", work / "disk"
        install(bundle, trust, slot, layout.slot << 20)
        with slot.open("rb") as image:
            image.seek(1024 + 56)
            if image.read(2) != b"\x53\xef":
                raise ValueError(f"the image of {bundle} is no ext4: a box is made without mounting, so it has to be")
        ext4.put(slot, guest.files(manifest.compatible, key.read_text(), node_toml))
        ext4.check(slot)
        esp = esp_files(layout, cmdline=cmdline, boot={"a": manifest.boot})
        data = {"/updater/README": File(content="the agent's journal; survives every update\n")}
        make_disk(disk, slot_a=slot, esp=esp, data=data, layout=layout)
        slot.unlink()
        parts = _parts(provider, disk, work, layout.size)
        part = work / "box"
        # a box may be plain or gzip; the disk in it is compressed already
        with tarfile.open(part, "w") as box:
            for path in parts:
                box.add(path, arcname=path.name)
        part.rename(into)
    return into


def _parts(provider: Provider, disk: Path, work: Path, size: int) -> list[Path]:
    vagrantfile, metadata = work / "Vagrantfile", work / "metadata.json"
    vagrantfile.write_text(_VAGRANTFILE + _MACHINE[provider])
    told: dict[str, object] = {"provider": str(provider)}
    if provider is Provider.LIBVIRT:
        told |= {"format": "qcow2", "virtual_size": -(-size >> 30)}
        image, more = work / "box.img", []
        run("qemu-img", "convert", "-O", "qcow2", "-c", "-f", "raw", disk, image, timeout=900)
    else:
        image = work / "box-disk001.vmdk"
        run(
            "qemu-img",
            "convert",
            "-O",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
            "-f",
            "raw",
            disk,
            image,
            timeout=900,
        )
        more = [work / "box.ovf"]
        more[0].write_text(ovf.describe(image, size))
    metadata.write_text(json.dumps(told) + "\n")
    return [metadata, vagrantfile, *more, image]
