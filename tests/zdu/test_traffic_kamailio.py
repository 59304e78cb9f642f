"""The dispatcher driver for Kamailio, on real ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core import faults
from core.errors import CommandFailed, GateNotPassed, ZduRefused
from tests.zdu.lab import OWN, Host, Lab, until
from tests.zdu.programs import CONTROL, VIP, CallServer, Kamailio
from zdu.drivers import DispatcherConfig, DispatcherKind, TargetConfig
from zdu.traffic.asking import Kamailio as Procedures
from zdu.traffic.dispatcher import dispatcher
from zdu.traffic.targets import Dispatcher, State, Target

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("sites")]

DOWN = "sip:10.9.0.39:5060"


class Pair:
    """Two dispatchers in front of two sites."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.a, self.b = (CallServer(lab.host(name, f"10.9.0.{n}/24")) for name, n in (("a", 31), ("b", 32)))
        destinations = [self.a.destination, self.b.destination]
        self.fronts = [Kamailio(lab.host(f"d{n}", f"10.9.0.2{n}/24"), VIP, destinations) for n in (1, 2)]
        self.shells = [front.host.shell() for front in self.fronts]
        self.config = DispatcherConfig(
            kind=DispatcherKind.KAMAILIO,
            targets=tuple(
                TargetConfig(site=name, destinations=(site.destination,))
                for name, site in (("A", self.a), ("B", self.b))
            ),
            control=CONTROL,
            state_file=OWN / "dispatcher.list",
            timeout=3,
        )
        self.original = self.fronts[0].list.read_text()

    @property
    def driver(self) -> Dispatcher:
        return dispatcher(self.config, self.shells)

    def fresh(self) -> None:
        """All as at first: files, records, running programs."""
        for front, shell in zip(self.fronts, self.shells, strict=True):
            shell.reachable = True
            front.list.write_text(self.original)
            (front.host.directory / "dispatcher.list.held").unlink(missing_ok=True)
            front.rpc("dispatcher.reload")
            front.ready(2)

    def seen(self) -> dict[str, list[State]]:
        """Destination → its state on d1 and d2."""
        found = self.driver.targets()
        return {
            name: [t.state for t in found if t.destination == name] for name in (self.a.destination, self.b.destination)
        }

    def states(self) -> tuple[list[State], list[State]]:
        seen = self.seen()
        return seen[self.a.destination], seen[self.b.destination]


ACTIVE, DRAINING = [State.ACTIVE] * 2, [State.DRAINING] * 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Lab(tmp_path_factory.mktemp("logs")) as lab:
        yield Pair(lab)


@pytest.fixture
def pair(made: Pair) -> Iterator[Pair]:
    made.fresh()
    yield made
    faults.arm(None)


def test_send_and_restore_on_every_host(pair: Pair) -> None:
    assert pair.driver.check() == []
    assert pair.states() == (ACTIVE, ACTIVE)
    told = pair.driver.send_to(["B"])
    assert pair.states() == (DRAINING, ACTIVE)
    assert {(t.host, t.site, t.state, t.kept, t.ours) for t in told} == {
        *((host, "A", State.DRAINING, True, True) for host in ("d1", "d2")),
        *((host, "B", State.ACTIVE, True, False) for host in ("d1", "d2")),
    }
    assert pair.driver.send_to(["B"]) == told, "again: nothing to do"
    pair.driver.send_to(["A"])
    assert pair.states() == (ACTIVE, DRAINING)
    pair.driver.send_to(["A", "B"])
    assert pair.states() == (ACTIVE, ACTIVE)
    pair.driver.send_to(["B"])
    pair.driver.restore()
    assert pair.states() == (ACTIVE, ACTIVE)
    for front in pair.fronts:
        assert front.list.read_text() == pair.original, "the file is as it was"


def test_reload_and_restart_keep_it(pair: Pair) -> None:
    pair.driver.send_to(["B"])
    for front in pair.fronts:
        front.rpc("dispatcher.reload")
    assert pair.states() == (DRAINING, ACTIVE)
    for front in pair.fronts:
        front.restart()
        front.ready(1)
    assert pair.states() == (DRAINING, ACTIVE)
    pair.driver.restore()
    assert pair.states() == (ACTIVE, ACTIVE)
    for front in pair.fronts:
        front.rpc("dispatcher.reload")
    assert pair.states() == (ACTIVE, ACTIVE)


