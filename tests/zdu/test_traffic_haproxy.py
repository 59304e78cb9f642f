"""The dispatcher driver for HAProxy, on a real one."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from core.errors import CommandFailed, GateNotPassed, ZduRefused
from tests.zdu.lab import OWN, Lab, Process, until
from zdu.drivers import DispatcherConfig, DispatcherKind, TargetConfig
from zdu.traffic.asking import haproxy
from zdu.traffic.dispatcher import dispatcher
from zdu.traffic.haproxy import servers
from zdu.traffic.targets import Dispatcher, State

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("sites")]

HERE = Path(__file__).parent / "scenarios"


class Web:
    """A HAProxy in front of a web server at each of two sites, and a browser."""

    def __init__(self, lab: Lab) -> None:
        self.front, self.browser = lab.host("d1", "10.9.0.21/24"), lab.host("browser", "10.9.0.10/24")
        self.sites = {name: lab.host(name, f"10.9.0.{n}/24") for name, n in (("a", 31), ("b", 32))}
        self.servers = {name: self.serve(name) for name in self.sites}
        text = (HERE / "haproxy.cfg").read_text().replace("@RUN@", str(OWN))
        for name, host in self.sites.items():
            text = text.replace(f"@{name.upper()}@", host.address)
        (self.front.directory / "haproxy.cfg").write_text(text)
        self.shell = self.front.shell()
        self.process = self.start()

    def serve(self, name: str) -> Process:
        host = self.sites[name]
        return host.start("python3", HERE / "web.py", name, host.address)

    def start(self) -> Process:
        process = self.front.start("haproxy", "-W", "-f", OWN / "haproxy.cfg")
        until(lambda: self.ask("show stat"), f"HAProxy runs\n{process.said()}")
        until(lambda: all(t.state is not State.DOWN for t in self.driver.targets()), "both sites are up")
        return process

    def ask(self, command: str) -> str:
        with suppress(CommandFailed):
            return haproxy(self.shell, str(OWN / "admin.sock"), command, 3)
        return ""

    @property
    def driver(self) -> Dispatcher:
        return dispatcher(
            DispatcherConfig(
                kind=DispatcherKind.HAPROXY,
                targets=tuple(TargetConfig(site=name.upper(), destinations=(f"sites/{name}",)) for name in "ab"),
                control=str(OWN / "admin.sock"),
                state_file=OWN / "state",
                timeout=3,
            ),
            [self.shell],
        )

    def states(self) -> dict[str, State]:
        return {target.site: target.state for target in self.driver.targets()}

    def worker(self) -> str:
        return next((line for line in self.ask("show info").splitlines() if line.startswith("Pid:")), "")

    def reload(self) -> None:
        old = self.worker()
        self.process.send(signal.SIGUSR2)
        until(lambda: self.worker() not in ("", old), "a new worker answers")

    def get(self, times: int, path: str = "/") -> Counter[str]:
        """Who answered, each time over a connection of its own."""
        found: Counter[str] = Counter()
        for _ in range(times):
            with self.browser.inside():
                connection = HTTPConnection(self.front.address, 80, timeout=5)
                connection.connect()
            connection.request("GET", path)
            answer = connection.getresponse()
            found[answer.read().decode() if answer.status == 200 else str(answer.status)] += 1
            connection.close()
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Lab(tmp_path_factory.mktemp("logs")) as lab:
        yield Web(lab)


@pytest.fixture
def web(made: Web) -> Iterator[Web]:
    for path in ("state", "state.held"):
        (made.front.directory / path).unlink(missing_ok=True)
    for name in "ab":
        made.ask(f"set server sites/{name} state ready")
    until(lambda: set(made.states().values()) == {State.ACTIVE}, "both sites are active")
    yield made


def test_a_site_drains_and_no_request_fails(web: Web) -> None:
    answers: Counter[str] = Counter()
    end = threading.Event()

    def browse() -> None:
        while not end.is_set():
            answers.update(web.get(1))

    slow: list[Counter[str]] = []
    slow_ones = threading.Thread(target=lambda: slow.append(web.get(2, "/slow")))
    browsing = threading.Thread(target=browse)
    browsing.start()
    slow_ones.start()
    until(lambda: set(answers) == {"a", "b"}, "both answer")
    web.driver.send_to(["B"])
    assert web.states() == {"A": State.DRAINING, "B": State.ACTIVE}
    at_a = answers["a"]
    until(lambda: answers["b"] > 50, "traffic goes on")
    assert answers["a"] <= at_a + 1, "one may have been on its way"
    slow_ones.join()
    assert sum(slow[0][name] for name in "ab") == 2, "what had begun was brought to its end"
    web.driver.restore()
    seen = answers["a"]
    until(lambda: answers["a"] > seen, "a answers again")
    end.set()
    browsing.join()
    assert set(answers) == {"a", "b"}, f"nothing else: {answers}"


def test_reload_and_restart_keep_it(web: Web) -> None:
    told = web.driver.send_to(["B"])
    assert all(target.kept for target in told)
    web.reload()
    assert web.states() == {"A": State.DRAINING, "B": State.ACTIVE}
    assert web.get(6) == {"b": 6}
    web.process.stop()
    web.process = web.start()
    assert web.states() == {"A": State.DRAINING, "B": State.ACTIVE}
    assert web.get(6) == {"b": 6}
    web.driver.restore()
    web.reload()
    until(lambda: set(web.states().values()) == {State.ACTIVE}, "active after a reload too")
    assert set(servers((web.front.directory / "state").read_text())) == set()


def test_lines_of_others_and_wishes_of_the_operator_stay(web: Web) -> None:
    state = web.front.directory / "state"
    web.ask("set server sites/a state maint")
    state.write_text(web.ask("show servers state") + "\n")
    web.ask("set server sites/a state drain")
    lines = state.read_text().splitlines()
    web.driver.send_to(["B"])
    web.driver.restore()
    assert web.states() == {"A": State.DRAINING, "B": State.ACTIVE}
    assert state.read_text().splitlines() == lines
    with pytest.raises(GateNotPassed, match="cannot send to A"):
        web.driver.send_to(["A"])


def test_a_state_file_that_was_saved_by_somebody_else(web: Web) -> None:
    """Many save the state before each reload: then our lines are among theirs, and the record still knows them."""
    web.driver.send_to(["B"])
    (web.front.directory / "state").write_text(web.ask("show servers state") + "\n")
    web.reload()
    assert web.states() == {"A": State.DRAINING, "B": State.ACTIVE}
    web.driver.restore()
    assert web.states() == {"A": State.ACTIVE, "B": State.ACTIVE}


def test_a_site_that_is_down_gets_nothing(web: Web) -> None:
    web.servers["b"].stop()
    until(lambda: web.states()["B"] is State.DOWN, "b is found to be down")
    with pytest.raises(GateNotPassed) as caught:
        web.driver.send_to(["B"])
    assert caught.value.what == ("d1 cannot send to B: sites/b is down",)
    assert web.states()["A"] is State.ACTIVE
    web.servers["b"] = web.serve("b")
    until(lambda: web.states()["B"] is State.ACTIVE, "b is back")
    web.driver.send_to(["B"])


def test_what_does_not_fit_is_refused(web: Web) -> None:
    config = DispatcherConfig(
        kind=DispatcherKind.HAPROXY,
        targets=(TargetConfig(site="A", destinations=("sites/a",)), TargetConfig(site="B", destinations=("sites/c",))),
        control=str(OWN / "admin.sock"),
        state_file=OWN / "state",
    )
    driver = dispatcher(config, [web.shell])
    assert driver.check() == [
        "d1 has no destination sites/c (B)",
        "d1 sends to sites/b too, which belongs to no site in the sites file",
    ]
    with pytest.raises(ZduRefused):
        driver.send_to(["A"])
    with pytest.raises(CommandFailed, match="no answer on d1 from stream"):
        haproxy(web.shell, str(OWN / "nothing"), "show info", 1)
