"""One configuration on several servers, over real SSH on this machine; and the command line around it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.templates.configlab import is_root, program, sandbox, section, updater

SECRET = "s3cret-value"


@dataclass(frozen=True)
class Sshd:
    """An sshd of the test's own: port, and the options that reach it."""

    port: int
    key: Path
    known_hosts: Path

    @property
    def words(self) -> list[str]:
        return ["--ssh-port", str(self.port), "--ssh-key", str(self.key), "--known-hosts", str(self.known_hosts)]


@contextmanager
def sshd(directory: Path) -> Iterator[Sshd]:
    """Start sshd on a free port of the loopback with keys of its own, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True)
    shutil.copy(directory / "user.pub", directory / "authorized")
    config = directory / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    known = directory / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(directory / 'host.pub').read_text()}")
    made = not Path("/run/sshd").exists()
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None and time.monotonic() < deadline, "sshd did not start"
            time.sleep(0.02)
        yield Sshd(port, directory / "user", known)
    finally:
        server.terminate()
        server.wait(10)
        if made:
            Path("/run/sshd").rmdir()


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The configuration host: a sandbox with an applied configuration that has a secret. Its program."""
    done = program(tmp_path, sandbox(tmp_path, "cfg"))
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    for words in (
        ["clone", "--reason", "first"],
        ["instance", "n1", "--application", "billing"],
        ["set", "ssh.port", "14"],
        ["set", "ssh.port", "10", "--instance", "n1"],
        ["set", "database.host", "db"],
        ["set", "database.password", "--from-file", tmp_path / "secret"],
        ["apply"],
    ):
        told = updater(done, "config", *words)
        assert told.returncode == 0, told.stderr
    return done


def test_clone_change_apply_roll_back(host: Path, tmp_path: Path) -> None:
    sshd_file = tmp_path / "cfg/root/etc/ssh/sshd_config.d/50-updater.conf"
    assert "Port 14" in sshd_file.read_text()
    for words in (["clone"], ["set", "ssh.port", "2222"], ["validate"], ["diff"], ["apply", "--reason", "closed"]):
        assert updater(host, "config", *words).returncode == 0
    assert "Port 2222" in sshd_file.read_text()
    refused = updater(host, "config", "set", "ssh.port", "1", "--draft", "v2")
    assert refused.returncode == 34
    assert "v2 was applied and cannot be changed" in refused.stderr
    assert updater(host, "config", "rollback").returncode == 0
    assert "Port 14" in sshd_file.read_text()
    explained = updater(host, "config", "get", "ssh.port", "--instance", "n1", "--explain")
    assert explained.stdout.splitlines()[:3] == ["10", "  found at  instance:n1", "  hides     global = 14"]
    assert updater(host, "render", "--undo").returncode == 0
    assert "Port 2222" in sshd_file.read_text()


def test_a_value_that_does_not_fit_is_refused(host: Path) -> None:
    updater(host, "config", "clone")
    for words, told in (
        (["ssh.port", "99999"], "must be from 1 to 65535"),
        (["ssh.prot", "1"], "near: ssh.port"),
        (["system.address", "10.0.0.1"], "can be set at instance only"),
        (["sudo.administrators", "root ALL=(ALL) NOPASSWD"], "does not match"),
        (["database.password", SECRET], "does not belong on a command line"),
    ):
        refused = updater(host, "config", "set", *words)
        assert refused.returncode == 10
        assert told in refused.stderr
        assert SECRET not in refused.stderr.replace("config set database.password", "")


def test_what_a_server_gets_under_a_number_does_not_change_with_the_hosts_release(host: Path, tmp_path: Path) -> None:
    templates = tmp_path / "cfg/data/templates/a"
    section(templates, {"a.j2": "x\n"})
    for words in (
        ["clone"],
        ["set", "app.name", "elsewhere", "--application", "web"],
        ["set", "app.port", "7", "--instance", "n1"],
        ["apply", "--no-render"],
    ):
        assert updater(host, "config", *words).returncode == 0, words
    sent = ["config", "export", "--for", "n1", "--secrets", "plain", "--format", "json"]
    before = updater(host, *sent).stdout
    assert "elsewhere" in before
    shutil.rmtree(templates)  # the next release does not know these options
    assert updater(host, *sent).stdout == before
    assert "elsewhere" not in updater(host, "config", "export").stdout  # and nobody knows whether it is a secret


def test_a_file_that_is_no_text_is_refused(host: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"s\xffcret")
    updater(host, "config", "clone")
    for words in (
        ["set", "database.password", "--from-file", tmp_path / "raw"],
        ["export", "--secrets", "seal", "--passphrase-file", tmp_path / "raw"],
        ["import", tmp_path / "raw"],
    ):
        refused = updater(host, "config", *words)
        assert refused.returncode == 10 and "byte 2 is not UTF-8" in refused.stderr, refused.stderr


