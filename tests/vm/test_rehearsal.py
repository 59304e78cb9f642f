"""An upgrade is rehearsed as it will be on the night, from a node's export; and the way back is proved on the node."""

from __future__ import annotations

import base64
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import RehearsalFailed
from core.report import Report
from vagrant import container, data, prove
from vagrant.node import Lab
from vagrant.qemu import Machine

UPDATER = Path(sys.executable).with_name("updater")


def fetch(machine: Machine, path: str) -> bytes:
    """A file of the machine's."""
    return base64.b64decode(machine.run(f"base64 {path}").stdout)


def rehearse(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([UPDATER, "--json", "rehearse", *words], capture_output=True, text=True, check=False)


def exported(machine: Machine, to: Path, *options: str) -> Path:
    """The export of a machine, brought here."""
    machine.run(f"updater export /root/lab-1.export {' '.join(options)}")
    to.write_bytes(fetch(machine, "/root/lab-1.export"))
    return to


@pytest.mark.long
def test_a_night_is_rehearsed_and_its_record_demanded(ready: Machine, lab: Lab, tmp_path: Path) -> None:
    export = exported(ready, tmp_path / "lab-1.export", "--data", "anonymised")
    current, following = lab.bundle("MR95-1", first=True), lab.bundle("MR96-1")
    record = tmp_path / "record.json"
    words: list[str | Path] = [
        "--current",
        current,
        "--from",
        export,
        "--record",
        record,
        "--report",
        tmp_path / "night.html",
    ]
    done = rehearse("node", following, *words, "--accept-no-rollback")  # the short form: without going back
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["data"]
    assert [phase["name"] for phase in result["phases"]] == ["boot", "plan", "stage", "activate"]
    assert all(phase["found"] == phase["expected"] for phase in result["phases"])
    remarks = [line for phase in result["phases"] for line in phase["remarks"]]
    assert not [line for line in remarks if "not as the node" in line or "not compared" in line], remarks
    assert "PASSED" in (tmp_path / "night.html").read_text()

    ready.push(record.read_bytes(), "/root/record.json")
    ready.run("updater activate --require-rehearsal /root/record.json --dry-run")
    ready.run("echo 'route = 8' > /etc/acme.d/local.conf")
    refused = ready.run("updater activate --require-rehearsal /root/record.json", check=False)
    assert refused.code == 28
    assert "kept files were edited since" in refused.stderr


@pytest.mark.long
def test_a_release_that_is_unhealthy_at_first_falls_back_and_comes_again(
    ready: Machine, lab: Lab, tmp_path: Path
) -> None:
    export = exported(ready, tmp_path / "lab-1.export")
    ready.kill()
    words: list[str | Path] = ["--current", lab.bundle("MR95-1", first=True), "--from", export, "--accept-no-rollback"]
    done = rehearse("node", lab.bundle("MR96-1"), *words, "--fault", "unhealthy")
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["data"]
    assert all(phase["found"] == phase["expected"] for phase in result["phases"])
    fell = next(phase for phase in result["phases"] if "unhealthy" in phase["name"])
    assert fell["found"]["booted"] == "a" and fell["found"]["slots"]["b"][1] == "bad", fell


STEPS = """
[[step]]
name = "stage"
run = "updater stage $REHEARSAL_BUNDLE"

[[step]]
name = "activate"
run = "updater activate"
reboots = true

[[step]]
name = "the machine is known here"
on = "host"
run = "$REHEARSAL_SSH grep -qx $REHEARSAL_RELEASE /etc/updater-release"

[[step]]
name = "a step that fails"
run = "echo no such thing; exit 3"

[[step]]
name = "never reached"
run = "true"
"""


@pytest.mark.long
def test_steps_of_the_operators_own(ready: Machine, lab: Lab, tmp_path: Path) -> None:
    export = exported(ready, tmp_path / "lab-1.export")
    ready.kill()
    steps = tmp_path / "steps.toml"
    steps.write_text(STEPS)
    words: list[str | Path] = [
        "--current",
        lab.bundle("MR95-1", first=True),
        "--from",
        export,
        "--bundle",
        lab.bundle("MR96-1"),
    ]
    done = rehearse("custom", steps, *words)
    assert done.returncode == 29, done.stdout + done.stderr
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    told = "\n".join(error["what"])
    assert "a step that fails" in told and "exit 3, not 0" in told and "no such thing" in told, error
    assert "never reached" in told and "activate" not in told, error


SLOT = "dd if=/dev/disk/by-partlabel/slot-a bs=1M count=64 iflag=direct status=none | md5sum"


@pytest.mark.long
def test_the_way_back_is_proved_on_copies(ready: Machine) -> None:
    refused = ready.run("updater prove-rollback", check=False)
    assert refused.code == 35, refused.stderr  # nothing was activated yet
    ready.run("updater activate")
    assert ready.wait_for_boot().slot == "b"
    ready.run(
        "while [ $(systemctl show -P ExecMainExitTimestampMonotonic updater-confirm) = 0 ]; do sleep 0.5; done",
        timeout=180,
    )
    before = ready.run(SLOT).stdout
    proof = json.loads(ready.run("updater --json prove-rollback", timeout=300).stdout.splitlines()[-1])["data"]
    assert (proof["slot"], proof["release"]) == ("a", "MR95-1")
    assert {"acme", "acme answers", "ssh"} <= set(proof["checks"])
    assert proof["copies"]["billing"] > 0
    assert ready.run(SLOT).stdout == before
    assert ready.run("findmnt -n | grep -c prove-", check=False).stdout == "0\n"
    assert ready.run("ls /data/updater | grep -c prove-", check=False).stdout == "0\n"
    assert ready.run("systemctl is-active acme.service").stdout == "active\n"


@pytest.mark.parametrize("readable", [True, False])
def test_a_way_back_that_is_gone_is_seen_in_the_container(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    """The old release's own init and health checks, on this machine, without a virtual one."""
    monkeypatch.setattr(container, "_scope", lambda *_: ())
    lower = lab.tree("MR95-1", first=True)
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(data.fresh())
    if not readable:
        with closing(sqlite3.connect(copy)) as db:
            db.execute("ALTER TABLE accounts RENAME COLUMN balance TO gone")
    node: Any = SimpleNamespace(path=Path("/etc/updater/node.toml"), booted="b")
    health = replace(prove._health(node, lower), deadline=60.0 if readable else 2.0)
    proof = prove.Proof(slot="a", release="MR95-1")
    work = tmp_path / "work"
    work.mkdir()
    with container.booted(lower, work, data=None, copies={Path(data.PLACE): copy}, deadline=180) as old:
        bounds = int(old.run("grep", "CapBnd", "/proc/self/status").stdout.split()[1], 16)
        assert not bounds & (1 << 16 | 1 << 17 | 1 << 22 | 1 << 25)  # modules, raw devices, reboot, clock
        assert old.run("cat", "/proc/sys/kernel/hostname").code == 0
        assert old.run("sh", "-c", "ls /sys/class/net").stdout == "lo\n"
        if readable:
            assert {"acme", "acme answers", "ssh"} <= set(prove._healthy(node, old, health, proof, Report()))
        else:
            with pytest.raises(RehearsalFailed, match="acme answers"):
                prove._healthy(node, old, health, proof, Report())
    assert not any("prove" in line for line in Path("/proc/mounts").read_text().splitlines())
