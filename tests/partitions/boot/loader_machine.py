"""A machine whose only software is a boot loader: a small disk with an ESP and two slots, started by QEMU.

The "kernel" in each slot prints its command line to the serial port and resets the machine, so one run of QEMU shows
boot after boot.
"""

from __future__ import annotations

import os
import re
import select
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from partitions.boot.contract import BootLayout, SlotPlace
from partitions.boot.grub_config import EARLY_CONFIG, mkimage_arguments

MIB = 1 << 20
ESP_AT, ESP_SIZE = 1 * MIB, 16 * MIB
SLOT_SIZE = 2 * MIB
GRUB = Path("/usr/lib/grub")
OVMF = Path("/usr/share/OVMF/OVMF_CODE.fd")

_ANY_KEY = b"Press any key"
SYSTEMD_BOOT = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")

LAYOUT = BootLayout(
    a=SlotPlace(root="PARTUUID=aaaa", partition=2),
    b=SlotPlace(root="PARTUUID=bbbb", partition=3),
    cmdline="console=ttyS0,115200 quiet",
    timeout=0,
)

# 32-bit code: print the zero-terminated string at [boot_params + 0x228] to port 0x3f8, then reset through port 0xcf9.
_STUB = bytes.fromhex(
    "fc8b9e2802000085db740e8a0b4384c97407e817000000ebf2b10ae80e000000baf90c0000b002eeb006eef4ebfd"
    "bafd030000eca82074fbbaf8030000" + "88c8eec3"
)


def stub_kernel() -> bytes:
    """The smallest bzImage that GRUB starts."""
    head = bytearray(1024)
    head[0x1F1] = 1  # sectors of setup code
    struct.pack_into("<H", head, 0x1FE, 0xAA55)
    head[0x200:0x202] = b"\xeb\x66"
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x020A)  # protocol 2.10
    head[0x211] = 1  # loaded high
    struct.pack_into("<I", head, 0x214, 0x100000)  # where the 32-bit code begins
    struct.pack_into("<I", head, 0x22C, 0x7FFFFFFF)
    struct.pack_into("<I", head, 0x230, 0x100000)
    head[0x234] = 1  # relocatable
    head[0x235] = 20
    struct.pack_into("<I", head, 0x238, 2047)  # longest command line
    struct.pack_into("<Q", head, 0x258, 0x100000)
    struct.pack_into("<I", head, 0x260, 0x10000)
    return bytes(head) + _STUB.ljust(4096, b"\0")


def loader_image(target: str, directory: Path) -> bytes:
    """The loader itself: GRUB with our early configuration and modules, or systemd-boot."""
    if target == "systemd-boot":
        return SYSTEMD_BOOT.read_bytes()
    early, output = directory / "early.cfg", directory / target
    early.write_text(EARLY_CONFIG)
    subprocess.run(mkimage_arguments(target, output=str(output), early_config=str(early)), check=True)
    return output.read_bytes()


def stub_efi_program(says: str, directory: Path) -> bytes:
    """What systemd-boot takes for a kernel: a program that says something and resets the machine."""
    early, output = directory / "stub.cfg", directory / "stub.efi"
    early.write_text(f"echo {says}\nreboot\n")
    command = ["grub-mkimage", "-O", "x86_64-efi", "-o", output, "-c", early, "-p", "/none", "echo", "reboot"]
    subprocess.run(command, check=True)
    return output.read_bytes()


