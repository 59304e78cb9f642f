"""The virtual IP drivers, on real hosts: keepalived, and a program of the operator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core import faults
from core.errors import CommandFailed, GateNotPassed, ZduRefused
from tests.zdu.lab import OWN, Lab, until
from tests.zdu.programs import VIP, Keepalived, Network, two_sites
from zdu.drivers import ProbeConfig, ProbeKind, VipConfig, VipKind
from zdu.traffic.probe import probe
from zdu.traffic.vip import Vip, vip

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("sites")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with two_sites(tmp_path_factory.mktemp("logs")) as network:
        yield network


@pytest.fixture
def network(made: Network) -> Iterator[Network]:
    """d1 has the address, both are well."""
    for keeper in made.keepers:
        keeper.track.write_text("0\n")
        if not keeper.process.running:
            keeper.start()
    for kamailio in made.dispatchers:
        if not kamailio.process.running:
            kamailio.restart()
            kamailio.ready(2)
    until(lambda: made.vip().holders() == ["d1"], "d1 has the virtual IP")
    yield made
    faults.arm(None)


def test_it_moves_and_stays(network: Network) -> None:
    address, (d1, d2) = network.vip(), network.keepers
    assert address.check() == []
    moved = address.move("d2")
    assert (moved.to, moved.before) == ("d2", "d1")
    assert (d1.holds(VIP), d2.holds(VIP)) == (False, True)
    assert moved.silence is not None and moved.silence.asked > moved.silence.lost, moved
    assert moved.silence.seconds < 1, moved
    print(moved.silence)
    again = address.move("d2")
    assert (again.before, again.silence) == ("", None), "it is there already"
    assert [keeper.track.read_text() for keeper in (d1, d2)] == ["0\n", "100\n"], "both are ready"
    address.hosts[0].give()
    d1.process.stop()
    d1.start()  # stands by after a restart too, though it has the higher priority
    until(lambda: "BACKUP STATE" in d1.process.said(3), "keepalived runs again")
    assert_stays(address, "d2")
    assert [keeper.track.read_text() for keeper in (d1, d2)] == ["-100\n", "100\n"]
    address.admit("d1")
    assert_stays(address, "d2")
    assert address.hosts[0].ready(), "it could have it, and leaves it where it is"
    d2.process.stop()
    until(lambda: address.holders() == ["d1"], "it takes over when the other one fails")
    d2.start()
    until(lambda: address.holders() == ["d2"], "which keeps it until it is moved")
    assert address.move("d1").before == "d2"
    assert [keeper.track.read_text() for keeper in (d1, d2)] == ["0\n", "0\n"], "as without an upgrade"
    assert_stays(address, "d1")
    address.admit("d2")
    assert_stays(address, "d1")


def assert_stays(address: Vip, name: str) -> None:
    """Longer than the hosts need to settle it (three advertisements)."""
    for _ in range(40):
        assert address.holders() == [name]


def test_a_move_that_fails_leaves_it_where_it_was(network: Network) -> None:
    network.keepers[1].process.stop()
    address = replace_patience(network, 1.0)
    with pytest.raises(GateNotPassed, match="did not move from d1 to d2 within 1 s") as caught:
        address.move("d2")
    assert caught.value.what == ("held by d1",)
    assert caught.value.state == "held by d1"
    assert address.asking.ask(VIP) == ""


def test_a_host_that_does_not_answer_gives_it_back(network: Network) -> None:
    network.dispatchers[1].process.stop()
    address = network.vip()
    with pytest.raises(GateNotPassed, match="did not move from d1 to d2") as caught:
        address.move("d2")
    assert "no answer on caller" in caught.value.what[0]
    assert caught.value.state == "held by d1"
    assert address.asking.ask(VIP) == "", "d1 has it and answers"
    assert all(host.ready() for host in address.hosts), "as before"
    network.dispatchers[1].restart()
    network.dispatchers[1].ready(2)
    assert address.move("d2").to == "d2", "when it is mended, it can be repeated"


def test_a_move_to_the_host_that_stood_by_fails_and_comes_back(network: Network) -> None:
    address = network.vip()
    address.move("d2")
    network.dispatchers[0].process.stop()
    with pytest.raises(GateNotPassed, match="did not move from d2 to d1"):
        address.move("d1")
    assert address.asking.ask(VIP) == ""
    assert_stays(address, "d2")
    assert all(host.ready() for host in address.hosts), "as before"


def test_held_by_two(network: Network) -> None:
    """A killed keepalived leaves the address where it is."""
    d1, d2 = network.keepers
    pids = [pid for pid in d1.host.pids() if "keepalived" in Path(f"/proc/{pid}/comm").read_text()]
    assert len(pids) == 2, "the parent, and the one that speaks VRRP"
    for number in ("-STOP", "-KILL"):  # at once: the death of one has the other tidy up
        d1.host.run("kill", number, *map(str, pids))
    until(lambda: d2.holds(VIP), "d2 hears nothing any more")
    address = network.vip()
    with pytest.raises(GateNotPassed, match="is held by 2 hosts at once: d1, d2") as caught:
        address.move("d2")
    assert caught.value.state == "nothing was changed"
    assert any("start it where it does not run" in line for line in caught.value.next)
    assert [track.read_text() for track in (d1.track, d2.track)] == ["0\n", "0\n"]
    d1.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "both are gone, not only dead")
    d1.start()  # the advice
    until(lambda: len(address.holders()) == 1, "the advice helps")


def test_held_by_none(network: Network) -> None:
    for keeper in network.keepers:
        keeper.process.stop()
    address = network.vip()
    with pytest.raises(GateNotPassed, match="is held by no host") as caught:
        address.move("d2")
    assert caught.value.what == ("looked on d1, d2",)
    assert "held by no host" in address.check()[0]


def test_what_cannot_be(network: Network) -> None:
    with pytest.raises(ZduRefused, match="cannot move to d3"):
        network.vip().move("d3")
    odd = vip(replace(network.vip_config(), interface="eth7"), network.shells, {"caller": network.caller.shell()})
    with pytest.raises(CommandFailed, match="the addresses of d1 are not known"):
        odd.holders()


class Killed(BaseException):
    """The controller dies."""


@pytest.mark.parametrize("point", ["vip:taken", "vip:given", "vip:moved"])
def test_the_controller_may_die_in_the_middle(network: Network, point: str) -> None:
    def die(name: str) -> None:
        if name == point:
            faults.arm(None)
            raise Killed

    faults.arm(die)
    with pytest.raises(Killed):
        network.vip().move("d2")
    until(lambda: len(network.vip().holders()) == 1, "one of them has it")
    network.vip().move("d2")
    assert network.vip().asking.ask(VIP) == ""
    network.vip().move("d1")
    assert network.vip().holder() == "d1"


def test_the_controller_may_die_while_a_dispatcher_comes_back(network: Network) -> None:
    def die(name: str) -> None:
        if name == "vip:kept":
            faults.arm(None)
            raise Killed

    address = network.vip()
    address.move("d2")
    address.hosts[0].give()
    faults.arm(die)
    with pytest.raises(Killed):
        address.admit("d1")
    assert_stays(address, "d2")
    assert not address.hosts[0].ready()
    address.admit("d1")
    assert_stays(address, "d2")
    assert address.hosts[0].ready()


def test_the_holder_dies_while_it_moves(network: Network) -> None:
    """Its machine is cut off: the other one takes over by itself, and we say what we cannot see."""
    address = network.vip()
    d1 = network.lab.hosts["d1"]
    shells = network.shells
    address.hosts = vip(network.vip_config(), shells, {"caller": network.caller.shell()}).hosts

    def die(name: str) -> None:
        if name == "vip:taken":
            d1.cut()
            shells[0].reachable = False

    faults.arm(die)
    with pytest.raises(CommandFailed, match="d1 cannot be reached"):
        address.move("d2")
    until(lambda: network.keepers[1].holds(VIP), "d2 has taken over")
    assert probe(network.vip_config().probe, {"caller": network.caller.shell()}).ask(VIP) == ""
    d1.join()


def test_probes(network: Network) -> None:
    shells = {"caller": network.caller.shell()}
    site = network.a.host.address
    assert probe(ProbeConfig(host="caller"), shells).ask(site) == ""
    assert "no answer" in probe(ProbeConfig(host="caller", port=5999, timeout=0.3), shells).ask(site)
    tcp = ProbeConfig(kind=ProbeKind.TCP, host="caller", port=5999, timeout=0.3)
    assert "refused" in probe(tcp, shells).ask(site)
    command = ProbeConfig(kind=ProbeKind.COMMAND, host="caller", command=("test", "10.9.0.20", "="))
    assert probe(command, shells).ask("10.9.0.20") == ""
    assert "exits with 1" in probe(command, shells).ask("10.9.0.21")
    with network.caller.inside():  # the controller itself
        assert probe(ProbeConfig(), {}).ask(site) == ""
        assert "does not answer" in probe(ProbeConfig(port=5999, timeout=0.3), {}).ask(site)


SCRIPT = """#!/bin/sh
# A virtual IP without keepalived: the address is on the host whose turn it is.
set -e
case $1 in
    holds) ip -4 addr show dev eth0 | grep -q 'inet 10.9.0.20/' ;;
    ready) test ! -e $0.aside ;;
    give)
        touch $0.aside
        ip addr del 10.9.0.20/24 dev eth0 2>/dev/null || true ;;
    keep | join) rm -f $0.aside ;;
    take)
        rm -f $0.aside
        ip addr replace 10.9.0.20/24 dev eth0
        # Whoever knows another machine by this address is told.
        python3 -c '
