"""One configuration on many servers: sent to all of them at once over SSH, with a report for each.

What is sent is the server's own part (`templates.tree.for_server`), on standard input of ``updater config receive``:
no secret is in an argument or in a file on the way. Host keys must be known. A server that does not answer fetches the
configuration itself when it is back (``updater config pull``).
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import CommandFailed, NotReady

#: Largest answer that is read from a server, in bytes.
_LARGEST_ANSWER = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssh:
    """How servers are reached. `connect`: seconds until one counts as down; `silence`: seconds without a word from a
    command until it is given up. `known_hosts`: keys of hosts; one that is not there is refused.
    """

    user: str = "root"
    port: int = 22
    key: Path | None = None
    known_hosts: Path = Path("/etc/ssh/ssh_known_hosts")
    command: str = "updater"
    connect: float = 10.0
    silence: float = 180.0
    parallel: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server and where it is reached."""

    name: str
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReport:
    """What came of it on one server. `reached`: it answered, whatever it said. `data`: its own report."""

    server: str
    ok: bool
    reached: bool
    text: str
    seconds: float
    data: dict[str, Any]


def apply(
    servers: Iterable[Server], document: Callable[[str], str], ssh: Ssh, on_report: Callable[[ServerReport], None]
) -> list[ServerReport]:
    """Have every server receive its document (`document`: server name → JSON), `ssh.parallel` at a time. `on_report` is
    called as each one ends. No server's failure keeps the others from it.
    """
    ordered = list(servers)
    documents = {server.name: document(server.name) for server in ordered}

    def one(server: Server) -> ServerReport:
        report = _apply_one(server, documents[server.name], ssh)
        on_report(report)
        return report

    with ThreadPoolExecutor(max_workers=max(1, min(ssh.parallel, len(ordered)))) as pool:
        return list(pool.map(one, ordered))


def fetch(host: str, node: str, ssh: Ssh) -> str:
    """The document of this node from the configuration host. Raises NotReady when it does not answer, CommandFailed
    when it refuses.
    """
    words = ["config", "export", "--for", node, "--secrets", "plain", "--format", "json"]
    server = Server(name=host, host=host)
    code, out, err = _talk(server, [ssh.command, *words], "", ssh)
    if code != 0:
        raise CommandFailed(
            f"{host} does not give out the configuration of {node}", what=_last(err), state="nothing was changed"
        )
    return out


def _apply_one(server: Server, document: str, ssh: Ssh) -> ServerReport:
    began = time.monotonic()
    ok, reached, text, data = False, False, "", {}
    try:
        code, out, err = _talk(server, [ssh.command, "--json", "config", "receive"], document, ssh)
        reached = True
        data = _answer(out)
        ok = code == 0
        error = data.get("error") or {}
        text = data.get("text", "") if ok else "; ".join([error.get("message") or _last(err), *error.get("what", [])])
    except NotReady as error:
        text = "; ".join((error.message, *error.what))
    except CommandFailed as error:
        reached, text = True, error.message
    return ServerReport(
        server=server.name,
        ok=ok,
        reached=reached,
        text=text,
        seconds=round(time.monotonic() - began, 2),
        data=data.get("data") or {},
    )


def _talk(server: Server, words: list[str], said: str, ssh: Ssh) -> tuple[int, str, str]:
    """Run a command there with `said` on its standard input. Raises NotReady where no connection comes about."""
    import paramiko
    from fabric import Config, Connection
    from invoke.exceptions import UnexpectedExit

    user, _, host = server.host.rpartition("@")
    arguments: dict[str, Any] = {"key_filename": str(ssh.key), "look_for_keys": False} if ssh.key else {}
    connection = Connection(
        host,
        user=user or ssh.user,
        port=ssh.port,
        config=Config(overrides={"load_ssh_configs": False}),
        connect_timeout=int(ssh.connect),
        connect_kwargs={**arguments, "allow_agent": ssh.key is None, "banner_timeout": ssh.connect},
    )
    # Fabric would accept any key of a host; ours must be known.
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    try:
        connection.client.load_system_host_keys(str(ssh.known_hosts))
        connection.open()
        channel = connection.transport.open_session(timeout=ssh.connect)
        channel.settimeout(ssh.silence)
        channel.exec_command(shlex.join(words))
        return _exchange(channel, said.encode())
    except (OSError, EOFError, paramiko.SSHException, UnexpectedExit) as error:
        raise NotReady(
            f"{server.name} cannot be reached over SSH",
            what=f"{user or ssh.user}@{host}:{ssh.port}: {error or type(error).__name__}",
            state="nothing was changed there",
            next=[
                f"ssh -p {ssh.port} {user or ssh.user}@{host}    says more",
                f"ssh-keyscan {host} >> {ssh.known_hosts}    after comparing the key, if the host is new",
            ],
        ) from error
    finally:
        connection.close()


def _exchange(channel: Any, said: bytes) -> tuple[int, str, str]:
    """Send, while reading whatever comes back: neither side waits for the other for ever."""
    from threading import Thread

    def send() -> None:
        try:
            channel.sendall(said)
            channel.shutdown_write()
        except OSError:  # it has ended without listening; its exit code says why
            pass

    sender = Thread(target=send, daemon=True)
    sender.start()
    parts: dict[str, list[bytes]] = {"out": [], "err": []}
    reader = Thread(target=lambda: parts["err"].append(channel.makefile_stderr("rb").read(1 << 20)), daemon=True)
    reader.start()
    size = 0
    while part := channel.recv(1 << 16):
        size += len(part)
        if size > _LARGEST_ANSWER:
            raise CommandFailed("the server's answer has no end", state="what it did is not known")
        parts["out"].append(part)
    reader.join(5)
    code = channel.recv_exit_status()
    return code, b"".join(parts["out"]).decode(errors="replace"), b"".join(parts["err"]).decode(errors="replace")


def _answer(out: str) -> dict[str, Any]:
    """The last line of JSON that the server printed."""
    for line in reversed(out.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
