"""The rules of a zero-downtime upgrade that can be judged before it is planned. Pure; each rule is a function that says
what breaks it. `zdu.situation` has those that are judged step by step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from core.errors import ZduRefused
from core.release import Release
from zdu.limits import Role
from zdu.sites import Site, Sites


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A rule that is broken: its name, what breaks it, and what would have to change."""

    rule: str
    what: str
    change: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for. `found`: what each server runs. `accept_no_rollback`: the operator knows that there will be no
    way back; `downgrade`: that the release is an older one. `rehearsed`: whether this has been rehearsed (None: it is
    not asked now). `readable_from`: the oldest release that can read what the migrations make of the data, if they say.
    """

    target: Release
    found: Mapping[str, Release]
    accept_no_rollback: bool = False
    downgrade: bool = False
    rehearsed: bool | None = None
    readable_from: int = 0


#: Roles without which a site cannot authorize, charge and carry calls.
NEEDED: Final = (Role.DB_REPLICA, Role.BILLING, Role.SIP)

#: How many servers are named in one line.
_NAMED: Final = 5


def check_wish(sites: Sites, wish: Wish) -> list[Refusal]:
    """Every rule that is broken before anything is planned."""
    rules = (servers_known, one_starting_release, release_path, rehearsal)
    return [*(refusal for rule in rules for refusal in rule(sites, wish)), *check_sites(sites)]


def check_sites(sites: Sites) -> list[Refusal]:
    """The rules that no release could keep on these sites."""
    rules = (stand_in_can_serve_alone, dispatchers_in_pairs, capacity_is_known)
    return [refusal for rule in rules for refusal in rule(sites)]


def refuse(refusals: Iterable[Refusal], what: str) -> None:
    """Raise ZduRefused where there is a refusal."""
    found = list(dict.fromkeys(refusals))
    if not found:
        return
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    raise ZduRefused(
        f"{what} is refused by the rule {found[0].rule}{more}",
        what=[f"{each.rule}: {each.what}" for each in found],
        state="nothing was touched",
        next=list(dict.fromkeys(each.change for each in found)),
    )


def starting_release(wish: Wish) -> Release | None:
    """What the installation runs: of the releases that are not the wanted one, that of most servers (of the newer, if
    there are as many). None: every server has the wanted one.
    """
    counts = Counter(release for release in wish.found.values() if release != wish.target)
    return max(counts, key=lambda release: (counts[release], release), default=None)


def servers_known(sites: Sites, wish: Wish) -> Iterator[Refusal]:
    """It is known what every server runs, and each of them is in the sites file."""
    missing = [name for name in sites.servers if name not in wish.found]
    if missing:
        yield Refusal(
            rule="servers-known",
            what=f"it is not known what {_listed(missing)} run{'s' * (len(missing) == 1)}",
            change="updater zdu check    says which servers do not answer",
        )
    strange = [name for name in wish.found if name not in sites.servers]
    if strange:
        yield Refusal(
            rule="servers-known",
            what=f"{_listed(strange)}: not in the sites file",
            change="add the server to the sites file, or leave it out",
        )


def one_starting_release(sites: Sites, wish: Wish) -> Iterator[Refusal]:
    """Servers run one release, or the wanted one already; something else on some of them is not ours to judge."""
    start = starting_release(wish)
    if start is None:
        yield Refusal(
            rule="something-to-do",
            what=f"every server runs {wish.target}",
            change="name another release",
        )
        return
    others: dict[Release, list[str]] = {}
    for name, release in wish.found.items():
        if release not in (start, wish.target) and name in sites.servers:
            others.setdefault(release, []).append(name)
    for release in sorted(others):
        yield Refusal(
            rule="one-starting-release",
            what=f"{_listed(others[release])} run{'s' * (len(others[release]) == 1)} {release}, the others {start}",
            change=f"bring {_listed(others[release])} to {start} first: updater stage, updater activate",
        )


def release_path(sites: Sites, wish: Wish) -> Iterator[Refusal]:
    """The release policy: how far, over what, and whether back again."""
    start, target = starting_release(wish), wish.target
    if start is None:
        return
    policy = sites.policy
    if why := policy.forbids_downgrade(start, target, start, on_purpose=wish.downgrade):
        yield Refusal(
            rule="downgrade",
            what=why,
            change=f"updater zdu plan {target} --downgrade    if that is what you want, and the releases adjoin",
        )
        return
    distance = max(0, target.number - start.number)
    if why := replace(policy, lts=()).forbids_jump(start, target):
        nearest = Release(start.number + policy.max_jump, 1)
        yield Refusal(
            rule="jump", what=why, change=f"go to a release up to MR{nearest.number} first, then on from there"
        )
    if why := replace(policy, max_jump=distance or 1).forbids_jump(start, target):
        yield Refusal(rule="lts", what=why, change="go to that LTS release first, then on from there")
    if not can_return(sites, wish, start) and not wish.accept_no_rollback:
        yield Refusal(
            rule="adjoining",
            what=f"{start} does not read the data of {target}: once the database is migrated there is no way back",
            change=f"go release by release, or say that you accept it: updater zdu plan {target} --accept-no-rollback",
        )


def can_return(sites: Sites, wish: Wish, start: Release) -> bool:
    """Does the old software read the data that the new release has migrated?"""
    return sites.policy.adjoining(start, wish.target) and start.number >= wish.readable_from


def choose_stand_in(sites: Sites) -> Site | None:
    """The secondary site that stands alone: the one that was named, or the first that can."""
    if sites.stand_in:
        return sites.by_name[sites.stand_in]
    able = (site for site in sites.secondaries if not lacks_alone(sites, site) and _carries(sites, site))
    return next(able, sites.secondaries[0] if sites.secondaries else None)


def lacks_alone(sites: Sites, site: Site) -> list[str]:
    """What a secondary site lacks to serve alone."""
    wanted = dict.fromkeys((*NEEDED, *(role for role in (Role.WEB,) if sites.main.with_role(role))))
    lacking = [f"a server with the role {role}" for role in wanted if not site.with_role(role)]
    if site.standalone is None:
        lacking.append("the table standalone")
    if site.database is None:
        lacking.append("its database")
    return lacking


def stand_in_can_serve_alone(sites: Sites) -> Iterator[Refusal]:
    """Some secondary site can do everything that the main site does for calls."""
    site = choose_stand_in(sites)
    if site is None:
        yield Refusal(
            rule="stand-in",
            what="there is no secondary site that could serve while the main site is away",
            change="describe one in the sites file",
        )
        return
    lacking = lacks_alone(sites, site)
    if lacking:
        yield Refusal(
            rule="stand-in",
            what=f"{site.name} cannot serve alone: it lacks {', '.join(lacking)}",
            change=f"give {site.name} what it lacks, or name another site as stand_in in the sites file",
        )
    if sites.main.database is None:
        yield Refusal(
            rule="stand-in",
            what=f"nothing can be synchronised to {sites.main.name}: its database is not described",
            change=f"describe the database of {sites.main.name} in the sites file",
        )


def dispatchers_in_pairs(sites: Sites) -> Iterator[Refusal]:
    """While one dispatcher is out of service another one works."""
    if len(sites.dispatchers.servers) < 2:
        yield Refusal(
            rule="one-dispatcher",
            what="there is one dispatcher only: nobody would hold the virtual IP while it restarts",
            change="describe a second one under dispatchers.servers",
        )


def capacity_is_known(sites: Sites) -> Iterator[Refusal]:
    """Where a capacity must not be fallen short of, that of the sites is known."""
    unknown = [site.name for site in sites.sites if not site.capacity]
    if sites.limits.minimum_capacity and unknown:
        yield Refusal(
            rule="capacity",
            what=f"{sites.limits.minimum_capacity} calls must always be possible, and it is not known how many "
            f"{_listed(unknown)} can carry",
            change="give each site its capacity in the sites file",
        )


def rehearsal(sites: Sites, wish: Wish) -> Iterator[Refusal]:
    """What the operator wants rehearsed has been."""
    if sites.controller.require_rehearsal and wish.rehearsed is False:
        yield Refusal(
            rule="rehearsal",
            what=f"the upgrade to {wish.target} has not been rehearsed",
            change="rehearse it, or set controller.require_rehearsal = false in the sites file",
        )


def _carries(sites: Sites, site: Site) -> bool:
    return site.capacity >= sites.limits.minimum_capacity


def _listed(names: list[str]) -> str:
    """Names, not more than a line of them."""
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
