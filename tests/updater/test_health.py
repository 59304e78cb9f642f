"""Health checks of every kind, against real ports and programs on this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core import run as run_
from core.errors import HealthFailed
from core.report import Event, Kind, Report
from updater.doctor import Finding, examine_node
from updater.health import checks_of, examine, wait_healthy
from updater.node_toml import CheckKind, HealthCheck, HealthConfig


def check(kind: CheckKind, **options: Any) -> HealthCheck:
    return HealthCheck(name=str(kind), kind=kind, **{"timeout": 2, **options})


def reason(kind: CheckKind, **options: Any) -> str:
    return examine(check(kind, **options), {}).reason


@pytest.fixture
def web() -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response({"/ok": 200, "/moved": 302}.get(self.path, 503))
            self.send_header("Location", "/ok")
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound, and nobody listens
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def test_tcp(web: int, closed_port: int) -> None:
    assert reason(CheckKind.TCP, port=web) == ""
    assert "does not accept" in reason(CheckKind.TCP, port=closed_port)


def test_http(web: int, closed_port: int) -> None:
    url = f"http://127.0.0.1:{web}"
    assert reason(CheckKind.HTTP, url=f"{url}/ok") == ""
    assert "answers 503, not 200" in reason(CheckKind.HTTP, url=f"{url}/broken")
    assert "answers 302" in reason(CheckKind.HTTP, url=f"{url}/moved")
    assert reason(CheckKind.HTTP, url=f"{url}/moved", status=302) == ""
    assert "does not answer" in reason(CheckKind.HTTP, url=f"http://127.0.0.1:{closed_port}/")
    assert reason(CheckKind.HTTP, url="http://[::bad/") != ""


def test_command() -> None:
    assert reason(CheckKind.COMMAND, command=("true",)) == ""
    assert reason(CheckKind.COMMAND, command=("sh", "-c", "echo one; echo no route >&2; exit 3")) == "exit 3: no route"
    assert "not installed" in reason(CheckKind.COMMAND, command=("no-such-program",))
    assert "did not end within" in reason(CheckKind.COMMAND, command=("sleep", "60"), timeout=0.2)
    seen = examine(check(CheckKind.COMMAND, command=("sh", "-c", 'test "$UPDATER_SLOT" = b')), {"UPDATER_SLOT": "b"})
    assert seen.reason == ""


def test_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "systemctl"
    tool.write_text('#!/bin/sh\ncase "$3" in good.service) echo active;; *) echo failed; exit 3;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setitem(run_.ENVIRONMENT, "PATH", f"{tmp_path}:{run_.ENVIRONMENT['PATH']}")
    assert reason(CheckKind.UNIT, unit="good.service") == ""
    assert reason(CheckKind.UNIT, unit="bad.service") == "unit bad.service is failed"


def config(*checks: HealthCheck, drop_in: Path = Path("/none"), deadline: float = 0.0) -> HealthConfig:
    return HealthConfig(deadline=deadline, interval=0.02, drop_in=drop_in, checks=checks)


def test_what_is_required_must_pass_and_what_is_wanted_is_reported(closed_port: int) -> None:
    events: list[Event] = []
    wanted = check(CheckKind.TCP, port=closed_port, required=False)
    verdicts = wait_healthy(config(wanted), {}, Report(events.append))
    assert verdicts[0].reason and not verdicts[0].required
    assert any(event.kind is Kind.WARNING and "not required" in event.text for event in events)
    with pytest.raises(HealthFailed, match=r"tcp: .*does not accept"):
        wait_healthy(config(check(CheckKind.TCP, port=closed_port)), {}, Report())


def test_the_deadline_holds_and_names_every_failing_check(closed_port: int) -> None:
    begun = time.monotonic()
    failing = [HealthCheck(name=name, kind=CheckKind.TCP, port=closed_port) for name in ("one", "two")]
    with pytest.raises(HealthFailed, match=r"after 0\.2 s: one: .*; two: "):
        wait_healthy(config(*failing, deadline=0.2), {}, Report())
    assert 0.1 < time.monotonic() - begun < 5


def test_it_waits_for_a_service_that_comes_late_and_does_not_ask_again_what_passed(tmp_path: Path) -> None:
    asked, late = tmp_path / "asked", tmp_path / "late"
    first = HealthCheck(name="first", kind=CheckKind.COMMAND, command=("sh", "-c", f"echo x >> {asked}"))
    second = HealthCheck(
        name="second", kind=CheckKind.COMMAND, command=("sh", "-c", f"echo x >> {late}; test $(wc -l < {late}) -gt 2")
    )
    verdicts = wait_healthy(config(first, second, deadline=20), {}, Report())
    assert not any(verdict.reason for verdict in verdicts)
    assert (asked.read_text().count("x"), late.read_text().count("x")) == (1, 3)


def test_drop_ins_are_required_checks_by_name(tmp_path: Path) -> None:
    for name, mode in (("20-b", 0o755), ("10-a", 0o755), ("note", 0o644)):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(mode)
    checks = checks_of(config(drop_in=tmp_path))
    assert [(each.name, each.required) for each in checks] == [("10-a", True), ("20-b", True)]
    with pytest.raises(HealthFailed, match=r"10-a: exit 1; 20-b: exit 1"):
        wait_healthy(config(drop_in=tmp_path), {}, Report())


def namesake(directory: Path) -> None:
    """A drop-in that is called as a configured check is, and fails."""
    (directory / "billing").write_text("#!/bin/sh\nexit 1\n")
    (directory / "billing").chmod(0o755)


def test_a_drop_in_with_the_name_of_a_configured_check_has_a_verdict_of_its_own(tmp_path: Path) -> None:
    namesake(tmp_path)
    passes = HealthCheck(name="billing", kind=CheckKind.COMMAND, command=("true",))
    with pytest.raises(HealthFailed, match="billing: exit 1"):
        wait_healthy(config(passes, drop_in=tmp_path, deadline=0.2), {}, Report())


def test_the_doctor_names_two_checks_of_one_name(node: Path) -> None:
    def found() -> Finding:
        return next(finding for finding in examine_node(node) if finding.name == "health checks")

    node.write_text(
        node.read_text() + '[[health.checks]]\nname = "billing"\nkind = "tcp"\nport = 22\nrequired = false\n'
    )
    assert (found().found, found().mend) == ("1, 0 required", ())
    namesake(node.parent / "health.d")
    assert "two checks are called billing" in found().found and found().mend
