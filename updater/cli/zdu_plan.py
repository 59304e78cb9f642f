"""`updater zdu check` and `updater zdu plan`: what can be said of an upgrade across sites without touching any."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updater.cli.context import print_json, settings

if TYPE_CHECKING:
    from core.release import Release
    from zdu.sites import Sites

SitesFile = Annotated[
    Path | None, typer.Option("--sites", metavar="FILE", help="The sites.", show_default="/etc/updater/sites.toml")
]
AcceptNoRollback = Annotated[
    bool, typer.Option("--accept-no-rollback", help="Go on although there will be no way back after the migration.")
]
Downgrade = Annotated[bool, typer.Option("--downgrade", help="Go to an older, adjoining release on purpose.")]


def check(sites: SitesFile = None) -> None:
    """Check the sites file, and whether these sites can be upgraded without downtime at all. Contacts no server.

    Example: updater zdu check --sites sites.toml
    """
    from zdu.policy import check_sites, choose_stand_in, refuse
    from zdu.runbook_text import roles_line
    from zdu.sites import load_sites

    path = sites_path(sites)
    found = load_sites(path)
    stand_in = choose_stand_in(found)
    refuse(check_sites(found), f"an upgrade of {found.name} without downtime")
    if settings.json:
        told = [{"name": s.name, "kind": s.kind, "servers": [e.name for e in s.servers]} for s in found.sites]
        print_json({"name": found.name, "sites": told, "stand_in": stand_in.name if stand_in else None})
        return
    print(f"{path}: {found.name}, {len(found.sites)} sites, {len(found.servers)} servers")
    for site in found.sites:
        roles = roles_line([role for server in site.servers for role in server.roles])
        calls = f"   {site.capacity} calls" if site.capacity else ""
        print(f"   {site.name:<10}{site.kind:<12}{len(site.servers)} servers: {roles}{calls}")
    programs = ", ".join(program.kind for program in found.dispatchers.programs)
    print(f"   {'':<10}{'dispatchers':<12}{', '.join(s.name for s in found.dispatchers.servers)}: {programs}")
    if stand_in:
        print(f"   {stand_in.name} can stand in for {found.main.name}")


def plan(
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="The release to go to, such as MR96-1.")],
    sites: SitesFile = None,
    start: Annotated[str, typer.Option("--from", metavar="RELEASE", help="What every server runs now.")] = "",
    found: Annotated[
        Path | None, typer.Option(metavar="FILE", help='What each server runs now, as JSON: {"server": "MR95-1", …}.')
    ] = None,
    accept_no_rollback: AcceptNoRollback = False,
    downgrade: Downgrade = False,
) -> None:
    """Print the runbook for these sites: each step, its gate, how long it takes, its way back, the point of no return.

    Contacts no server. A plan that breaks a rule is refused, with the rule (exit 50).

    Example: updater zdu plan MR96-1 --from MR95-1 --sites sites.toml
    """
    from zdu.planning import plan as planned
    from zdu.policy import Wish
    from zdu.runbook_text import runbook_lines
    from zdu.sites import load_sites

    loaded = load_sites(sites_path(sites))
    wish = Wish(
        target=release_of(release),
        found=releases_now(loaded, start, found),
        accept_no_rollback=accept_no_rollback,
        downgrade=downgrade,
    )
    runbook = planned(loaded, wish)
    if settings.json:
        print_json(runbook.as_json() | {"digest": runbook.digest, "seconds": runbook.seconds})
        return
    for line in runbook_lines(runbook):
        print(line)


def sites_path(given: Path | None) -> Path:
    """--sites, or the usual place."""
    from zdu.sites import DEFAULT_SITES

    return given or DEFAULT_SITES


def release_of(text: str) -> Release:
    """A release. Raises BadParameter."""
    from core.release import Release

    try:
        return Release.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def releases_now(sites: Sites, start: str, found: Path | None) -> dict[str, Release]:
    """What each server runs, as far as it was told: --from for all, --found for those that are in it."""
    from core.errors import ConfigError

    releases = dict.fromkeys(sites.servers, release_of(start)) if start else {}
    if found is not None:
        releases |= _read(found)
    if not releases:
        raise ConfigError(
            "it is not known what the servers run",
            state="no server was asked",
            next=["--from MR95-1    if all run the same", "--found FILE    a JSON object: server, release"],
        )
    return releases


def _read(path: Path) -> dict[str, Release]:
    import json

    from core.errors import ConfigError
    from core.release import Release

    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read", what=str(error), state="no server was asked") from error
    if not isinstance(told, dict):
        raise ConfigError(f"{path} is no JSON object", what="expected server names with releases")
    faults, releases = [], {}
    for name, text in told.items():
        try:
            releases[str(name)] = Release.parse(str(text))
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ConfigError(f"{path} has {len(faults)} fault{'s' * (len(faults) > 1)}", what=faults)
    return releases


def register(app: typer.Typer) -> None:
    """Put both into the group `zdu`."""
    app.command()(check)
    app.command()(plan)
