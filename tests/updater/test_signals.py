"""Ctrl-C and SIGTERM in the middle of a stage, as real signals to a real process; then it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.updater.lab import Lab, look

_MAIN = "from updater.cli.main import main; main()"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_that_is_stopped_goes_on_where_it_was(sent: signal.Signals, code: int, lab: Lab, node: Path) -> None:
    command = [sys.executable, "-c", _MAIN, "--config", str(node), "--json"]
    process = subprocess.Popen(
        [*command, "stage", str(lab.bundle("MR96-1")), "--rate-limit", "100k"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
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
    assert process.returncode == code, errors
    told = json.loads(rest.splitlines()[-1])["error"]
    assert told["exit_code"] == code and "updater resume" in told["next"] and errors == ""

    left = look(node)
    assert left["open run"] == "stage" and left["status"].upgrade.state == "interrupted"
    assert left["environment"]["b"] == "bad 0" and left["next boot"] == "a"
    done = subprocess.run([*command, "resume"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    written = next(event for event in events if event["kind"] == "finished" and event["step"] == "write")
    assert "kept from before" in written["text"]
    assert look(node)["slots"]["b"] == "MR96-1 staged"
