"""What runs on the hosts of a lab: dispatchers (Kamailio, keepalived), call servers and callers (sipp), HAProxy."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from tests.zdu.lab import OWN, Host, Lab, NamespaceShell, Process, until
from vagrant.rehearsal.sip import CALLER, SITE
from zdu.drivers import DispatcherConfig, DispatcherKind, ProbeConfig, TargetConfig, VipConfig
from zdu.traffic.dispatcher import dispatcher
from zdu.traffic.probe import options
from zdu.traffic.targets import Dispatcher
from zdu.traffic.vip import Vip, vip

HERE = Path(__file__).parent / "scenarios"

#: Seconds between two rows of sipp's statistics.
ROW = 0.2


#: The virtual IP of the dispatchers.
VIP = "10.9.0.20"

#: How drivers reach the Kamailio of a host.
CONTROL = f"kamcmd:unix:{OWN}/ctl"


@cache
def ahead() -> tuple[str, ...]:
    """What puts a program ahead of all else that this machine does meanwhile, as on a machine of its own; nothing where
    that is not allowed.
    """
    return _prefix("5")


def favoured() -> tuple[str, ...]:
    """As `ahead`, but behind those: for what has to keep up with the calls, and does not carry them."""
    return _prefix("3")


def _prefix(priority: str) -> tuple[str, ...]:
    words = ("chrt", "--rr", priority)
    return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else ()


class Kamailio:
    """A dispatcher: Kamailio with a list of destinations in set 1, on its own address and on the virtual IP."""

    def __init__(self, host: Host, vip: str, destinations: list[str], *, datagram: bool = False, http: bool = False):
        self.host = host
        self.list = host.directory / "dispatcher.list"
        self.list.write_text("# destinations: setid destination flags priority attributes\n" + "".join(
            f"1 {destination} 0 0\n" for destination in destinations
        ))  # fmt: skip
        filled = {
            "VIP": vip,
            "OWN": host.address,
            "RUN": str(OWN),
            "TRANSPORT": "4" if datagram else "1" if http else "2",
            "NO_TCP": "no" if http else "yes",
            "HTTP_LISTEN": "listen=tcp:127.0.0.1:8080\ntcp_accept_no_cl=yes" if http else "",
            "HTTP_MODULE": 'loadmodule "xhttp"' if http else "",
            "HTTP_ROUTE": "event_route[xhttp:request] { jsonrpc_dispatch(); }" if http else "",
        }
        text = (HERE / "kamailio.cfg").read_text()
        for key, value in filled.items():
            text = text.replace(f"@{key}@", value)
        self.config = host.directory / "kamailio.cfg"
        self.config.write_text(text)
        host.run("sysctl", "-qw", "net.ipv4.ip_nonlocal_bind=1")
        self.process = self._start()

    def _start(self) -> Process:
        options = ["-f", f"{OWN}/kamailio.cfg", "-m", "64", "-M", "8", "-Y", str(OWN), "-P", f"{OWN}/kamailio.pid"]
        return self.host.start(*ahead(), "kamailio", "-DD", "-E", *options, log="kamailio")

    def rpc(self, *words: str) -> str:
        said = self.host.run("kamcmd", "-s", f"unix:{OWN}/ctl", *words)
        assert not said.startswith("error"), f"{words}: {said}"
        return said

    def ready(self, active: int) -> None:
        """Until it has found that many destinations alive."""

        def found() -> bool:
            assert self.process.running, self.process.said()
            with suppress(AssertionError):
                return self.rpc("dispatcher.list").count("FLAGS: AP") >= active
            return False

        until(found, f"{active} active destinations on {self.host.name}")

    def restart(self) -> None:
        self.process.stop()
        self.process = self._start()


class Keepalived:
    """Holds the virtual IP, or waits for it. `track`: the file that makes it give the address away."""

    def __init__(self, host: Host, vip: str, *, priority: int, peer: str, interface: str = "eth0"):
        self.host = host
        self.track = host.directory / "vip"
        self.track.write_text("0\n")
        self.config = host.directory / "keepalived.conf"
        self.config.write_text(f"""
