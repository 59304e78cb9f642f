"""Servers for tests: an sshd of our own on a free port of the loopback, with its own keys, and sandbox nodes on it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from images import keys
from images.build import BuildSpec, build
from updater import sandbox
from zdu.ssh import Reach


@dataclass
class Sshd:
    """An sshd: where it is, how it is reached, and ways to hurt it."""

    directory: Path
    port: int
    private: dict[Path, Path] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    def reach(self, **changed: object) -> Reach:
        """How it is reached; `changed`: fields of Reach."""
        told: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.port,
            "key": self.directory / "user",
            "known_hosts": self.known_hosts,
            "connect": 5.0,
        }
        return Reach(**{**told, **changed})  # type: ignore[arg-type]

    def start(self) -> None:
        """Listen, and wait until it does."""
        log = (self.directory / "log").open("ab")
        binds = [word for target, source in self.private.items() for word in (str(source), str(target))]
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.directory / "config")]
        if binds:  # what differs for this server and all under it, and for nobody else
            script = 'while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift; exec "$@"'
            command = ["unshare", "--mount", "sh", "-ec", script, "sh", *binds, "--", *command]
        self.process = subprocess.Popen(command, stderr=log, start_new_session=True)
        log.close()
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.01)

    def stop(self) -> None:
        """Listen no more; lines that stand go on."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    def cut(self) -> int:
        """Kill every line that stands, as a power cut at the router would. Returns how many there were."""
        assert self.process is not None
        children = _children(self.process.pid)
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(children)

    def new_host_key(self, name: str = "host") -> None:
        """Give it another host key; it must be started again."""
        for file in (self.directory / name, self.directory / f"{name}.pub"):
            file.unlink(missing_ok=True)
        _key(self.directory / name)

    def know(self) -> None:
        """Put its host key into the known ones."""
        public = (self.directory / "host.pub").read_text()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {public}")


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


@contextmanager
def sshd(directory: Path, private: dict[Path, Path] | None = None, *, sessions: int = 10) -> Iterator[Sshd]:
    """A running sshd with its files in `directory`. `private`: what it sees in place of other files and directories;
    `sessions`: how many commands it runs at a time on one line."""
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("host", "user"):
        _key(directory / name)
    shutil.copy(directory / "user.pub", directory / "authorized")
    (directory / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nLogLevel ERROR\n"
        f"MaxStartups 100\nMaxSessions {sessions}\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    own_login = Path("/root/.bashrc")  # what this machine's root does at each login is no part of the test
    quiet = {own_login: Path("/dev/null")} if own_login.exists() else {}
    server = Sshd(directory, port, quiet | (private or {}))
    server.know()
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.cut()
        server.stop()


class Releases:
    """Tiny signed bundles by release, made when they are first asked for."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._key, self.public = keys.generate(directory / "release.pem")

    def bundle(self, release: str) -> Path:
        """The bundle of a release."""
        output = self.directory / f"{release}.bundle"
        if not output.exists():
            tree = self.directory / f"tree-{release}"
            (tree / "boot").mkdir(parents=True)
            for file in ("vmlinuz-6.1", "initrd.img-6.1"):
                (tree / "boot" / file).write_text(f"{release} {file}")
            spec = BuildSpec(release=release, compatible="sandbox", tree=tree, size=1 << 20)
            build(spec, output, [keys.load_signer(str(self._key))])
        return output


@dataclass(frozen=True)
class SandboxNode:
    """A sandbox, and a program that is `updater` for it."""

    directory: Path
    config: Path
    program: Path

    def unhealthy(self, *releases: str) -> None:
        """The health check of these releases fails."""
        (self.directory / "unhealthy").write_text("".join(f"{release}\n" for release in releases))


def node(directory: Path, releases: Releases, *, release: str = "MR95-1", before: str = "") -> SandboxNode:
    """A sandbox that runs a release. `before`: shell commands that its program runs before each verb."""
    config = sandbox.create(directory, slot_size=1 << 20, keys=[releases.public], release=release, compatible="sandbox")
    text = config.read_text().replace("deadline = 2\ninterval = 0.2", "deadline = 0\ninterval = 0.01")
    config.write_text(text.replace('name = "sandbox"', f'name = "{directory.name}"'))
    program = directory / "updater"
    line = f'exec {sys.executable} -P -c "{_MAIN}" --config {config} "$@"'
    program.write_text(f"#!/bin/sh\n{before}\n{line}\n")
    program.chmod(0o755)
    return SandboxNode(directory, config, program)


#: The command line.
_MAIN = "from updater.cli.main import main; main()"


def slow(config: Path, seconds: float) -> None:
    """Each stage on this node takes so much longer: a hook before it waits, and says that it does."""
    hook = config.parent / "hooks" / "before-stage.d" / "10-wait"
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(f"#!/bin/sh\n: > {config.parent}/waiting\nsleep {seconds}\n")
    hook.chmod(0o755)


def until(look: object, seconds: float = 20.0) -> None:
    """Poll until it is true."""
    assert callable(look)
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.01)
