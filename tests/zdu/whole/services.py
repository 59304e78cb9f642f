"""What runs on a host, as under an init: each service is started again when it ends, and a restart of the machine takes
all of them down and brings them back. So a restart hurts whoever still uses them, as a real one does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.zdu.lab import OWN, Host, Process

ROOT = Path(__file__).parents[3]

#: Runs a service for ever; its process id is in run/NAME.
_KEEP = 'name=$1; shift; while :; do "$@" & echo $! > run/$name; wait $!; sleep 0.1; done'

#: Ends every service, the sessions of sshd too, and waits until they are gone. What keeps them starts them again.
_REBOOT = f"""#!/bin/sh
# Hung on the moments after a boot: the services go through it as they would on a machine.
cat > /dev/null
cd {OWN}/run || exit 1
gone=''
for file in *; do
    pid=$(cat "$file")
    [ "$file" = sshd ] && pid="$pid $(cat /proc/"$pid"/task/"$pid"/children)"
    gone="$gone $pid"
done
kill -TERM $gone 2> /dev/null
n=0
for pid in $gone; do
    while kill -0 "$pid" 2> /dev/null && ! grep -q '^State:.Z' /proc/"$pid"/status 2> /dev/null; do
        n=$((n + 1))
        [ $n -lt 100 ] || kill -KILL "$pid" 2> /dev/null
        sleep 0.05
    done
done
date +%s.%N >> {OWN}/boots
"""


def program(host: Host, name: str, text: str) -> Path:
    """Put an executable on a host; where it is there."""
    path = host.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return OWN / name


def python(module: str, *words: str | os.PathLike[str]) -> list[str]:
    """The command that runs one of our modules on a host."""
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-P", "-m", module, *(os.fspath(word) for word in words)]


def keep(host: Host, name: str, argv: Sequence[str | os.PathLike[str]]) -> Process:
    """Start a service on a host, and again whenever it ends; its output is in NAME.log."""
    (host.directory / "run").mkdir(exist_ok=True)
    return host.start("sh", "-c", _KEEP, "sh", name, *argv, log=name)


def pid_of(host: Host, name: str) -> int:
    """The process of a service now."""
    return int((host.directory / "run" / name).read_text())


def boots(host: Host) -> list[float]:
    """When its services went through a restart (time of day)."""
    file = host.directory / "boots"
    return [float(line) for line in file.read_text().split()] if file.exists() else []


#: The command line.
_MAIN = "from updater.cli.main import main; main()"


def updater() -> list[str]:
    """The command line, for us."""
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-P", "-c", _MAIN]


def agent(host: Host, *options: str | os.PathLike[str]) -> Path:
    """Put a program `updater` on a host, with global options of its own."""
    words = " ".join(os.fspath(word) for word in options)
    text = f'#!/bin/sh\nexec env PYTHONPATH={ROOT} {sys.executable} -P -c "{_MAIN}" {words} "$@"\n'
    return program(host, "updater", text)


def node(host: Host, key: Path, *, release: str, slot: int, health: str, more: str = "") -> None:
    """Make a node of a host: a sandbox that runs a release, and takes all its services through each restart. `health`:
    shell commands, its health check; `more`: added to its node.toml.
    """
    bare = agent(host)
    words = ("--key", str(key), "--slot-size", str(slot), "--release", release)
    host.run(bare, "sandbox", "create", OWN / "node", *words)
    directory = host.directory / "node"
    config = directory / "node.toml"
    changed: Mapping[str, str] = {
        'name = "sandbox"': f'name = "{host.name}"',
        "deadline = 2\ninterval = 0.2": "deadline = 30\ninterval = 0.2",
    }
    text = config.read_text()
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    config.write_text(f"{text}\n{more}")
    for moment in ("before-confirm", "after-rollback", "after-fallback"):
        program(host, f"node/hooks/{moment}.d/10-reboot", _REBOOT)
    program(host, "node/health.d/20-services", f"#!/bin/sh\n{health}\n")
    agent(host, "--config", OWN / "node" / "node.toml")


def unhealthy(host: Host, *releases: str) -> None:
    """The health check of these releases fails there."""
    (host.directory / "node" / "unhealthy").write_text("".join(f"{release}\n" for release in releases))


def sshd(host: Host, client: Path) -> str:
    """Have a host listen for the controller, whose public key is `client`. Returns its line of known_hosts."""
    directory = host.directory / "sshd"
    directory.mkdir()
    host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", OWN / "sshd" / "host")
    (directory / "authorized").write_text(client.read_text())
    (directory / "config").write_text(
        f"Port 22\nListenAddress {host.address}\nHostKey {OWN}/sshd/host\nAuthorizedKeysFile {OWN}/sshd/authorized\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nLogLevel ERROR\n"
        "MaxStartups 100\nMaxSessions 100\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    keep(host, "sshd", ["/usr/sbin/sshd", "-D", "-e", "-f", OWN / "sshd" / "config"])
    return f"{host.address} {(directory / 'host.pub').read_text()}"