global_defs {{
    router_id {host.name}
    vrrp_version 3
    vrrp_garp_master_repeat 1
    vrrp_rt_priority 50
    enable_script_security
    script_user root
}}
track_file updater {{
    file {OWN}/vip
    weight 1
}}
vrrp_instance dispatchers {{
    interface {interface}
    state BACKUP
    virtual_router_id 51
    priority {priority}
    advert_int 0.2
    unicast_src_ip {host.address}
    unicast_peer {{
        {peer}
    }}
    virtual_ipaddress {{
        {vip}/24 dev {interface}
    }}
    track_file {{
        updater
    }}
}}
""")
        self.process = self.start()

    def start(self) -> Process:
        self.process = self.host.start(
            *("keepalived", "--dont-fork", "--log-console", "--no-syslog", "--use-file", OWN / "keepalived.conf"),
            *("--pid", OWN / "keepalived.pid", "--vrrp_pid", OWN / "vrrp.pid"),
        )
        return self.process

    def holds(self, vip: str) -> bool:
        return f"inet {vip}/" in self.host.run("ip", "-4", "addr", "show")


class CallServer:
    """A site: sipp answers calls. `live` is its own count of calls."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.statistics = host.directory / "site.csv"
        self.process = host.start(
            *("sipp", "-sf", SITE, "-i", host.address, "-p", "5060", "-nostdin", "-aa"),
            *("-trace_stat", "-stf", self.statistics, "-fd", f"{round(ROW * 1000)}ms"),
            *("-cp", "8888", "-skip_rlimit", "-deadcall_wait", "500"),
        )
        until(self.statistics.exists, f"{host.name} answers\n{self.process.said()}")

    @property
    def destination(self) -> str:
        return f"sip:{self.host.address}:5060"

    def rows(self) -> list[dict[str, str]]:
        return rows(self.statistics)

    def live(self) -> int:
        """Calls that are up now, or up to `ROW` seconds ago."""
        return int(self.rows()[-1]["CurrentCall"])

    def taken(self) -> int:
        """Calls that it took so far; pings and registrations are none."""
        return int(self.rows()[-1]["calls(C)"])

    def emptied_at(self) -> float:
        """When it had no call for the first time after its last one (time of day, late by `ROW` at most)."""
        empty_since = 0.0
        for row in self.rows():
            if int(row["CurrentCall"]):
                empty_since = 0.0
            elif not empty_since:
                empty_since = float(row["CurrentTime"].split("\t")[-1])
        return empty_since


