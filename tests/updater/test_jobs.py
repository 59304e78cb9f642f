"""Verbs that run detached on a sandbox: they outlive whoever asked, run once, say how they ended, and obey fences."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core import faults
from core import run as run_
from core.errors import FencedOff, NotReady, WrongState
from core.journal import Journal
from tests.updater.lab import Lab
from updater import jobs
from updater.job_files import KEPT, Asked, Jobs, jobs_of
from updater.jobs import JobState
from updater.node import open_node
from updater.node_toml import load_node

MAIN = "from updater.cli.main import main; main()"


@dataclass(frozen=True)
class Sandbox:
    """A sandbox node, and the command line on it."""

    config: Path

    @property
    def data(self) -> Path:
        return load_node(self.config).data

    @property
    def files(self) -> Jobs:
        return jobs_of(self.data)

    def updater(self, *words: object, code: int = 0) -> Any:
        """Run it with --json; the last line of what it printed."""
        argv = [sys.executable, "-P", "-c", MAIN, "--config", str(self.config), "--json", *map(str, words)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else None

    def start(self, job: str, *verb: object, fence: int = 1, code: int = 0) -> Any:
        return self.updater("job", "start", "--id", job, "--fence", fence, *verb, code=code)

    def job(self, job: str, since: int = 0, *, wait: float = 0) -> Any:
        return self.updater("job", "status", job, "--since", since, "--wait", wait)

    def ended(self, job: str) -> Any:
        """The job when it has ended."""
        until(lambda: not self.files.lives(job))
        return self.job(job)

    def slow(self, seconds: float) -> Path:
        """A stage takes so much longer, or until there is a file `go`; the file returned appears when it waits."""
        mark = self.config.parent / "waiting"
        hook = self.config.parent / "hooks" / "before-stage.d" / "10-wait"
        hook.parent.mkdir(parents=True, exist_ok=True)
        go = self.config.parent / "go"
        tries = int(seconds * 20)
        wait = f"n=0; while [ $n -lt {tries} ] && [ ! -e {go} ]; do sleep 0.05; n=$((n + 1)); done"
        hook.write_text(f"#!/bin/sh\necho $$ >> {mark}\n{wait}\n")
        hook.chmod(0o755)
        return mark


def until(look: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def holder(files: Jobs, job: str) -> int:
    """The process that holds the lock of a job."""
    inode = files.directory.joinpath(f"{job}.lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[-3].split(":")[-1] == str(inode):
            return int(words[-4])
    raise AssertionError(f"nobody holds {job}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.create(tmp_path_factory.mktemp("releases"))


@pytest.fixture
def node(lab: Lab, tmp_path: Path) -> Sandbox:
    return Sandbox(lab.sandbox(tmp_path / "node"))


def test_a_job_finds_the_program_where_its_launcher_did(node: Sandbox, lab: Lab) -> None:
    """An interpreter that knows nothing of us, and a launcher that brings it to our modules, as on a node."""
    launcher = f"import sys; sys.path[:] = {sys.path!r}; {MAIN}"
    words = ["job", "start", "--id", "r1", "--fence", "1", "plan", str(lab.bundle("MR96-1"))]
    argv = [sys._base_executable, "-I", "-c", launcher, "--config", str(node.config), "--json", *words]  # type: ignore[attr-defined]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.ended("r1")["state"] == "done"


def test_a_verb_runs_detached_and_says_how_it_ended(node: Sandbox, lab: Lab) -> None:
    started = node.start("r1.stage", "stage", lab.bundle("MR96-1"), "--rate-limit", "0")
    assert started["state"] in ("running", "done")
    assert started["began"]
    found = node.ended("r1.stage")
    assert (found["state"], found["exit_code"], found["why"]) == ("done", 0, "")
    assert found["result"]["text"] == "MR96-1 is staged in slot b"
    assert found["run"]["verb"] == "stage"
    assert found["run"]["state"] == "done"
    assert {"seal", "write"} <= {event.get("step") for event in found["events"]}
    assert found["verb"] == ["stage", str(lab.bundle("MR96-1")), "--rate-limit", "0"]
    assert not found["rebooted"]


def test_events_come_from_an_offset_on(node: Sandbox, lab: Lab) -> None:
    node.start("s", "stage", lab.bundle("MR96-1"))
    whole = node.ended("s")
    again = node.job("s", whole["offset"])
    assert (again["events"], again["offset"], again["more"]) == ([], whole["offset"], False)
    raw = (node.data / "jobs" / "s.jsonl").read_bytes()
    first = raw.index(b"\n") + 1
    assert node.job("s", first)["events"] == whole["events"][1:]
    with (node.data / "jobs" / "s.jsonl").open("ab") as stream:
        stream.write(b'{"kind":"no')  # a line that is being written, or was when the power failed
    assert node.job("s", whole["offset"])["events"] == []


def test_news_are_waited_for(node: Sandbox, lab: Lab) -> None:
    waits = node.slow(60)
    node.start("s1", "stage", lab.bundle("MR96-1"))
    until(waits.exists)
    began = time.monotonic()
    quiet = node.job("s1", node.job("s1")["offset"], wait=1)
    assert (quiet["state"], quiet["events"]) == ("running", [])
    assert time.monotonic() - began >= 1
    threading.Timer(1, (node.config.parent / "go").touch).start()
    told = node.job("s1", quiet["offset"], wait=60)
    assert told["events"] or told["state"] == "done"
    assert node.ended("s1")["state"] == "done"
    assert node.job("s1", wait=60)["state"] == "done"  # nothing to wait for


def test_the_same_name_is_no_second_run(node: Sandbox, lab: Lab) -> None:
    mark = node.slow(60)
    bundle = lab.bundle("MR96-1")
    for _ in range(3):
        assert node.start("s", "stage", bundle)["state"] == "running"
    (node.config.parent / "go").touch()
    assert node.ended("s")["state"] == "done"
    assert node.start("s", "stage", bundle)["state"] == "done"
    assert len(mark.read_text().split()) == 1
    assert len(node.updater("history")) == 1
    error = node.start("s", "activate", code=WrongState.exit_code)["error"]
    assert "another one" in error["message"]


def test_many_at_once_under_one_name_begin_once(node: Sandbox, lab: Lab) -> None:
    mark = node.slow(60)
    argv = [sys.executable, "-P", "-c", MAIN, "--config", str(node.config), "--json", "job", "start"]
    argv += ["--id", "s", "--fence", "1", "--", "stage", str(lab.bundle("MR96-1"))]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    for process in running:
        assert process.stdout is not None
        process.stdout.close()
    (node.config.parent / "go").touch()
    node.ended("s")
    assert len(mark.read_text().split()) == 1


def test_an_error_is_told_as_the_verb_told_it(node: Sandbox) -> None:
    node.start("a", "activate")
    found = node.ended("a")
    assert (found["state"], found["exit_code"]) == ("failed", WrongState.exit_code)
    assert found["error"]["kind"] == "wrong state"
    assert found["why"] == found["error"]["message"]
    assert found["run"] is None


def test_a_verb_that_makes_no_sense_fails_as_a_job(node: Sandbox) -> None:
    node.start("a", "stage", "--no-such-option")
    found = node.ended("a")
    assert (found["state"], found["exit_code"]) == ("failed", 2)
    assert any("no-such-option" in line for line in found["error"]["what"]), found


def test_activation_over_the_reboot(node: Sandbox, lab: Lab) -> None:
    node.start("s", "stage", lab.bundle("MR96-1"))
    node.ended("s")
    node.start("a", "activate", fence=2)
    found = node.ended("a")
    assert (found["state"], found["rebooted"]) == ("done", True)
    assert found["result"]["state"] == "done"
    assert (found["run"]["verb"], found["run"]["state"]) == ("activate", "done")
    assert node.updater("status")["booted"] == "b"


def test_a_process_that_is_gone_is_said_so(node: Sandbox, lab: Lab) -> None:
    mark = node.slow(30)
    node.start("s", "stage", lab.bundle("MR96-1"))
    until(mark.exists)
    os.kill(holder(node.files, "s"), signal.SIGKILL)
    os.kill(int(mark.read_text()), signal.SIGKILL)  # its hook
    found = node.ended("s")
    assert (found["state"], found["exit_code"], found["began"]) == ("vanished", None, True)
    assert "its process is gone" in found["why"]
    assert (found["run"]["verb"], found["run"]["state"]) == ("stage", "open")
    assert node.start("s", "stage", lab.bundle("MR96-1"))["state"] == "vanished", "no second run under this name"
    node.slow(0)
    node.start("s.2", "stage", lab.bundle("MR96-1"))
    assert node.ended("s.2")["state"] == "done"


def test_a_job_that_is_terminated_says_so(node: Sandbox, lab: Lab) -> None:
    mark = node.slow(30)
    node.start("s", "stage", lab.bundle("MR96-1"))
    until(mark.exists)
    os.kill(holder(node.files, "s"), signal.SIGTERM)
    found = node.ended("s")
    assert (found["state"], found["exit_code"], found["error"]["kind"]) == ("failed", 143, "terminated")


def test_a_power_cut_before_the_end_is_seen_after_the_boot(node: Sandbox, lab: Lab) -> None:
    mark = node.slow(30)
    node.start("s", "stage", lab.bundle("MR96-1"))
    until(mark.exists)
    os.kill(holder(node.files, "s"), signal.SIGKILL)
    os.kill(int(mark.read_text()), signal.SIGKILL)
    machine = node.data / "sandbox-machine.json"
    state = json.loads(machine.read_text())
    machine.write_text(json.dumps(state | {"boot": state["boot"] + 1}))
    found = node.ended("s")
    assert (found["state"], found["rebooted"]) == ("vanished", True)
    assert "the node has booted since" in found["why"]
    assert found["run"]["state"] == "open"


def test_it_belongs_to_no_terminal(node: Sandbox, lab: Lab) -> None:
    mark = node.slow(60)
    node.start("s", "stage", lab.bundle("MR96-1"))
    until(mark.exists)
    pid = holder(node.files, "s")
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    session, terminal = int(stat[3]), int(stat[4])
    assert session != os.getsid(0)
    assert terminal == 0
    streams = [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)]
    assert streams == ["/dev/null", str(node.data / "jobs" / "s.jsonl"), str(node.data / "jobs" / "s.log")]
    (node.config.parent / "go").touch()
    node.ended("s")


def test_passwords_in_urls_are_for_nobody_else(node: Sandbox) -> None:
    node.start("p", "plan", "http://bob:s3cret@127.0.0.1:9/x.bundle", code=0)
    node.ended("p")
    directory = node.data / "jobs"
    assert (directory.stat().st_mode & 0o777, (directory / "p.json").stat().st_mode & 0o777) == (0o700, 0o600)
    told = [node.job("p"), node.updater("job", "list")]
    told.append(node.start("p", "stage", "--x=https://bob:s3cret@h/x.bundle?token=s3cret", code=WrongState.exit_code))
    assert "s3cret" not in json.dumps(told)
    assert told[0]["verb"] == ["plan", "http://127.0.0.1:9/x.bundle"]


def test_a_directory_that_all_could_read_is_closed(node: Sandbox) -> None:
    node.files.directory.mkdir(mode=0o755)
    with node.files.one_at_a_time():
        assert node.files.directory.stat().st_mode & 0o777 == 0o700


def test_under_systemd_relative_paths_are_those_of_the_asker(
    node: Sandbox, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services begin in the root directory, unless they are to begin in that of whoever starts them."""
    tool = tmp_path / "bin" / "systemd-run"
    tool.parent.mkdir()
    tool.write_text(
        '#!/bin/sh\nwhere=/\nwhile [ "$1" != -- ]; do [ "$1" = --same-dir ] && where=.; shift; done\nshift\n'
        'cd "$where" && exec setsid --fork "$@" </dev/null >/dev/null 2>&1\n'
    )
    tool.chmod(0o755)
    monkeypatch.setitem(run_.ENVIRONMENT, "PATH", f"{tool.parent}:{run_.ENVIRONMENT['PATH']}")
    monkeypatch.setattr(jobs, "SYSTEMD", tmp_path)
    bundle = lab.bundle("MR96-1")
    monkeypatch.chdir(bundle.parent)
    with open_node(node.config) as opened:
        jobs.start(opened, "s", 1, ("stage", bundle.name))
    assert node.ended("s")["state"] == "done"


