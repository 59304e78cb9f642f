"""Configurations: which there are, what they say, whether they fit. The rest is in `config_edit`, `config_apply`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from updater.cli import config_apply, config_edit
from updater.cli.config_common import (
    Application,
    Environment,
    Instance,
    Version,
    chosen,
    opened_store,
    option_of,
    shipped_here,
    target_of,
)
from updater.cli.context import print_json, settings

if TYPE_CHECKING:
    from templates.store import Saved, Store

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The configuration of all servers. What is applied is never edited: clone it, change the clone, apply that.",
)


@app.command("list")
def list_() -> None:
    """List all saved configurations, newest first.

    Example: updater config list
    """
    from updater.cli.screen import local

    with opened_store() as (_, store):
        found = store.listed()
    if settings.json:
        print_json([_saved_json(each) for each in found])
        return
    for each in found:
        state = "active" if each.active else "draft" if each.is_draft else ""
        parent = f"from v{each.parent}" if each.parent else ""
        made = local(each.created.isoformat())
        print(f"{each.name:<6} {state:<7} {made}  {each.who:<12} {parent:<10} {each.why}".rstrip())
    if not found:
        print("no configuration yet: updater config clone    makes an empty draft")


def _saved_json(saved: Saved) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(saved), "created": saved.created.isoformat()}


@app.command()
def show(
    version: Version = None,
    application: Application = None,
    instance: Instance = None,
    environment: Environment = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every option with its value there, not only what is set.")
    ] = False,
    history: Annotated[bool, typer.Option("--history", help="What was done, by whom, when and why.")] = False,
) -> None:
    """Show what a configuration sets, or every option's value for an instance or environment. Secrets are hidden.

    Example: updater config show v41 --all --instance bil-a-03
    """
    with opened_store() as (config, store):
        if history:
            _history(store)
            return
        shipped = shipped_here(config)
        schema = shipped.schema
        from templates.tree import Tree, resolve

        nothing = all_ and version is None and store.active() is None
        tree = Tree() if nothing else store.tree(chosen(store, version).version)
    if all_ or application or instance or environment:
        values = resolve(tree, target_of(tree, application, instance, environment), schema.defaults)
        shown = {name: schema.shown(name, values[name]) for name in sorted(values)}
        if settings.json:
            print_json(shown)
            return
        for name, text in shown.items():
            print(f"{name:<32} {text:<24} {schema.options[name].help if name in schema.options else ''}".rstrip())
        return
    told = {str(p): {n: schema.shown(n, v) for n, v in sorted(own.items())} for p, own in sorted(tree.values.items())}
    if settings.json:
        print_json({"values": told, "instances": {n: [i.application, i.server] for n, i in tree.instances.items()}})
        return
    for name, each in sorted(tree.instances.items()):
        print(f"instance {name}: {each.application} on {each.server}")
    for place, own in told.items():
        print(place)
        for name, text in own.items():
            print(f"  {name:<30} {text}")


def _history(store: Store) -> None:
    from dataclasses import asdict

    from updater.cli.screen import local

    entries = store.history()
    if settings.json:
        print_json([{**asdict(each), "at": each.at.isoformat()} for each in entries])
        return
    for each in entries:
        name = f"v{each.version}"
        print(
            f"{local(each.at.isoformat())}  {name:<5} {each.what:<9} {each.who:<12} {each.detail} {each.why}".rstrip()
        )


@app.command()
def get(
    option: Annotated[str, typer.Argument(help="Such as ssh.port.")],
    version: Version = None,
    application: Application = None,
    instance: Instance = None,
    environment: Environment = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say at which level it was found, and what it hides.")
    ] = False,
) -> None:
    """Show an option's value for an instance or environment.

    Example: updater config get ssh.port --instance bil-a-03 --explain
    """
    from templates.tree import explain as explained

    with opened_store() as (config, store):
        schema = shipped_here(config).schema
        known = option_of(shipped_here(config), option)
        tree = store.tree(chosen(store, version).version)
    target = target_of(tree, application, instance, environment)
    found = explained(tree, target, option, known.default)
    hidden = [(str(place or "default"), schema.shown(option, value)) for place, value in found.hidden]
    if settings.json:
        value = schema.shown(option, found.value) if known.is_secret else found.value
        print_json({"option": option, "value": value, "level": str(found.place or "default"), "hidden": hidden})
        return
    print(schema.shown(option, found.value))
    if explain:
        print(f"  found at  {found.place or 'default (of the release)'}")
        for number, (place, value) in enumerate(hidden):
            print(f"  {'hides' if number == 0 else '':<9} {place} = {value}")
        print(f"  option    {known.type}: {known.help}")


@app.command()
def diff(
    old: Annotated[str | None, typer.Argument(help="Such as v40.", show_default="the active one")] = None,
    new: Annotated[str | None, typer.Argument(help="Such as v41.", show_default="the newest draft")] = None,
) -> None:
    """Show what is set differently in two configurations. Secrets are hidden: that they differ is said.

    Example: updater config diff v40 v41
    """
    from templates.tree import difference

    with opened_store() as (config, store):
        schema = shipped_here(config).schema
        one, other = chosen(store, old), chosen(store, new, draft=True)
        before, after = store.tree(one.version), store.tree(other.version)
    lines = [
        (str(p), name, schema.shown(name, a), schema.shown(name, b)) for p, name, a, b in difference(before, after)
    ]
    gone = sorted(before.instances.keys() ^ after.instances.keys())
    if settings.json:
        print_json({"old": one.version, "new": other.version, "values": lines, "instances": gone})
        return
    print(f"{one.name} → {other.name}: {len(lines)} values differ")
    for place, name, was, now in lines:
        print(f"  {place:<24} {name:<28} {was} → {now}")
    for name in gone:
        print(f"  instance {name} {'is new' if name in after.instances else 'is gone'}")


@app.command()
def validate(
    version: Annotated[str | None, typer.Argument(help="Such as v41.", show_default="the newest draft")] = None,
    templates: Annotated[
        Path | None, typer.Option(help="Templates and schema of another release: a directory.")
    ] = None,
) -> None:
    """Check a configuration against the release's schema, and render this node's files from it, without writing.

    Example: updater config validate v41
    """
    from templates.render import NodeFacts, render
    from updater.configuring import fitted

    with opened_store() as (config, store):
        saved = chosen(store, version, draft=True)
        shipped = shipped_here(config, templates)
        tree, notes = fitted(store.tree(saved.version), shipped, config, saved.name)
        made = render(shipped, tree, NodeFacts(name=config.name, site=config.site, role=config.role))
    text = f"{saved.name} fits: {len(shipped.schema.options)} options, {len(made)} files for {config.name}"
    if settings.json:
        print_json({"kind": "result", "text": text, "data": {"notes": list(map(str, notes))}})
        return
    for note in notes:
        print(f" ! {note}")
    print(text)


config_edit.register(app)
config_apply.register(app)
