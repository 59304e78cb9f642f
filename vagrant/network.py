"""A network of machines of the lab: a bridge inside a network namespace made for it.

Machines are plugged into it by tap devices, programs of this machine run in it with addresses of their own; nothing of
it touches this machine's own network.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_NAMES = Path("/run/netns")
_PREFIX = "updater-lan-"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP_NO_PI = 0x0002 | 0x1000


class NetworkError(Exception):
    """The network could not be made as wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """What a machine is plugged in with. `fd`: of the tap device; it lives as long as the network."""

    name: str
    fd: int
    mac: str


class Lan:
    """Use as a context. `addresses`: of this machine in it, such as 10.9.0.5/24. What killed runs left is swept."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self._plugs: dict[str, Plug] = {}
        self.name = ""

    def __enter__(self) -> Self:
        _sweep()
        number = 0
        while (_NAMES / (name := f"{_PREFIX}{os.getpid()}-{number}")).exists():
            number += 1
        _ip("netns", "add", name)
        self.name = name
        try:
            self._ip("link", "set", "lo", "up")
            calm = ("stp_state", "0", "mcast_snooping", "0", "forward_delay", "0")
            self._ip("link", "add", "lan", "type", "bridge", *calm)
            for address in self.addresses:
                self._ip("address", "add", address, "dev", "lan")
            self._ip("link", "set", "lan", "up")
        except BaseException:
            _remove(name)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for plug in self._plugs.values():
            os.close(plug.fd)
        self._plugs.clear()
        _remove(self.name)

    def plug(self, name: str) -> Plug:
        """A socket in the wall for a machine; the same one when it was asked for before."""
        if name not in self._plugs:
            with self.inside():
                fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
                fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP_NO_PI))
            self._ip("link", "set", name, "master", "lan", "up")
            number = len(self._plugs) + 1
            self._plugs[name] = Plug(name=name, fd=fd, mac=f"52:54:00:5a:b0:{number:02x}")
        return self._plugs[name]

    def cut(self, name: str) -> None:
        """Pull the cable of a machine."""
        self._ip("link", "set", name, "down")

    def join(self, name: str) -> None:
        """Put it back."""
        self._ip("link", "set", name, "up")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in the network while in the context: sockets made here have its addresses."""
        with open("/proc/thread-self/ns/net") as home, open(_NAMES / self.name) as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def command(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        """What runs a program of this machine in it."""
        return ["nsenter", f"--net={_NAMES / self.name}", "--", *(os.fspath(word) for word in argv)]

    def start(self, *argv: str | os.PathLike[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in it, which ends with it at the latest; its output goes to `log`."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, **options
            )

    def _ip(self, *words: str) -> None:
        _ip("-n", self.name, *words)


def _sweep() -> None:
    """Remove the networks of runs that were killed."""
    for path in _NAMES.glob(f"{_PREFIX}*"):
        if not Path("/proc", path.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            _remove(path.name)


def _remove(name: str) -> None:
    """Remove a network with all that runs in it."""
    deadline = time.monotonic() + 5
    while (pids := _ip("netns", "pids", name).split()) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)
    _ip("netns", "del", name)


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise NetworkError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
