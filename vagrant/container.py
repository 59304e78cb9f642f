"""A release's root, booted in namespaces of its own: its init, its services, no network but the loopback, no devices.

Everything it writes goes to memory, in overlays; what it reads of the data is a view of the real one, with copies in
place of the databases. It needs a host with systemd, which gives it a control group of its own: what serves on this
machine comes first there, for memory, processor and disk.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from core import files
from core.errors import CommandFailed, NotReady, RehearsalFailed
from core.run import Result, run, started

T = TypeVar("T")

_PROGRAMS: Final = ("systemd-run", "unshare", "nsenter", "setpriv", "chroot", "mount", "ip")
_NETWORK: Final = 0x40000000  # CLONE_NEWNET

#: Never in there: what would change this machine, or decide about its boots.
_DROPPED: Final = "-sys_module,-sys_time,-sys_rawio,-sys_boot,-mknod,-syslog,-audit_control,-mac_admin,-wake_alarm"
_MASKED: Final = ("updater-confirm.service", "updater-deadline.service", "updater-deadline.timer")

#: Of the memory that is there for the asking, a container may take one part in so many; its files half of that.
_PARTS: Final = 2

#: Where a path of the release lies under its root: a symlink there means nothing outside of it. The release's own
#: programs are not asked. Arguments: where our packages are, root, path.
_FOLLOW: Final = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from core.files import inside
print(inside(Path(sys.argv[2]), sys.argv[3]))
"""

#: The root, put together. Arguments: lower root, work directory, bytes for what is written, data mount (or ""), then
#: pairs of copy and path. Variables: `python`, `packages` and `follow`, for `_FOLLOW`.
_VIEW: Final = r"""
set -eu
lower=$1 work=$2 size=$3 data=$4
shift 4
inside() { "$python" -I -c "$follow" "$packages" "$root" "$1"; }
mount --make-rprivate /
mount -t tmpfs -o "mode=0755,size=$size" prove "$work/memory"
mkdir "$work/memory/root" "$work/memory/root.work" "$work/memory/data" "$work/memory/data.work"
root=$work/root
mount -t overlay -o "lowerdir=$lower,upperdir=$work/memory/root,workdir=$work/memory/root.work" prove "$root"
if [ -n "$data" ]; then
    view=$(inside "$data")
    mkdir -p "$view"
    mount -t overlay -o "lowerdir=$data,upperdir=$work/memory/data,workdir=$work/memory/data.work" prove "$view"
fi
while [ $# -gt 0 ]; do
    target=$(inside "$2")
    mkdir -p "$(dirname "$target")"
    [ -e "$target" ] || : > "$target"
    rm -f "$target-wal" "$target-shm" "$target-journal"
    mount --bind "$1" "$target"
    shift 2
done
"""

#: What is booted in it. When memory is short all the same, the kernel ends this first.
_BOOT: Final = r"""
echo 1000 > /proc/self/oom_score_adj
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
    `deadline`: seconds for the boot. Raises RehearsalFailed when it does not come up; NotReady, also in place of a
    RehearsalFailed of the context, when it wanted more memory than it may have.
    """
    script = _BOOT.replace("MASKED", " ".join(_MASKED)).replace("DROPPED", _DROPPED)
    unit = f"updater-prove-{os.getpid()}.scope"
    bound = _available() // _PARTS
    spaces = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child")
    words = (*_scope(unit, bound), "unshare", *spaces, *assembled(lower, work, bound // 2, data, copies, then=script))
    log = work / "log"
    with started(*words, log_file=log) as outer:
        try:
            yield _up(outer.pid, lambda: outer.running, log, deadline)
        except RehearsalFailed as error:
            if _starved(unit):
                raise _too_little(bound, error) from error
            raise
        finally:
            with suppress(CommandFailed):
                run("systemctl", "kill", "--signal=KILL", unit, check=False)


def assembled(
    lower: Path, work: Path, size: int, data: Path | None, copies: Mapping[Path, Path], *, then: str
) -> tuple[str, ...]:
    """Words that put a root together in the mount namespace they run in, and go on with a shell script in which
    ``$root`` is that root. `size`: bytes for what is written there. The rest as `booted` has it; makes directories in
    `work`.
    """
    for name in ("memory", "root"):
        (work / name).mkdir()
    pairs = [str(word) for path, copy in copies.items() for word in (copy, path)]
    variables = {"python": sys.executable, "packages": str(Path(files.__file__).parents[1]), "follow": _FOLLOW}
    settings = [f"{name}={value}" for name, value in variables.items()]
    script = f"{_VIEW}{then}"
    return ("env", *settings, "sh", "-c", script, "sh", str(lower), str(work), str(size), str(data or ""), *pairs)


def _available() -> int:
    """Bytes of memory that can be had without anything being pushed out."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def _scope(unit: str, bound: int) -> tuple[str, ...]:
    """Words that give a program a control group of its own, with `bound` bytes of memory, what it writes included, and
    whatever processor and disk time nobody else wants."""
    limits = (f"MemoryMax={bound}", "MemorySwapMax=0", "CPUWeight=10", "IOWeight=10")
    properties = [word for each in ("Delegate=yes", *limits) for word in ("-p", each)]
    return ("systemd-run", "--scope", "--quiet", "--collect", f"--unit={unit}", *properties)


def _starved(unit: str) -> bool:
    """Whether something in the control group was ended because its memory was used up."""
    try:
        group = run("systemctl", "show", "-P", "ControlGroup", unit).stdout.strip()
        events = Path(f"/sys/fs/cgroup{group}/memory.events").read_text() if group else ""
    except (CommandFailed, OSError):
        return False
    return any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in events.splitlines())


def _too_little(bound: int, error: RehearsalFailed) -> NotReady:
    return NotReady(
        "the old release needs more memory than a container may take here",
        what=[f"it may take {bound >> 20} MiB: the rest is for what serves", error.message, *error.what],
        state="nothing was changed, and nothing is proved",
        next=["try again when less is in use", "updater rehearse node …    shows it in a whole machine"],
    )


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
