"""The whole installation: a caller, two dispatchers with one virtual IP, a main site and a secondary one, a controller.

Each site has a database server and a server with its call server (sipp) and its billing engine. All of them but the
caller have an sshd and a node, a sandbox that takes the services through every restart.
"""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.sql import Engine
from migrations.scratch import make_template
from tests.zdu.lab import OWN, Host, Lab, Process, until
from tests.zdu.programs import VIP, Kamailio, Keepalived, ahead, favoured
from tests.zdu.whole import databases
from tests.zdu.whole.services import agent, keep, node, program, python, sshd, updater
from vagrant.rehearsal.sip import SITE
from vagrant.rehearsal.sites_operator import switch, write_catalogue

OLD, NEW = "MR95-1", "MR96-1"

#: Bytes of a slot, and of the image of the release.
SLOT = 8 << 20

ADDRESSES = {
    "controller": "10.9.0.5", "caller": "10.9.0.10", "d1": "10.9.0.21", "d2": "10.9.0.22",
    "a-db": "10.9.0.31", "a-sip": "10.9.0.32", "b-db": "10.9.0.41", "b-sip": "10.9.0.42",
}  # fmt: skip


class KeptKamailio(Kamailio):
    """A dispatcher's Kamailio, as a service of its host."""

    def _start(self) -> Process:
        options: list[str | Path] = [
            "-f",
            OWN / "kamailio.cfg",
            "-m",
            "64",
            "-M",
            "8",
            "-Y",
            OWN,
            "-P",
            OWN / "kamailio.pid",
        ]
        return keep(self.host, "kamailio", [*ahead(), "kamailio", "-DD", "-E", *options])


class KeptKeepalived(Keepalived):
    """A dispatcher's keepalived, as a service of its host."""

    def start(self) -> Process:
        argv: list[str | Path] = [
            "keepalived",
            "--dont-fork",
            "--log-console",
            "--no-syslog",
            "--use-file",
            OWN / "keepalived.conf",
        ]
        self.process = keep(
            self.host, "keepalived", [*argv, "--pid", OWN / "keepalived.pid", "--vrrp_pid", OWN / "vrrp.pid"]
        )
        return self.process


@dataclass(frozen=True)
class Site:
    """A site. `sip`: where its call server and its billing engine are."""

    name: str
    db: databases.Server
    sip: Host

    def told(self) -> dict[str, Any]:
        """What its billing engine tells of itself."""
        with self.sip.inside(), urllib.request.urlopen(f"http://{self.sip.address}:8080/calls", timeout=2) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def live(self) -> int | None:
        """Calls that are not over and charged; None when it does not say."""
        with suppress(OSError):
            return int(self.told()["calls"])
        return None

    def lines(self) -> list[list[str]]:
        """What its call server wrote down: begin or end, call, time of day."""
        logs = sorted((self.sip.directory / "calls").glob("*.log"))
        return [line.split() for log in logs for line in log.read_text().rpartition("\n")[0].splitlines()]


@dataclass(frozen=True)
class Installation:
    """All of it, in the ordinary course of things: both sites take calls, the main one has the books."""

    lab: Lab
    a: Site
    b: Site
    dispatchers: tuple[KeptKamailio, KeptKamailio]
    keepers: tuple[KeptKeepalived, KeptKeepalived]
    depot: Path
    accounts: int

    @property
    def caller(self) -> Host:
        return self.lab.hosts["caller"]

    @property
    def controller(self) -> Host:
        return self.lab.hosts["controller"]

    @property
    def nodes(self) -> list[Host]:
        """The hosts that have a node."""
        return [host for name, host in self.lab.hosts.items() if name not in ("caller", "controller")]

    @property
    def bundle(self) -> Path:
        return self.depot / "mr96-1.bundle"

    def runs(self) -> dict[str, str]:
        """What each node says that it runs."""
        return {host.name: str(self.status(host).get("release")) for host in self.nodes}

    def status(self, host: Host) -> dict[str, Any]:
        """What the slot that a node has booted is."""
        said = json.loads(host.run(OWN / "updater", "--json", "status", check=False))
        data = said.get("data", said)
        found: dict[str, Any] = next((slot for slot in data["slots"] if slot.get("booted")), {})
        return found


