"""The lab itself: hosts hear each other, can be cut off, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.zdu.lab import HOME, OWN, Host, Lab, sweep, until

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("sites")]


def namespaces(name: str) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(f"{name}-")]


def answers(asking: Host, address: str) -> bool:
    script = f"import socket; socket.create_connection(('{address}', 7000), 0.5)"
    return not subprocess.run(asking.command([sys.executable, "-c", script]), capture_output=True).returncode


LISTEN = "import socket, time; s = socket.create_server(('', 7000)); time.sleep(60)"


def test_hosts_hear_each_other_until_they_are_cut_off() -> None:
    with Lab() as lab:
        a, b = lab.host("a", "10.9.0.1/24", "10.8.0.1/24"), lab.host("b", "10.9.0.2/24")
        c = lab.host("c", "10.8.0.3/24")
        for host in (a, b, c):
            host.start("python3", "-c", LISTEN)
        until(lambda: answers(a, b.address) and answers(a, c.address), "a reaches both networks")
        assert not answers(b, c.address), "there is no way between the networks"
        b.cut()
        assert not answers(a, b.address)
        b.join()
        until(lambda: answers(a, b.address), "it is back")
        with b.inside():
            assert "10.9.0.2" in subprocess.run(["ip", "addr"], capture_output=True, text=True, check=True).stdout
        assert "10.9.0.2" not in subprocess.run(["ip", "addr"], capture_output=True, text=True, check=True).stdout


def test_each_host_has_files_of_its_own(tmp_path: Path) -> None:
    with Lab() as lab:
        a, b = (lab.host(name, f"10.9.0.{n}/24", private=[tmp_path]) for n, name in enumerate("ab", 1))
        for host in (a, b):
            host.shell().write(OWN / "name", host.name.encode())
            host.run("sh", "-c", f"echo {host.name} > {tmp_path}/name")
        assert [host.run("cat", OWN / "name") for host in (a, b)] == ["a", "b"]
        assert [host.run("cat", tmp_path / "name") for host in (a, b)] == ["a\n", "b\n"]
        assert list(tmp_path.iterdir()) == []
        assert a.shell().run(["sh", "-c", "cat; exit 3"], input="said").code == 3
        assert not a.shell().exists(OWN / "other")
        directory = lab.directory
    assert not directory.exists()


def test_nothing_is_left_when_a_test_fails() -> None:
    pids: list[int] = []
    with pytest.raises(ZeroDivisionError), Lab() as lab:
        host = lab.host("a", "10.9.0.1/24")
        # One that does not listen to SIGTERM, and has a child that nobody knows of.
        process = host.start("sh", "-c", "trap '' TERM; sleep 60 & while :; do sleep 60; done")
        until(lambda: len(host.pids()) >= 3, "all run")
        pids = host.pids()
        raise ZeroDivisionError
    assert not process.running
    assert not namespaces(lab.name)
    until(lambda: not [pid for pid in pids if alive(pid)], "no process is left")


KILLED = """
import os, signal, sys
from tests.zdu.lab import Lab
lab = Lab().__enter__()
host = lab.host("a", "10.9.0.1/24")
process = host.start("sleep", "60")
print(lab.name, process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_left_goes_with_the_next_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=30
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    name, pid = done.stdout.split()
    with Lab() as living:
        host = living.host("a", "10.9.0.1/24")
        process = host.start("sleep", "60")
        assert not namespaces(name)
        assert not (HOME / name).exists()
        until(lambda: not alive(int(pid)), "its process is gone")
        sweep()
        assert process.running, "one that lives is left alone"
        assert namespaces(living.name)


def alive(pid: int) -> bool:
    """Does it run (and is not only dead without anybody having asked for its end)?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_alive() -> None:
    assert alive(os.getpid())
