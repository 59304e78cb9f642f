"""Hosts that are network namespaces, on bridges inside a namespace of their own: nothing of it touches the network of
the machine. Everything goes away with the lab, and what a killed run left behind goes when the next one begins.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from core.errors import CommandFailed
from core.run import Result
from zdu.traffic.shell import LocalShell

#: Each lab has a directory here, locked as long as it lives. Short, for the sake of Unix sockets (108 bytes).
HOME = Path("/tmp/zdu-lab")

#: Where each host finds its own directory: one path on all hosts, and other files on each.
OWN = HOME / "own"

CLONE_NEWNET = 0x40000000


class Process:
    """A program that runs on a host, with its output in `log`."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self._popen = popen
        self.log = log

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def wait(self, timeout: float = 60) -> int:
        """Until it ends by itself; its exit code."""
        return self._popen.wait(timeout)

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 5) -> int:
        """End it, gently first; its exit code."""
        if self.running:
            self.send(number)
            with suppress(subprocess.TimeoutExpired):
                return self.wait(timeout)
            self._popen.kill()
        return self.wait(timeout)

    def said(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Host:
    """A machine of the lab: a network namespace with an interface per network, and a view of the files in which `OWN`,
    and whatever else is `private`, is its own. Outside, `OWN` is its `directory`.
    """

    def __init__(
        self, lab: Lab, name: str, addresses: Sequence[IPv4Interface], private: Sequence[str | os.PathLike[str]]
    ) -> None:
        self.lab = lab
        self.name = name
        self.netns = f"{lab.name}-{name}"
        self.addresses = [str(address.ip) for address in addresses]
        self.directory = lab.directory / name
        self.directory.mkdir()
        self.processes: list[Process] = []
        _ip("netns", "add", self.netns)
        _ip("-n", self.netns, "link", "set", "lo", "up")
        self._keeper = self._view([OWN, *(Path(path) for path in private)])

    @property
    def address(self) -> str:
        """Its first address."""
        return self.addresses[0]

    def run(self, *argv: str | os.PathLike[str], check: bool = True, timeout: float = 30) -> str:
        """Run a program there to its end; what it printed."""
        done = subprocess.run(
            self.command(argv), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {argv} exits with {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *argv: str | os.PathLike[str], log: str = "", **options: Any) -> Process:
        """Start a program there that goes on; it ends with the lab at the latest."""
        path = self.directory / f"{log or Path(argv[0]).name}.log"
        with path.open("ab") as out:
            popen = subprocess.Popen(
                self.command(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **options,
            )
        process = Process(popen, path)
        self.processes.append(process)
        return process

    def command(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        """What runs a program there."""
        view = f"/proc/{self._keeper.pid}"
        enter = ["nsenter", f"--net=/run/netns/{self.netns}", f"--mount={view}/ns/mnt"]
        enter.append(f"--root={view}/root")  # in a chroot, entering a view of the files would leave it
        return [*enter, f"--wdns={OWN}", "--", *(os.fspath(word) for word in argv)]

    def outside(self, path: Path) -> Path:
        """Where one of its private files is, for us."""
        return self.directory / path.relative_to(OWN) if path.is_relative_to(OWN) else path

    def _view(self, private: Sequence[Path]) -> subprocess.Popen[bytes]:
        """A process that holds the host's view of the files, until the lab ends."""
        binds = []
        for path in private:
            source = self.directory if path == OWN else self.directory / "private" / path.relative_to("/")
            source.mkdir(parents=True, exist_ok=True)
            binds.append(f"mount --bind {shlex.quote(str(source))} {shlex.quote(str(path))}")
        keeper = subprocess.Popen(
            ["ip", "netns", "exec", self.netns, "unshare", "--mount", "--propagation", "private",
             "sh", "-c", " && ".join([*binds, "echo ready", "exec sleep infinity"])],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert keeper.stdout is not None and keeper.stdout.readline() == b"ready\n", f"no view for {self.name}"
        return keeper

    def pids(self) -> list[int]:
        """All that runs there."""
        return [int(pid) for pid in _ip("netns", "pids", self.netns).split()]

    def cut(self, which: int = 0) -> None:
        """Pull the cable out of its interface number `which`."""
        _ip("-n", self.lab.switch, "link", "set", f"{self.name}.{which}", "down")

    def join(self, which: int = 0) -> None:
        """Put the cable back."""
        _ip("-n", self.lab.switch, "link", "set", f"{self.name}.{which}", "up")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread has the host's network while in the context: sockets made here are sockets of the host."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.netns}") as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def ended(self) -> None:
        """All that ran there was killed: collect what it left."""
        for process in self.processes:
            process.wait(5)
        self._keeper.wait(5)
        if self._keeper.stdout is not None:
            self._keeper.stdout.close()

    def shell(self) -> NamespaceShell:
        return NamespaceShell(self)


class NamespaceShell:
    """The drivers' way to a host: files are the machine's own, programs run in the host's namespace."""

    def __init__(self, host: Host) -> None:
        self.name = host.name
        self._host = host
        self._local = LocalShell(host.name)
        self.reachable = True

    def run(self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10) -> Result:
        self._reach()
        return self._local.run(self._host.command(argv), input=input, timeout=timeout)

    def exists(self, path: Path) -> bool:
        self._reach()
        return self._local.exists(self._host.outside(path))

    def read(self, path: Path) -> bytes:
        self._reach()
        return self._local.read(self._host.outside(path))

    def write(self, path: Path, data: bytes, mode: int | None = None) -> None:
        self._reach()
        self._local.write(self._host.outside(path), data, mode)

    def _reach(self) -> None:
        if not self.reachable:
            raise CommandFailed(f"{self.name} cannot be reached")


class Lab:
    """Use as a context manager. `directory`: where the hosts' files are, removed at the end; what programs wrote to
    their logs is copied to `logs` before.
    """

    def __init__(self, logs: Path | None = None) -> None:
        self.logs = logs
        OWN.mkdir(parents=True, exist_ok=True)
        sweep()
        number = 0
        while True:
            self.name = f"z{os.getpid()}n{number}"
            self.directory = HOME / self.name
            with suppress(FileExistsError):
                self.directory.mkdir()
                self._lock = _lock(self.directory)
                if self._lock is not None and self.directory.exists():  # no other run has swept it meanwhile
                    break
            number += 1
        self.hosts: dict[str, Host] = {}
        self._bridges: dict[IPv4Network, str] = {}
        self.switch = f"{self.name}-switch"

    def __enter__(self) -> Lab:
        _ip("netns", "add", self.switch)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def host(self, name: str, *addresses: str, private: Sequence[str | os.PathLike[str]] = ()) -> Host:
        """A new host with these addresses, such as 10.9.0.21/24; those of one network are connected. `private`:
        directories of the machine of which it has its own, empty at first.
        """
        host = Host(self, name, [IPv4Interface(address) for address in addresses], private)
        self.hosts[name] = host
        for index, address in enumerate(IPv4Interface(address) for address in addresses):
            port, cable = f"{name}.{index}", f"eth{index}"
            _ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", cable, "netns", host.netns)
            _ip("-n", self.switch, "link", "set", port, "master", self._bridge(address.network), "up")
            _ip("-n", host.netns, "addr", "add", str(address), "dev", cable)
            _ip("-n", host.netns, "link", "set", cable, "up")
        return host

    def close(self) -> None:
        """End what runs on the hosts, and remove them."""
        for host in self.hosts.values():
            for process in host.processes:
                if process.running:
                    process.send(signal.SIGTERM)
        deadline = time.monotonic() + 2
        for process in (process for host in self.hosts.values() for process in host.processes):
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))
        if self.logs is not None:
            for log in self.directory.glob("*/*.log"):
                shutil.copy(log, self.logs / f"{log.parent.name}-{log.name}")
        remove(self.name)
        for host in self.hosts.values():
            host.ended()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _bridge(self, network: IPv4Network) -> str:
        if network not in self._bridges:
            name = f"br{len(self._bridges)}"
            _ip("-n", self.switch, "link", "add", name, "type", "bridge", "stp_state", "0",
                "mcast_snooping", "0", "forward_delay", "0")  # fmt: skip
            _ip("-n", self.switch, "link", "set", name, "up")
            self._bridges[network] = name
        return self._bridges[network]


def sweep() -> None:
    """Remove the labs of runs that were killed: those whose directory nobody holds the lock of."""
    for directory in HOME.glob("z*n*"):
        fd = _lock(directory)
        if fd is not None:
            remove(directory.name)
            os.close(fd)


def remove(name: str) -> None:
    """Remove a lab's namespaces with all that runs in them, and its directory."""
    ours = [line.split()[0] for line in _ip("netns", "list").splitlines() if line.startswith(f"{name}-")]
    for netns in ours:
        for pid in _ip("netns", "pids", netns).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    for netns in ours:
        _ip("netns", "del", netns)
    shutil.rmtree(HOME / name, ignore_errors=True)


def until(true: Callable[[], Any], what: str, timeout: float = 30, every: float = 0.02) -> Any:
    """Poll until it is true, and return what it said; AssertionError with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (said := true()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(every)
    return said


def _lock(directory: Path) -> int | None:
    """Hold the lab's lock; None when somebody else does, or the lab has just gone."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise AssertionError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