# -- fences


def test_a_stale_controller_is_refused(node: Sandbox, lab: Lab) -> None:
    bundle = lab.bundle("MR96-1")
    node.start("a", "plan", bundle, fence=3)
    node.ended("a")
    error = node.start("b", "stage", bundle, fence=2, code=FencedOff.exit_code)["error"]
    assert error["kind"] == "fenced off"
    assert "its token is 3, that of this one is 2" in error["message"]
    assert error["state"] == "nothing was started"
    node.start("a", "plan", bundle, fence=2, code=FencedOff.exit_code)
    assert node.files.ids() == ["a"]
    node.start("c", "plan", bundle, fence=3)
    node.ended("c")
    assert node.updater("job", "fence") == {"token": 3, "job": "a"}
    node.updater("job", "fence", "--forget")
    node.start("d", "plan", bundle, fence=1)
    node.ended("d")
    assert node.updater("job", "fence") == {"token": 1, "job": "d"}


def test_the_fence_outlives_the_boot(node: Sandbox, lab: Lab) -> None:
    node.start("s", "stage", lab.bundle("MR96-1"), fence=5)
    node.ended("s")
    node.start("a", "activate", fence=5)
    node.ended("a")
    node.start("r", "rollback", fence=4, code=FencedOff.exit_code)