@contextmanager
def installation(logs: Path | None = None, *, accounts: int = 100, workers: int = 12) -> Iterator[Installation]:
    """Everything up, and in service on the old release. `logs`: where what was written is copied to at the end."""
    with make_template(Engine.MARIADB) as template, Lab(logs) as lab:
        depot = lab.directory / "depot"
        depot.mkdir()
        hosts = {name: lab.host(name, f"{address}/24", private=["/root"]) for name, address in ADDRESSES.items()}
        password = databases.password_file(depot)
        a = Site("A", databases.Server(hosts["a-db"], password), hosts["a-sip"])
        b = Site("B", databases.Server(hosts["b-db"], password), hosts["b-sip"])
        a.db.start(template, 1)
        b.db.start(template, 2, "--read-only")
        _reach(hosts)
        _releases(depot)
        kamailios, keepers = _dispatchers(hosts["d1"], hosts["d2"], [a, b])
        databases.set_up(a.db, b.db, accounts)
        for site in (a, b):
            _call_server(site, a, b, accounts, workers)
        _nodes(hosts, a, b, depot)
        made = Installation(lab, a, b, kamailios, keepers, depot, accounts)
        for site in (a, b):
            until(lambda site=site: site.live() is not None, f"the billing engine of {site.name}", 20)  # type: ignore[misc]
        for kamailio in kamailios:
            kamailio.ready(2)
        until(lambda: keepers[0].holds(VIP) and not keepers[1].holds(VIP), "d1 has the virtual IP")
        (hosts["controller"].directory / "sites.toml").write_text(_sites(a, b))
        yield made


def _reach(hosts: dict[str, Host]) -> None:
    """The controller may log in everywhere, and knows everybody's key."""
    controller = hosts["controller"]
    controller.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", OWN / "key")
    key = controller.directory / "key.pub"
    known = [sshd(host, key) for name, host in hosts.items() if name not in ("caller", "controller")]
    (controller.directory / "known_hosts").write_text("".join(known))
    agent(controller)


