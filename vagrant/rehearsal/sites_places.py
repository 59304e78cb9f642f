"""The rehearsed installation on paper: two sites with a server each, two dispatchers with one virtual IP; what is
configured on each machine, and the sites file of the controller.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vagrant.rehearsal.sip import HERE
from vagrant.rehearsal.sites_release import CONFIG, DATA, HEALTH, SWITCH

CONTROLLER, CALLER, VIP = "10.9.0.5", "10.9.0.10", "10.9.0.20"
USER, BOOKS, DELTA = "updater", "billing", "delta"
PASSWORD = "/etc/updater/secrets/books"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A machine. `site`: empty for a dispatcher."""

    name: str
    address: str
    site: str = ""

    @property
    def label(self) -> str:
        """As in a power cut on the command line: A/a1, dispatchers/d1."""
        return f"{self.site or 'dispatchers'}/{self.name}"


A = Place(name="a1", address="10.9.0.31", site="A")
B = Place(name="b1", address="10.9.0.41", site="B")
D1 = Place(name="d1", address="10.9.0.21")
D2 = Place(name="d2", address="10.9.0.22")
PLACES = (A, B, D1, D2)

_NODE = """name = "{name}"
site = "{site}"
role = "{role}"
compatible = "acme-switch"
data = "/data/updater"

[slots]
a.device = "/dev/disk/by-partlabel/slot-a"
b.device = "/dev/disk/by-partlabel/slot-b"

[boot]
esp = "/efi"
tries = 3
deadline = 400

[trust]
keys = ["/etc/updater/keys/release.pub"]

[health]
deadline = 180
interval = 2

[[health.checks]]
name = "services"
kind = "command"
command = ["{health}"]
timeout = 30
"""

_MIGRATES = f"""
[databases.billing]
engine = "mariadb"
host = "{A.address}"
database = "{BOOKS}"
user = "{USER}"
password_file = "{PASSWORD}"

[migrations]
backup = "none"

[[migrations.replicas]]
of = "billing"
engine = "mariadb"
host = "{B.address}"
database = "{BOOKS}"
user = "{USER}"
password_file = "{PASSWORD}"
"""

_MARIADB = """[mariadbd]
user = mysql
datadir = /data/db
socket = /run/mariadb/s
pid-file = /run/mariadb/pid
init-file = {config}/users.sql
port = 3306
bind-address = 0.0.0.0
innodb-buffer-pool-size = 64M
innodb-log-file-size = 16M
key-buffer-size = 1M
aria-pagecache-buffer-size = 8M
performance-schema = OFF
skip-name-resolve
character-set-server = utf8mb4
server-id = {number}
log-bin = bin
log-slave-updates
gtid-strict-mode
slave-net-timeout = 20
{more}
"""

_KEEPALIVED = """global_defs {{
    router_id {name}
    vrrp_version 3
    vrrp_garp_master_repeat 1
    vrrp_rt_priority 50
    enable_script_security
    script_user root
}}
track_file updater {{
    file {data}/vip
    weight 1
}}
vrrp_instance dispatchers {{
    interface eth1
    state BACKUP
    virtual_router_id 51
    priority {priority}
    advert_int 1
    unicast_src_ip {own}
    unicast_peer {{
        {peer}
    }}
    virtual_ipaddress {{
        {vip}/24 dev eth1
    }}
    track_file {{
        updater
    }}
}}
"""


def files(place: Place, password: str, release_key: str, accounts: int) -> Mapping[str, str]:
    """What the operator has configured on a machine, by absolute path."""
    role = "billing" if place.site else "dispatcher"
    node = _NODE.format(name=place.name, site=place.site, role=role, health=HEALTH)
    found = {
        "/etc/updater/node.toml": node + (_MIGRATES if place == A else ""),
        "/etc/updater/keys/release.pub": release_key,
        PASSWORD: password,
        f"{CONFIG}/address": f"{place.address}/24\n",
    }
    return found | (_site(place, password, accounts) if place.site else _dispatcher(place))


