"""The story on machines that boot: tries, falls back, comes back; and the power is cut in the middle of it."""

from __future__ import annotations

import json

import pytest

from tests.vm.guest import settled, states, status, trick, until
from vagrant import own
from vagrant.node import Lab
from vagrant.qemu import Machine
from vagrant.serve import Server


def test_tried_confirmed_and_rolled_back_by_reboot(ready: Machine) -> None:
    assert states(ready) == {"a": ("MR95-1", "good"), "b": ("MR96-1", "staged")}
    told = ready.run("journalctl -q -o cat UPDATER_VERB=stage UPDATER_STEP=write").stdout
    assert "write finished" in told  # events are in the system journal too, with fields to ask for
    ready.run("updater job start --id night --fence 1 activate")  # as a controller does it: a unit of systemd's
    boot = ready.wait_for_boot()
    assert (boot.slot, boot.trying) == ("b", 1)
    found = settled(ready)
    job = json.loads(ready.run("updater --json job status night").stdout)
    assert (job["state"], job["rebooted"]) == ("done", True)
    assert found["indicator"] == "OK"
    assert found["way_back"]
    assert states(ready) == {"a": ("MR95-1", "good"), "b": ("MR96-1", "good")}
    assert (
        ready.run("cat /etc/updater-release; cat /etc/updater/node.toml | head -1").stdout == 'MR96-1\nname = "lab-1"\n'
    )
    assert int(ready.run("df --output=size -B1M / | tail -1").stdout) > 900  # the filesystem fills the slot
    assert len(own.seen(ready)) == 5
    assert own.data_read(ready, "MR96-1")
    assert ready.run("ls /data/updater/backups/billing").stdout.startswith("MR96-1-")
    assert ready.run("test -e /usr/bin/acme-bill", check=False).code == 1  # its patch is past its lifetime

    ready.run("updater rollback")
    boot = ready.wait_for_boot()
    assert (boot.slot, boot.trying) == ("a", None)
    found = settled(ready)
    assert found["booted"] == found["next_boot"] == "a"
    assert states(ready) == {"a": ("MR95-1", "good"), "b": ("MR96-1", "good")}
    assert ready.run("cat /etc/acme.d/local.conf; cat /etc/acme.conf").stdout.endswith("timeout = 30\n")
    assert own.data_read(ready, "MR95-1")  # the old release reads what the new one has migrated


@pytest.mark.parametrize("tries", [1, pytest.param(2, marks=pytest.mark.long)])  # the demo has three
def test_an_unhealthy_release_falls_back_after_its_tries(ready: Machine, tries: int) -> None:
    trick(ready, "unhealthy", tries=tries)
    before = len(ready.boots)
    ready.run("updater activate")
    seen = [ready.wait_for_kernel(before + number, timeout=180) for number in range(1, tries + 2)]
    assert [(boot.slot, boot.trying) for boot in seen] == [
        *(("b", left) for left in reversed(range(tries))),
        ("a", None),
    ]
    ready.wait_for_boot()
    found = settled(ready)
    assert states(ready)["b"] == ("MR96-1", "bad")
    assert found["indicator"] == "WARNING"
    assert "acme" in found["problems"][0]
    assert own.data_read(ready, "MR95-1")
    assert found["data_release"] == "MR96-1"
    refused = ready.run("updater rollback", check=False)
    assert refused.code == 35
    assert "acme" in refused.stderr


def test_init_finds_the_disks_and_installs(node: Machine) -> None:
    text = node.run("updater --config /root/node.toml init --dry-run").stdout
    assert 'a.device = "/dev/disk/by-partlabel/slot-a"' in text
    assert 'b.device = "/dev/disk/by-partlabel/slot-b"' in text
    node.run("rm /efi/updater/grub.cfg /etc/systemd/system/updater-*; updater init --install")
    found = json.loads(node.run("updater --json doctor", check=False).stdout)
    assert {each["name"] for each in found if not each["ok"]} == {"watchdog"}, found  # the machine has none
    node.run("systemctl is-enabled updater-confirm.service updater-deadline.timer")
    assert states(node)["a"] == ("MR95-1", "good")


def test_power_cut_during_stage_is_resumed(node: Machine, lab: Lab) -> None:
    bundle = lab.bundle("MR96-1")
    with Server(bundle.parent) as server:
        url = server.url(bundle.name, guest=True)
        node.run(f"systemd-run --unit=stage /usr/bin/updater --json stage {url}")
        until(node, lambda: _writes(node), timeout=300)
        node.kill()
        node.start()
        assert node.wait_for_boot().slot == "a"
        found = status(node)
        assert found["upgrade"]["state"] == "interrupted"
        assert found["upgrade"]["step"] == "write"
        assert found["indicator"] == "WARNING"
        assert found["next_boot"] == "a"
        assert states(node)["b"] == ("MR96-1", "bad")
        node.run("updater resume", timeout=300)
    assert states(node) == {"a": ("MR95-1", "good"), "b": ("MR96-1", "staged")}
    assert status(node)["upgrade"] is None


def _writes(node: Machine) -> bool:
    """Whether the stage in the background has come to writing. It looks into the whole image before."""
    said = node.run("journalctl -u stage --no-pager -o cat; systemctl is-failed --quiet stage", check=False)
    assert said.code != 0, said.stdout
    return node.run("cat /data/updater/write-progress.json", check=False).code == 0


def test_power_cut_right_after_the_flip_and_while_trying(ready: Machine) -> None:
    ready.run("updater activate --no-reboot")
    ready.kill()  # the operator's reboot never came: the power went
    ready.start()
    first = ready.wait_for_kernel(len(ready.boots) + 1, timeout=180)
    assert (first.slot, first.trying) == ("b", 1)
    ready.kill()  # and again, in the middle of the first try
    ready.start()
    boot = ready.wait_for_boot()
    assert (boot.slot, boot.trying) == ("b", 0)
    found = settled(ready)
    assert states(ready) == {"a": ("MR95-1", "good"), "b": ("MR96-1", "good")}
    assert found["booted"] == "b"