def _releases(depot: Path) -> None:
    """A key, and the bundle of the new release with its migrations, made as a vendor would."""
    tree = depot / "tree"
    (tree / "boot").mkdir(parents=True)
    (tree / "etc").mkdir()
    for file in ("boot/vmlinuz-6.1", "boot/initrd.img-6.1", "etc/release"):
        (tree / file).write_text(f"{NEW} {file}")
    catalogue = write_catalogue(depot / "migrations")
    made_of: list[str | Path] = ["--release", NEW, "--compatible", "sandbox", "--tree", tree, "--size", str(SLOT // 2)]
    made_of += ["--key", depot / "release.pem", "--migrations", catalogue]
    commands: tuple[list[str | Path], ...] = (
        ["bundle", "key", depot / "release.pem"],
        ["bundle", "build", depot / "mr96-1.bundle", *made_of],
    )
    for words in commands:
        subprocess.run([*updater(), *map(str, words)], check=True, capture_output=True, cwd=depot)


def _dispatchers(
    d1: Host, d2: Host, sites: list[Site]
) -> tuple[tuple[KeptKamailio, KeptKamailio], tuple[KeptKeepalived, KeptKeepalived]]:
    destinations = [f"sip:{site.sip.address}:5060" for site in sites]
    kamailios = (KeptKamailio(d1, VIP, destinations), KeptKamailio(d2, VIP, destinations))
    keepers = (
        KeptKeepalived(d1, VIP, priority=150, peer=d2.address),
        KeptKeepalived(d2, VIP, priority=100, peer=d1.address),
    )
    return kamailios, keepers


def _call_server(site: Site, a: Site, b: Site, accounts: int, workers: int) -> None:
    host = site.sip
    (host.directory / "calls").mkdir()
    server = [
        *ahead(), "sipp", "-sf", SITE, "-i", host.address, "-p", "5060", "-nostdin", "-aa",
        "-cp", "8888", "-skip_rlimit", "-deadcall_wait", "500", "-trace_logs", "-log_file",
    ]  # fmt: skip
    line = " ".join(str(word) for word in server)
    started = program(host, "call-server", f"#!/bin/sh\nexec {line} {OWN}/calls/$(date +%s%N).log > /dev/null\n")
    keep(host, "call-server", [started])
    config = {
        "site": "main" if site is a else "secondary",
        "main": [a.db.host.address, databases.BOOKS],
        "delta": [b.db.host.address, databases.DELTA],
        "base": [b.db.host.address, databases.BOOKS],
        "user": databases.USER,
        "password": str(a.db.password),
        "calls": str(OWN / "calls"),
        "charged": str(OWN / "charged"),
        "accounts": accounts,
        "workers": workers,
        "address": host.address,
        "port": 8080,
    }
    (host.directory / "charging.json").write_text(json.dumps(config))
    keep(host, "billing", [*favoured(), *python("vagrant.rehearsal.sites_charging", OWN / "charging.json")])
    program(host, "switch", switch(OWN))
    for name, word in (("maintenance", "open"), ("standalone", "normal"), ("billing", "standby")):
        (host.directory / f"state-{name}").write_text(f"{word}\n")


def _nodes(hosts: dict[str, Host], a: Site, b: Site, depot: Path) -> None:
    key = depot / "release.pub"
    connects = '[ -n "$(mariadb-admin --no-defaults --socket={0}/db/s --connect-timeout=2 --user=root ping)" ]'
    health = {
        "db": connects.format(OWN),
        "sip": "exec 3<>/dev/null; python3 -c 'import urllib.request as u; "
        'u.urlopen("http://{address}:8080/calls", timeout=2)\' 2>&1 | tail -1 | grep . && exit 1; exit 0',
        "d": f"kamcmd -s unix:{OWN}/ctl dispatcher.list | grep -q 'FLAGS: [AD][PX]'",
    }
    books = (
        f'[databases.billing]\nengine = "mariadb"\nhost = "{a.db.host.address}"\ndatabase = "{databases.BOOKS}"\n'
        f'user = "{databases.USER}"\npassword_file = "{a.db.password}"\n'
        '[migrations]\nbackup = "none"\n'
        f'[[migrations.replicas]]\nof = "billing"\nengine = "mariadb"\nhost = "{b.db.host.address}"\n'
        f'database = "{databases.BOOKS}"\nuser = "{databases.USER}"\npassword_file = "{a.db.password}"\n'
    )

    def make(name: str) -> None:
        check = health[name.partition("-")[2] or "d"].replace("{address}", hosts[name].address)
        more = books if name == "a-db" else ""
        node(hosts[name], key, release=OLD, slot=SLOT, health=check, more=more)

    with ThreadPoolExecutor(max_workers=3) as pool:
        list(pool.map(make, [name for name in hosts if name not in ("caller", "controller")]))


def _sites(a: Site, b: Site) -> str:
    """sites.toml as an operator would write it."""

    def database(server: databases.Server, name: str) -> str:
        return (
            f'{{ engine = "mariadb", host = "{server.host.address}", database = "{name}", user = "{databases.USER}", '
            f'password_file = "{server.password}" }}'
        )

    def site(which: Site, kind: str, role: str) -> str:
        name = which.name.lower()
        return f"""
[[sites]]
name = "{which.name}"
kind = "{kind}"
database = {database(which.db, databases.BOOKS)}
calls = {{ kind = "http", url = "http://{{host}}:8080/calls", pointer = "/calls" }}
maintenance = {{ command = ["{OWN}/switch", "maintenance"], host = "{name}-sip" }}
servers = [
  {{ name = "{name}-db", roles = ["{role}"], host = "{which.db.host.address}" }},
  {{ name = "{name}-sip", roles = ["billing", "sip"], host = "{which.sip.address}" }},
]
checks = [
  {{ name = "database", kind = "tcp", host = "{which.db.host.address}", port = 3306 }},
  {{ name = "billing", kind = "http", url = "http://{which.sip.address}:8080/calls" }},
]
"""

    return f"""
name = "rehearsal"
stand_in = "B"

[controller]
require_rehearsal = false
database = {{ engine = "sqlite", path = "{OWN}/zdu.sqlite" }}

[ssh]
user = "root"
key = "{OWN}/key"
known_hosts = "{OWN}/known_hosts"
command = "{OWN}/updater"
connect = 5

[drain]
alert_after = 6
alert_every = 60

[expect]
stage = 5
activate = 5
drain = 5
{site(a, "main", "db-primary")}
{site(b, "secondary", "db-replica")}
billing = {{ command = ["{OWN}/switch", "billing"], host = "b-sip" }}

[sites.standalone]
command = ["{OWN}/switch", "standalone"]
delta = {database(b.db, databases.DELTA)}

[dispatchers]
servers = [
  {{ name = "d1", roles = ["dispatcher"], host = "{ADDRESSES["d1"]}" }},
  {{ name = "d2", roles = ["dispatcher"], host = "{ADDRESSES["d2"]}" }},
]

[[dispatchers.programs]]
kind = "kamailio"
control = "kamcmd:unix:{OWN}/ctl"
state_file = "{OWN}/dispatcher.list"
profile = "site"
timeout = 5
targets = [
  {{ site = "A", destinations = ["sip:{a.sip.address}:5060"] }},
  {{ site = "B", destinations = ["sip:{b.sip.address}:5060"] }},
]

[[dispatchers.vips]]
address = "{VIP}/24"
interface = "eth0"
track_file = "{OWN}/vip"
probe = {{ kind = "sip", port = 5060, every = 0.005 }}
"""