import socket
mac = bytes.fromhex(open("/sys/class/net/eth0/address").read().strip().replace(":", ""))
address = socket.inet_aton("10.9.0.20")
everybody = b"\\xff" * 6
announce = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
announce.bind(("eth0", 0))
announce.send(everybody + mac + b"\\x08\\x06\\0\\1\\x08\\0\\6\\4\\0\\1" + mac + address + everybody + address)
' ;;
    *) exit 2 ;;
esac
"""


def test_a_program_of_the_operator() -> None:
    with Lab() as lab:
        caller, *hosts = (lab.host(name, f"10.9.0.{n}/24") for name, n in (("caller", 10), ("d1", 21), ("d2", 22)))
        for host in hosts:
            (host.directory / "address").write_text(SCRIPT)
            (host.directory / "address").chmod(0o755)
            host.start("python3", "-m", "http.server", "8000")
        config = VipConfig(
            address=VIP,
            kind=VipKind.COMMAND,
            command=(str(OWN / "address"),),
            probe=ProbeConfig(kind=ProbeKind.TCP, host="caller", port=8000, timeout=5),
            patience=3,
        )
        address = vip(config, [host.shell() for host in hosts], {"caller": caller.shell()})
        assert address.holders() == []
        address.hosts[0].take()
        assert address.holder() == "d1"
        moved = address.move("d2")
        assert moved.before == "d1" and moved.silence is not None, moved
        print(moved.silence)
        assert [host.ready() for host in address.hosts] == [True, True] and address.holder() == "d2"
        address.hosts[0].give()
        assert [host.ready() for host in address.hosts] == [False, True]
        address.admit("d1")
        assert [host.ready() for host in address.hosts] == [True, True] and address.holder() == "d2"
        assert address.move("d1").before == "d2"
        assert [host.ready() for host in address.hosts] == [True, True]
        (hosts[0].directory / "address").write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
        with pytest.raises(CommandFailed, match="address holds fails on d1 with exit code 3") as caught:
            address.move("d2")
        assert caught.value.what == ("broken",)


def test_three_hosts() -> None:
    """All but the one that leaves are ready, wherever the address is."""
    with Lab() as lab:
        caller, *hosts = (lab.host(name, f"10.9.0.{n}/24") for n, name in enumerate(("caller", "d1", "d2", "d3"), 21))
        keepers = []
        for host, priority in zip(hosts, (150, 120, 90), strict=True):
            peers = "\n".join(other.address for other in hosts if other is not host)
            keepers.append(Keepalived(host, VIP, priority=priority, peer=peers))
            host.start("python3", "-m", "http.server", "8000")
        probe = ProbeConfig(kind=ProbeKind.TCP, host="caller", port=8000, timeout=5)
        config = VipConfig(address=VIP, track_file=OWN / "vip", probe=probe)
        address = vip(config, [host.shell() for host in hosts], {"caller": caller.shell()})
        until(lambda: address.holders() == ["d1"], "d1 has the virtual IP")
        assert address.move("d2").before == "d1"
        assert [keeper.track.read_text() for keeper in keepers] == ["0\n", "100\n", "0\n"]
        assert_stays(address, "d2")
        address.hosts[0].give()
        assert [host.ready() for host in address.hosts] == [False, True, True]
        keepers[1].process.stop()
        until(lambda: address.holders() == ["d3"], "it goes to the one that has not left")
        keepers[1].start()
        until(lambda: address.holders() == ["d2"], "which keeps it")
        address.admit("d1")
        assert_stays(address, "d2")
        assert address.move("d1").before == "d2"
        assert [keeper.track.read_text() for keeper in keepers] == ["0\n", "0\n", "0\n"]
        assert_stays(address, "d1")


def test_what_is_not_well_in_the_ordinary_course_of_things(network: Network) -> None:
    """A dispatcher that was left aside, and one that is preferred though the sites file names it second."""
    address, keeper = network.vip(), network.keepers[1]
    keeper.track.write_text("-100\n")
    assert address.check() == ["d2 stands by: after the upgrade before, or by somebody's hand"]
    keeper.track.write_text("100\n")
    until(lambda: address.holders() == ["d2"], "it is preferred")
    (said,) = address.check()
    assert "d2 is preferred" in said


def replace_patience(network: Network, seconds: float) -> Vip:
    return vip(replace(network.vip_config(), patience=seconds), network.shells, {"caller": network.caller.shell()})


def test_the_weight_is_that_of_the_configuration(network: Network) -> None:
    keeper: Keepalived = network.keepers[1]
    config = replace(network.vip_config(), weight=90)
    vip(config, network.shells, {"caller": network.caller.shell()}).move("d2")
    assert keeper.track.read_text() == "90\n"
