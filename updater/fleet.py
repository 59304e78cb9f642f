"""One configuration on many servers: sent to all of them at once over SSH, with a report for each.

What is sent is the server's own part (`templates.tree.for_server`), on standard input of ``updater config receive``:
no secret is in an argument or in a file on the way. Host keys must be known. A server that does not answer fetches the
configuration itself when it is back (``updater config pull``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import CommandFailed, NotReady
from core.ssh import Address, Fault, Hop, Line, SshError


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
    user, _, host = server.host.rpartition("@")
    target = Hop(host=host, user=user or ssh.user, port=ssh.port)
    line = Line(Address(target=target, key=ssh.key, known_hosts=ssh.known_hosts, connect=ssh.connect))
    try:
        done = line.run(words, said.encode(), silence=ssh.silence)
    except SshError as error:
        if error.fault is Fault.ENDLESS:
            raise CommandFailed("the server's answer has no end", state="what it did is not known") from error
        begun = error.fault in (Fault.LOST, Fault.OVERRAN)
        raise NotReady(
            f"{server.name} cannot be reached over SSH",
            what=f"{error.where}: {error.text}",
            state=f"what it did is not known: {error.fault}" if begun else "nothing was changed there",
            next=[
                f"ssh -p {ssh.port} {target.user}@{target.host}    says more",
                f"ssh-keyscan {target.host} >> {ssh.known_hosts}    after comparing the key, if the host is new",
            ],
        ) from error
    finally:
        line.close()
    return (
        (-1 if done.code is None else done.code),
        done.out.decode(errors="replace"),
        done.err.decode(errors="replace"),
    )


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
