"""Calls go on while sites drain and the virtual IP moves: none fails, none is cut. Measured from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.zdu.drainlab import Counted, Patient
from tests.zdu.programs import VIP, Caller, Network, Pulse, two_sites
from zdu.limits import DrainConfig
from zdu.traffic.drain import Reading

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("sites")]

RATE = 50


@pytest.fixture
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with two_sites(tmp_path_factory.mktemp("logs")) as made:
        yield made


def test_a_site_drains_under_traffic(network: Network) -> None:
    dispatcher, seen = network.dispatcher(), list[int]()
    caller = Caller(network.caller, VIP, calls=6 * RATE, rate=RATE)
    network.busy(network.a)
    dispatcher.send_to(["B"])
    before = network.a.taken()
    assert network.a.live() > 0, "nothing was cut"

    def read() -> Reading:
        seen.append(network.a.live())
        return Reading(source="A", count=seen[-1], at=time.monotonic())

    evidence = Counted(read, DrainConfig(), [dispatcher]).wait(Patient())
    decided = time.time()
    assert evidence[-1]["open"]
    assert any(seen), "it saw calls before"
    assert set(seen[-3:]) == {0}
    assert decided - network.a.emptied_at() <= 20, "decided soon after the last call ended"
    print("drain_decision_ms", round((decided - network.a.emptied_at()) * 1000))
    assert network.a.taken() - before <= 2, "nothing new came: at most what was on its way"
    assert {network.registers_at() for _ in range(4)} == {network.b.host.address}
    dispatcher.restore()
    network.busy(network.a)
    outcome = caller.outcome()
    assert outcome.perfect, outcome
    assert outcome.made == caller.calls
    print(outcome)


def test_the_virtual_ip_moves_under_traffic(network: Network) -> None:
    address = network.vip()
    caller = Caller(network.caller, VIP, calls=6 * RATE, rate=RATE)
    network.busy(network.a)
    gaps = []
    for to, before in (("d2", "d1"), ("d1", "d2"), ("d2", "d1"), ("d1", "d2")):
        with Pulse(network.caller, VIP) as pulse:
            moved = address.move(to)
        gaps.append(pulse.gap_ms())
        assert (moved.to, moved.before, address.holder()) == (to, before, to)
    outcome = caller.outcome()
    assert outcome.perfect, outcome
    assert outcome.made == caller.calls
    print("vip_gap_ms", [round(gap, 1) for gap in gaps])


def test_a_dispatcher_restarts_behind_the_virtual_ip(network: Network) -> None:
    """The order of an upgrade: hold a site, empty one dispatcher by moving the address, restart it, and move back."""
    dispatcher, address = network.dispatcher(), network.vip()
    caller = Caller(network.caller, VIP, calls=5 * RATE, rate=RATE)
    network.busy(network.a)
    dispatcher.send_to(["B"])
    address.move("d2")
    network.dispatchers[0].restart()
    network.dispatchers[0].ready(1)
    assert dispatcher.send_to(["B"]), "it is as it was before the restart"
    address.move("d1")
    network.dispatchers[1].restart()
    network.dispatchers[1].ready(1)
    taken = network.a.taken()
    dispatcher.send_to(["B"])
    outcome = caller.outcome()
    assert outcome.perfect, outcome
    assert network.a.taken() == taken
