"""A filesystem on a disk of QEMU's, mounted on this machine: what QEMU does to a guest's disk, it can do to this one.
`qemu-storage-daemon` exports the disk as a file (FUSE), which is mounted through a loop device.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from core.errors import CommandFailed
from core.run import run
from vagrant.qemu import ask

#: Bytes of the disk. It is sparse.
SIZE = 64 << 20


class Volume:
    """An ext4 filesystem, mounted at `root` while in the context. `work` is an empty directory, best in memory.

    Needs root, a loop device and FUSE.
    """

    def __init__(self, work: Path) -> None:
        self.work, self.root = work, work / "root"
        self.disk = work / "disk"
        self._exported = work / "exported"
        self._closers = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as closers:
            self.root.mkdir()
            with self.disk.open("xb") as file:
                file.truncate(SIZE)
            shape = ["-b", "4096", "-J", "size=4", "-O", "^metadata_csum"]  # as on a node: ADR 14
            run("mkfs.ext4", "-q", "-F", *shape, "-E", "lazy_itable_init=0", self.disk)
            self._export(self._blockdevs(), closers)
            # not with direct I/O: writes of several pages then arrive with wrong bytes in them [QEMU 7.2]
            device = run("losetup", "--find", "--show", self._exported).stdout.strip()
            closers.callback(run, "losetup", "--detach", device)
            run("mount", "-o", "noatime", device, self.root)
            closers.callback(unmount, self.root)
            self._closers = closers.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closers.close()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Give the daemon's monitor a command and return what it answers."""
        return ask(self.work / "qmp", command, **arguments)

    def _blockdevs(self) -> list[Mapping[str, object]]:
        """QEMU's block nodes, in the order in which they are made; what is exported is the one named `disk`."""
        return [{"driver": "file", "node-name": "disk", "filename": str(self.disk)}]

    def _export(self, nodes: list[Mapping[str, object]], closers: contextlib.ExitStack) -> None:
        """Have the daemon serve the disk as a file, until `closers` end it."""
        pid_file = self.work / "daemon.pid"
        self._exported.touch()
        argv = ["qemu-storage-daemon", "--daemonize", "--pidfile", str(pid_file)]
        argv += ["--chardev", f"socket,id=qmp,path={self.work / 'qmp'},server=on,wait=off", "--monitor", "chardev=qmp"]
        argv += [word for node in nodes for word in ("--blockdev", json.dumps(node))]
        argv += ["--export", f"type=fuse,id=disk,node-name=disk,mountpoint={self._exported},writable=on"]
        subprocess.run(argv, check=True, capture_output=True, timeout=30)
        closers.callback(_end, int(pid_file.read_text()), self._exported)


def unmount(root: Path) -> None:
    """Unmount it. Raises CommandFailed when somebody uses it, and then it is gone from its place all the same."""
    try:
        run("umount", root)
    except CommandFailed:
        run("umount", "--lazy", root)
        raise


def _end(pid: int, exported: Path) -> None:
    """End the daemon; it unmounts what it exports."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() or os.path.ismount(exported):
        if time.monotonic() > deadline:
            raise TimeoutError(f"qemu-storage-daemon, process {pid}, does not end")
        time.sleep(0.02)