class Pulse:
    """Asks an address for SIP OPTIONS a thousand times a second, from a host; tells how long nobody answered."""

    EVERY = 0.001

    def __init__(self, host: Host, address: str) -> None:
        self._answered: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(host, address), daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        until(lambda: self._answered, "the first answer")
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.2)
        self._end.set()
        self._thread.join()

    def gap_ms(self) -> float:
        """The longest time from one question that was answered to the next one that was, in ms."""
        asked = sorted(self._answered)
        return max(b - a for a, b in pairwise(asked)) * 1000

    def _beat(self, host: Host, address: str) -> None:
        with suppress(OSError):  # it measures the address, and not how long it waited for a processor itself
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
        with host.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.connect((address, 5060))
            own = "{}:{}".format(*asking.getsockname())
            while not self._end.is_set():
                now = time.monotonic()
                said = options(address, 5060).replace("@HERE@", own)
                said = said.replace("@NUMBER@", str(int(now * 1e6) % 2**31)).replace("updater@", f"{now!r}@")
                with suppress(OSError):  # nobody has the address at the moment
                    asking.send(said.encode())
                with suppress(BlockingIOError, ConnectionError):
                    while answer := asking.recv(4096):
                        self._answered.append(float(answer.split(b"From: <sip:")[1].split(b"@")[0]))
                time.sleep(max(0.0, now + self.EVERY - time.monotonic()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the calls of a caller. `slowest_ms`: no call waited longer than this for its answer."""

    made: int
    good: int
    failed: int
    retransmissions: int
    slowest_ms: float

    @property
    def perfect(self) -> bool:
        return self.made == self.good and self.failed == 0


class Caller:
    """Makes `calls` calls, `rate` a second, through `to`: twice `talk` seconds each, with a re-INVITE between."""

    def __init__(self, host: Host, to: str, *, calls: int, rate: int, talk: float = 0.5) -> None:
        self.calls = calls
        self.statistics = host.directory / f"calls{len(host.processes)}.csv"
        self.process = host.start(
            *("sipp", f"{to}:5060", "-sf", CALLER, "-i", host.address, "-p", "5060", "-nostdin"),
            *("-m", str(calls), "-r", str(rate), "-d", str(round(talk * 1000)), "-l", str(calls)),
            *("-trace_stat", "-stf", self.statistics, "-fd", f"{round(ROW * 1000)}ms"),
            *("-cp", "8888", "-skip_rlimit", "-timeout", "120s"),
        )

    def made(self) -> int:
        found = rows(self.statistics)
        return int(found[-1]["OutgoingCall(C)"]) if found else 0

    def outcome(self, timeout: float = 60) -> Outcome:
        """When all calls have ended."""
        self.process.wait(timeout)
        return outcome_of(rows(self.statistics)[-1])


def outcome_of(last: dict[str, str]) -> Outcome:
    """What the last row of a caller's statistics says."""
    return Outcome(
        made=int(last["OutgoingCall(C)"]),
        good=int(last["SuccessfulCall(C)"]),
        failed=int(last["FailedCall(C)"]),
        retransmissions=int(last["Retransmissions(C)"]),
        slowest_ms=_slowest(last),
    )


def _slowest(row: dict[str, str]) -> float:
    """The upper end of the last class of answer times that has calls in it."""
    found = 0.0
    for name, value in row.items():
        _, of_answers, limit = (name or "").partition("ResponseTimeRepartition1_")
        if of_answers and value.isdigit() and int(value) > 0:
            found = float("inf") if limit.startswith(">=") else max(found, float(limit.strip("<=")))
    return found


def rows(statistics: Path) -> list[dict[str, str]]:
    """The whole rows of a statistics file of sipp's, oldest first."""
    if not statistics.exists():
        return []
    whole = statistics.read_text().rpartition("\n")[0]
    return list(csv.DictReader(whole.splitlines(), delimiter=";"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A caller, two dispatchers with one virtual IP, and a call server at each of two sites."""

    lab: Lab
    caller: Host
    dispatchers: tuple[Kamailio, Kamailio]
    keepers: tuple[Keepalived, Keepalived]
    a: CallServer
    b: CallServer

    @property
    def shells(self) -> list[NamespaceShell]:
        return [kamailio.host.shell() for kamailio in self.dispatchers]

    def dispatcher_config(self, control: str = CONTROL) -> DispatcherConfig:
        return DispatcherConfig(
            kind=DispatcherKind.KAMAILIO,
            targets=(
                TargetConfig(site="A", destinations=(self.a.destination,)),
                TargetConfig(site="B", destinations=(self.b.destination,)),
            ),
            control=control,
            state_file=OWN / "dispatcher.list",
            profile="site",
            timeout=5,
        )

    def vip_config(self) -> VipConfig:
        probe = ProbeConfig(host=self.caller.name, timeout=1)
        return VipConfig(address=VIP, track_file=OWN / "vip", probe=probe, patience=5)

    def busy(self, site: CallServer, calls: int = 1) -> None:
        """Until the site has so many calls at a time."""
        until(lambda: site.live() >= calls, f"{calls} calls at {site.host.name}")

    def registers_at(self) -> str:
        """The address of the call server that a registration through the virtual IP comes to."""
        said = (
            options(VIP, 5060)
            .replace("OPTIONS", "REGISTER")
            .replace("@NUMBER@", "1")
            .replace("@HERE@", f"{self.caller.address}:5070")
        )
        with self.caller.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(5)
            asking.bind((self.caller.address, 5070))
            asking.sendto(said.encode(), (VIP, 5060))
            answer = asking.recv(4096).decode()
        assert answer.startswith("SIP/2.0 200"), answer
        return answer.partition("Contact: <sip:")[2].partition(":")[0]

    def dispatcher(self, control: str = CONTROL) -> Dispatcher:
        return dispatcher(self.dispatcher_config(control), self.shells)

    def vip(self) -> Vip:
        return vip(self.vip_config(), self.shells, {self.caller.name: self.caller.shell()})


@contextmanager
def two_sites(logs: Path | None = None) -> Iterator[Network]:
    """The network, with d1 holding the virtual IP and both sites active. Logs are copied to `logs` at the end."""
    with Lab(logs) as lab:
        caller, *fronts = (
            lab.host(name, f"10.9.0.{number}/24") for name, number in (("caller", 10), ("d1", 21), ("d2", 22))
        )
        a, b = (CallServer(lab.host(name, f"10.9.0.{number}/24")) for name, number in (("a", 31), ("b", 32)))
        kamailios = [Kamailio(host, VIP, [a.destination, b.destination]) for host in fronts]
        d1, d2 = fronts
        keepers = (
            Keepalived(d1, VIP, priority=150, peer=d2.address),
            Keepalived(d2, VIP, priority=100, peer=d1.address),
        )
        for kamailio in kamailios:
            kamailio.ready(2)
        until(lambda: keepers[0].holds(VIP) and not keepers[1].holds(VIP), "d1 has the virtual IP")
        yield Network(lab=lab, caller=caller, dispatchers=(kamailios[0], kamailios[1]), keepers=keepers, a=a, b=b)
