"""The operator's own files and directories, kept through every update."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patches.kept_paths import Policy
from updater.cli.carrying import Reason, Since, Until, added, as_json, lifetime, looked_into, registry, table
from updater.cli.context import config_path, print_json, settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Keep files and directories through every update.")


@app.command()
def add(
    path: Annotated[list[str], typer.Argument(help="Absolute paths; patterns with *, ?, […] and ** in quotes.")],
    policy: Annotated[
        Policy, typer.Option(help="When the release ships the same file: keep ours, take theirs, merge, or ask.")
    ] = Policy.ASK,
    since: Since = "",
    until: Until = "",
    reason: Reason = "",
) -> None:
    """Keep files from now on, or change the policy of paths that are kept already.

    Example: updater keep add /etc/sudoers.d "/etc/app/*.conf" --policy merge
    """
    from core.errors import ConfigError
    from patches.kept_paths import Keep
    from patches.registry import Kind

    try:
        keeps = [Keep(pattern=each if each == "/" else each.rstrip("/"), policy=policy) for each in path]
    except ValueError as error:
        raise ConfigError("these paths cannot be kept", what=str(error), state="nothing was changed") from error
    with registry() as opened:
        known = {entry.name: entry for entry in opened.entries(Kind.FILE)}
        lifetimes = {
            keep.pattern: lifetime(since, until, before=old.lifetime if (old := known.get(keep.pattern)) else None)
            for keep in keeps
        }
        made = [
            opened.add(
                Kind.FILE,
                pattern,
                lifetime=lives,
                reason=reason or (known[pattern].reason if pattern in known else ""),
                facts={"policy": policy.value},
                replace=pattern in known,
            )
            for pattern, lives in lifetimes.items()
        ]
    if settings.json:
        print_json([as_json(entry) for entry in made])
        return
    table([(entry.name, f"kept from now on, {entry.lifetime}", entry.facts["policy"]) for entry in made])


@app.command("list")
def listing() -> None:
    """Show what is kept, by which policy.

    Example: updater keep list --json
    """
    from patches.registry import Kind

    with registry() as opened:
        entries = opened.entries(Kind.FILE)
    if settings.json:
        print_json([as_json(entry) for entry in entries])
        return
    table([(entry.name, entry.facts["policy"], str(entry.lifetime), added(entry)) for entry in entries])
    if not entries:
        print("no files are kept")


@app.command()
def remove(
    path: Annotated[list[str], typer.Argument(help="As they were added.")],
    reason: Reason = "",
) -> None:
    """Keep files no longer. They stay where they are; the next release comes without them.

    Example: updater keep remove /etc/sudoers.d/old --reason "people left"
    """
    from patches.registry import Kind

    with registry() as opened:
        found = [opened.get(Kind.FILE, each) for each in path]
        removed = [opened.remove(Kind.FILE, each.name, why=reason) for each in found]
    if settings.json:
        print_json([as_json(entry) for entry in removed])
        return
    table([(entry.name, "no longer kept") for entry in removed])


@app.command()
def diff(
    source: Annotated[str, typer.Argument(metavar="BUNDLE", help="Path or http(s) URL.")],
    full: Annotated[bool, typer.Option("--full", help="Show the differing lines of each file.")] = False,
) -> None:
    """Show what would become of the kept files in a release. Exits with 23 when one needs a decision.

    Example: updater keep diff mr96-1.bundle --full
    """
    from itertools import groupby

    from core.release import Release
    from patches.carried import base_of, choose_keeps
    from patches.keep import Fate, Kept, check, conflict

    booted, source_root = _running()
    conflicts: list[Kept] = []
    same = 0
    with registry() as opened, looked_into(source) as (bundle, root):
        target = bundle.manifest.release
        chosen = choose_keeps(opened, Release.parse(target))
        for each in chosen.decisions:
            if not each.carried and not settings.json:
                print(f"{each.name}   {each}")
        for fate, group in groupby(check(chosen.keeps, source_root, root, base_of(opened, booted)), lambda k: k.fate):
            for kept in group:
                if fate is Fate.CONFLICT and len(conflicts) < 100:
                    conflicts.append(kept)
                if settings.json:
                    print_json(
                        {"path": kept.path, "policy": kept.policy, "fate": fate, "why": kept.why, "lines": kept.lines}
                    )
                elif fate is Fate.KEPT:
                    same += 1
                else:
                    print(f"{fate:<10}{kept.path}   {kept.why}")
                    for line in kept.lines:
                        print(f"          {line}")
                    if full and kept.shipped is not None:
                        _print_diff(kept.path, source_root, kept.shipped)
    if not settings.json:
        print(f"{same} files kept as they are; the release has none of them, or the same")
    if conflicts:
        raise conflict(conflicts, target)


def _print_diff(path: str, root: Path, shipped: bytes) -> None:
    from patches.merge import unified

    ours = (root / path.lstrip("/")).read_bytes()
    for line in unified(shipped, ours, f"release{path}", f"yours{path}").decode(errors="backslashreplace").splitlines():
        print("    " + "".join(c if c.isprintable() or c == "\t" else "?" for c in line))


def _running() -> tuple[str, Path]:
    """The slot that runs, and its root."""
    from updater.layout import running_root
    from updater.node import open_node

    with open_node(config_path()) as node:
        return node.booted, running_root(node.config)
