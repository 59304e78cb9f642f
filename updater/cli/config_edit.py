"""Drafts: clone a configuration, change the clone; write configurations to files and read them back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from updater.cli.config_common import (
    Application,
    Draft,
    Environment,
    Instance,
    Reason,
    Version,
    chosen,
    done,
    first_line,
    opened_store,
    option_of,
    place_of,
    shipped_here,
    text_of,
)
from updater.cli.context import settings


def clone(version: Version = None, reason: Reason = "") -> None:
    """Make a draft: a clone of a configuration that can be changed and then applied.

    Example: updater config clone --reason 'second NTP server'
    """
    from updater.configuring import author

    with opened_store() as (_, store):
        source = chosen(store, version) if version or store.active() else None
        made = store.clone(source.version if source else None, author(reason))
    done(f"{made.name} is a draft, {f'a clone of {source.name}' if source else 'empty'}", made)


def set_(
    option: Annotated[str, typer.Argument(help="Such as ssh.port.")],
    value: Annotated[str | None, typer.Argument(help="Lists with commas, or as JSON. Not for secrets.")] = None,
    application: Application = None,
    instance: Instance = None,
    environment: Environment = None,
    from_file: Annotated[Path | None, typer.Option("--from-file", help="Read it from a file; - is the input.")] = None,
    draft: Draft = None,
) -> None:
    """Set a value in a draft, globally or at a lower level. A secret is asked for, or read from a file.

    Example: updater config set ssh.port 2222 --instance bil-a-03
    """
    from core.errors import ConfigError
    from updater.configuring import author

    where = place_of(application, instance, environment)
    with opened_store() as (config, store):
        known = option_of(shipped_here(config), option)
        if (value is None) == (from_file is None) and not (value is None and known.is_secret):
            raise typer.BadParameter("give a value or --from-file")
        if value is not None and known.is_secret:
            raise ConfigError(
                f"{option} is a secret and does not belong on a command line, where others see it",
                state="nothing was changed",
                next=[f"updater config set {option}    asks for it", f"updater config set {option} --from-file FILE"],
            )
        if from_file is not None:
            value = text_of(from_file).rstrip("\n")
        elif value is None:
            value = str(typer.prompt(option, hide_input=True, confirmation_prompt=True))
        saved = chosen(store, draft, draft=True)
        try:
            parsed = known.parse(value)
            if not known.may_be_set_at(where.level):
                raise ValueError(f"can be set at {', '.join(known.levels)} only")
        except ValueError as error:
            raise ConfigError(f"{option}: {error}", what=known.help, state="nothing was changed") from error
        store.set(saved.version, where, option, parsed, author())
    done(f"{saved.name}: {where}: {option} = {known.shown(parsed)}", saved)


def unset(
    option: Annotated[str, typer.Argument(help="Such as ssh.port.")],
    application: Application = None,
    instance: Instance = None,
    environment: Environment = None,
    draft: Draft = None,
) -> None:
    """Have a value of a draft inherited again from the level above.

    Example: updater config unset ssh.port --instance bil-a-03
    """
    from updater.configuring import author

    where = place_of(application, instance, environment)
    with opened_store() as (_, store):
        saved = chosen(store, draft, draft=True)
        was = store.unset(saved.version, where, option, author())
    done(f"{saved.name}: {where}: {option} {'is inherited again' if was else 'was not set'}", saved)


def instance_(
    name: Annotated[str, typer.Argument(help="Its name; that of its server where it is the only one there.")],
    application: Annotated[str | None, typer.Option(help="Of which application.")] = None,
    server: Annotated[str | None, typer.Option(help="On which server.", show_default="NAME")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take it out, with the values set for it.")] = False,
    draft: Draft = None,
) -> None:
    """Add an instance of an application to a draft, or remove it.

    Example: updater config instance bil-a-03 --application billing
    """
    from core.errors import ConfigError
    from templates.tree import Instance as Known
    from templates.tree import Place
    from updater.configuring import author

    if (application is None) != remove:
        raise typer.BadParameter("give --application, or --remove")
    try:
        Place.parse(f"instance:{name}")
        wanted = None if application is None else Known(application=application, server=server or name)
    except ValueError as error:
        raise ConfigError(str(error), state="nothing was changed") from error
    with opened_store() as (_, store):
        saved = chosen(store, draft, draft=True)
        store.set_instance(saved.version, name, wanted, author())
    told = f"is {wanted.application} on {wanted.server}" if wanted else "is removed"
    done(f"{saved.name}: instance {name} {told}", saved)


def export_(
    version: Version = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="A file, mode 0600.", show_default="the screen")
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="toml or json.")] = "toml",
    secrets: Annotated[str, typer.Option(help="omit, seal (with a passphrase), or plain.")] = "omit",
    passphrase_file: Annotated[Path | None, typer.Option(help="Its first line seals or opens the secrets.")] = None,
    for_: Annotated[str | None, typer.Option("--for", help="Only what this server may know.")] = None,
) -> None:
    """Write a configuration out, for people, for version control, or for another server.

    Example: updater config export v41 --output v41.toml
    """
    from templates.exchange import Secrets, dumps, export, write
    from templates.tree import for_server

    if format_ not in ("toml", "json") or secrets not in list(Secrets):
        raise typer.BadParameter("--format is toml or json, --secrets is omit, seal or plain")
    with opened_store() as (config, store):
        saved = chosen(store, version)
        tree, hidden = store.tree(saved.version), shipped_here(config).schema.secrets_of(store.tree(saved.version))
        withheld = store.withheld(saved.version) or hidden
    tree = for_server(tree, for_, withheld) if for_ else tree
    text = dumps(
        export(tree, saved.version, hidden, Secrets(secrets), first_line(passphrase_file)), toml=format_ == "toml"
    )
    if output is None:
        print(text, end="")
    else:
        write(output, text)
        done(f"{saved.name} is in {output}, mode 0600{'' if secrets != 'omit' else ', without secrets'}", saved)


def import_(
    file: Annotated[Path, typer.Argument(help="Written by export; TOML or JSON.")],
    passphrase_file: Annotated[Path | None, typer.Option(help="Its first line seals or opens the secrets.")] = None,
    reason: Reason = "",
) -> None:
    """Make a draft of an exported file. Secrets that it leaves out are those of the active configuration.

    Example: updater config import v41.toml --reason 'restored from backup'
    """
    from templates.exchange import read
    from updater.configuring import author

    text = text_of(file)
    with opened_store() as (_, store):
        active = store.active()
        base = store.tree(active.version) if active else None
        tree, _, missing = read(text, name=str(file), passphrase=first_line(passphrase_file), base=base)
        made = store.save(tree, author(reason), parent=active.version if active else None)
    done(f"{made.name} is a draft, from {file}", made)
    if missing and not settings.json:
        print(f" ! {len(missing)} secrets were left out of the file and are not known here; set them:")
        for each in missing:
            print(f"   {each}")


def register(app: typer.Typer) -> None:
    """Put the commands into the group `config`."""
    for command in (clone, set_, unset, instance_, export_, import_):
        app.command(command.__name__.rstrip("_"))(command)