def test_pings_do_not_bring_a_held_site_back(pair: Pair) -> None:
    pair.driver.send_to(["B"])
    pings = [len(pair.a.rows()), len(pair.b.rows())]
    until(lambda: len(pair.b.rows()) > pings[1] + 12, "two more pings of each dispatcher", timeout=5)
    assert pair.states() == (DRAINING, ACTIVE)


def test_a_list_that_is_written_anew_is_noticed_and_mended(pair: Pair) -> None:
    pair.driver.send_to(["B"])
    pair.fronts[0].list.write_text(pair.original)  # a new configuration was rendered
    assert {(t.host, t.kept) for t in pair.driver.targets() if t.site == "A"} == {("d1", False), ("d2", True)}
    pair.fronts[0].rpc("dispatcher.reload")
    assert pair.states() == ([State.ACTIVE, State.DRAINING], ACTIVE)
    pair.driver.send_to(["B"])
    assert pair.states() == (DRAINING, ACTIVE)
    assert all(target.kept for target in pair.driver.targets())


def test_what_an_operator_has_switched_off_stays_off(pair: Pair) -> None:
    d1, d2 = pair.fronts
    d1.rpc("dispatcher.set_state", "d", "1", pair.a.destination)  # until the next restart
    d2.list.write_text(pair.original.replace(f"{pair.a.destination} 0", f"{pair.a.destination} 4"))
    d2.rpc("dispatcher.reload")
    before = [front.list.read_text() for front in pair.fronts]
    pair.driver.send_to(["B"])
    assert all(target.kept for target in pair.driver.targets())
    pair.driver.restore()
    assert pair.states() == (DRAINING, ACTIVE)
    assert [front.list.read_text() for front in pair.fronts] == before
    with pytest.raises(GateNotPassed, match="cannot send to A") as caught:
        pair.driver.send_to(["A"])
    assert "nothing more was held" in caught.value.state
    assert pair.states() == (DRAINING, ACTIVE)


def test_nothing_is_held_before_every_host_can_send_to_the_site(pair: Pair) -> None:
    both = replace(
        pair.config, targets=(pair.config.targets[0], TargetConfig(site="B", destinations=(DOWN,))), timeout=0.5
    )
    for front in pair.fronts:
        front.list.write_text(pair.original.replace(pair.b.destination, DOWN))
        front.rpc("dispatcher.reload")
    driver = dispatcher(both, pair.shells)
    until(lambda: all(t.state is State.DOWN for t in driver.targets() if t.site == "B"), "B is found to be down")
    with pytest.raises(GateNotPassed) as caught:
        driver.send_to(["B"])
    assert caught.value.what == tuple(f"{d} cannot send to B: {DOWN} is down" for d in ("d1", "d2"))
    assert [t.state for t in driver.targets() if t.site == "A"] == ACTIVE
    driver.send_to(["A"])
    assert [t.state for t in driver.targets() if t.site == "B"] == DRAINING, "it would have come back by itself"


def test_a_host_that_does_not_answer(pair: Pair) -> None:
    pair.shells[1].reachable = False
    assert any("d2" in fault for fault in pair.driver.check())
    with pytest.raises(ZduRefused) as caught:
        pair.driver.send_to(["B"])
    assert "nothing was changed" in caught.value.state
    pair.shells[1].reachable = True
    assert pair.states() == (ACTIVE, ACTIVE)

    def cut(name: str) -> None:
        if name == "dispatcher:file":  # d1 is being told; d2 goes away before its turn
            pair.shells[1].reachable = False

    faults.arm(cut)
    with pytest.raises(CommandFailed, match="cannot send to B on d2") as cut_off:
        pair.driver.send_to(["B"])
    assert cut_off.value.state == "done on d1"
    faults.arm(None)
    pair.shells[1].reachable = True
    assert pair.states() == ([State.DRAINING, State.ACTIVE], ACTIVE)
    pair.driver.send_to(["B"])
    assert pair.states() == (DRAINING, ACTIVE)


class Killed(BaseException):
    """The controller dies."""


POINTS = ("dispatcher:record", "dispatcher:file", "dispatcher:let-go", "dispatcher:let-go-file")


