"""A release's root, booted in namespaces of its own: its init, its services, no network but the loopback, no devices.

Everything it writes goes to memory, in overlays; what it reads of the data is a view of the real one, with copies in
place of the databases. It needs a host with systemd, which gives it a control group of its own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from core.errors import CommandFailed, NotReady, RehearsalFailed
from core.run import Result, run, started

T = TypeVar("T")

_PROGRAMS: Final = ("systemd-run", "unshare", "nsenter", "setpriv", "chroot", "mount", "ip")
_NETWORK: Final = 0x40000000  # CLONE_NEWNET

#: Never in there: what would change this machine, or decide about its boots.
_DROPPED: Final = "-sys_module,-sys_time,-sys_rawio,-sys_boot,-mknod,-syslog,-audit_control,-mac_admin,-wake_alarm"
_MASKED: Final = ("updater-confirm.service", "updater-deadline.service", "updater-deadline.timer")

#: Arguments: lower root, work directory, data mount (or ""), then pairs of copy and path, then "--".
_SETUP: Final = r"""
set -eu
lower=$1 work=$2 data=$3
shift 3
mount --make-rprivate /
mount -t tmpfs -o mode=0755 prove "$work/memory"
mkdir "$work/memory/root" "$work/memory/root.work" "$work/memory/data" "$work/memory/data.work"
root=$work/root
mount -t overlay -o "lowerdir=$lower,upperdir=$work/memory/root,workdir=$work/memory/root.work" prove "$root"
if [ -n "$data" ]; then
    mkdir -p "$root$data"
    mount -t overlay -o "lowerdir=$data,upperdir=$work/memory/data,workdir=$work/memory/data.work" prove "$root$data"
fi
while [ $# -gt 0 ]; do
    mkdir -p "$root$(dirname "$2")"
    [ -e "$root$2" ] || : > "$root$2"
    rm -f "$root$2-wal" "$root$2-shm" "$root$2-journal"
    mount --bind "$1" "$root$2"
    shift 2
done
cd "$root"
mkdir -p proc sys dev run tmp etc/systemd/system
rm -f etc/fstab
: > etc/fstab
for unit in MASKED; do ln -sf /dev/null "etc/systemd/system/$unit"; done
mount -t proc -o nosuid,nodev,noexec proc proc
for path in sys sysrq-trigger; do
    [ -e proc/$path ] || continue
    mount --bind proc/$path proc/$path
    mount -o remount,bind,ro proc/$path
done
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup sys/fs/cgroup
mount -t tmpfs -o mode=0755,nosuid dev dev
for device in null zero full random urandom tty; do
    : > dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o nosuid,nodev shm dev/shm
mount -t tmpfs -o mode=0755,nosuid,nodev run run
mount -t tmpfs -o mode=1777,nosuid,nodev tmp tmp
ip link set lo up
exec setpriv --bounding-set DROPPED chroot . /usr/bin/env -i container=updater PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /sbin/init
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A running one. `pid`: its init, as this machine sees it."""

    pid: int

    def words(self, *argv: str) -> tuple[str, ...]:
        """A command line that runs inside, with no more rights than what was booted there."""
        enter = ("nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")
        return ("setpriv", "--bounding-set", _DROPPED, *enter, "--", *argv)

    def run(self, *argv: str, timeout: float = 60) -> Result:
        """Run a program inside; its exit code is for the caller to judge."""
        return run(*self.words(*argv), timeout=timeout, check=False)

    def in_network(self, work: Callable[[], T]) -> T:
        """Call something where only the container's network is seen. Raises what it raises."""
        said: list[T] = []
        failed: list[BaseException] = []

        def inside() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
                try:
                    if libc.setns(fd, _NETWORK):
                        raise OSError(ctypes.get_errno(), "the container's network cannot be entered")
                finally:
                    os.close(fd)
                said.append(work())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return said[0]


def require() -> None:
    """Raises NotReady where no container can be run."""
    missing = [name for name in _PROGRAMS if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    reasons = [f"not installed: {', '.join(missing)}"] if missing else []
    if not Path("/run/systemd/system").is_dir():
        reasons.append("systemd does not run here, so there is no control group for a container")
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        reasons.append("control groups are not of version 2")
    if "overlay" not in Path("/proc/filesystems").read_text() and run("modprobe", "overlay", check=False).code:
        reasons.append("the kernel has no overlayfs")
    if reasons:
        raise NotReady(
            "this machine cannot run a release in a container",
            what=reasons,
            state="nothing was changed",
            next="rehearse the way back elsewhere: updater rehearse node …",
        )


@contextmanager
def booted(
    lower: Path, work: Path, *, data: Path | None, copies: Mapping[Path, Path], deadline: float
) -> Iterator[Container]:
    """Boot the root that is mounted, read-only, at `lower`; it is gone when the context is left. `work`: an empty
    directory. `data`: a mount point of this machine that it gets a view of. `copies`: path inside → file in its place.
    `deadline`: seconds for the boot. Raises RehearsalFailed when it does not come up, NotReady.
    """
    for name in ("memory", "root"):
        (work / name).mkdir()
    script = _SETUP.replace("MASKED", " ".join(_MASKED)).replace("DROPPED", _DROPPED)
    pairs = [str(word) for path, copy in copies.items() for word in (copy, path)]
    unit = f"updater-prove-{os.getpid()}.scope"
    spaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child")
    words = (
        *_scope(unit),
        "unshare",
        *spaces,
        "sh",
        "-c",
        script,
        "sh",
        str(lower),
        str(work),
        str(data or ""),
        *pairs,
    )
    log = work / "log"
    with started(*words, log_file=log) as outer:
        try:
            yield _up(outer.pid, lambda: outer.running, log, deadline)
        finally:
            with suppress(CommandFailed):
                run("systemctl", "kill", "--signal=KILL", unit, check=False)


def _scope(unit: str) -> tuple[str, ...]:
    """Words that give a program a control group of its own."""
    return ("systemd-run", "--scope", "--quiet", "--collect", f"--unit={unit}", "-p", "Delegate=yes")


def _up(outer: int, running: Callable[[], bool], log: Path, deadline: float) -> Container:
    """Wait until its init says that the boot is over."""
    until = time.monotonic() + deadline
    state = "nothing was heard of it"
    while time.monotonic() < until:
        if not running():
            raise RehearsalFailed("the old release does not boot in a container", what=_tail(log))
        children = _children(outer)
        if children:
            container = Container(pid=children[0])
            try:
                found = container.run("systemctl", "is-system-running", timeout=20)
            except CommandFailed:
                found = None
            state = (found.stdout.strip() if found else "") or state
            if state in ("running", "degraded"):
                return container
        time.sleep(0.5)
    raise RehearsalFailed(f"the old release is not up after {deadline:g} s: {state}", what=_tail(log))


def _children(pid: int) -> Sequence[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _tail(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-12:] if log.exists() else []