# -- what is refused, and what is found


@pytest.mark.parametrize(
    ("name", "fence", "verb"),
    [
        ("../x", 1, ["plan", "x"]),
        ("", 1, ["plan", "x"]),
        ("x" * 121, 1, ["plan", "x"]),
        ("a", 0, ["plan", "x"]),
        ("a", 1, ["job", "list"]),
        ("a", 1, ["sandbox", "boot"]),
        ("a", 1, ["--", "stage", "x", "--config", "/other"]),
        ("a", 1, ["--", "stage", "x", "--config=/other"]),
    ],
)
def test_what_is_no_job(node: Sandbox, name: str, fence: int, verb: list[str]) -> None:
    with open_node(node.config) as opened, pytest.raises(WrongState):
        jobs.start(opened, name, fence, tuple(word for word in verb if word != "--"))
    assert node.files.ids() == []


def test_no_such_job(node: Sandbox) -> None:
    with open_node(node.config) as opened:
        for name in ("none", "../journal", ""):
            with pytest.raises(WrongState, match="there is no job"):
                jobs.status(opened, name)


def test_a_damaged_file_is_said_so(node: Sandbox) -> None:
    node.start("a", "activate")
    node.ended("a")
    (node.data / "jobs" / "a.json").write_text('{"id": 1}')
    with open_node(node.config) as opened, pytest.raises(NotReady, match=r"a\.json cannot be read"):
        jobs.status(opened, "a")


