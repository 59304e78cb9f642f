"""Command lines that make no sense, node.toml as people break it, output that nobody reads, users who are not root."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.clilab import UPDATER, cli, contents, program, refused, well_told, well_told_json
from tests.updater.lab import Lab

#: Verbs that read node.toml, with what they need.
VERBS = ("status", "stage X", "plan X", "activate", "confirm", "rollback", "resume", "abort", "history")

#: What every node.toml has.
BARE = (
    'name = "n"\ncompatible = "x"\ndata = "/d"\nslots = {a = {device = "/a"}, b = {device = "/b"}}\n'
    'boot = {esp = "/efi"}\ntrust = {keys = ["/k"]}\n'
)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "status --nonsense",
        "status --format xml",
        "status superfluous",
        "stage",
        "stage X Y",
        "stage X --rate-limit fast",
        "stage X --rate-limit -5",
        "stage X --rate-limit 1.5M",
        "stage X --rate-limit 5T",
        "stage X --rate-limit ²",
        "stage X --rate-limit k",
        "activate --window 25:00-26:00",
        "activate --window 2-4",
        "activate --window 02:00-02:00",
        "activate --window",
        "status --config",
        "sandbox boot --slot c",
        "bundle",
        "bundle build",
    ],
)
def test_a_command_line_that_makes_no_sense(line: str, node: Path) -> None:
    held = contents(node)
    ended = cli(node, *shlex.split(line))
    assert ended.code == 2 and ("Usage: updater" in ended.out + ended.err or ended.err.startswith("Error: ")), ended
    assert "Traceback" not in ended.err
    assert contents(node) == held


def test_verbs_that_have_nothing_to_do(node: Path) -> None:
    refused(node, 34, "resume")
    refused(node, 34, "abort")
    refused(node, 34, "activate")
    refused(node, 35, "rollback")
    refused(node, 1, "history", "2026-01-01-a")
    well_told(cli(node, "activate", "--dry-run"), 34)
    well_told(cli(node, "rollback", "--dry-run"), 35)


def test_a_window_that_is_closed(lab: Lab, node: Path) -> None:
    from datetime import datetime, timedelta

    assert cli(node, "stage", lab.bundle("MR96-1")).code == 0
    later = datetime.now() + timedelta(hours=3)
    refused(node, 36, "activate", "--window", f"{later:%H:%M}-{later + timedelta(hours=1):%H:%M}")


def test_nobody_waits_for_a_window_to_be_refused_then(node: Path) -> None:
    from datetime import datetime, timedelta

    later = datetime.now() + timedelta(hours=3)
    window = f"{later:%H:%M}-{later + timedelta(hours=1):%H:%M}"
    refused(node, 34, "activate", "--window", window, "--wait")


def test_a_sandbox_that_cannot_be_made(lab: Lab, place: Path, node: Path) -> None:
    full = node.parent
    for code, words in (
        (34, (full, "--key", lab.public)),
        (34, (lab.public, "--key", lab.public)),
        (10, (place / "new", "--key", place / "none")),
        (10, (place / "new", "--key", lab.bundle("MR96-1"))),
    ):
        well_told(cli(None, "sandbox", "create", *words), code)
    for words in (("--slot-size", "-5"), ("--slot-size", "many"), ("--release", "newest")):
        ended = cli(None, "sandbox", "create", place / "new", "--key", lab.public, *words)
        assert ended.code == 2 and "Traceback" not in ended.err, ended
    assert not (place / "new").exists()


def test_keys_and_verify(lab: Lab, place: Path) -> None:
    assert cli(None, "bundle", "key", place / "new.pem").code == 0
    well_told(cli(None, "bundle", "key", place / "new.pem"), 10)
    well_told(cli(None, "bundle", "key", place / "none" / "new.pem"), 10)
    bundle = lab.bundle("MR96-1")
    well_told(cli(None, "bundle", "verify", bundle, "--key", place / "none"), 10)
    well_told(cli(None, "bundle", "verify", bundle, "--key", lab.public, "--threshold", "2"), 10)
    damaged = place / "damaged.bundle"
    damaged.write_bytes(bundle.read_bytes()[:-50] + bytes(50))
    well_told(cli(None, "bundle", "verify", damaged, "--key", lab.public), 20, looked=True)
    well_told(cli(None, "bundle", "verify", bundle, "--key", place / "new.pub"), 21, looked=True)
    well_told(cli(None, "bundle", "inspect", place / "none"), 25, looked=True)


# -- node.toml


def test_no_node_toml(place: Path) -> None:
    for line in VERBS:
        ended = cli(place / "none.toml", *shlex.split(line))
        well_told(ended, 10)
    assert "updater init" in well_told_json(cli(place / "none.toml", "status", "--json"), 10)["next"][0]
    well_told(cli(place, "status"), 10)
    assert cli(place / "none.toml", "doctor").code == 11
    assert cli(place / "none.toml", "status", "--format", "nagios").code == 3


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("name = ", ["Invalid value"]),
        ("a = " + 3000 * "[", [""]),
        ("\0", [""]),
        ("", ["name: missing", "compatible: missing", "data: missing", "slots: missing", "boot: missing"]),
        (
            'name = 5\ncompatible = "x"\ndata = "relative"\ncolour = "red"\nmachine = "tank"\nstage = 5\n'
            '[slots.a]\ndevice = "/a"\n[slots.b]\n[boot]\nesp = "/efi"\ntries = 0\n[trust]\nkeys = "release.pub"\n'
            '[[health.checks]]\nname = "x"\nkind = "smell"\n[policy]\nmax_jump = "many"\n',
            [
                "name: expected str",
                "colour: unknown key",
                "machine: ",
                "stage: expected a table",
                "slots.b.device: missing",
                "boot.tries: must be from 1 to 9",
                "trust.keys: expected a list",
                "health.checks[0]",
                "policy.max_jump: expected int",
            ],
        ),
        (
            'name = "n"\ncompatible = "x"\ndata = "/d"\n[slots]\na.device = "/a"\nb.device = "/b"\n'
            '[boot]\nesp = "efi"\n[trust]\nkeys = ["k"]\n[hooks]\ndirectory = "h"\n[stage]\nrate_limit = -1\n'
            '[health]\nchecks = [{name = "x", kind = "tcp", port = 1, timeout = -1}]\n[migrations]\ndeadline = nan\n'
            '[rehearsal]\nkeys = ["k"]\n',
            [
                "boot.esp: efi must be absolute",
                "trust.keys: k must be absolute",
                "hooks.directory: h must be absolute",
                "stage.rate_limit: must not be negative",
                "health.checks[0].timeout: must be more than 0 seconds",
                "migrations.deadline: must be more than 0 seconds",
                "rehearsal.keys: k must be absolute",
            ],
        ),
        (BARE + "[health]\ninterval = -1\n", ["health.interval: must be more than 0 seconds"]),
        (BARE + "[health]\ndeadline = nan\n", ["health.deadline: must be a number of seconds"]),
        (BARE + "[health]\ndeadline = inf\n", ["health.deadline: must be a number of seconds"]),
        (BARE + '[health]\ndrop_in = "d"\n', ["health.drop_in: d must be absolute"]),
        (BARE + "[hooks]\ndeadline = 0\n", ["hooks.deadline: must be more than 0 seconds"]),
        (
            BARE + '[databases.x]\nengine = "mariadb"\ndatabase = "x"\nhost = "h"\ntls_ca = "ca"\n',
            ["databases.x.tls_ca: ca must be absolute"],
        ),
        (
            'name = "n"\ncompatible = "x"\ndata = "/d"\n"\\u001b[2J\\nx" = 1\n[slots.a]\ndevice = "/a"\n'
            '[slots.b]\ndevice = "/b"\n[boot]\nesp = "/efi"\n[trust]\nkeys = ["/k"]\n',
            ["\\x1b[2J\\nx: unknown key"],
        ),
    ],
)
def test_every_fault_of_node_toml_is_told_at_once(text: str, faults: list[str], node: Path) -> None:
    node.write_text(text)
    error = refused(node, 10, "status")
    for fault in faults:
        assert any(fault in line for line in error["what"]), (fault, error["what"])


def test_node_toml_that_is_no_text(node: Path) -> None:
    node.write_bytes(b"\xff\xfe")
    refused(node, 10, "status")


def test_trusted_keys_that_are_not_there(lab: Lab, node: Path) -> None:
    for key in (node.parent / "keys").iterdir():
        key.write_text("no key\n")
        refused(node, 10, "stage", lab.bundle("MR96-1"))
        key.unlink()
        refused(node, 10, "stage", lab.bundle("MR96-1"))


# -- rights


@pytest.fixture
def public_place() -> Iterator[Path]:
    """A directory that every user can look into."""
    home = Path(tempfile.mkdtemp(prefix="updater-public-", dir="/tmp"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home)


def nobody() -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


@pytest.mark.root
def test_not_root(lab: Lab, public_place: Path) -> None:
    node = lab.sandbox(public_place / "node")
    bundle = public_place / "release.bundle"
    shutil.copyfile(lab.bundle("MR96-1"), bundle)
    held = contents(node)
    for line in (f"stage {bundle}", f"plan {bundle}", "activate", "rollback", "confirm", "resume", "abort"):
        plain = cli(node, *shlex.split(line), before=nobody)
        well_told(plain, 12)
    well_told_json(cli(node, "stage", bundle, "--json", before=nobody), 12)
    assert cli(node, "status", before=nobody).code == 0
    assert cli(node, "history", before=nobody).code == 0
    assert contents(node) == held

    (node.parent / "data").chmod(0o700)
    well_told(cli(node, "status", before=nobody), 12)
    well_told(cli(node, "stage", bundle, before=nobody), 12)


# -- output


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)


def test_nobody_reads_the_output(lab: Lab, node: Path) -> None:
    updater = f"{UPDATER} --config {node}"
    for line in ("history", "status", "--help"):
        ended = shell(f"{updater} {line} | head -c 0; exit ${{PIPESTATUS[0]}}")
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", ""), ended
    ended = shell(f"{updater} stage {lab.bundle('MR96-1')} | head -c 0; exit ${{PIPESTATUS[0]}}")
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    found = json.loads(program(node, "status", "--json").out)
    assert [slot["state"] for slot in found["slots"]] == ["good", "staged"]  # nobody watched, and it went on


def test_the_output_has_no_room(node: Path) -> None:
    ended = shell(f"{UPDATER} --config {node} status > /dev/full")
    assert ended.returncode == 1 and ended.stderr.startswith("error: ") and "Traceback" not in ended.stderr, ended
