"""Nodes that are not fit: slots in use or gone, boot environments, damaged journals, hooks, two at once."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from core import faults
from tests.cli.clilab import UPDATER, cli, contents, hurried, refused, runs, slot, status, well_told, well_told_json
from tests.partitions.conftest import LoopMaker
from tests.updater.lab import IMAGE, Lab, add_hooks, do

FORMS = (("status",), ("status", "--json"), ("status", "--format", "nagios"), ("status", "--format", "prometheus"))


def environment(node: Path) -> Path:
    found = [path for path in (node.parent / "esp").rglob("*") if path.is_file() and path.stat().st_size == 1024]
    return next(path for path in found if path.read_bytes().startswith(b"# GRUB Environment"))


# -- slots


@pytest.mark.root
def test_a_slot_in_use(lab: Lab, node: Path, loop: LoopMaker, place: Path) -> None:
    image = node.parent / "slots/b.img"
    held = lab.sandbox(place / "other")
    do(held, "stage", lab.bundle("MR95-2"))
    image.write_bytes((held.parent / "slots/b.img").read_bytes())
    device = loop(file=image, direct=False)
    assert any(str(device) in line for line in refused(node, 11, "stage", lab.bundle("MR96-1"))["what"])

    node.write_text(node.read_text().replace(str(image), str(device)))
    point = place / "mounted"
    point.mkdir()
    subprocess.run(["mount", "-o", "ro", str(device), str(point)], check=True)
    try:
        error = refused(node, 11, "stage", lab.bundle("MR96-1"), devices=[device])
        assert any(str(point) in line for line in error["what"])
    finally:
        subprocess.run(["umount", str(point)], check=True)
    assert cli(node, "stage", lab.bundle("MR96-1")).code == 0


def test_a_slot_that_is_not_there(lab: Lab, node: Path) -> None:
    (node.parent / "slots/b.img").unlink()
    refused(node, 30, "stage", lab.bundle("MR96-1"))
    assert cli(node, "doctor").code == 11
    (node.parent / "slots/b.img").mkdir()
    refused(node, 30, "stage", lab.bundle("MR96-1"))


@pytest.mark.root
def test_a_slot_that_is_the_running_root(lab: Lab, node: Path) -> None:
    """Planned only: a bug here must not cost the machine that tests."""
    root = subprocess.run(["findmnt", "-no", "SOURCE", "/"], capture_output=True, text=True, check=False).stdout.strip()
    if not Path(root).is_block_device():
        pytest.skip("the root of this machine is no block device")
    node.write_text(node.read_text().replace(str(node.parent / "slots/b.img"), root))
    held = contents(node)
    planned = cli(node, "plan", lab.bundle("MR96-1"))
    well_told(planned, 11)
    assert "mounted at /" in planned.err and contents(node) == held


def test_a_staged_slot_that_vanished(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    (node.parent / "slots/b.img").unlink()
    refused(node, 30, "activate")
    assert cli(node, "status").code == 0


@pytest.mark.root
def test_a_device_that_vanishes_in_mid_write(lab: Lab, node: Path, loop: LoopMaker, place: Path) -> None:
    """The disk shrinks under the writer, as when a cable goes; then it comes back."""
    backing = place / "disk"
    backing.write_bytes(bytes(IMAGE))
    device = loop(file=backing, direct=False)
    node.write_text(node.read_text().replace(str(node.parent / "slots/b.img"), str(device)))
    size = Path("/sys/class/block") / device.name / "size"
    seen: list[str] = []

    def pull(name: str) -> None:
        if name == "write:chunk" and not seen:
            seen.append(name)
            while size.read_text() != "8\n":  # another thread's write may have made it larger in between
                os.truncate(backing, 4096)
                subprocess.run(["losetup", "--set-capacity", str(device)], check=True)

    ended = cli(node, "stage", lab.bundle("MR96-1"), "--json", before=lambda: faults.arm(pull))
    error = well_told_json(ended, 30)
    assert any(str(device) in line for line in [error["message"], *error["what"]])
    assert slot(node, "b")["state"] == "bad" and status(node)["upgrade"]["state"] == "interrupted"
    well_told(cli(node, "resume"), 30)
    os.truncate(backing, IMAGE)
    subprocess.run(["losetup", "--set-capacity", str(device)], check=True)
    assert cli(node, "resume").code == 0
    assert slot(node, "b")["state"] == "staged"


# -- the boot environment


def no_environment(file: Path) -> None:
    file.unlink()


def no_block(file: Path) -> None:
    file.write_bytes(bytes(1024))


def foreign(file: Path) -> None:
    file.write_bytes(os.urandom(1024))


def short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1023])


def strange_values(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"a_state=good", b"a_state=fine"))


def no_variables(file: Path) -> None:
    file.write_bytes(b"# GRUB Environment Block\n".ljust(1024, b"#"))


@pytest.mark.parametrize("breakage", [no_environment, no_block, foreign, short, strange_values, no_variables])
def test_a_boot_environment_that_cannot_be_read(breakage: Callable[[Path], None], lab: Lab, node: Path) -> None:
    breakage(environment(node))
    refused(node, 31, "stage", lab.bundle("MR96-1"))
    for verb in ("activate", "rollback", "confirm"):
        refused(node, 31, verb)
    shown = status(node)
    assert shown["indicator"] == "CRITICAL" and shown["problems"] and not shown["way_back"]
    assert [cli(node, *form).code for form in FORMS] == [0, 0, 2, 0]


@pytest.mark.root
def test_a_boot_environment_that_cannot_be_written(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    esp = node.parent / "esp"
    subprocess.run(["mount", "--bind", str(esp), str(esp)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(esp)], check=True)
    try:
        refused(node, 31, "stage", lab.bundle("MR97-1"))
        refused(node, 31, "activate")
        assert cli(node, "status").code == 0
    finally:
        subprocess.run(["umount", str(esp)], check=True)


@pytest.mark.root
def test_a_sparse_boot_environment(lab: Lab, node: Path, tmp_path: Path) -> None:
    """On ext4, where holes can be seen: the loader could not write into it."""
    disk, point, file = tmp_path / "disk", node.parent / "esp", environment(node)
    kept = {path.relative_to(point): path.read_bytes() for path in point.rglob("*") if path.is_file()}
    with disk.open("wb") as out:
        out.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-b", "1024", str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(point)], check=True)
    try:
        for name, raw in kept.items():
            (point / name).parent.mkdir(parents=True, exist_ok=True)
            (point / name).write_bytes(raw)
        os.sync()
        assert cli(node, "plan", lab.bundle("MR96-1")).code == 0
        raw = file.read_bytes()
        with file.open("wb") as out:
            out.truncate(1024)
        assert raw != file.read_bytes()
        refused(node, 31, "stage", lab.bundle("MR96-1"))
    finally:
        subprocess.run(["umount", str(point)], check=True)


# -- the journal and the sandbox's own files


def test_a_journal_that_is_none(lab: Lab, node: Path) -> None:
    (node.parent / "data/journal.sqlite").write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    assert [cli(node, *form).code for form in FORMS] == [11, 11, 3, 11]
    refused(node, 11, "stage", lab.bundle("MR96-1"))
    assert cli(node, "doctor").code == 11
    for form in FORMS:
        ended = cli(node, *form)
        assert "Traceback" not in ended.err
        assert form[-1] != "nagios" or ended.out.startswith("UPDATER UNKNOWN - ")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE runs SET plan = '{'",
        "UPDATE runs SET plan = '[]'",
        "UPDATE runs SET state = 'sleepy'",
        "UPDATE runs SET started = 'yesterday'",
        "UPDATE runs SET plan = x'ff'",
        "UPDATE slots SET facts = 'null'",
        "UPDATE slots SET facts = '7'",
        "UPDATE steps SET facts = '', state = ''",
        "UPDATE facts SET value = '\"MR\"' WHERE key = 'data-release'",
        "DROP TABLE slots",
        "UPDATE journal SET oldest_reader = 99",
        "INSERT INTO journal VALUES (99)",
    ],
)
def test_a_journal_with_nonsense_in_it(statement: str, lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    do(node, "activate", by_hand=True)
    with sqlite3.connect(node.parent / "data/journal.sqlite") as database:
        database.execute("INSERT INTO facts VALUES ('data-release', '\"MR95-1\"') ON CONFLICT (key) DO NOTHING")
        database.execute(statement)
    database.close()
    held = contents(node)
    for words in (("status",), ("history",), ("stage", lab.bundle("MR97-1")), ("rollback",)):
        ended = cli(node, *words)
        assert "Traceback" not in ended.err and ended.code < 90, (words, ended)
    assert contents(node) == held


def test_a_journal_torn_anywhere_never_ends_in_a_traceback(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    file = node.parent / "data/journal.sqlite"
    raw = file.read_bytes()
    for at in range(0, len(raw), len(raw) // 6):
        file.write_bytes(raw[:at] + os.urandom(300) + raw[at + 300 :])
        for words in (("status",), ("history", "--json")):
            ended = cli(node, *words)
            assert "Traceback" not in ended.err and ended.code in (0, 1, 2, 3, 11), (at, words, ended)


def test_a_sandbox_that_forgot_which_slot_runs(lab: Lab, node: Path) -> None:
    for text in ("", '{"slot": "c", "boot": 1}', '{"slot": null, "boot": 1}'):
        (node.parent / "data/sandbox-machine.json").write_text(text)
        refused(node, 11, "stage", lab.bundle("MR96-1"))
        refused(node, 11, "activate")
        assert status(node)["indicator"] == "CRITICAL"


def test_no_data_directory(lab: Lab, node: Path) -> None:
    (node.parent / "data").rename(node.parent / "elsewhere")
    for verb in ("status", "stage X", "activate", "resume"):
        refused(node, 11, *verb.split())


# -- hooks


@pytest.mark.parametrize(("verb", "hook"), [("stage", "before-stage"), ("activate", "before-activate")])
@pytest.mark.parametrize("script", ["#!/bin/sh\necho not now >&2\nexit 3\n", "#!/bin/sh\nexec sleep 60\n", "no script"])
def test_a_hook_that_says_no(verb: str, hook: str, script: str, lab: Lab, node: Path) -> None:
    if verb == "activate":
        do(node, "stage", lab.bundle("MR96-1"))
    node.write_text(node.read_text().replace("[hooks]", "[hooks]\ndeadline = 0.3"))
    add_hooks(node.parent, (hook,), script)
    words = (verb, lab.bundle("MR96-1")) if verb == "stage" else (verb,)
    held, before = contents(node), runs(node)
    error = well_told_json(cli(node, *words, "--json"), 32)
    assert error["state"] == "nothing was changed" and "chmod -x" in error["next"][-1]
    well_told(cli(node, *words), 32)
    changed = {Path(name).name for name, digest in contents(node).items() if held.get(name) != digest}
    assert changed == {"journal.sqlite"}  # where it says that it failed
    assert runs(node) == [*before, f"{verb} failed", f"{verb} failed"]
    assert status(node)["upgrade"] is None


def test_an_after_hook_that_fails_stops_nothing(lab: Lab, node: Path) -> None:
    add_hooks(node.parent, ("after-stage",), "#!/bin/sh\nexit 1\n")
    ended = cli(node, "stage", lab.bundle("MR96-1"))
    assert ended.code == 0 and "failed" in ended.out


# -- what is open already


def test_two_at_once(lab: Lab, node: Path) -> None:
    first = lab.bundle("MR96-1")
    command = [str(UPDATER), "--config", str(node), "--json", "stage", str(first), "--rate-limit", "200k"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("step") == "write":
                break
        for words in (("stage", lab.bundle("MR97-1")), ("activate",), ("abort",), ("resume",), ("confirm",)):
            ended = cli(node, *words)
            well_told(ended, 13)
            assert f"held by stage {first}, process {process.pid}" in ended.err
        shown = status(node)
        assert shown["upgrade"]["state"] == "under way" and shown["upgrade"]["verb"] == "stage"
        process.terminate()
        assert process.stdout.read() and process.wait(60) == 143
    finally:
        process.kill()
        process.wait()
    assert cli(node, "stage", first, before=hurried).code == 0  # the same again goes on with it
    assert slot(node, "b")["release"] == "MR96-1" and runs(node) == ["stage done"]


def test_while_an_activation_waits_for_its_reboot(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    assert cli(node, "activate", "--no-reboot").code == 0
    assert status(node)["upgrade"]["state"] == "waits for the reboot"
    for words in (("stage", lab.bundle("MR97-1")), ("stage", lab.bundle("MR96-1")), ("activate",), ("rollback",)):
        assert "updater abort" in refused(node, 13, *words)["next"][1]
    assert cli(node, "abort").code == 0
    assert status(node)["next_boot"] == "a" and slot(node, "b")["state"] == "staged"
