"""Lines to other machines over SSH (Fabric): host keys enforced, hosts on the way, one line kept and made anew when it
drops. A command line is built from words here, and nowhere by hand.
"""

from __future__ import annotations

import logging
import shlex
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from core.errors import NotReady

#: Largest answer that is read from a machine, and how much of what it says on standard error is kept; bytes.
LARGEST_ANSWER: Final = 64 << 20
_ERRORS_KEPT: Final = 256 << 10

#: A line on which nothing is acknowledged for so long is dead; seconds.
DEAD: Final = 20

#: Commands at a time on one line: OpenSSH's servers allow ten.
_AT_A_TIME: Final = 8


class Fault(StrEnum):
    """Why a command did not get to its end over a line, as far as what to do next depends on it."""

    KNOWN_HOSTS = "known hosts"  # the file with the keys of hosts cannot be read
    UNKNOWN_KEY = "unknown key"
    CHANGED_KEY = "changed key"
    DENIED = "denied"  # it does not accept the user or the key
    UNREACHABLE = "unreachable"  # no line came about: nothing was begun there
    LOST = "lost"  # the line broke after the command was sent: what became of it is not known
    OVERRAN = "overran"  # no end, or no word, in time
    ENDLESS = "endless"  # the answer is too large


class SshError(Exception):
    """`where`: user, host and port that it is about, perhaps a host on the way. `offered`, `known`: fingerprints."""

    def __init__(self, fault: Fault, where: Hop, text: str, *, offered: str = "", known: str = "") -> None:
        super().__init__(text)
        self.fault = fault
        self.where = where
        self.text = text
        self.offered = offered
        self.known = known


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A machine on which one logs in."""

    host: str
    user: str = "root"
    port: int = 22

    @classmethod
    def parse(cls, text: str, user: str = "root") -> Hop:
        """From ``[user@]host[:port]``. `user`: who it is when it is not said."""
        said, at, rest = text.rpartition("@")
        host, colon, port = rest.partition(":")
        return cls(host=host, user=said if at else user, port=int(port) if colon else 22)

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"

    @property
    def known_as(self) -> str:
        """Its name in files of known hosts."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """How a machine is reached: over the `jumps`, the first one nearest to us. `key`: without one, the user's agent and
    usual keys. `known_hosts`: whose key is not in it is not spoken to. `connect`: seconds until it counts as down.
    """

    target: Hop
    jumps: tuple[Hop, ...] = ()
    key: Path | None = None
    known_hosts: Path = Path("/etc/ssh/ssh_known_hosts")
    connect: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a command left. `code` is None when a signal ended it."""

    code: int | None
    out: bytes
    err: bytes
    seconds: float


