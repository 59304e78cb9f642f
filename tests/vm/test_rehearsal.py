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


@pytest.mark.long
def test_a_night_is_rehearsed_and_its_record_demanded(ready: Machine, lab: Lab, tmp_path: Path) -> None:
    ready.run("updater export /root/lab-1.export --data anonymised")
    export = tmp_path / "lab-1.export"
    export.write_bytes(fetch(ready, "/root/lab-1.export"))

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
    monkeypatch.setattr(container, "_scope", lambda unit: ())
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