def test_keys_of_a_newer_agent_are_passed_over(node: Sandbox) -> None:
    node.start("a", "activate")
    node.ended("a")
    file = node.data / "jobs" / "a.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"priority": 7}))
    assert node.job("a")["state"] == "failed"


def test_only_the_newest_are_kept(node: Sandbox) -> None:
    files = node.files
    files.directory.mkdir()
    for number in range(KEPT + 5):
        files.write(Asked(id=f"j{number:03}", verb=("plan",), fence=1, at="2026-11-21T00:00:00+00:00", boot="x"))
    files.forget_old()
    assert files.ids() == [f"j{number:03}" for number in range(5, KEPT + 5)]
    assert [path.suffix for path in files.directory.iterdir()] == [".json"] * KEPT


@pytest.mark.parametrize("place", ["journal:fact:fence", "job:asked", "job:began", "job:ended"])
def test_a_crash_of_the_starter_or_the_runner_anywhere(node: Sandbox, place: str) -> None:
    """What was begun is known; what never began begins when it is asked for again."""

    class CrashError(BaseException):
        pass

    def crash(name: str) -> None:
        if name == place:
            raise CrashError

    files = node.files
    faults.arm(crash)
    try:
        with open_node(node.config) as opened, pytest.raises(CrashError):
            if place in ("job:began", "job:ended"):
                with files.one_at_a_time():
                    files.write(Asked(id="a", verb=("activate",), fence=1, at="2026-11-21T00:00:00+00:00", boot="x"))
                with files.claimed("a") as ours:
                    assert ours
                    files.finish("a", 0)
            else:
                jobs.start(opened, "a", 1, ("activate",))
    finally:
        faults.arm(None)
    again = node.start("a", "activate")
    if place in ("job:began", "job:ended"):
        assert again["state"] == "vanished"
    else:
        assert node.ended("a")["state"] == JobState.FAILED
    with Journal.open(node.data / "journal.sqlite") as journal:
        assert journal.fact(jobs.FENCE)["token"] == 1


def test_for_people(node: Sandbox, lab: Lab) -> None:
    node.start("r1.stage", "stage", lab.bundle("MR96-1"))
    node.ended("r1.stage")
    argv = [sys.executable, "-P", "-c", MAIN, "--config", str(node.config), "job"]
    shown = subprocess.run([*argv, "status", "r1.stage"], capture_output=True, text=True, check=True).stdout
    assert "r1.stage" in shown
    assert "MR96-1 is staged in slot b" in shown
    assert "r1.stage" in subprocess.run([*argv, "list"], capture_output=True, text=True, check=True).stdout
    assert "token 1" in subprocess.run([*argv, "fence"], capture_output=True, text=True, check=True).stdout
