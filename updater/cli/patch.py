"""Patches to files of the release or of packages, carried to every release in their lifetime."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from updater.cli.carrying import (
    Reason,
    Since,
    SupersededBy,
    Until,
    added,
    as_json,
    lifetime,
    looked_into,
    registry,
    table,
)
from updater.cli.context import config_path, interruptible, print_json, settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Carry patches to every release in their lifetime.")

Name = Annotated[str, typer.Argument(help="Name of the patch, or the beginning of it.")]
BundleName = Annotated[str, typer.Argument(metavar="BUNDLE", help="Path or http(s) URL.")]


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="A unified diff, git's or a plain one.")],
    name: Annotated[str, typer.Option(help="Its name.", show_default="that of FILE")] = "",
    package: Annotated[str, typer.Option(help="The package whose files it changes; for people.")] = "",
    path: Annotated[str, typer.Option(help="The file that it is for, or the directory its names begin in.")] = "",
    strip: Annotated[int | None, typer.Option(min=0, help="Leading parts of names to leave off, as patch -p.")] = None,
    fuzz: Annotated[int, typer.Option(min=0, max=3, help="Lines of context that may be disregarded.")] = 0,
    since: Since = "",
    until: Until = "",
    superseded_by: SupersededBy = "",
    reason: Reason = "",
    replace: Annotated[str, typer.Option(metavar="NAME", help="In place of this one, whose options hold on.")] = "",
) -> None:
    """Carry a patch from now on, after those before it.

    Example: updater patch add 0007-fix-rounding.patch --package acme-billing --until MR96-1 --reason "ticket 4711"
    """
    from core.errors import ConfigError
    from patches.patch import Patch, names, read
    from patches.registry import Kind
    from patches.roots import Refused

    if path and not path.startswith("/"):
        raise ConfigError(f"--path {path} is not absolute", state="nothing was changed")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read", what=str(error), state="nothing was changed") from error
    given = {"package": package, "path": path, "strip": strip, "fuzz": fuzz}
    with registry() as opened:
        old = opened.get(Kind.PATCH, replace) if replace else None
        facts = (old.facts if old else {}) | {key: value for key, value in given.items() if value not in ("", None, 0)}
        chosen = old.name if old else name or file.name.removesuffix(".patch").removesuffix(".diff")
        draft = Patch(name=chosen, data=content, strip=facts.get("strip"), path=facts.get("path"))
        files = read(draft)
        try:
            touched = sorted({p for each in files for p in names(draft, each, single=len(files) == 1) if p})
        except Refused as error:
            raise ConfigError(f"patch {chosen} is refused", what=str(error), state="nothing was changed") from error
        made = opened.add(
            Kind.PATCH,
            chosen,
            lifetime=lifetime(since, until, superseded_by, old.lifetime if old else None),
            reason=reason or (old.reason if old else ""),
            facts=facts,
            content=content,
            replace=old is not None,
        )
    if settings.json:
        print_json(as_json(made) | {"files": touched})
        return
    print(f"{made.name}   carried from now on, {made.lifetime}")
    for each in touched:
        print(f"    {each}")
    print("next   updater patch check BUNDLE    try it on the next release")


@app.command("list")
def listing(
    release: Annotated[str, typer.Option("--for", metavar="RELEASE", help="Say what a release would get.")] = "",
) -> None:
    """Show the patches in the order in which they are applied.

    Example: updater patch list --for MR96-1
    """
    from core.errors import ConfigError
    from core.release import Release
    from patches.registry import Kind

    with registry() as opened:
        entries = opened.entries(Kind.PATCH)
        try:
            decisions = opened.decide(Kind.PATCH, Release.parse(release)) if release else []
        except ValueError as error:
            raise ConfigError("no such release", what=str(error)) from error
    told = {each.name: each for each in decisions}
    if settings.json:
        fates = {name: {"carried": each.carried, "why": each.why} for name, each in told.items()}
        print_json([as_json(entry) | fates.get(entry.name, {}) for entry in entries])
        return
    rows = []
    for entry in entries:
        where = entry.facts.get("package") or entry.facts.get("path") or ""
        rows.append((entry.name, str(told.get(entry.name, entry.lifetime)), where, added(entry)))
    table(rows)
    if not rows:
        print("no patches are carried")


@app.command()
def show(name: Name) -> None:
    """Show a patch: who, when, why, its lifetime, and the diff.

    Example: updater patch show 0007
    """
    from patches.registry import Kind

    with registry() as opened:
        entry = opened.get(Kind.PATCH, name)
        content = opened.content(entry).decode("utf-8", errors="backslashreplace")
    if settings.json:
        print_json(as_json(entry) | {"content": content})
        return
    facts = "   ".join(f"{key} {value}" for key, value in entry.facts.items())
    print(f"{entry.name}   {entry.lifetime}   {facts}".rstrip())
    print(f"added {added(entry)}\n")
    print("".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in content), end="")


@app.command()
def expire(
    name: Name,
    until: Annotated[str, typer.Argument(help="Release (MR100) or build (MR100-2) that gets it no longer.")],
    superseded_by: SupersededBy = "",
    reason: Reason = "",
) -> None:
    """End the lifetime of a patch at a release or build.

    Example: updater patch expire 0007 MR96-1 --superseded-by "fixed upstream, ref 18223"
    """
    from patches.registry import Kind

    with registry() as opened:
        entry = opened.expire(Kind.PATCH, name, until, superseded_by=superseded_by or None, reason=reason)
    print_json(as_json(entry)) if settings.json else print(f"{entry.name}   {entry.lifetime}")


@app.command()
def remove(name: Name, reason: Reason = "") -> None:
    """Carry a patch no longer. The slots keep what they have; the next release comes without it.

    Example: updater patch remove 0007 --reason "withdrawn"
    """
    from patches.registry import Kind

    with registry() as opened:
        entry = opened.remove(Kind.PATCH, name, why=reason)
    print_json(as_json(entry)) if settings.json else print(f"{entry.name}   no longer carried")


@app.command()
def check(
    source: BundleName,
    name: Annotated[str, typer.Option("--show", metavar="NAME", help="Show every hunk of this patch.")] = "",
) -> None:
    """Try all patches on a release, without staging it, and report each hunk. Exits with 23 when one conflicts.

    Example: updater patch check mr96-1.bundle --show 0009
    """
    from dataclasses import asdict

    from core.release import Release
    from patches.carried import choose_patches
    from patches.hunks import Fit
    from patches.patch import check, conflict
    from patches.registry import Kind

    with registry() as opened, looked_into(source) as (bundle, root):
        shown = opened.get(Kind.PATCH, name).name if name else ""
        chosen = choose_patches(opened, Release.parse(bundle.manifest.release))
        reports = {report.name: report for report in check(chosen.patches, root)}
        target = bundle.manifest.release
    if settings.json:
        told = {key: {"fit": report.fit, "report": asdict(report)} for key, report in reports.items()}
        print_json([asdict(each) | told.get(each.name, {}) for each in chosen.decisions])
    else:
        table([(each.name, str(reports[each.name] if each.carried else each)) for each in chosen.decisions])
        for file in reports[shown].files if shown in reports else ():
            print(f"\n{file.path}{f' → {file.to}' if file.to else ''}: {file.action}, {file.why or file.fit}")
            for hunk in file.hunks:
                print(f"  hunk {hunk.number}: {hunk}")
                for mark, lines in (("expected", hunk.expected), ("found", hunk.found)):
                    for line in lines:
                        print(f"    {mark:<9}{''.join(c if c.isprintable() or c == chr(9) else '?' for c in line)}")
        if not chosen.decisions:
            print("no patches are carried")
    if any(report.fit is Fit.CONFLICTS for report in reports.values()):
        raise conflict(reports.values(), target)


@app.command()
def capture(
    path: Annotated[str, typer.Argument(help="A file of the running system.")],
    bundle: Annotated[
        str, typer.Option(metavar="BUNDLE", help="The bundle of the release that runs, if its file is not known here.")
    ] = "",
) -> None:
    """Print a patch that turns the release's file into the one that is there now.

    Example: updater patch capture /etc/app/menu.xml > 0010-menu.patch
    """
    from core.errors import ConfigError
    from patches.capture import capture
    from patches.roots import Refused, place_in
    from updater.layout import running_root
    from updater.node import open_node
    from updater.pristine import content_of

    if not path.startswith("/"):
        path = str(Path.cwd() / path)
    with interruptible(), open_node(config_path()) as node:
        here = running_root(node.config)
        try:
            current = _content(place_in(here, path))
            if bundle:
                with looked_into(bundle) as (_, root):
                    pristine = _content(place_in(root, path))
            else:
                pristine = content_of(node, path)
        except (Refused, OSError) as error:
            raise ConfigError(f"{path} cannot be captured", what=str(error), state="nothing was changed") from error
    patch = capture(path, pristine, current, executable=os.access(here / path.lstrip("/"), os.X_OK))
    if settings.json:
        print_json({"path": path, "patch": patch.decode("utf-8", errors="backslashreplace")})
        return
    sys.stdout.buffer.write(patch)
    sys.stdout.flush()


def _content(place: Path) -> bytes | None:
    if place.is_symlink() or (place.exists() and not place.is_file()):
        from patches.roots import Refused

        raise Refused(f"{place} is no regular file")
    return place.read_bytes() if place.exists() else None
