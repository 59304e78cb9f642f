"""A machine that really boots: QEMU with OVMF, one disk, SSH into it, and its power switch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vagrant import tree
from vagrant.disk import image_format
from vagrant.network import Plug

FIRMWARE = Path("/usr/share/OVMF")

#: Kernel arguments that cost nothing on real hardware and save seconds in emulation: what always lies at the same
#: address is translated once for all programs.
QUICK_KERNEL = (
    "panic=1 console=ttyS0,115200 quiet mitigations=off nokaslr norandmaps tsc=reliable no_timer_check "
    "random.trust_cpu=on rcupdate.rcu_expedited=1 audit=0 selinux=0 apparmor=0 fsck.mode=skip cryptomgr.notests "
    "systemd.show_status=0"
)

#: Emulation. Its translated code needs much room, or it is translated again and again.
TCG = "tcg,thread=multi,tb-size=512"

#: Where a guest sees this machine (user-mode network of QEMU).
HOST_SEEN_BY_GUEST = "10.0.2.2"


class MachineError(Exception):
    """The machine did not do what was expected; the message ends with the last lines of its serial console."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """One boot, as the guest's own kernel told it. `slot`: a or b; `trying`: tries left when counted, else None."""

    id: str
    slot: str
    trying: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command in the guest left. `seconds` is wall time, SSH included."""

    code: int
    stdout: str
    stderr: str
    seconds: float


class Machine:
    """One virtual machine on a disk (`disk`: qcow2 or raw, written to). Use as a context: on leaving, QEMU is gone.

    The disk and the firmware's variables outlive `kill` and a new `start`, as on real hardware. A power cut is a
    SIGKILL of QEMU: what the guest has not flushed may be lost as far as it sits in QEMU's own caches; what reached
    this machine's page cache stays.
    """

    def __init__(
        self, disk: Path, work: Path | None = None, *, memory: int = 1024, cpus: int = 2, lan: Plug | None = None
    ) -> None:
        """`work`: a directory for sockets, variables and logs (default: a temporary one). `memory` in MiB. `lan`: a
        network for its second card, eth1, to whose address the guest itself sees."""
        self._own_work = work is None
        self.work = work or Path(tempfile.mkdtemp(prefix="updater-vm-"))
        self.work.mkdir(parents=True, exist_ok=True)
        self.disk, self.memory, self.cpus, self.lan = disk, memory, cpus, lan
        self.ssh_port = free_port()
        self.serial = self.work / "serial.log"
        self._variables = self.work / "OVMF_VARS.fd"
        # a unix socket's path may have 107 bytes at most, and pytest's directories are long
        self._sockets = Path(tempfile.mkdtemp(prefix="uvm-"))
        self._keys = tree.test_keys()
        self._known_hosts = self.work / "known_hosts"
        self._known_hosts.write_text(f"node {self._keys.host_public}")
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = 0
        shutil.copyfile(FIRMWARE / "OVMF_VARS_4M.fd", self._variables)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._sockets, ignore_errors=True)
        if self._own_work:
            shutil.rmtree(self.work, ignore_errors=True)

    # --- power

    @property
    def running(self) -> bool:
        """Is there power?"""
        return self._process is not None and self._process.poll() is None

    def start(self, incoming: str = "") -> None:
        """Switch it on (`incoming`: see `thaw`). Raises MachineError when QEMU does not start."""
        if self.running:
            raise MachineError("the machine is running already")
        command = [*self._command(), *(["-incoming", incoming] if incoming else [])]
        log = (self.work / "qemu.log").open("ab")
        with log:
            inherited = (self.lan.fd,) if self.lan else ()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=inherited
            )
        deadline = time.monotonic() + 20
        while not _listens(self._sockets / "qmp"):
            if not self.running or time.monotonic() > deadline:
                raise MachineError(f"QEMU did not start: {(self.work / 'qemu.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Cut the power, now. Harmless when it is off."""
        self._hang_up()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        (self._sockets / "qmp").unlink(missing_ok=True)

    def reset(self) -> None:
        """Press the reset button: nothing is flushed in the guest."""
        self._hang_up()
        self.qmp("system_reset")

    def power_off(self, timeout: float = 60) -> None:
        """Shut down in good order, from inside. Raises MachineError when it is still on after `timeout` seconds."""
        self.run("systemctl poweroff", check=False)
        self.wait_off(timeout)

    def wait_off(self, timeout: float = 60) -> None:
        """Wait until the guest has switched itself off. Raises MachineError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                raise self._failure(f"still on after {timeout:g} s")
            time.sleep(0.05)
        self.kill()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Give QEMU's monitor a command and return what it answers."""
        return ask(self._sockets / "qmp", command, **arguments)

    def freeze(self, into: Path) -> None:
        """Save the running machine, memory and all, to the directory `into`, and end it. The disk it ran on must then
        stay as it is: `thaw` puts overlays on it."""
        self._hang_up()
        into.mkdir(parents=True)
        self.qmp("stop")
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.qmp("migrate", uri=f"exec:cat > {shlex.quote(str(into / 'memory'))}")
        deadline = time.monotonic() + 60
        while (status := self.qmp("query-migrate")["status"]) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > deadline:
                raise self._failure(f"saving the machine's memory: {status}")
            time.sleep(0.05)
        self.qmp("quit")
        self.wait_off()
        shutil.copyfile(self._variables, into / "OVMF_VARS.fd")
        shutil.copyfile(self.serial, into / "serial.log")

    def thaw(self, frozen: Path, timeout: float = 60) -> Boot:
        """Instead of `start`: go on where a machine was frozen, and return the boot it is in. `disk` must be an
        overlay of the disk that it was frozen with, memory and cpus must be the same; the clock goes on from there.
        """
        shutil.copyfile(frozen / "OVMF_VARS.fd", self._variables)
        shutil.copyfile(frozen / "serial.log", self.serial)
        self.start(f"exec:cat {shlex.quote(str(frozen / 'memory'))}")
        deadline = time.monotonic() + timeout
        while self.qmp("query-status")["status"] in ("inmigrate", "postmigrate"):
            if time.monotonic() > deadline:
                raise self._failure("the frozen machine does not come back")
            time.sleep(0.05)
        self.qmp("cont")
        return self.wait_for_boot(timeout)

    # --- boots

    @property
    def boots(self) -> list[Boot]:
        """Every boot so far whose kernel came up, oldest first, also those that hung or panicked afterwards."""
        text = self.serial.read_text(errors="replace") if self.serial.exists() else ""
        found = re.finditer(r"LAB-BOOT (\S+) ([^\r\n]*)[\r\n]", text)
        return [_boot(match[1], match[2]) for match in found]

    def wait_for_kernel(self, count: int, timeout: float = 120) -> Boot:
        """Wait for boot number `count` (1: the first) to be begun, and return it."""
        return self._poll(lambda: self.boots[count - 1] if len(self.boots) >= count else None, timeout, f"boot {count}")

    def wait_for_boot(self, timeout: float = 180) -> Boot:
        """Wait until a boot that this was not told of before answers by SSH, and return it.

        Raises MachineError after `timeout` seconds, or when QEMU ends.
        """

        def answered() -> Boot | None:
            if len(self.boots) <= self._seen or not self._banner():
                return None
            self._hang_up()
            said = self.run("cat /proc/sys/kernel/random/boot_id /proc/cmdline", timeout=30, check=False)
            if said.code != 0:
                return None
            boot_id, _, cmdline = said.stdout.partition("\n")
            ids = [boot.id for boot in self.boots]
            # still the old system on its way down?
            if boot_id not in ids[self._seen :]:
                return None
            self._seen = len(ids) - ids[::-1].index(boot_id)
            return _boot(boot_id, cmdline)

        return self._poll(answered, timeout, "a new boot with SSH")

    def reboot(self, timeout: float = 180) -> Boot:
        """Restart in good order from inside, and wait for the next boot."""
        self.run("systemctl reboot", check=False)
        return self.wait_for_boot(timeout)

    # --- inside

    def run(self, command: str, *, timeout: float = 180, check: bool = True, input: bytes | None = None) -> Result:
        """Run a shell command in the guest as root. Raises MachineError on failure (with `check`) or a timeout."""
        started = time.monotonic()
        argv = ["ssh", *self._ssh_options(), "-p", str(self.ssh_port), "root@node", command]
        try:
            done = subprocess.run(argv, input=input or b"", capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise self._failure(f"`{command}` did not end within {timeout:g} s") from error
        result = Result(
            code=done.returncode,
            stdout=done.stdout.decode(errors="replace"),
            stderr=done.stderr.decode(errors="replace"),
            seconds=time.monotonic() - started,
        )
        if check and result.code != 0:
            raise self._failure(f"`{command}` exited {result.code}\n{result.stdout}{result.stderr}")
        return result

    def push(self, content: bytes | str, path: str, *, mode: int = 0o644) -> None:
        """Write a file in the guest; its directory is made."""
        raw = content.encode() if isinstance(content, str) else content
        name = shlex.quote(path)
        self.run(f"mkdir -p $(dirname {name}) && cat > {name} && chmod {mode:o} {name}", input=raw)

    def serial_tail(self, lines: int = 40) -> str:
        """The last lines of the serial console."""
        text = self.serial.read_text(errors="replace") if self.serial.exists() else ""
        return "\n".join(line for line in text.splitlines()[-lines:] if line.strip())

    # --- how

    def _command(self) -> list[str]:
        blocks = [word for each in self._blockdevs() for word in ("-blockdev", json.dumps(each))]
        flash = "if=pflash,format=raw,unit"
        return [
            *("qemu-system-x86_64", "-name", self.work.name, "-nodefaults", "-display", "none", "-no-user-config"),
            *("-machine", "q35,smm=off", "-accel", accelerator(), "-cpu", _cpu(), "-smp", str(self.cpus)),
            *("-m", str(self.memory)),
            *("-drive", f"{flash}=0,readonly=on,file={FIRMWARE / 'OVMF_CODE_4M.fd'}"),
            *("-drive", f"{flash}=1,file={self._variables}"),
            *(*blocks, "-device", "virtio-blk-pci,drive=disk,bootindex=0"),
            *("-netdev", f"user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
            *self._second_card(),
            *("-device", "virtio-rng-pci"),
            *("-chardev", f"file,id=serial,path={self.serial},append=on", "-serial", "chardev:serial"),
            *("-qmp", f"unix:{self._sockets / 'qmp'},server=on,wait=off"),
        ]

    def _blockdevs(self) -> list[Mapping[str, object]]:
        """QEMU's block nodes, in the order in which they are made; the guest's disk is the one named `disk`."""
        file = {"driver": "file", "filename": str(self.disk)}
        return [{"driver": image_format(self.disk), "node-name": "disk", "file": file, "discard": "unmap"}]

    def _second_card(self) -> list[str]:
        if self.lan is None:
            return []
        card = f"virtio-net-pci,netdev=lan,romfile=,mac={self.lan.mac}"
        return ["-netdev", f"tap,id=lan,fd={self.lan.fd}", "-device", card]

    def _ssh_options(self) -> list[str]:
        settings = {
            "IdentityFile": str(self._keys.private),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self._known_hosts),
            "HostKeyAlias": "node",
            "Hostname": "127.0.0.1",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            "ConnectTimeout": "20",
            "ServerAliveInterval": "15",
            "KexAlgorithms": "curve25519-sha256",
            "ControlMaster": "auto",
            "ControlPath": str(self._sockets / "ssh"),
            "ControlPersist": "yes",
        }
        return ["-F", "none", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]

    def _hang_up(self) -> None:
        """End the shared SSH connection: it belongs to a system that is going down."""
        if (self._sockets / "ssh").exists():
            argv = ["ssh", *self._ssh_options(), "-p", str(self.ssh_port), "-O", "exit", "root@node"]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(argv, capture_output=True, timeout=5, check=False)
            (self._sockets / "ssh").unlink(missing_ok=True)

    def _banner(self) -> bool:
        """Does sshd speak? QEMU itself takes the connection long before the guest does."""
        try:
            with socket.create_connection(("127.0.0.1", self.ssh_port), timeout=1) as link:
                link.settimeout(3)
                return link.recv(4) == b"SSH-"
        except OSError:
            return False

    def _poll(self, look: Callable[[], Boot | None], timeout: float, what: str) -> Boot:
        deadline = time.monotonic() + timeout
        while True:
            found = look()
            if found is not None:
                return found
            if not self.running:
                raise self._failure(f"QEMU ended while waiting for {what}")
            if time.monotonic() > deadline:
                raise self._failure(f"{what} did not come within {timeout:g} s")
            time.sleep(0.1)

    def _failure(self, message: str) -> MachineError:
        return MachineError(f"{message}\n--- serial console\n{self.serial_tail()}")


def _listens(monitor: Path) -> bool:
    """Whether QEMU takes connections there: the socket's file is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(monitor))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def ask(monitor: Path, command: str, **arguments: Any) -> Any:
    """Give a monitor of QEMU, a unix socket, a command and return what it answers. Raises MachineError, OSError."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(monitor))
        stream = link.makefile("rw")
        stream.readline()  # its greeting
        for name, words in (("qmp_capabilities", {}), (command, arguments)):
            stream.write(json.dumps({"execute": name, "arguments": words}) + "\n")
            stream.flush()
            answer: dict[str, Any] = {"event": ""}
            while "event" in answer:
                answer = json.loads(stream.readline() or '{"error": "QEMU hung up"}')
            if "error" in answer:
                raise MachineError(f"QMP {name}: {answer['error']}")
        return answer["return"]


@cache
def accelerator() -> str:
    """`-accel` for QEMU: kvm where it really runs guests, else emulation."""
    return "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and firmware_speaks("kvm") else TCG


def firmware_speaks(accel: str, seconds: float = 20) -> bool:
    """Whether the firmware comes as far as its console. A device node proves nothing, nor does a virtual processor
    that QEMU calls running: it may stop at the first instruction that this machine cannot do, early or late."""
    with tempfile.TemporaryDirectory(prefix="uvm-") as work:
        console, monitor = Path(work, "console"), Path(work, "qmp")
        argv = ["qemu-system-x86_64", "-accel", accel, "-machine", "q35,smm=off", "-m", "256", "-nodefaults"]
        argv += ["-display", "none", "-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE / 'OVMF_CODE_4M.fd'}"]
        argv += ["-serial", f"file:{console}", "-qmp", f"unix:{monitor},server=on,wait=off"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and process.poll() is None:
                if console.exists() and console.stat().st_size:
                    return True
                with contextlib.suppress(OSError):  # QEMU ends
                    if _listens(monitor) and ask(monitor, "query-status")["status"] == "internal-error":
                        return False
                time.sleep(0.05)
            return False
        finally:
            process.kill()
            process.wait()


def _cpu() -> str:
    """`-cpu` for QEMU. In emulation, a plain model boots in two thirds of the time that `max` takes [measured]."""
    return "max" if accelerator() == "kvm" else "Nehalem,+rdrand"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _boot(boot_id: str, cmdline: str) -> Boot:
    words = dict(word.partition("=")[::2] for word in cmdline.split())
    trying = words.get("updater.trying")
    return Boot(id=boot_id.strip(), slot=words.get("updater.slot", ""), trying=int(trying) if trying else None)
