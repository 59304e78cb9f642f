"""Custom software: the operator's own RPM packages, carried to every release."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updater.cli.context import config_path, interruptible, print_json, settings

if TYPE_CHECKING:
    from patches.packages import Choice, Package, Packages
    from patches.registry import Kind, Registry

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Carry RPM packages of your own to every release.")

Reason = Annotated[str, typer.Option(help="Why; kept with it.")]
Name = Annotated[str, typer.Argument(help="name, name-version-release, or the whole name that list shows.")]


@app.command()
def add(
    source: Annotated[list[str], typer.Argument(help="Package files and directories; with --from, package names.")],
    repository: Annotated[
        str, typer.Option("--from", metavar="REPO", help="Repository (directory or URL) to take named packages from.")
    ] = "",
    reason: Reason = "",
    since: Annotated[str, typer.Option("--from-release", help="Carry it from this release (MR96) or build on.")] = "",
    until: Annotated[str, typer.Option(help="Carry it until this release or build, which gets it no longer.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="In place of the same version with other bytes.")] = False,
) -> None:
    """Carry packages from now on. Each must be signed by a key in the directory rpm-keys beside node.toml.

    Example: updater rpm add acme-probe-2.1-1.x86_64.rpm --reason "monitoring, ticket 4711" --until MR100
    """
    import tempfile

    from core.errors import ConfigError
    from patches.lifetime import Lifetime
    from patches.packages_repository import take

    try:
        lifetime = Lifetime(since=since or None, until=until or None)
    except ValueError as error:
        raise ConfigError("the packages cannot be carried so", what=str(error), state="nothing was changed") from error
    with _opened() as (packages, _), tempfile.TemporaryDirectory(prefix="updater-rpm-") as scratch:
        paths = take(repository, source, Path(scratch)) if repository else [Path(each) for each in source]
        added = packages.add(paths, lifetime=lifetime, reason=reason, replace=replace)
    if settings.json:
        print_json([_as_json(each.package) | {"new": each.new} for each in added])
        return
    for each in added:
        what = "carried from now on" if each.new else "was carried already"
        print(f"{each.package.name}   {what}, {each.package.entry.lifetime}   signed by {each.signer}")
    print("next   updater rpm check BUNDLE    try them on the next release")


@app.command("list")
def listing() -> None:
    """Show what is carried: state in each slot, lifetime, who, when, why.

    Example: updater rpm list --json
    """
    with _opened() as (packages, registry):
        known = packages.all()
        became = {slot: {each.name: each.state for each in registry.outcomes(slot, _kind())} for slot in ("a", "b")}
    if settings.json:
        print_json([_as_json(each) | {"slots": _slots(each, became)} for each in known])
        return
    for each in known:
        slots = "   ".join(f"slot {slot}: {state}" for slot, state in _slots(each, became).items()) or "carried"
        entry = each.entry
        print(f"{each.name:<36} {slots}")
        print(f"    {entry.lifetime} · added {entry.added:%Y-%m-%d} by {entry.added_by}"
              f"{f' · {entry.reason}' if entry.reason else ''}")  # fmt: skip
    if not known:
        print("no packages are carried")


@app.command()
def remove(name: Name, reason: Reason = "") -> None:
    """Carry a package no longer. The slots keep what they have; the next release comes without it.

    Example: updater rpm remove acme-probe --reason "replaced by the vendor's own"
    """
    with _opened() as (packages, _):
        removed = packages.remove(name, why=reason)
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
    with _opened() as (packages, _):
        expired = packages.expire(name, until, reason=reason)
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


def print_choices(choices: list[Choice]) -> None:
    """What becomes of each package in a release, as people read it."""
    for choice in choices:
        print(f"{choice.package.name:<36} {choice.decision}")
        for line in choice.details:
            print(f"    {line}")


@contextmanager
def _opened() -> Iterator[tuple[Packages, Registry]]:
    from patches.packages import Packages
    from patches.registry import Registry
    from updater.node_toml import load_node

    node = load_node(config_path())
    with interruptible(), Registry.of(node.data) as registry:
        yield Packages(registry, key_directory()), registry


def key_directory() -> Path:
    """Where the keys are whose packages are carried: beside node.toml, so that they are carried as it is."""
    return config_path().parent / "rpm-keys"


def _kind() -> Kind:
    from patches.registry import Kind

    return Kind.PACKAGE


def _slots(package: Package, became: dict[str, dict[str, str]]) -> dict[str, str]:
    return {slot: states[package.name] for slot, states in became.items() if package.name in states}


def _as_json(package: Package) -> dict[str, object]:
    entry = package.entry
    return {
        "name": package.name,
        "summary": package.header.summary,
        "since": entry.lifetime.since,
        "until": entry.lifetime.until,
        "reason": entry.reason,
        "added": entry.added,
        "added_by": entry.added_by,
        "signed_by": entry.facts.get("signed_by", ""),
        "blake3": entry.blob,
        "scriptlets": package.header.scriptlets,
    }
