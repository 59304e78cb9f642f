"""Applying configurations: here, on many servers, back to an earlier one; and fetching one that was missed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from updater.cli.context import print_json, settings

if TYPE_CHECKING:
    from templates.store import Saved, Store
    from templates.tree import Tree
    from updater.configuring import Report
    from updater.fleet import ServerReport, Ssh
    from updater.node_toml import NodeConfig

Servers = Annotated[str, typer.Option(help="Also on these servers: names with commas, or all.")]
User = Annotated[str, typer.Option("--ssh-user", help="User there.")]
Port = Annotated[int, typer.Option("--ssh-port", help="Port of sshd there.")]
Key = Annotated[Path | None, typer.Option("--ssh-key", help="Private key.", show_default="the agent's, or ~/.ssh")]
Hosts = Annotated[Path, typer.Option("--known-hosts", help="Keys of the servers; others are refused.")]
Program = Annotated[str, typer.Option("--remote-command", help="The updater there.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the history.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show which files would change; change nothing.")]
NoRender = Annotated[bool, typer.Option("--no-render", help="Make it the active one, but write no files here.")]

_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")


def apply(
    version: Annotated[str | None, typer.Argument(help="Such as v41.", show_default="the newest draft")] = None,
    servers: Servers = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    no_render: NoRender = False,
    ssh_user: User = "root",
    ssh_port: Port = 22,
    ssh_key: Key = None,
    known_hosts: Hosts = _KNOWN_HOSTS,
    remote_command: Program = "updater",
) -> None:
    """Make a configuration the active one: it is frozen, and this node's files are rendered. With --servers also there.

    Example: updater config apply v42 --servers all --reason 'second NTP server'
    """
    from updater.cli.config_common import chosen, opened_store

    with opened_store() as (config, store):
        saved = chosen(store, version, draft=True)
        _apply(config, store, saved, reason, dry_run=dry_run, render=not no_render)
        if servers and not dry_run:
            _send(config, store, saved, servers, _ssh(ssh_user, ssh_port, ssh_key, known_hosts, remote_command))


def rollback(
    to: Annotated[str | None, typer.Option("--to", help="Such as v40.", show_default="the one active before")] = None,
    servers: Servers = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    no_render: NoRender = False,
    ssh_user: User = "root",
    ssh_port: Port = 22,
    ssh_key: Key = None,
    known_hosts: Hosts = _KNOWN_HOSTS,
    remote_command: Program = "updater",
) -> None:
    """Apply the earlier configuration again.

    Example: updater config rollback --reason 'calls fail since v42'
    """
    from core.errors import WrongState
    from updater.cli.config_common import chosen, opened_store

    with opened_store() as (config, store):
        saved = chosen(store, to) if to else store.earlier()
        if saved.is_draft:
            raise WrongState(
                f"{saved.name} was never applied",
                state="nothing was changed",
                next=f"updater config apply {saved.name}",
            )
        _apply(config, store, saved, reason, dry_run=dry_run, render=not no_render)
        if servers and not dry_run:
            _send(config, store, saved, servers, _ssh(ssh_user, ssh_port, ssh_key, known_hosts, remote_command))


def receive() -> None:
    """Take over, apply and render a configuration that the configuration host sends, from standard input.

    Example: ssh bil-a-03 updater config receive < v41.json
    """
    from updater.cli.config_common import opened_store, text_of

    with opened_store() as (config, store):
        _take_over(config, store, text_of(Path("-")), "the configuration host")


def pull(
    from_: Annotated[
        str | None, typer.Option("--from", help="[user@]host.", show_default="agent.configuration_host")
    ] = None,
    ssh_user: User = "root",
    ssh_port: Port = 22,
    ssh_key: Key = None,
    known_hosts: Hosts = _KNOWN_HOSTS,
    remote_command: Program = "updater",
) -> None:
    """Fetch the active configuration from the configuration host and apply it, if this server has missed it.

    Example: updater config pull --from config@cfg-a-01
    """
    from core.errors import ConfigError
    from templates.tree import resolve
    from updater.cli.config_common import opened_store, shipped_here
    from updater.fleet import fetch

    with opened_store() as (config, store):
        host = from_
        active = store.active()
        if host is None and active is not None:
            tree = store.tree(active.version)
            found = resolve(
                tree, tree.target(config.name, application=config.role), shipped_here(config).schema.defaults
            )
            host = found.get("agent.configuration_host")
        if not host:
            raise ConfigError(
                "nobody said where the configuration is fetched from",
                state="nothing was changed",
                next=["updater config pull --from HOST", "set the option agent.configuration_host"],
            )
        ssh = _ssh(ssh_user, ssh_port, ssh_key, known_hosts, remote_command)
        _take_over(config, store, fetch(host, config.name, ssh), host)


def register(app: typer.Typer) -> None:
    """Put the commands into the group `config`."""
    for command in (apply, rollback, receive, pull):
        app.command()(command)


def _ssh(user: str, port: int, key: Path | None, known_hosts: Path, command: str) -> Ssh:
    from updater.fleet import Ssh

    return Ssh(user=user, port=port, key=key, known_hosts=known_hosts, command=command)


def _apply(
    config: NodeConfig,
    store: Store,
    saved: Saved,
    reason: str,
    *,
    dry_run: bool,
    render: bool,
    received: Tree | None = None,
) -> Report | None:
    """Look whether everything will fit; then make it the active one and render. `received`: not in the store yet."""
    from templates.store import digest
    from updater.cli.config_common import release_in, shipped_here
    from updater.configuring import author, fitted, render_into, running_place

    tree = received or store.tree(saved.version)
    shipped = shipped_here(config)
    secrets = shipped.schema.secrets_of(tree)
    if not render:
        fitted(tree, shipped, config, saved.name)
        if not dry_run:
            store.apply(saved.version, author(reason), expected=digest(tree), secrets=secrets)
            _say(f"{saved.name} is active; nothing was rendered here", saved)
        return None
    place = running_place(config)
    release = release_in(place.slot)
    trial = render_into(config, place, store, release=release, tree=tree, version=saved.version, dry_run=True)
    if dry_run:
        _show_report(trial, f"{saved.name} fits", saved)
        return trial
    if received is not None:
        store.receive(saved.version, received, author(reason))
    elif saved.is_draft or not saved.active:
        store.apply(saved.version, author(reason), expected=digest(tree), secrets=secrets)
    report = render_into(config, place, store, release=release, tree=tree, version=saved.version)
    _show_report(report, f"{saved.name} is active", saved)
    return report


def _take_over(config: NodeConfig, store: Store, text: str, host: str) -> None:
    from datetime import UTC, datetime

    from core.errors import ConfigError
    from templates.exchange import read
    from templates.store import Saved

    tree, version, missing = read(text, name=f"what {host} sent")
    if version < 1 or missing:
        raise ConfigError(
            f"what {host} sent is not whole",
            what=[f"secrets are missing: {', '.join(missing)}"] if missing else ["it has no version"],
            state="nothing was changed",
            next="updater config export --for NODE --secrets plain --format json    is what is expected",
        )
    # no draft, and active nowhere yet: only its number is asked for
    saved = Saved(
        version=version, parent=None, created=datetime.now(UTC), who=host, why="", digest="", active=False
    )  # fmt: skip
    _apply(config, store, saved, f"received from {host}", dry_run=False, render=True, received=tree)


def _send(config: NodeConfig, store: Store, saved: Saved, wanted: str, ssh: Ssh) -> None:
    """Send it to the servers, say of each what came of it, and raise when one failed."""
    import json

    from core.errors import CommandFailed
    from templates.exchange import Secrets, export
    from templates.tree import for_server, resolve
    from updater.cli.config_common import shipped_here
    from updater.fleet import Server
    from updater.fleet import apply as send

    tree, schema = store.tree(saved.version), shipped_here(config).schema
    secrets = schema.secrets_of(tree)
    withheld = store.withheld(saved.version) or secrets
    names = sorted({each.server for each in tree.instances.values()} - {config.name}) if wanted == "all" else []
    names = names or [name.strip() for name in wanted.split(",") if name.strip() and wanted != "all"]

    def server(name: str) -> Server:
        name, _, host = name.partition("=")
        found = resolve(tree, tree.target(name), schema.defaults)
        return Server(name=name, host=host or found.get("system.address") or name)

    def document(name: str) -> str:
        return json.dumps(export(for_server(tree, name, withheld), saved.version, secrets, Secrets.PLAIN))

    reports = send(map(server, names), document, ssh, _show_server)
    failed = [each for each in reports if not each.ok]
    if failed:
        down = [each.server for each in failed if not each.reached]
        raise CommandFailed(
            f"{saved.name} is active on {len(reports) - len(failed)} of {len(reports)} servers",
            what=[f"{each.server}: {each.text}" for each in failed],
            state="the others have it; each server is as its line says",
            next=[
                *([f"{', '.join(down)}: fetches it when back (updater config pull)"] if down else []),
                f"updater config apply {saved.name} --servers {','.join(each.server for each in failed)}    once more",
                "updater config rollback --servers all    goes back everywhere",
            ],
        )


def _show_server(report: ServerReport) -> None:
    if settings.json:
        from dataclasses import asdict

        print_json({"kind": "server", "data": asdict(report)})
        return
    mark = "✓" if report.ok else "✗" if report.reached else "–"
    print(f" {mark} {report.server:<16}{report.seconds:>6.1f} s   {report.text}", flush=True)


def _say(text: str, saved: Saved, data: dict[str, Any] | None = None) -> None:
    if settings.json:
        print_json({"kind": "result", "text": text, "data": {"version": saved.version, **(data or {})}})
    else:
        print(text)


def _show_report(report: Report, text: str, saved: Saved) -> None:
    """The result; raises when a unit did not come back."""
    from core.errors import CommandFailed

    whole = f"{text}: {report.summary()}"
    if settings.json:
        _say(whole, saved, report.as_json())
    else:
        show_files(report)
        print(whole)
    if report.faults:
        raise CommandFailed(
            f"{len(report.faults)} unit{'s' * (len(report.faults) != 1)} did not come back",
            what=report.faults,
            state=f"{saved.name} is active and its files are written",
            next=["journalctl -xe", "updater config rollback    goes back to the configuration before"],
        )


def show_files(report: Report, *, diff: bool = False) -> None:
    """A line per file that is not as it was, and what there is to say about it."""
    for note in report.notes:
        print(f" ! {note}")
    for each in report.outcome.files:
        told: Iterable[str] = each.notes
        if each in report.outcome.changed or each.notes:
            print(f"   {each.action:<13} {each.target}")
        for note in told:
            print(f"                 {note}")
        if diff and each.diff:
            print(each.diff, end="")
