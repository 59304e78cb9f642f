"""RAUC, the peer: a plain bundle installed by its service over a private D-Bus, as it works on a node."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_BUS = """<busconfig><type>session</type><listen>unix:path={folder}/bus</listen><auth>EXTERNAL</auth>
<policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
</policy></busconfig>
"""

_SYSTEM = """[system]
compatible=bench
bootloader=noop
mountprefix={folder}/mount
statusfile={folder}/status
[keyring]
path={folder}/cert.pem
[slot.rootfs.0]
device={folder}/running
type=ext4
bootname=A
[slot.rootfs.1]
device={device}
type=ext4
bootname=B
"""

_MANIFEST = """[update]
compatible=bench
version=1
[bundle]
format=plain
[image.rootfs]
filename=rootfs.ext4
"""


def rauc_bundle(image: Path, folder: Path) -> Path:
    """A plain bundle of the image, signed with a certificate made for it. squashfs with gzip, RAUC's default; at gzip's
    own default level in place of the highest, which takes three times as long to make and no less to install.
    """
    content = folder / "content"
    content.mkdir(parents=True)
    os.link(image, content / "rootfs.ext4")
    (content / "manifest.raucm").write_text(_MANIFEST)
    made = folder / "bench.raucb"
    certificate = ["-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2"]
    _quiet("openssl", "req", "-x509", *certificate, "-subj", "/CN=bench", folder=folder)
    options = ["--cert=cert.pem", "--key=key.pem", "--mksquashfs-args=-comp gzip -Xcompression-level 6"]
    _quiet("rauc", *options, "bundle", "content", made, folder=folder)
    return made


@contextmanager
def installer(bundle: Path, device: Path) -> Iterator[Callable[[], object]]:
    """RAUC's service, running; yields what installs the bundle on the device."""
    folder = bundle.parent
    (folder / "mount").mkdir(exist_ok=True)
    (folder / "running").write_bytes(bytes(4096))
    # a unix socket's path may have 107 bytes at most, and the folder's name may be long
    sockets = Path(tempfile.mkdtemp(prefix="ubus-"))
    (folder / "bus.conf").write_text(_BUS.format(folder=sockets))
    (folder / "system.conf").write_text(_SYSTEM.format(folder=folder, device=device))
    reached = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={sockets}/bus", "DBUS_STARTER_BUS_TYPE": "system"}
    running: list[subprocess.Popen[bytes]] = []
    try:
        with (folder / "log").open("wb") as log:
            bus = ["dbus-daemon", f"--config-file={folder}/bus.conf", "--nofork", "--nopidfile"]
            running.append(subprocess.Popen(bus, stdout=log, stderr=log))
            _until((sockets / "bus").exists, running[-1], folder)
            service = ["rauc", f"--conf={folder}/system.conf", "--override-boot-slot=A", "service"]
            running.append(subprocess.Popen(service, stdout=log, stderr=log, env=reached))

            def answers() -> bool:
                return subprocess.run(["rauc", "status"], capture_output=True, env=reached).returncode == 0

            _until(answers, running[-1], folder)
        yield lambda: _quiet("rauc", "install", bundle, folder=folder, env=reached)
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()
        subprocess.run(["umount", "--quiet", "--lazy", folder / "mount" / "bundle"], capture_output=True)
        shutil.rmtree(sockets, ignore_errors=True)


def _until(there: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not there():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"RAUC's service does not start:\n{(folder / 'log').read_text()}")
        time.sleep(0.05)


def _quiet(*command: str | Path, folder: Path, env: dict[str, str] | None = None) -> None:
    """Run to success; what it says is shown only when it fails."""
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}")
