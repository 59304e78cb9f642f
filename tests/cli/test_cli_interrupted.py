"""Ctrl-C, SIGTERM and a lost terminal, for real to the real program, in a stage and in a hook before it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.clilab import UPDATER, cli, contents, hurried, runs, slot, status
from tests.updater.lab import Lab, add_hooks

SIGNALS = [
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGTERM, 143, "terminated"),
    (signal.SIGHUP, 129, "hung up"),
]


@pytest.mark.parametrize(("sent", "code", "kind"), SIGNALS)
def test_in_mid_write(sent: signal.Signals, code: int, kind: str, lab: Lab, node: Path) -> None:
    command = [str(UPDATER), "--config", str(node), "stage", str(lab.bundle("MR96-1")), "--rate-limit", "100k"]
    held = contents(node)[str(node.parent / "slots/a.img")]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event.get("step") == "write" and event.get("data", {}).get("done"):
                break
        process.send_signal(sent)
        rest, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (code, "")
    error = json.loads(rest.splitlines()[-1])["error"]
    assert error["kind"] == kind and error["exit_code"] == code and error["state"]
    assert "updater resume" in error["next"]
    left = status(node)
    assert left["upgrade"]["state"] == "interrupted" and left["next_boot"] == "a" and slot(node, "b")["state"] == "bad"
    done = cli(node, "resume", "--json", before=hurried)
    assert done.code == 0, done
    written = [json.loads(line) for line in done.out.splitlines() if '"write"' in line and '"finished"' in line]
    assert "kept from before" in written[0]["text"]
    assert slot(node, "b")["state"] == "staged" and runs(node) == ["stage done"]
    assert contents(node)[str(node.parent / "slots/a.img")] == held


@pytest.mark.parametrize(("sent", "code", "kind"), SIGNALS)
def test_in_a_hook_before(sent: signal.Signals, code: int, kind: str, lab: Lab, node: Path) -> None:
    add_hooks(node.parent, ("before-stage",), "#!/bin/sh\nexec sleep 60\n")
    held = contents(node)
    process = subprocess.Popen(
        [str(UPDATER), "--config", str(node), "--json", "stage", str(lab.bundle("MR96-1"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("step") == "before-stage":
                break
        process.send_signal(sent)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (code, "")
    changed = {Path(name).name for name, digest in contents(node).items() if held.get(name) != digest}
    assert changed == {"journal.sqlite"}
    if status(node)["upgrade"] is not None:
        assert cli(node, "abort").code == 0
    assert status(node)["upgrade"] is None and runs(node)[-1] in ("stage failed", "stage aborted")


def test_the_terminal_is_lost(lab: Lab, node: Path) -> None:
    """The line of an ssh session breaks: its terminal goes, and nothing of ours goes on behind it."""
    command = [str(UPDATER), "--config", str(node), "stage", str(lab.bundle("MR96-1")), "--rate-limit", "100k"]
    master, terminal = os.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", *command], stdin=terminal, stdout=terminal, stderr=terminal, close_fds=True
    ) as process:
        os.close(terminal)
        try:
            while b"write" not in os.read(master, 4096):
                pass
        finally:
            os.close(master)
        assert process.wait(30) == 129
    left = status(node)
    assert left["upgrade"]["state"] == "interrupted" and left["next_boot"] == "a"
    assert cli(node, "abort").code == 0


def test_a_terminal_that_knows_no_check_marks(lab: Lab, node: Path) -> None:
    command = [str(UPDATER), "--config", str(node), "stage", str(lab.bundle("MR96-1"))]
    told = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False)
    assert (told.returncode, told.stderr) == (0, b"")
    assert b"is staged" in told.stdout
