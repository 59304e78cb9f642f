"""Starting programs: time limits, missing ones, exit codes, and never a shell."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from core.errors import CommandFailed
from core.run import run, started


def test_what_it_leaves() -> None:
    done = run("sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (done.code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert 0 < done.seconds < 10


def test_a_failure_shows_the_command_and_its_last_words() -> None:
    with pytest.raises(CommandFailed) as caught:
        run("sh", "-c", "for i in $(seq 100); do echo line $i >&2; done; exit 4")
    assert caught.value.message == "sh failed with exit code 4"
    assert caught.value.what[0].startswith("sh -c 'for i")
    assert caught.value.what[-1] == "line 100" and len(caught.value.what) == 13


def test_a_missing_program() -> None:
    with pytest.raises(CommandFailed, match="no-such-program is not installed"):
        run("no-such-program", "x")


def test_programs_are_found_on_the_fixed_path_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "acme"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CommandFailed, match="not installed"):
        run("acme")
    assert run(program).code == 0


@pytest.mark.parametrize("word", ["$HOME", "`id`", "*", "a b", "; exit 9", "'", '"', "", "-n", "ü"])
def test_no_shell_touches_the_words(word: str) -> None:
    assert run("printf", "%s", "--", word).stdout == f"--{word}"


def test_a_time_limit_ends_the_children_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    begun = time.monotonic()
    with pytest.raises(CommandFailed, match=r"did not end within 0\.3 s"):
        run("sh", "-c", f"sleep 60 & echo $! > {note}; wait", timeout=0.3)
    assert time.monotonic() - begun < 10
    pid = int(note.read_text())
    deadline = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_ended_by_a_signal() -> None:
    with pytest.raises(CommandFailed, match="signal"):
        run("sh", "-c", "kill -KILL $$", check=False)


def test_the_environment_is_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    seen = dict(line.split("=", 1) for line in run("env", env={"MORE": "1"}).stdout.splitlines())
    assert seen["MORE"] == "1" and seen["TZ"] == "UTC" and "SECRET" not in seen


def test_input_lines_and_directory(tmp_path: Path) -> None:
    lines: list[str] = []
    done = run("cat", input="a\nb\n", on_line=lines.append)
    assert lines == ["a", "b"] and done.stdout == "a\nb\n"
    assert run("pwd", cwd=tmp_path).stdout.strip() == str(tmp_path)


def test_bytes_that_are_no_text_and_no_terminal() -> None:
    assert run("printf", r"\377x").stdout == "\ufffdx"
    assert run("sh", "-c", "test -t 1 || test -t 0", check=False).code == 1


def test_what_is_no_program_at_all(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(b"\x00\x01\x02")
    odd.chmod(0o755)
    with pytest.raises(CommandFailed):
        run(odd)
    with pytest.raises(CommandFailed):
        run(tmp_path)


def test_a_program_that_goes_on_beside_us(tmp_path: Path) -> None:
    with started("sh", "-c", "echo begun; sleep 600", log_file=tmp_path / "log") as program:
        while "begun" not in (tmp_path / "log").read_text():
            time.sleep(0.01)
        assert program.running
        pid = program.pid
    assert not program.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_one_that_does_not_listen_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 600 & echo $! > child; while :; do sleep 1; done"
    with started("sh", "-c", f"cd {tmp_path}; {script}", log_file=tmp_path / "log") as program:
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            time.sleep(0.01)
        child = int((tmp_path / "child").read_text())
        program.end(wait=0.1)
        assert not program.running
    until = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text()


def test_a_missing_one_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(CommandFailed, match="no-such-program is not installed"),
        started("no-such-program", log_file=tmp_path / "log"),
    ):
        pass
