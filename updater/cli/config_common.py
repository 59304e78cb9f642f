"""What the commands of the group `config` share: options, the opened store, and naming a configuration or a place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from updater.cli.context import config_path, interruptible, print_json, settings

if TYPE_CHECKING:
    from partitions.boot.state import Slot
    from templates.manifest import Shipped
    from templates.store import Saved, Store
    from templates.tree import Place, Target, Tree
    from updater.node_toml import NodeConfig

Version = Annotated[str | None, typer.Argument(metavar="[VERSION]", help="Such as v41.", show_default="the active one")]
Draft = Annotated[str | None, typer.Option("--draft", help="Draft to change.", show_default="the newest")]
Application = Annotated[str | None, typer.Option(help="An application, on all servers.")]
Instance = Annotated[str | None, typer.Option(help="One instance of an application.")]
Environment = Annotated[str | None, typer.Option(help="One virtual environment.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the history.")]


@contextmanager
def opened_store() -> Iterator[tuple[NodeConfig, Store]]:
    """This node's configuration store."""
    from templates.store import Store
    from updater.configuring import store_path
    from updater.node_toml import load_node

    config = load_node(config_path())
    with interruptible(), Store.open(store_path(config)) as store:
        yield config, store


def shipped_here(config: NodeConfig, templates: Path | None = None) -> Shipped:
    """The schema and templates that count: a directory's, or those of the release that runs here."""
    from templates import manifest
    from updater.configuring import shipped_with
    from updater.machine import machine_of

    return manifest.load(templates) if templates else shipped_with(config, machine_of(config).booted_slot())


def release_in(slot: Slot) -> str:
    """The release in a slot, as templates are told it: empty where it is not known."""
    from updater.node import open_node

    with open_node(config_path()) as node:
        return str(node.release(slot) or "")


def chosen(store: Store, version: str | None, *, draft: bool = False) -> Saved:
    """The configuration that was named; else the newest draft, if `draft`, or the active one. Raises WrongState."""
    from core.errors import WrongState
    from templates.store import parse_version

    if version:
        return store.saved(parse_version(version))
    found = store.draft() if draft else store.active()
    if found is None:
        raise WrongState(
            "there is no draft" if draft else "no configuration was applied yet",
            state="nothing was changed",
            next="updater config clone    makes a draft, of the active configuration if there is one",
        )
    return found


def place_of(application: str | None, instance: str | None, environment: str | None) -> Place:
    """The place that the options name. Raises BadParameter when they name two, or one that cannot be."""
    from templates.options import Level
    from templates.tree import GLOBAL, Place

    told = [
        (level, name)
        for level, name in zip(list(Level)[1:], (application, instance, environment), strict=True)
        if name is not None
    ]
    if len(told) > 1:
        raise typer.BadParameter("give one of --application, --instance and --environment")
    try:
        return Place.parse(f"{told[0][0]}:{told[0][1]}") if told else GLOBAL
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def target_of(tree: Tree, application: str | None, instance: str | None, environment: str | None) -> Target:
    """Whom the options ask for."""
    return tree.target(instance or "", environment or "", application or "")


def option_of(shipped: Shipped, name: str) -> Any:
    """What the release says of the option. Raises ConfigError, with names that may have been meant."""
    from core.errors import ConfigError

    option = shipped.schema.options.get(name)
    if option is None:
        new = shipped.schema.renamed.get(name)
        near = [new] if new else shipped.schema.near(name)
        raise ConfigError(
            f"this release has no option {name}",
            what=f"it is {new} now" if new else f"near: {', '.join(near)}" if near else "",
            state="nothing was changed",
            next="updater config show --all    lists all options",
        )
    return option


def done(text: str, saved: Saved) -> None:
    """Say what was done to the configuration."""
    if settings.json:
        print_json({"kind": "result", "text": text, "data": {"version": saved.version}})
    else:
        print(text)


def text_of(path: Path) -> str:
    """A file's content, or with - what comes in. Raises ConfigError when it cannot be read or is no text."""
    import sys

    from core.errors import ConfigError

    try:
        return (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        # its words would show a byte of what may be a secret
        what = f"byte {error.start + 1} is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        name = "the input" if str(path) == "-" else path
        raise ConfigError(f"{name} cannot be read", what=what, state="nothing was changed") from error


def first_line(path: Path | None) -> str:
    """A passphrase from a file; empty without one. Raises ConfigError."""
    return (text_of(path).splitlines() or [""])[0] if path else ""
