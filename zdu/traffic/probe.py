"""Does something answer at an address? Asked by the controller itself, or from another host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

from core.errors import UpdaterError
from zdu.drivers import ProbeConfig, ProbeKind
from zdu.traffic.asking import ask
from zdu.traffic.shell import ENDING, LocalShell, Shell
from zdu.traffic.silence import Listener
from zdu.traffic.talk import talk


class Probe(Protocol):
    """Asks an address for an answer."""

    def ask(self, address: str) -> str:
        """Empty when it answers; else what is wrong, in a line. Takes no longer than its time limit."""

    def listen(self, address: str) -> Listener | None:
        """Ask it one question after the other from now on, to know how long it was silent; None: it cannot."""


def probe(config: ProbeConfig, shells: Mapping[str, Shell]) -> Probe:
    """The probe of a virtual IP. `shells`: by the names of servers, for one that asks from another host."""
    shell = shells[config.host] if config.host else None
    return (
        CommandProbe(config, shell or LocalShell()) if config.kind is ProbeKind.COMMAND else SocketProbe(config, shell)
    )


class SocketProbe:
    """SIP OPTIONS over UDP, where any reply of SIP's counts; or a TCP connection."""

    def __init__(self, config: ProbeConfig, shell: Shell | None = None) -> None:
        self.config = config
        self.shell = shell

    def ask(self, address: str) -> str:
        """Ask once."""
        sip = self.config.kind is ProbeKind.SIP
        said = options(address, self.config.port) if sip else ""
        way, where = "udp" if sip else "tcp", f"{address} {self.config.port}"
        try:
            answer = (
                talk(way, where, said.encode(), self.config.timeout).decode(errors="replace")
                if self.shell is None
                else ask(self.shell, way, where, said, self.config.timeout)
            )
        except OSError as error:
            return f"{address} port {self.config.port} does not answer: {error}"
        except ENDING:
            raise
        except UpdaterError as error:
            return "; ".join((error.message, *error.what))
        if sip and not answer.startswith("SIP/2.0 "):
            return f"{address} port {self.config.port} does not speak SIP: {answer[:60]!r}"
        return ""

    def listen(self, address: str) -> Listener | None:
        """Ask as often as `every` says."""
        if not self.config.every:
            return None
        sip = self.config.kind is ProbeKind.SIP
        said = options(address, self.config.port) if sip else ""
        return Listener(self.shell, "udp" if sip else "tcp", address, self.config.port, said, self.config.every)


class CommandProbe:
    """The operator's program, with the address as its last argument: exit code 0 is an answer."""

    def __init__(self, config: ProbeConfig, shell: Shell) -> None:
        self.config = config
        self.shell = shell

    def ask(self, address: str) -> str:
        """Ask once."""
        try:
            result = self.shell.run([*self.config.command, address], timeout=self.config.timeout)
        except ENDING:
            raise
        except UpdaterError as error:
            return "; ".join((error.message, *error.what))
        lines = (result.stderr or result.stdout).strip().splitlines()
        last = lines[-1][:200] if lines else ""
        return "" if result.code == 0 else f"{self.config.command[0]} exits with {result.code}: {last}"

    def listen(self, address: str) -> Listener | None:
        """What a program needs for an answer is not known, so nothing is known of a silence either."""
        return None


def options(address: str, port: int) -> str:
    """A SIP OPTIONS request that asks whether somebody is there; who sends it fills in ``@HERE@`` and ``@NUMBER@``."""
    name = f"[{address}]" if ":" in address else address
    token = os.urandom(8).hex()
    return "\r\n".join(
        [
            f"OPTIONS sip:{name}:{port} SIP/2.0",
            f"Via: SIP/2.0/UDP @HERE@;branch=z9hG4bK{token};rport",
            f"From: <sip:updater@@HERE@>;tag={token}",
            f"To: <sip:{name}:{port}>",
            f"Call-ID: {token}",
            "CSeq: @NUMBER@ OPTIONS",
            "Max-Forwards: 70",
            "Content-Length: 0",
            "",
            "",
        ]
    )
