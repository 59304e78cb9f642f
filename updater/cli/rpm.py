"""Custom software: the operator's own RPM packages, carried to every release."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updater.cli.carrying import Reason, Since, Until, added, as_json, lifetime, looked_into, registry, table
from updater.cli.context import config_path, interruptible, print_json, settings

if TYPE_CHECKING:
    from patches.packages import Packages
    from patches.packages_solve import Choice, Package
    from patches.registry import Registry

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Carry RPM packages of your own to every release.")

Name = Annotated[str, typer.Argument(help="name, name-version-release, or the whole name that list shows.")]


@app.command()
def add(
    source: Annotated[
        list[str], typer.Argument(help="Package files and directories; with --repository, package names.")
    ],
    repository: Annotated[
        str,
        typer.Option("--repository", metavar="REPO", help="Repository (directory or URL) to take named packages from."),
    ] = "",
    since: Since = "",
    until: Until = "",
    reason: Reason = "",
    replace: Annotated[bool, typer.Option("--replace", help="In place of the same version with other bytes.")] = False,
) -> None:
    """Carry packages from now on. Each must be signed by a key in the directory rpm-keys beside node.toml.

    Example: updater rpm add acme-probe-2.1-1.x86_64.rpm --reason "monitoring, ticket 4711" --until MR100
    """
    import tempfile

    from patches.packages_repository import take

    with registry() as opened, tempfile.TemporaryDirectory(prefix="updater-rpm-") as scratch:
        paths = take(repository, source, Path(scratch)) if repository else [Path(each) for each in source]
        made = _packages(opened).add(paths, lifetime=lifetime(since, until), reason=reason, replace=replace)
    if settings.json:
        print_json([_as_json(each.package) | {"new": each.new} for each in made])
        return
    for each in made:
        what = "carried from now on" if each.new else "was carried already"
        print(f"{each.package.name}   {what}, {each.package.entry.lifetime}   signed by {each.signer}")
    print("next   updater rpm check BUNDLE    try them on a release")


@app.command("list")
def listing() -> None:
    """Show what is carried: state in each slot, lifetime, who, when, why.

    Example: updater rpm list --json
    """
    from patches.registry import Kind

    with registry() as opened:
        known = _packages(opened).all()
        became = {slot: {each.name: each.state for each in opened.outcomes(slot, Kind.PACKAGE)} for slot in ("a", "b")}
    if settings.json:
        print_json([_as_json(each) | {"slots": _slots(each, became)} for each in known])
        return
    rows = []
    for each in known:
        slots = ", ".join(f"slot {slot}: {state}" for slot, state in _slots(each, became).items())
        rows.append((each.name, slots or "carried", str(each.entry.lifetime), added(each.entry)))
    table(rows)
    if not rows:
        print("no packages are carried")


@app.command()
def check(
    source: Annotated[str, typer.Argument(metavar="BUNDLE", help="Path or http(s) URL.")],
    without: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Leave this one out.")] = None,
) -> None:
    """Try all packages on a release, without staging it. Exits with 23 when one does not fit.

    Example: updater rpm check mr96-1.bundle
    """
    from core.release import Release

    with registry() as opened, looked_into(source) as (bundle, root):
        packages = _packages(opened)
        choices = packages.decide(Release.parse(bundle.manifest.release), root, without or ())
        if not settings.json:
            print_choices(choices)
        packages.examine(choices, root)
    if settings.json:
        print_json([_choice_as_json(each) for each in choices])
    elif choices:
        print("they can be installed together")


@app.command()
def remove(name: Name, reason: Reason = "") -> None:
    """Carry a package no longer. The slots keep what they have; the next release comes without it.

    Example: updater rpm remove acme-probe --reason "replaced by the vendor's own"
    """
    with registry() as opened:
        removed = _packages(opened).remove(name, why=reason)
    if settings.json:
        print_json([each.name for each in removed])
        return
    for each in removed:
        print(f"{each.name}   no longer carried")


@app.command()
def expire(
    name: Name,
    until: Annotated[str, typer.Argument(help="Release (MR100) or build (MR100-2) that gets it no longer.")],
    reason: Reason = "",
) -> None:
    """End the lifetime of a package at a release or build.

    Example: updater rpm expire acme-probe MR100 --reason "in the release from then on"
    """
    with registry() as opened:
        expired = _packages(opened).expire(name, until, reason=reason)
    if settings.json:
        print_json([_as_json(each) for each in expired])
        return
    for each in expired:
        print(f"{each.name}   {each.entry.lifetime}")


@app.command()
def platform(
    tree: Annotated[Path, typer.Argument(help="Root tree of a release that is not made of RPM packages.")],
    version: Annotated[str, typer.Option(help="Version of the platform package; the release, say.")] = "1",
) -> None:
    """Give a release's tree an RPM database that knows what it provides, so that packages can be carried to it.

    Example: updater rpm platform root/ && updater bundle build mr96-1.bundle --tree root/ …
    """
    from patches.packages_platform import prepare

    with interruptible():
        database = prepare(tree, version=version)
    print(f"{tree}{database.path} has the package platform-{version}-1, which provides what the tree has")


def print_choices(choices: Sequence[Choice]) -> None:
    """What becomes of each package in a release, as people read it."""
    if not choices:
        print("no packages are carried")
    table([(each.package.name, "; ".join((str(each.decision), *each.details))) for each in choices])


def key_directory() -> Path:
    """Where the keys are whose packages are carried: beside node.toml, so that they are carried as it is."""
    return config_path().parent / "rpm-keys"


def _packages(opened: Registry) -> Packages:
    from patches.packages import Packages

    return Packages(opened, key_directory())


def _slots(package: Package, became: dict[str, dict[str, str]]) -> dict[str, str]:
    return {slot: states[package.name] for slot, states in became.items() if package.name in states}


def _as_json(package: Package) -> dict[str, object]:
    return as_json(package.entry)


def _choice_as_json(choice: Choice) -> dict[str, object]:
    return {"name": choice.package.name, "state": choice.state, "why": choice.why, "details": choice.details}
