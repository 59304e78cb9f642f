"""The command line from outside: run in a forked child (fast) or as a program of its own, and what it must look like
when it refuses.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from core.errors import UpdaterError
from core.journal import Journal
from updater.cli.main import main

# What commands import when they need it: once here, not in every forked child.
for _heavy in (
    *("sqlite3", "zstandard", "urllib3", "netrc", "pyudev", "sh", "jinja2", "securesystemslib.dsse"),
    *("images.keys", "updater.upgrade", "updater.recovery", "updater.status", "updater.doctor", "updater.sandbox"),
    *("updater.cli.screen", "updater.cli.history", "core.window", "updater.health", "cattrs"),
    *("pydantic.fields", "pydantic.types", "pydantic.type_adapter", "pydantic.functional_validators"),
):
    importlib.import_module(_heavy)

UPDATER = Path(sys.executable).with_name("updater")
PATIENCE = 60

#: Every documented exit code of an error with its kind.
KINDS: dict[int, str] = {}


def _collect(kind: type[UpdaterError]) -> None:
    KINDS[kind.exit_code] = kind.kind
    for each in kind.__subclasses__():
        _collect(each)


_collect(UpdaterError)


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> dict[str, Any]:
        """The error of a command with --json: the last line of its output."""
        told: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        assert told["kind"] == "error", told
        error: dict[str, Any] = told["error"]
        return error


def cli(config: Path | None, *words: str | Path, before: Callable[[], object] | None = None) -> Result:
    """`updater --config CONFIG WORDS` in a forked child, which calls `before` first."""
    arguments = ["updater", *(["--config", str(config)] if config else []), *map(str, words)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _become(arguments, out.fileno(), err.fileno(), before)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return Result(os.waitstatus_to_exitcode(status), out.read().decode(), err.read().decode())


def _become(arguments: list[str], out: int, err: int, before: Callable[[], object] | None) -> None:
    code = 99
    gc.disable()  # it would touch, and so copy, every page that is shared with the parent
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(PATIENCE)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.argv = arguments
        if before is not None:
            before()
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98 if end.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if not stream.closed:
                stream.flush()
        os._exit(code)


def hurried() -> None:
    """For `before`: a run goes on without the rate limit that it was begun with."""
    from partitions.parallel import Pace

    Pace.take = lambda self, count: None  # type: ignore[method-assign]


def program(config: Path | None, *words: str | Path, **options: Any) -> Result:
    """The installed program, as an operator starts it. `options`: of subprocess.run."""
    command = [str(UPDATER), *(["--config", str(config)] if config else []), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, **options)
    return Result(done.returncode, done.stdout, done.stderr)


def contents(config: Path, *others: Path) -> dict[str, str]:
    """A digest of every file of the node, and of `others` (devices); who holds or held the lock is no change."""
    home = config.parent
    files = [path for path in home.rglob("*") if path.is_file() and path != home / "data" / "lock"]
    return {str(path): blake3(path.read_bytes()).hexdigest() for path in sorted([*files, *others])}


def runs(config: Path) -> list[str]:
    """All runs of the node's journal, oldest first: verb and state."""
    with Journal.open(config.parent / "data" / "journal.sqlite") as journal:
        return [f"{run.verb} {run.state}" for run in reversed(journal.runs())]


def status(config: Path) -> dict[str, Any]:
    """What `updater status --json` says."""
    shown = cli(config, "status", "--json")
    assert shown.code == 0, shown
    found: dict[str, Any] = json.loads(shown.out)
    return found


def slot(config: Path, name: str) -> dict[str, Any]:
    """A slot in `updater status --json`."""
    found: dict[str, Any] = next(each for each in status(config)["slots"] if each["slot"] == name)
    return found


def well_told(plain: Result, code: int, *, looked: bool = False) -> None:
    """An error for people: message, what, state, next, exit code; and no traceback. `looked`: of a command that has no
    node to tell the state of.
    """
    assert plain.code == code, plain
    assert "Traceback" not in plain.out + plain.err, plain.err
    lines = plain.err.splitlines()
    assert lines[0].startswith("error: ") and not lines[0].endswith("."), plain.err
    assert lines[-1] == f"  exit {code} ({KINDS[code]})", plain.err
    labels = [line[2:10].strip() for line in lines[1:-1]]
    order = [label for label in labels if label]
    assert order == [label for label in ("what", "state", "next") if label in order], plain.err
    assert {"next"} | (set() if looked else {"state"}) <= set(order), plain.err


def well_told_json(result: Result, code: int) -> dict[str, Any]:
    """The same error for machines; returns it."""
    assert result.code == code, result
    assert result.err == "", result.err
    error = result.error
    assert set(error) == {"kind", "exit_code", "message", "what", "state", "next"}
    assert error["exit_code"] == code and error["kind"] == KINDS[code]
    assert error["message"] and error["state"] and error["next"], error
    return error


def refused(
    config: Path,
    code: int,
    *words: str | Path,
    before: Callable[[], object] | None = None,
    devices: Sequence[Path] = (),
) -> dict[str, Any]:
    """The command ends with this exit code, says so to people and to machines, and has changed nothing on the node.

    Returns the error.
    """
    held = contents(config, *devices)
    well_told(cli(config, *words, before=before), code)
    error = well_told_json(cli(config, *words, "--json", before=before), code)
    assert contents(config, *devices) == held
    return error