def test_secrets_are_in_no_output(host: Path, tmp_path: Path) -> None:
    updater(host, "config", "clone")
    (tmp_path / "other").write_text("an0ther-one")
    commands = [
        ["config", "list"],
        ["config", "set", "database.password", "--from-file", str(tmp_path / "other")],
        ["config", "show"],
        ["config", "show", "--all"],
        ["config", "show", "--history"],
        ["config", "get", "database.password", "--explain"],
        ["config", "diff"],
        ["config", "validate"],
        ["config", "apply", "--dry-run"],
        ["config", "apply"],
        ["config", "export"],
        ["config", "rollback"],
        ["render", "--diff", "--undo", "--dry-run"],
        ["render", "--diff"],
    ]
    for command in [*commands, ["config", "diff", "v1", "v2", "--json"], ["render", "--json", "--debug"]]:
        told = updater(host, *command)
        assert SECRET not in told.stdout + told.stderr, command
        assert "an0ther-one" not in told.stdout + told.stderr, command
    assert SECRET in (tmp_path / "cfg/root/etc/mysql/conf.d/50-updater.cnf").read_text()


def test_export_and_import(host: Path, tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("passphrase\n")
    for how in (["omit"], ["seal", "--passphrase-file", tmp_path / "pass"], ["plain"]):
        file = tmp_path / f"{how[0]}.toml"
        assert updater(host, "config", "export", "--output", file, "--secrets", *how).returncode == 0
        assert file.stat().st_mode & 0o777 == 0o600
        assert (SECRET in file.read_text()) == (how[0] == "plain")
        done = updater(host, "config", "import", file, *how[1:])
        assert done.returncode == 0, done.stderr
        assert "v1 → v" in updater(host, "config", "diff").stdout
        assert ": 0 values differ" in updater(host, "config", "diff").stdout


@pytest.mark.root
@pytest.mark.skipif(not is_root(), reason="needs root: sshd logs in as the user it runs as")
def test_applied_to_all_servers_and_caught_up_later(host: Path, tmp_path: Path) -> None:
    node = program(tmp_path, sandbox(tmp_path, "n1"))
    user = ["--ssh-user", os.environ.get("USER") or "root"]
    with sshd(tmp_path) as server:
        common = [*server.words, *user, "--remote-command", str(node)]
        names = "n1=127.0.0.1,gone=127.0.0.2"
        done = updater(host, "config", "apply", "v1", "--servers", names, *common)
        assert done.returncode == 40
        assert " ✓ n1 " in done.stdout
        assert "v1 is active: " in done.stdout
        assert " – gone " in done.stdout
        assert "fetches it when back (updater config pull)" in done.stderr
        mine = tmp_path / "n1/root/etc/ssh/sshd_config.d/50-updater.conf"
        assert "Port 10" in mine.read_text()
        assert SECRET in (tmp_path / "n1/root/etc/mysql/conf.d/50-updater.cnf").read_text()
        assert SECRET not in done.stdout + done.stderr

        # the next one is missed: nobody sends it
        updater(host, "config", "clone")
        updater(host, "config", "set", "ssh.port", "11", "--instance", "n1")
        updater(host, "config", "apply")
        assert "Port 10" in mine.read_text()
        fetched = updater(
            node, "config", "pull", "--from", "127.0.0.1", *server.words, *user, "--remote-command", str(host)
        )
        assert fetched.returncode == 0, fetched.stderr
        assert "Port 11" in mine.read_text()
        listed = json.loads(updater(node, "config", "list", "--json").stdout)
        assert [(each["version"], each["active"]) for each in listed] == [(2, True), (1, False)]
        again = updater(host, "config", "apply", "v2", "--servers", "n1=127.0.0.1", *common)
        assert again.returncode == 0
        assert "none changed" in again.stdout

        # a host whose key is not known is refused
        server.known_hosts.write_text("")
        refused = updater(host, "config", "apply", "v2", "--servers", "n1=127.0.0.1", *common)
        assert refused.returncode == 40
        assert "not found in known_hosts" in refused.stderr


def test_nonsense_from_the_configuration_host(host: Path) -> None:
    for said in (
        "",
        "{}",
        "[" * 100000,
        '{"format": 1}',
        '{"format": 1, "version": 3, "omitted": {"global": ["a.b"]}}',
    ):
        told = updater(host, "config", "receive", said=said)
        assert told.returncode == 10, said[:50]
        assert "Traceback" not in told.stderr