@pytest.mark.parametrize("point", POINTS)
def test_the_controller_may_die_anywhere(pair: Pair, point: str) -> None:
    def die(name: str) -> None:
        if name == point:
            faults.arm(None)
            raise Killed

    faults.arm(die)
    with pytest.raises(Killed):
        pair.driver.send_to(["B"])
        pair.driver.send_to(["A"])
    pair.driver.send_to(["B"])
    assert pair.states() == (DRAINING, ACTIVE)
    faults.arm(die if "let-go" in point else None)
    if "let-go" in point:
        with pytest.raises(Killed):
            pair.driver.restore()
    pair.driver.restore()
    assert pair.states() == (ACTIVE, ACTIVE)
    for front in pair.fronts:
        assert front.list.read_text() == pair.original
        assert json.loads((front.host.directory / "dispatcher.list.held").read_text()) == {"held": {}}


def test_what_does_not_fit_is_refused(pair: Pair) -> None:
    for sites in ([], ["C"]):
        with pytest.raises(ZduRefused, match="cannot send to"):
            pair.driver.send_to(sites)
    for front in pair.fronts:
        front.list.write_text(pair.original + f"1 {DOWN}\n")
        assert any("have different destinations" in fault for fault in pair.driver.check())
        front.rpc("dispatcher.reload")
    faults_found = pair.driver.check()
    assert faults_found == [
        f"{d} sends to {DOWN} too, which belongs to no site in the sites file" for d in ("d1", "d2")
    ]
    with pytest.raises(ZduRefused) as caught:
        pair.driver.send_to(["B"])
    assert caught.value.what == tuple(faults_found)


def test_a_damaged_record_is_not_guessed_at(pair: Pair) -> None:
    pair.driver.send_to(["B"])
    (pair.fronts[0].host.directory / "dispatcher.list.held").write_text('{"held": ')
    with pytest.raises(CommandFailed, match="is damaged"):
        pair.driver.restore()
    assert "FLAGS: DX" in pair.fronts[0].rpc("dispatcher.list"), "it drains on"


@pytest.mark.parametrize(
    ("control", "options"),
    [
        (CONTROL, {}),
        (f"fifo:{OWN}/fifo", {}),
        (f"unixgram:{OWN}/dgram", {"datagram": True}),
        ("http://127.0.0.1:8080/RPC", {"http": True}),
    ],
    ids=["kamcmd", "fifo", "unixgram", "http"],
)
def test_every_way_to_reach_it(control: str, options: dict[str, bool]) -> None:
    with Lab() as lab:
        site, front = CallServer(lab.host("a", "10.9.0.31/24")), lab.host("d1", "10.9.0.21/24")
        kamailio = Kamailio(front, VIP, [site.destination], **options)
        kamailio.ready(1)
        config = DispatcherConfig(
            kind=DispatcherKind.KAMAILIO,
            targets=(TargetConfig(site="A", destinations=(site.destination,)),),
            control=control,
            state_file=OWN / "dispatcher.list",
            profile="site",
            timeout=3,
        )
        driver = dispatcher(config, [front.shell()])
        expected = Target(host="d1", site="A", destination=site.destination, state=State.ACTIVE, live=0)
        assert driver.targets() == [expected]
        procedures = Procedures(front.shell(), control, 3)
        assert procedures.call("dispatcher.set_state", "d", 1, site.destination) is not None
        assert driver.targets() == [replace(expected, state=State.DRAINING, kept=False)]
        with pytest.raises(CommandFailed, match="Kamailio on d1 refuses nonsense"):
            procedures.call("nonsense")
        kamailio.process.stop()
        with pytest.raises(CommandFailed, match="no answer on d1"):
            procedures.call("core.uptime")
        assert not list(Path("/tmp").glob("updater-ask-*")), "nothing is left behind"


def test_a_socket_that_hangs_costs_its_time_limit_only() -> None:
    with Lab() as lab:
        host: Host = lab.host("d1", "10.9.0.21/24")
        host.run("mkfifo", OWN / "fifo")
        holder = host.start("sh", "-c", f"exec 3<>{OWN}/fifo; exec sleep 60")
        until(lambda: holder.running, "somebody has the FIFO open, and says nothing")
        with pytest.raises(CommandFailed, match="no answer on d1 from fifo"):
            Procedures(host.shell(), f"fifo:{OWN}/fifo", 0.3).call("core.uptime")