class Line:
    """A line to one machine; made when it is first used, and again when it has dropped. Several threads may use it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._connections: list[Any] = []
        self._making = threading.Lock()
        self._places = threading.BoundedSemaphore(_AT_A_TIME)

    @property
    def is_open(self) -> bool:
        """Whether it stands, as far as we know."""
        return bool(self._connections) and self._connections[-1].is_connected

    def run(
        self, words: Sequence[str], said: bytes = b"", *, timeout: float | None = None, silence: float | None = None
    ) -> Said:
        """Run a command to its end with `said` on its standard input. `timeout`: seconds in all; `silence`: without a
        word of it.

        Raises SshError, of which only LOST, OVERRAN and ENDLESS come after the command was begun; NotReady without
        Fabric.
        """
        _require_fabric()
        with self._places:
            channel = self._channel()
            try:
                return self._talk(channel, words, said, timeout, silence)
            finally:
                channel.close()

    def close(self) -> None:
        """Hang up, all the way."""
        with self._making:
            self._hang_up()

    # -- making the line

    def _channel(self) -> Any:
        """A channel for one command. A line that turns out to have dropped is made anew: nothing was sent yet."""
        import paramiko

        until = time.monotonic() + self.address.connect
        transport, fresh = self._ensure()
        while True:
            try:
                return transport.open_session(timeout=self.address.connect)
            except paramiko.ChannelException as error:  # it answers, and refuses: those that end still count there
                if time.monotonic() > until:
                    text = f"it begins no command: {error}"
                    raise SshError(Fault.UNREACHABLE, self.address.target, text) from error
                time.sleep(0.05)
            except (OSError, EOFError, paramiko.SSHException) as error:
                if transport.is_active() and time.monotonic() < until:
                    # of two refusals at once paramiko tells only one that it was refused; others work on this line
                    time.sleep(0.05)
                    continue
                if fresh:
                    raise SshError(Fault.UNREACHABLE, self.address.target, _text(error)) from error
                transport, fresh = self._ensure(instead_of=transport)

    def _ensure(self, instead_of: Any = None) -> tuple[Any, bool]:
        """A line that stands, and whether it was made now. `instead_of`: one that does not, whatever it says."""
        with self._making:
            if self.is_open and self._connections[-1].transport is not instead_of:
                return self._connections[-1].transport, False
            self._hang_up()
            try:
                for hop in (*self.address.jumps, self.address.target):
                    self._connections.append(self._connect(hop, self._connections[-1] if self._connections else None))
            except BaseException:
                self._hang_up()
                raise
            return self._connections[-1].transport, True

    def _hang_up(self) -> None:
        for connection in reversed(self._connections):
            with suppress(Exception):  # what is gone is gone
                connection.close()
        self._connections = []

    def _connect(self, hop: Hop, gateway: Any) -> Any:
        import paramiko
        from fabric import Config, Connection

        logging.getLogger("paramiko").addHandler(_QUIET)  # what goes wrong is in our errors, not on the terminal
        address = self.address
        limits = dict.fromkeys(("banner_timeout", "auth_timeout", "channel_timeout"), address.connect)
        keys: dict[str, Any] = {"key_filename": str(address.key), "look_for_keys": False} if address.key else {}
        connection = Connection(
            hop.host,
            user=hop.user,
            port=hop.port,
            gateway=gateway,
            config=Config(overrides={"load_ssh_configs": False}),
            connect_timeout=max(1, round(address.connect)),
            connect_kwargs={**keys, **limits, "allow_agent": address.key is None},
        )
        try:
            connection.client.load_system_host_keys(str(address.known_hosts))
        except (OSError, UnicodeDecodeError, paramiko.SSHException) as error:
            raise SshError(Fault.KNOWN_HOSTS, hop, f"{address.known_hosts}: {_text(error)}") from error
        # Fabric would accept any key of a host; ours must be known.
        connection.client.set_missing_host_key_policy(_refusing(hop))
        try:
            connection.open()
        except SshError:
            connection.client.close()
            raise
        except paramiko.BadHostKeyException as error:
            connection.client.close()
            offered, known = (f"{key.get_name()} {key.fingerprint}" for key in (error.key, error.expected_key))
            raise SshError(Fault.CHANGED_KEY, hop, "its host key changed", offered=offered, known=known) from error
        except paramiko.AuthenticationException as error:
            connection.client.close()
            raise SshError(Fault.DENIED, hop, _text(error)) from error
        except (OSError, EOFError, ValueError, paramiko.SSHException) as error:
            connection.client.close()
            no_key = address.key is not None and not address.key.is_file()
            text = f"the key file {address.key} is not there" if no_key else _text(error)
            raise SshError(Fault.DENIED if no_key else Fault.UNREACHABLE, hop, text) from error
        transport = connection.transport
        transport.set_keepalive(5)
        if gateway is None:
            with suppress(OSError):
                transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD * 1000)
                transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # 40 ms less for each command
        return connection

    # -- talking

    def _talk(
        self, channel: Any, words: Sequence[str], said: bytes, timeout: float | None, silence: float | None
    ) -> Said:
        """Send, while reading whatever comes back: neither side waits for the other for ever."""
        import paramiko

        began = time.monotonic()
        until = began + timeout if timeout is not None else None
        target = self.address.target
        errors = bytearray()
        out: list[bytes] = []
        size = 0
        try:
            channel.exec_command(shlex.join(words))
            sender = threading.Thread(target=_send, args=(channel, said), daemon=True)
            reader = threading.Thread(target=_drain, args=(channel, errors), daemon=True)
            sender.start()
            reader.start()
            while True:
                channel.settimeout(_patience(until, silence))
                part = channel.recv(1 << 16)
                if not part:
                    break
                size += len(part)
                if size > LARGEST_ANSWER:
                    raise SshError(Fault.ENDLESS, target, f"more than {LARGEST_ANSWER >> 20} MiB of answer")
                out.append(part)
            if not channel.status_event.wait(_patience(until, silence)):
                raise TimeoutError
        except TimeoutError as error:
            seconds = time.monotonic() - began
            raise SshError(Fault.OVERRAN, target, f"no end after {seconds:.0f} s") from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise SshError(Fault.LOST, target, _text(error)) from error
        code: int = channel.exit_status
        if code == -1 and self._dropped(channel):
            raise SshError(Fault.LOST, target, "the line broke")
        reader.join(5)
        return Said(
            code=None if code == -1 else code, out=b"".join(out), err=bytes(errors), seconds=time.monotonic() - began
        )

    def _dropped(self, channel: Any) -> bool:
        """No exit code came: did the line break, or was the command ended by a signal? A line that breaks says so
        to its channels a moment before it knows itself.
        """
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            if not channel.transport.is_active():
                return True
            time.sleep(0.01)
        return False


_QUIET: Final = logging.NullHandler()


def _require_fabric() -> None:
    try:
        import fabric  # noqa: F401
    except ImportError as error:
        raise NotReady(
            "Fabric is not installed here, so no other machine can be reached",
            what=str(error),
            state="nothing was sent",
            next="pip install updater[fleet]",
        ) from error


def _refusing(hop: Hop) -> Any:
    """The policy for hosts whose key is not in the file: not to speak to them."""
    import paramiko

    class Refuse(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            offered = f"{key.get_name()} {key.fingerprint}"
            raise SshError(Fault.UNKNOWN_KEY, hop, "its host key was not found in known_hosts", offered=offered)

    return Refuse()


def _patience(until: float | None, silence: float | None) -> float | None:
    left = None if until is None else until - time.monotonic()
    if left is not None and left <= 0:
        raise TimeoutError
    return min((each for each in (left, silence) if each is not None), default=None)


def _send(channel: Any, said: bytes) -> None:
    with suppress(OSError):  # it has ended without listening; its exit code says why
        channel.sendall(said)
        channel.shutdown_write()


def _drain(channel: Any, kept: bytearray) -> None:
    """Take all that comes on standard error, and keep the end of it."""
    with suppress(OSError, EOFError):
        while True:
            try:
                part = channel.recv_stderr(1 << 16)
            except TimeoutError:  # it may well have nothing to complain about
                continue
            if not part:
                return
            kept += part
            del kept[:-_ERRORS_KEPT]


def _text(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
