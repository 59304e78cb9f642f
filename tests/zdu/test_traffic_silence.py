"""Silences of an address, heard by asking it again and again: one that has holes, one that never answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from core.errors import CommandFailed
from core.run import Result
from tests.zdu.lab import until
from zdu.drivers import ProbeConfig, ProbeKind
from zdu.traffic.probe import options, probe
from zdu.traffic.pulse import Pulse
from zdu.traffic.shell import LocalShell
from zdu.traffic.silence import Listener

HERE = "127.0.0.1"


class Answering:
    """Answers SIP over UDP, as long as it is not told to be deaf."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HERE, 0))
        self.port = self.socket.getsockname()[1]
        self.deaf = False
        self.heard = 0
        self.ignored = 0
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                said, who = self.socket.recvfrom(4096)
            except OSError:
                return
            self.heard += 1
            if self.deaf:
                self.ignored += 1
                continue
            lines = [line for line in said.decode().split("\r\n") if line.startswith("CSeq")]
            self.socket.sendto("\r\n".join(["SIP/2.0 200 OK", *lines, "", ""]).encode(), who)

    def until(self, what: str, number: int) -> None:
        until(lambda: getattr(self, what) >= number, f"{number} {what}", every=0.001)


@contextmanager
def answering() -> Iterator[Answering]:
    there = Answering()
    try:
        yield there
    finally:
        there.socket.close()


@pytest.mark.parametrize("shell", [None, LocalShell()], ids=["here", "on another host"])
def test_a_silence_is_heard(shell: LocalShell | None) -> None:
    with answering() as there:
        said = options(HERE, there.port)
        listener = Listener(shell, "udp", HERE, there.port, said, 0.005)
        with listener:
            assert there.heard, "it waits for the first answer"
            there.deaf = True
            there.until("ignored", 5)
            there.deaf = False
            there.until("heard", there.heard + 5)
    silence = listener.silence
    assert silence is not None and silence.lost >= 5 and silence.seconds >= 0.02, silence
    assert silence.asked > silence.lost and "no answer for" in str(silence)


def test_where_nothing_is_lost_there_is_no_silence() -> None:
    with answering() as there:
        listener = Listener(None, "udp", HERE, there.port, options(HERE, there.port), 0.005)
        with listener:
            there.until("heard", 10)
    silence = listener.silence
    assert silence is not None and (silence.lost, silence.seconds) == (0, 0.0), silence
    assert str(silence).endswith("every 5 ms: always answered")


def test_connections_are_answers() -> None:
    with socket.create_server((HERE, 0)) as there:
        port = there.getsockname()[1]
        with Listener(None, "tcp", HERE, port, "", 0.005) as listener:
            pass
    assert listener.silence is not None and listener.silence.lost == 0


@pytest.mark.parametrize("way", ["udp", "tcp"])
def test_what_never_answers_is_not_called_silent(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdu.traffic.silence._FIRST", 0.05)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if way == "udp" else socket.SOCK_STREAM) as taken:
        taken.bind((HERE, 0))
        with Listener(None, way, HERE, taken.getsockname()[1], "x", 0.005) as listener:
            pass
        listener._thread.join()
    assert listener.silence is None


def test_a_host_that_cannot_ask_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mute(LocalShell):
        def run(self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10) -> Result:
            raise CommandFailed("python3 is missing")

    with Listener(Mute(), "udp", HERE, 9, "x", 0.005) as listener:
        pass
    assert listener.silence is None


def test_it_is_asked_only_where_that_is_wanted() -> None:
    assert probe(ProbeConfig(every=0), {}).listen(HERE) is None
    assert probe(ProbeConfig(kind=ProbeKind.COMMAND, command=("true",)), {}).listen(HERE) is None
    assert probe(ProbeConfig(kind=ProbeKind.TCP), {}).listen(HERE) is not None


def test_an_answer_that_comes_too_late_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse("tcp", HERE, 9, "", 0.01)
    pulse._asked = [0.0, 1.0, 2.0, 3.0]
    pulse._answered = {0: 0.1, 1: 1.6, 2: 2.7, 3: 3.1}
    assert pulse.end() == (4, 2, 3.0)
