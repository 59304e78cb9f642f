"""How long the plan of a large installation takes: 50 sites with 40 servers each, with all of its ways back."""

from __future__ import annotations

import time
from pathlib import Path

from core.release import Release
from core.sql import Database, Engine
from zdu.drivers import (
    CallsConfig,
    CallsKind,
    DispatcherConfig,
    DispatcherKind,
    StandaloneConfig,
    SwitchConfig,
    TargetConfig,
    VipConfig,
)
from zdu.limits import ControllerConfig, Role
from zdu.planning import plan
from zdu.policy import Wish
from zdu.sites import DispatchersConfig, Server, Site, SiteKind, Sites

START, TARGET = Release(95, 1), Release(96, 1)


def measure_plan(sites: int = 50, servers: int = 40) -> float:
    """Seconds to plan an upgrade of so many sites with so many servers each; the best of three."""
    large = _large(sites, servers)
    wish = Wish(target=TARGET, found=dict.fromkeys(large.servers, START))
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        plan(large, wish)
        took.append(time.perf_counter() - begun)
    return min(took)


def _large(sites: int, servers: int) -> Sites:
    made = tuple(_site(number, servers) for number in range(sites))
    program = DispatcherConfig(
        kind=DispatcherKind.COMMAND,
        command=("front",),
        targets=tuple(TargetConfig(site=site.name, destinations=(f"sip:{site.name}",)) for site in made),
    )
    return Sites(
        name="large",
        sites=made,
        dispatchers=DispatchersConfig(
            servers=tuple(Server(name=f"d{number}", roles=(Role.DISPATCHER,)) for number in (1, 2)),
            programs=(program,),
            vips=(VipConfig(address="192.0.2.20"),),
        ),
        controller=ControllerConfig(database=_database("zdu"), require_rehearsal=False),
    )


def _site(number: int, servers: int) -> Site:
    name, main = f"s{number:02}", number == 0
    roles = [Role.DB_PRIMARY if main else Role.DB_REPLICA, Role.BILLING, Role.WEB]
    alone = StandaloneConfig(command=("alone",), delta=_database(f"{name}-delta"))
    return Site(
        name=name,
        kind=SiteKind.MAIN if main else SiteKind.SECONDARY,
        servers=tuple(
            Server(name=f"{name}-{each:02}", roles=((*roles, Role.SIP)[min(each, len(roles))],))
            for each in range(servers)
        ),
        calls=CallsConfig(kind=CallsKind.COMMAND, command=("count",)),
        maintenance=SwitchConfig(command=("maintenance",)),
        database=_database(name),
        standalone=None if main else alone,
        billing=None if main else SwitchConfig(command=("billing",)),
    )


def _database(name: str) -> Database:
    return Database(engine=Engine.SQLITE, path=Path("/data") / name)