def _dispatcher(place: Place) -> dict[str, str]:
    peer = D2 if place == D1 else D1
    kamailio = (HERE / "kamailio.cfg").read_text()
    for word, value in {"@VIP@": VIP, "@OWN@": place.address, "@DATA@": str(DATA)}.items():
        kamailio = kamailio.replace(word, value)
    keepalived = _KEEPALIVED.format(
        name=place.name, data=DATA, priority=150 if place == D1 else 100, own=place.address, peer=peer.address, vip=VIP
    )
    return {
        f"{CONFIG}/kamailio.cfg": kamailio,
        f"{CONFIG}/keepalived.conf": keepalived,
        f"{DATA}/dispatcher.list": "".join(f"1 sip:{each.address}:5060 0 0\n" for each in (A, B)),
        f"{DATA}/vip": "0\n",
    }


def _site(place: Place, password: str, accounts: int) -> dict[str, str]:
    charging = {
        "site": "main" if place == A else "secondary",
        "main": [A.address, BOOKS],
        "delta": [B.address, DELTA],
        "base": [B.address, BOOKS],
        "user": USER,
        "password": PASSWORD,
        "calls": f"{DATA}/calls",
        "charged": f"{DATA}/charged",
        "accounts": accounts,
        "workers": 1,
        "address": place.address,
        "port": 8080,
        "look": 1.5,
    }
    users = (
        "SET SESSION sql_log_bin = 0;\n"
        f"CREATE USER IF NOT EXISTS {USER} IDENTIFIED BY '{password}';\nGRANT ALL PRIVILEGES ON *.* TO {USER};\n"
    )
    more = "" if place == A else "read-only"
    return {
        f"{CONFIG}/mariadb.cnf": _MARIADB.format(config=CONFIG, number=1 if place == A else 2, more=more),
        f"{CONFIG}/users.sql": users,
        f"{CONFIG}/charging.json": json.dumps(charging, indent=1) + "\n",
        f"{CONFIG}/calls": f"{place.address}\n",
        f"{DATA}/state-maintenance": "open\n",
        f"{DATA}/state-standalone": "normal\n",
        f"{DATA}/state-billing": "standby\n",
    }


def sites_toml(work: Path, key: Path) -> str:
    """The sites file, as an operator would write it; what it needs is in `work`, where its run is recorded too."""

    def database(place: Place, name: str) -> str:
        return (
            f'{{ engine = "mariadb", host = "{place.address}", database = "{name}", user = "{USER}", '
            f'password_file = "{work}/password" }}'
        )

    def site(place: Place, kind: str, role: str) -> str:
        return f"""
[[sites]]
name = "{place.site}"
kind = "{kind}"
database = {database(place, BOOKS)}
calls = {{ kind = "http", url = "http://{{host}}:8080/calls", pointer = "/calls", timeout = 10 }}
maintenance = {{ command = ["{SWITCH}", "maintenance"], host = "{place.name}" }}
servers = [{{ name = "{place.name}", roles = ["{role}", "billing", "sip"], host = "{place.address}" }}]
checks = [
  {{ name = "database", kind = "tcp", host = "{place.address}", port = 3306 }},
  {{ name = "billing", kind = "http", url = "http://{place.address}:8080/calls" }},
]
"""

    return f"""name = "rehearsal"
stand_in = "B"

[controller]
require_rehearsal = false
database = {{ engine = "sqlite", path = "{work}/zdu.sqlite" }}

[ssh]
user = "root"
key = "{key}"
known_hosts = "{work}/known_hosts"
connect = 30
answer = 600

[limits]
parallel_servers = 2

[drain]
interval = 1

[expect]
check = 20
stage = 240
activate = 180
drain = 30
{site(A, "main", "db-primary")}
{site(B, "secondary", "db-replica")}
billing = {{ command = ["{SWITCH}", "billing"], host = "{B.name}" }}

[sites.standalone]
command = ["{SWITCH}", "standalone"]
delta = {database(B, DELTA)}
lag = 5

[dispatchers]
servers = [
  {{ name = "{D1.name}", roles = ["dispatcher"], host = "{D1.address}" }},
  {{ name = "{D2.name}", roles = ["dispatcher"], host = "{D2.address}" }},
]

[[dispatchers.programs]]
kind = "kamailio"
control = "kamcmd:unix:/run/kamailio/ctl"
state_file = "{DATA}/dispatcher.list"
profile = "site"
timeout = 20
targets = [
  {{ site = "A", destinations = ["sip:{A.address}:5060"] }},
  {{ site = "B", destinations = ["sip:{B.address}:5060"] }},
]

[[dispatchers.vips]]
address = "{VIP}/24"
interface = "eth1"
track_file = "{DATA}/vip"
patience = 60
probe = {{ kind = "sip", port = 5060, timeout = 10 }}
"""
