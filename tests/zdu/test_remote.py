"""A server over real SSH: host keys, lines that break, files, time limits, sudo, hosts on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core.errors import CommandFailed, NotPermitted, SiteUnreachable
from core.ssh import Fault, Hop
from tests.zdu.sshlab import Sshd, sshd, until
from zdu.remote import _WRITE, RemoteShell, Unreachable

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="sshd wants root"),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    with sshd(tmp_path / "sshd") as running:
        yield running


@pytest.fixture
def shell(server: Sshd) -> Iterator[RemoteShell]:
    with RemoteShell("sip-01", server.reach()) as opened:
        yield opened


def test_words_stay_words(shell: RemoteShell) -> None:
    nasty = [
        "a b",
        "$(touch /tmp/never)",
        "'; echo x",
        '"',
        "\\",
        "*",
        "line\nbreak",
        "",
        "ä€😀",
        "-n",
        "~",
        "a;b&c|d>e",
    ]
    found = shell.run(["printf", "%s\\0", *nasty])
    assert found.code == 0
    assert found.stdout.split("\0")[:-1] == nasty


def test_exit_codes_outputs_and_input(shell: RemoteShell) -> None:
    found = shell.run(["sh", "-c", "cat; echo oops >&2; exit 7"], input="said\n")
    assert (found.code, found.stdout, found.stderr) == (7, "said\n", "oops\n")
    big = "x" * 300_000
    both = shell.run(["sh", "-c", "tee /dev/stderr"], input=big, timeout=30)
    assert both.stdout == big
    assert both.stderr.endswith("xxxx")


def test_surroundings_are_ours_and_not_those_of_a_login(shell: RemoteShell) -> None:
    found = shell.run(["sh", "-c", 'echo "$LC_ALL $TZ $PATH"']).stdout
    assert found.startswith("C.UTF-8 UTC /usr/sbin:")


def test_a_missing_program_is_said_so(shell: RemoteShell) -> None:
    with pytest.raises(CommandFailed, match="no-such-program is not installed on sip-01"):
        shell.run(["no-such-program", "--option"])


def test_what_overruns_is_ended_there(shell: RemoteShell, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    began = time.monotonic()
    with pytest.raises(CommandFailed, match=r"sh on sip-01 did not end within 0\.5 s") as told:
        shell.run(["sh", "-c", f"echo $$ > {mark}; exec sleep 60"], timeout=0.5)
    assert told.value.state == "it was ended there"
    assert time.monotonic() - began < 5
    assert not Path(f"/proc/{mark.read_text().strip()}").exists()


def test_what_a_signal_ends_is_said_so(shell: RemoteShell) -> None:
    with pytest.raises(CommandFailed, match="was ended by a signal"):
        shell.run(["sh", "-c", "kill -9 $$"])


def test_files_come_and_go_whole(shell: RemoteShell, tmp_path: Path) -> None:
    file = tmp_path / "a file; with 'things'"
    for data in (b"\0\xff binary \n\n", b"", os.urandom(3 << 20)):
        shell.write(file, data)
        assert file.read_bytes() == shell.read(file) == data
    assert (shell.exists(file), shell.exists(tmp_path / "nothing")) == (True, False)
    assert file.stat().st_mode & 0o7777 == 0o644
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_mode_and_owner_are_kept_unless_said_otherwise(shell: RemoteShell, tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_bytes(b"old")
    file.chmod(0o640)
    os.chown(file, 12345, 23456)
    shell.write(file, b"new")
    found = file.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o640, 12345, 23456)
    shell.write(file, b"new", 0o600)
    assert file.stat().st_mode & 0o7777 == 0o600
    shell.write(tmp_path / "fresh", b"x", 0o400)
    assert (tmp_path / "fresh").stat().st_mode & 0o7777 == 0o400


def test_files_that_cannot_be_read_or_written(shell: RemoteShell, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="cannot be read") as told:
        shell.read(tmp_path / "nothing")
    assert "No such file" in told.value.what[0]
    with pytest.raises(CommandFailed, match="cannot be written") as told:
        shell.write(tmp_path / "nowhere" / "file", b"x")
    assert told.value.state == "it is as it was"


# -- host keys


def test_an_unknown_host_key_is_refused(server: Sshd) -> None:
    server.known_hosts.write_text("")
    with RemoteShell("sip-01", server.reach()) as shell, pytest.raises(Unreachable) as told:
        shell.run(["true"])
    error = told.value
    assert error.exit_code == SiteUnreachable.exit_code == 51
    assert (error.fault, error.may_pass, error.begun) == (Fault.UNKNOWN_KEY, False, False)
    assert error.message == "the host key of sip-01 is not known"
    fingerprint = subprocess.run(
        ["ssh-keygen", "-lf", str(server.directory / "host.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert any(fingerprint in line for line in error.what), error.what
    assert any("ssh-keyscan" in line for line in error.next)


def test_a_changed_host_key_is_refused_also_in_the_middle(server: Sshd, shell: RemoteShell) -> None:
    assert shell.run(["true"]).code == 0
    server.cut()
    server.stop()
    server.new_host_key()
    server.start()
    with pytest.raises(Unreachable) as told:
        shell.run(["true"])
    error = told.value
    assert (error.fault, error.may_pass) == (Fault.CHANGED_KEY, False)
    assert "another host key" in error.message
    assert error.state == "nothing was asked of it"
    assert any(f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in line for line in error.next)
    server.know()
    assert shell.run(["true"]).code == 0, "a known key is enough to go on"


def test_without_the_file_of_known_hosts_nobody_is_spoken_to(server: Sshd, tmp_path: Path) -> None:
    with RemoteShell("s", server.reach(known_hosts=tmp_path / "none")) as shell, pytest.raises(Unreachable) as told:
        shell.run(["true"])
    assert told.value.fault is Fault.KNOWN_HOSTS


def test_a_key_that_is_not_accepted(server: Sshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    with RemoteShell("s", server.reach(key=tmp_path / "other")) as shell, pytest.raises(Unreachable) as told:
        shell.run(["true"])
    assert told.value.fault is Fault.DENIED
    assert "does not let root in" in told.value.message
    with RemoteShell("s", server.reach(key=tmp_path / "none")) as shell, pytest.raises(Unreachable) as told:
        shell.run(["true"])
    assert told.value.fault is Fault.DENIED
    assert "is not there" in told.value.what[0]


# -- lines


def test_a_server_that_is_down(server: Sshd, shell: RemoteShell) -> None:
    server.stop()
    with pytest.raises(Unreachable) as told:
        shell.run(["true"])
    assert (told.value.fault, told.value.may_pass, told.value.begun) == (Fault.UNREACHABLE, True, False)


def test_a_line_is_kept_and_made_anew(server: Sshd, shell: RemoteShell) -> None:
    first = shell.run(["sh", "-c", "echo $PPID"]).stdout
    assert shell.run(["true"]).code == 0
    assert first
    assert server.cut() == 1
    assert shell.run(["echo", "again"]).stdout == "again\n"
    server.cut()
    server.stop()
    server.start()
    assert shell.run(["echo", "again"]).stdout == "again\n"


def test_a_line_that_breaks_in_the_middle_leaves_it_open_what_became_of_it(
    server: Sshd, shell: RemoteShell, tmp_path: Path
) -> None:
    mark = tmp_path / "begun"
    caught: list[Unreachable] = []

    def ask() -> None:
        try:
            shell.run(["sh", "-c", f": > {mark}; sleep 20"], timeout=30)
        except Unreachable as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    until(mark.exists)
    server.cut()
    asking.join(10)
    assert caught
    assert (caught[0].fault, caught[0].begun) == (Fault.LOST, True)
    assert "not known" in caught[0].state
    assert shell.run(["true"]).code == 0


def test_a_write_that_breaks_off_leaves_the_old_file(server: Sshd, tmp_path: Path) -> None:
    """The end of a broken line looks like the end of the content."""
    file = tmp_path / "list"
    file.write_text("old")
    done = subprocess.run(
        ["sh", "-c", _WRITE, "sh", str(file), "1000", ""], input=b"only a part", capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"only 11 of 1000 bytes came" in done.stderr
    assert file.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_threads_share_a_line(server: Sshd, shell: RemoteShell) -> None:
    results: list[str] = []

    def ask(number: int) -> None:
        results.append(shell.run(["sh", "-c", f"sleep 0.05; echo {number}"]).stdout.strip())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(map(int, results)) == list(range(40))
    assert server.cut() == 1


def test_a_server_that_refuses_several_commands_at_once_keeps_its_line(tmp_path: Path) -> None:
    with (
        sshd(tmp_path / "sshd", sessions=1) as server,
        RemoteShell("sip-01", server.reach(connect=60.0)) as shell,
        ThreadPoolExecutor(8) as threads,
    ):
        assert shell.run(["echo", "first"]).stdout == "first\n"
        asked = threads.map(lambda number: shell.run(["sh", "-c", f"sleep 0.02; echo {number}"]).stdout, range(60))
        assert [int(said) for said in asked] == list(range(60))
        assert server.cut() == 1


def test_a_host_on_the_way(server: Sshd, tmp_path: Path) -> None:
    with sshd(tmp_path / "jump") as jump:
        shutil.copy(server.directory / "user.pub", jump.directory / "authorized")
        both = server.known_hosts.read_text() + jump.known_hosts.read_text()
        server.known_hosts.write_text(both)
        reach = server.reach(jump=(f"root@127.0.0.1:{jump.port}",))
        with RemoteShell("sip-01", reach) as shell:
            port = shell.run(["sh", "-c", 'echo "$SSH_CONNECTION"']).stdout
            assert port
            assert jump.cut() == 1
            assert shell.run(["echo", "again"]).stdout == "again\n"
        server.know()  # the jump host is unknown now
        with RemoteShell("sip-01", reach) as shell, pytest.raises(Unreachable) as told:
            shell.run(["true"])
        assert told.value.fault is Fault.UNKNOWN_KEY
        assert told.value.message == "the host key of 127.0.0.1, on the way to sip-01, is not known"
        server.known_hosts.write_text(both)
        server.cut()
        server.stop()
        with RemoteShell("sip-01", reach) as shell, pytest.raises(Unreachable) as told:
            shell.run(["true"])
        assert told.value.fault is Fault.UNREACHABLE


def test_hops_are_read_as_they_are_written() -> None:
    assert Hop.parse("gate") == Hop(host="gate", user="root", port=22)
    assert Hop.parse("ops@gate:2222", "x") == Hop(host="gate", user="ops", port=2222)
    assert Hop.parse("gate:2222", "x") == Hop(host="gate", user="x", port=2222)


# -- sudo


@pytest.mark.skipif(shutil.which("sudo") is None, reason="sudo is not installed")
def test_sudo(tmp_path: Path) -> None:
    """A user and a rule that only this server knows."""
    rules, users, shadow = tmp_path / "sudoers.d", tmp_path / "passwd", tmp_path / "shadow"
    rules.mkdir()
    users.write_text(Path("/etc/passwd").read_text() + f"operator-zdu:x:54321:54321::{tmp_path}:/bin/sh\n")
    shadow.write_text(Path("/etc/shadow").read_text() + "operator-zdu:*:19000:0:99999:7:::\n")
    shadow.chmod(0o640)
    private = {Path("/etc/sudoers.d"): rules, Path("/etc/passwd"): users, Path("/etc/shadow"): shadow}
    with tempfile.TemporaryDirectory() as open_to_all, sshd(Path(open_to_all) / "sshd", private) as server:
        Path(open_to_all).chmod(0o755)  # it reads the keys as the user
        reach = server.reach(user="operator-zdu", sudo=True)
        with RemoteShell("s", reach) as shell, pytest.raises(NotPermitted, match="does not let operator-zdu") as told:
            shell.run(["id", "-un"])
        assert any("NOPASSWD" in line for line in told.value.next)
        (rules / "operator").write_text("operator-zdu ALL=(root) NOPASSWD: ALL\n")
        (rules / "operator").chmod(0o440)
        with RemoteShell("s", reach) as shell:
            assert shell.run(["id", "-un"]).stdout == "root\n"
            with pytest.raises(CommandFailed, match="no-such is not installed"):
                shell.run(["no-such"])
            shell.write(tmp_path / "of-root", b"x", 0o600)
            assert (tmp_path / "of-root").stat().st_uid == 0
            assert shell.read(tmp_path / "of-root") == b"x"
        with RemoteShell("s", server.reach(user="operator-zdu")) as shell:
            assert shell.run(["id", "-u"]).stdout == "54321\n"