def make_disk(path: Path, target: str, esp_files: Mapping[str, bytes], slots: Mapping[str, bytes | None]) -> None:
    """A GPT disk that starts on UEFI or BIOS. `target`: a GRUB target, or ``systemd-boot``. `slots`: the kernel in
    each, None for an empty filesystem.
    """
    work = path.parent
    with path.open("wb") as disk:
        disk.truncate(ESP_AT + ESP_SIZE + 2 * SLOT_SIZE + MIB)
    table = [f"-n1:{ESP_AT // 512}:+{ESP_SIZE // MIB}M", "-t1:ef00", "-n2:0:+2M", "-n3:0:+2M"]
    subprocess.run(["sgdisk", *table, path], check=True, stdout=subprocess.DEVNULL)
    esp = work / "esp.img"
    with esp.open("wb") as file:
        file.truncate(ESP_SIZE)
    subprocess.run(["mkfs.vfat", "-n", "ESP", esp], check=True, stdout=subprocess.DEVNULL)
    image = loader_image(target, work)
    if target != "i386-pc":
        esp_files = {**esp_files, "EFI/BOOT/BOOTX64.EFI": image}
    tree = work / "esp"
    for name, content in esp_files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    subprocess.run(["mcopy", "-s", "-i", esp, *sorted(tree.iterdir()), "::"], check=True)
    with path.open("r+b") as disk:
        _put(disk, ESP_AT, esp.read_bytes())
        for number, slot in enumerate("ab"):
            content = work / f"slot-{slot}"
            (content / "boot").mkdir(parents=True)
            kernel = slots.get(slot)
            if kernel is not None:
                (content / "boot/vmlinuz").write_bytes(kernel)
            filesystem = work / f"slot-{slot}.img"
            subprocess.run(["mkfs.ext4", "-q", "-d", content, filesystem, "2M"], check=True, stdout=subprocess.DEVNULL)
            _put(disk, ESP_AT + ESP_SIZE + number * SLOT_SIZE, filesystem.read_bytes())
        if target == "i386-pc":
            _install_bios(disk, image)


def esp_read(disk: Path, name: str) -> bytes:
    """A file of the ESP."""
    return subprocess.run(["mtype", "-i", f"{disk}@@{ESP_AT}", f"::{name}"], check=True, capture_output=True).stdout


def run(disk: Path, target: str, until: Callable[[str], bool], *, read_only: bool = False, limit: float = 60) -> str:
    """Start the machine; return what the serial line said once `until` is content with it. Where GRUB waits for a key
    after an error, one is pressed. Raises TimeoutError.
    """
    drive = f"file={disk},format=raw,if=none,id=d" + (",readonly=on" if read_only else "")
    argv = ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "128", "-display", "none", "-nic", "none"]
    argv += ["-drive", drive, "-device", "virtio-blk-pci,drive=d,bootindex=0", "-serial", "stdio", "-monitor", "none"]
    if target != "i386-pc":
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF}"]
    heard = b""
    deadline = time.monotonic() + limit
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as machine:
        assert machine.stdout is not None and machine.stdin is not None
        try:
            while not until(text := _plain(heard)):
                ready, _, _ = select.select([machine.stdout], [], [], max(0.0, deadline - time.monotonic()))
                more = os.read(machine.stdout.fileno(), 65536) if ready else b""
                if not more:
                    raise TimeoutError(f"QEMU stopped or said too little within {limit} s:\n{text[-4000:]}")
                if (heard + more).count(_ANY_KEY) > heard.count(_ANY_KEY):
                    machine.stdin.write(b" ")
                    machine.stdin.flush()
                heard += more
            return text
        finally:
            machine.kill()


def _plain(heard: bytes) -> str:
    """Without the escape sequences that move the cursor."""
    return re.sub(r"\x1b\[[0-9;?=]*[A-Za-z]", "", heard.decode("ascii", errors="replace"))


def _put(disk: object, at: int, content: bytes) -> None:
    disk.seek(at)  # type: ignore[attr-defined]
    disk.write(content)  # type: ignore[attr-defined]


def _install_bios(disk: object, core: bytes, sector: int = 64) -> None:
    """What grub-bios-setup does: boot.img into the first sector, the core image into the gap before the ESP."""
    boot = bytearray((GRUB / "i386-pc/boot.img").read_bytes()[:440])
    struct.pack_into("<Q", boot, 0x5C, sector)
    struct.pack_into("<H", boot, 0x66, 0x9090)  # trust the drive number of the BIOS
    core_bytes = bytearray(core.ljust(-(-len(core) // 512) * 512, b"\0"))
    assert sector * 512 + len(core_bytes) <= ESP_AT
    struct.pack_into("<QHH", core_bytes, 500, sector + 1, len(core_bytes) // 512 - 1, 0x820)
    _put(disk, 0, bytes(boot))
    _put(disk, sector * 512, bytes(core_bytes))
