"""Installations for tests: sites as dataclasses, of any number and size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.release import Policy, Release
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
from zdu.limits import ControllerConfig, LimitsConfig, Role
from zdu.policy import Wish
from zdu.sites import DispatchersConfig, Server, Site, SiteKind, Sites

OLD, NEW = Release(95, 1), Release(96, 1)

#: What a site is made of, from the smallest one up.
ROLES = (Role.DB_PRIMARY, Role.BILLING, Role.SIP, Role.WEB, Role.CONFIG)


def database(name: str) -> Database:
    return Database(engine=Engine.SQLITE, path=Path("/data") / name)


def site(name: str, kind: SiteKind, *, servers: int = 4, capacity: int = 100, **more: Any) -> Site:
    """A site with so many servers: a database, billing, SIP, web; from the fifth on SIP again."""
    made = []
    for number in range(servers):
        role = (*ROLES[:4], Role.CONFIG, Role.DB_REPLICA)[number] if number < 6 else Role.SIP
        if role is Role.DB_PRIMARY and kind is SiteKind.SECONDARY:
            role = Role.DB_REPLICA
        made.append(Server(name=f"{name.lower()}-{number + 1:02}", roles=(role,)))
    alone = StandaloneConfig(command=("stand-alone",), delta=database(f"{name}-delta"))
    facts: dict[str, Any] = {
        "database": database(name),
        "standalone": alone if kind is SiteKind.SECONDARY else None,
        "billing": SwitchConfig(command=("billing",)),
    }
    return Site(
        name=name,
        kind=kind,
        servers=tuple(made),
        calls=CallsConfig(kind=CallsKind.COMMAND, command=("count-calls",)),
        maintenance=SwitchConfig(command=("maintenance",)),
        capacity=capacity,
        **(facts | more),
    )


def installation(
    secondaries: int = 1,
    *,
    servers: int = 4,
    dispatchers: int = 2,
    limits: LimitsConfig | None = None,
    policy: Policy | None = None,
    normally: Sequence[str] = (),
    sites: Sequence[Site] = (),
    **more: Any,
) -> Sites:
    """A main site A and secondary sites B, C, … (or the `sites` given) behind dispatchers d1, d2, …"""
    names = [_letters(number) for number in range(secondaries + 1)]
    all_sites = tuple(sites) or tuple(
        site(name, SiteKind.SECONDARY if number else SiteKind.MAIN, servers=servers)
        for number, name in enumerate(names)
    )
    targets = tuple(TargetConfig(site=each.name, destinations=(f"sip:{each.name}",)) for each in all_sites)
    program = DispatcherConfig(kind=DispatcherKind.COMMAND, command=("front",), targets=targets)
    return Sites(
        name="acme",
        sites=all_sites,
        dispatchers=DispatchersConfig(
            servers=tuple(Server(name=f"d{n + 1}", roles=(Role.DISPATCHER,)) for n in range(dispatchers)),
            programs=(program,),
            vips=(VipConfig(address="192.0.2.20"),),
            normally=tuple(normally),
        ),
        controller=ControllerConfig(database=database("zdu"), require_rehearsal=False),
        limits=limits or LimitsConfig(),
        policy=policy or Policy(),
        **more,
    )


def wish(sites: Sites, start: Release = OLD, target: Release = NEW, **more: Any) -> Wish:
    """To go from one release to another, with the exceptions in `found`."""
    found = dict.fromkeys(sites.servers, start) | more.pop("found", {})
    return Wish(target=target, found=found, **more)


def _letters(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"{chr(ord('A') + number // 26 - 1)}{chr(ord('A') + number % 26)}"
