"""The `updater` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from core.errors import UpdaterError
from updater.cli import export, node, render, setup, verify
from updater.cli.context import is_unread, print_json, settings, unexpected, unread
from updater.cli.quick import Root, quick

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Dual-partition updates with a way back: stage a signed release on the inactive slot, activate it, confirm it,"
    " or roll back by reboot.",
    epilog="Begin with `updater status`. To try everything without a server: `updater sandbox create DIR`.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"updater {version('updater')}")
        raise typer.Exit


@app.callback()
def options(
    config: Annotated[
        Path | None, typer.Option(help="The node's configuration.", show_default="/etc/updater/node.toml")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON for machines: results, and events as JSON lines.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the commands that are run.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Global options; they may also stand behind the verb. `Root` has taken their values."""
    if settings.debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(name)s: %(message)s")
        for noisy in ("sh", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.WARNING)


node.register(app)
setup.register(app)
render.register(app)
verify.register(app)
export.register(app)
quick(app, Root)


def main() -> None:
    """Run the command line. A user's mistake ends in a message and a stable exit code, never in a traceback."""
    out = sys.stdout
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows no check marks gets something else for them
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="updater")
    except UpdaterError as error:
        if settings.debug:
            raise
        _tell(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if settings.debug:
            raise
        fault = unexpected(error)
        _tell(fault)
        sys.exit(fault.exit_code)
    except SystemExit:
        if sys.stdout is not out:  # Typer found that nobody reads the output any more
            unread()
            sys.exit(0)
        _flush()
        raise


def _flush() -> None:
    """Let the output go now: a fault of it in the interpreter's last moment could no longer be told."""
    try:
        sys.stdout.flush()
    except OSError as error:
        unread()
        if is_unread(error):
            return
        fault = unexpected(error)
        _tell(fault)
        sys.exit(fault.exit_code)


def _tell(error: UpdaterError) -> None:
    try:
        if settings.json:
            print_json({"kind": "error", "error": error.as_json()})
        else:
            from updater.cli.screen import print_error

            print_error(error)
    except OSError as fault:
        if not is_unread(fault):
            raise
