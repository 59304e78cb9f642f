"""Parts of the controller by themselves: the lease, the tables, windows, gates that are waited for, who is told."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from core.errors import Busy, DatabaseFailed, GateNotPassed, HookFailed, NotReady, SiteUnreachable
from core.sql import Connection, Database, Engine
from tests.zdu import controllerlab as lab
from tests.zdu.drainlab import WAIT
from zdu.conduct import Evidence, Pace, conduct
from zdu.gates import Facts, NodeFacts, SiteFacts
from zdu.lease import Lost, holder, take
from zdu.limits import Day, DrainConfig, NotifyConfig, NotifyEvent, NotifyKind, WindowConfig
from zdu.notify import Notifier
from zdu.opening import window_open
from zdu.records import Sample
from zdu.runbook import Action, Gate, GateKind, Step
from zdu.standing import rebuilt
from zdu.tables import Tables
from zdu.world import Talk


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(engine=Engine.SQLITE, path=tmp_path / "zdu.sqlite")


@pytest.fixture
def tables(database: Database) -> Iterator[Tables]:
    with Tables.open(database, patience=2) as opened:
        yield opened


# -- the lease


def test_the_token_grows_with_each_takeover(tables: Tables) -> None:
    for wanted in (1, 2, 3):
        lease = take(tables, "acme", purpose="try")
        assert lease.fence == wanted
        lease.check()
        lease.release()
    other = take(tables, "other", purpose="try")
    assert other.fence == 1
    other.release()


def test_a_holder_that_lives_is_reckoned_with(tables: Tables) -> None:
    lease = take(tables, "acme", purpose="try", seconds=1)
    try:
        time.sleep(1.5)  # it has said meanwhile that it lives
        with pytest.raises(Busy, match="another controller") as caught:
            take(tables, "acme", purpose="resume")
        assert "token 1" in caught.value.what[0]
    finally:
        lease.release()


def test_a_holder_that_is_silent_or_whose_process_is_gone_has_lost_it(tables: Tables) -> None:
    for gone in ("until = 0", "process = '1 2'"):
        lease = take(tables, "acme", purpose="try")
        tables.work(lambda db, gone=gone: db.execute(f"UPDATE zdu_holders SET {gone}"))  # type: ignore[misc]
        known = holder(tables, "acme")
        assert known is not None and not known.alive
        other = take(tables, "acme", purpose="try")
        with pytest.raises(Lost):
            tables.transact(lease.confirm)
        with pytest.raises(Lost):
            lease.check()
        assert f"token {other.fence}" in lease.fenced_off().what[0]
        lease.release()  # lets nothing go that is another's
        assert (now := holder(tables, "acme")) is not None and now.alive and now.fence == other.fence
        other.release()


def test_a_controller_that_cannot_say_that_it_lives_stops_by_its_own_clock(tables: Tables, database: Database) -> None:
    lease = take(tables, "acme", purpose="try", seconds=0.5)
    with Connection.open(database) as blocker:
        blocker.execute("BEGIN EXCLUSIVE")
        end = time.monotonic() + 10
        while not lease.lost.is_set() and time.monotonic() < end:
            try:
                lease.check()
            except Lost:
                break
            time.sleep(0.02)
        assert lease.lost.is_set()
        blocker.execute("ROLLBACK")
    lease.release()


# -- the tables


def test_tables_of_a_newer_program_are_refused(tables: Tables, database: Database) -> None:
    tables.work(lambda db: db.execute("UPDATE zdu_form SET oldest_reader = 99"))
    with pytest.raises(NotReady, match="newer program"):
        Tables.open(database)


def test_tables_where_there_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="cannot open") as caught:
        Tables.open(Database(engine=Engine.SQLITE, path=tmp_path / "none" / "zdu.sqlite"))
    assert "mkdir -p" in caught.value.next[0]
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database at all" * 100)
    with pytest.raises(DatabaseFailed):
        Tables.open(Database(engine=Engine.SQLITE, path=broken), patience=0.1)


def test_the_file_is_its_owners(tables: Tables, database: Database) -> None:
    assert database.path is not None
    assert database.path.stat().st_mode & 0o777 == 0o600


def test_threads_that_ended_leave_no_connection(tables: Tables) -> None:
    for _ in range(20):
        thread = threading.Thread(target=lambda: holder(tables, "acme"))
        thread.start()
        thread.join()
    assert len(tables._all) <= 2


# -- windows


@pytest.mark.parametrize(
    ("hours", "days", "at", "open_"),
    [
        ("01:00-05:00", (), "2026-11-21T02:00", True),
        ("01:00-05:00", (), "2026-11-21T05:00", False),
        ("01:00-05:00", (Day.SATURDAY,), "2026-11-21T02:00", True),
        ("01:00-05:00", (Day.SUNDAY,), "2026-11-21T02:00", False),
        ("22:00-04:00", (Day.FRIDAY,), "2026-11-21T02:00", True),  # it opened on Friday
        ("22:00-04:00", (Day.SATURDAY,), "2026-11-21T02:00", False),
        ("22:00-04:00", (Day.SATURDAY,), "2026-11-21T23:00", True),
        ("22:00-04:00", (Day.SUNDAY,), "2026-11-23T03:59", True),
    ],
)
def test_windows(hours: str, days: tuple[Day, ...], at: str, open_: bool) -> None:
    assert window_open([WindowConfig(hours=hours, days=days)], datetime.fromisoformat(at)) is open_


# -- one step


class Scripted:
    """A node whose answers are written down: what it runs, or an error."""

    def __init__(self, *looks: str | Exception, act: Exception | None = None) -> None:
        self.looks = list(looks)
        self.act_error = act
        self.acted = 0

    def look(self, gate: Gate) -> Facts:
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(found, Exception):
            raise found
        return Facts(nodes={"n": NodeFacts(runs=found)})

    def act(self, step: Step, talk: Talk) -> str:
        self.acted += 1
        if self.act_error is not None:
            raise self.act_error
        return "made"

    def sample(self) -> Sample:
        return Sample()


class Nobody:
    fence = 1
    run = "run"
    job = "job"

    def check(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


STEP = Step(
    id="4/activate-node/n",
    action=Action.ACTIVATE_NODE,
    what="",
    needs=(),
    gates=(Gate(kind=GateKind.BOOTING, server="n", release="MR96-1"),),
    seconds=1,
    batch=1,
    server="n",
)


def _conduct(world: Scripted) -> tuple[str, list[dict[str, Any]]]:
    evidence = Evidence()
    return conduct(world, STEP, Nobody(), lab.QUICK, evidence), evidence.lines


def test_what_is_so_is_not_made() -> None:
    world = Scripted("MR96-1")
    assert _conduct(world)[0] == "found so already" and world.acted == 0


def test_the_state_is_asked_and_not_the_answer() -> None:
    lost = SiteUnreachable("the line broke")
    world = Scripted("MR95-1", lost, "MR95-1", "MR96-1", act=lost)
    text, lines = _conduct(world)
    assert "the line broke" in text and [line["when"] for line in lines] == ["first", "act", "after", "after", "after"]
    with pytest.raises(SiteUnreachable):
        _conduct(Scripted("MR95-1", act=lost))


def test_a_clear_refusal_is_not_waited_for() -> None:
    began = time.monotonic()
    with pytest.raises(HookFailed):
        _conduct(Scripted("MR95-1", act=HookFailed("no")))
    assert time.monotonic() - began < 5


def test_somebody_is_told_of_a_gate_that_lets_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zdu.conduct._TELL", 0.0)
    told: list[str] = []
    conduct(Scripted("MR95-1", "MR95-1", "MR96-1"), STEP, Nobody(), replace(lab.QUICK, alert=told.append), Evidence())
    assert told and "n runs MR95-1" in told[0] and "no call" not in told[0]


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("site", "at", "text"),
    [
        (SiteFacts(calls=2, empty=False), [100, 150, 200, 250], "A has 2 calls, after 100 s of waiting"),
        (
            SiteFacts(calls=None, empty=False, problems=("calls not known: a-03 does not answer",)),
            [100, 150, 200, 250],
            "A: calls not known: a-03 does not answer, after 100 s of waiting",
        ),
        (
            SiteFacts(calls=0, empty=False, problems=("0 calls by its own count, but d1: 4",)),
            [60, 110, 160, 210],
            "A: 0 calls by its own count, but d1: 4, after 60 s of waiting",
        ),
    ],
)
def test_a_drain_that_takes_long_is_told_and_waited_for(
    site: SiteFacts, at: list[int], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sooner where the site counts no call and somebody else does: that does not end by itself."""
    clock, told = Clock(), list[tuple[float, str]]()
    monkeypatch.setattr("zdu.conduct.time", clock)

    class Waiting(Scripted):
        def look(self, gate: Gate) -> Facts:
            return Facts(sites={"A": site if clock.now < 1255 else SiteFacts(calls=0, empty=True)})

    pace = Pace(
        drain=DrainConfig(alert_after=100, alert_every=50), alert=lambda text: told.append((clock.now - 1000, text))
    )
    conduct(Waiting("made"), WAIT, Nobody(), pace, Evidence())
    assert [now for now, _ in told] == at
    assert told[0][1] == f"{text}; no call is ended"


def test_a_gate_that_stays_shut() -> None:
    with pytest.raises(GateNotPassed, match="n runs MR95-1") as caught:
        _conduct(Scripted("MR95-1"))
    assert "booting n MR96-1" in caught.value.what[0]


def test_an_error_is_the_same_after_its_record() -> None:
    error = HookFailed("no", what=["a", "b"], state="c", next="d")
    again = rebuilt(json.loads(json.dumps(error.as_json())))
    assert type(again) is HookFailed and again.as_json() == error.as_json()


# -- who is told


class Post(http.server.BaseHTTPRequestHandler):
    got: list[dict[str, Any]] = []  # noqa: RUF012
    status = 200

    def do_POST(self) -> None:
        Post.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(Post.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    Post.got.clear()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Post) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/hook?token=secret"
        server.shutdown()


def test_webhook_and_command(web: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    configs = [
        NotifyConfig(kind=NotifyKind.WEBHOOK, url=web, events=(NotifyEvent.FAILED,)),
        NotifyConfig(kind=NotifyKind.COMMAND, command=("sh", "-c", f"cat >> {log}")),
    ]
    notifier = Notifier(configs, {"run": "r1"})
    notifier.tell(NotifyEvent.STARTED, "begun")
    notifier.tell(NotifyEvent.FAILED, "stopped", step="4/x", phase="")
    notifier.close()
    assert [each["event"] for each in Post.got] == ["failed"]
    assert Post.got[0]["run"] == "r1" and Post.got[0]["step"] == "4/x" and "phase" not in Post.got[0]
    assert [json.loads(line)["text"] for line in log.read_text().splitlines()] == ["begun", "stopped"]


def test_email() -> None:
    said: list[bytes] = []

    class Mail(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 mail\r\n")
            body = False
            while line := self.rfile.readline():
                said.append(line)
                if body and line != b".\r\n":
                    continue
                answer = b"354 go on\r\n" if line.upper().startswith(b"DATA") else b"250 well\r\n"
                body = line.upper().startswith(b"DATA")
                self.wfile.write(answer)
                if line.upper().startswith(b"QUIT"):
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        smtp = f"127.0.0.1:{server.server_address[1]}"
        config = NotifyConfig(kind=NotifyKind.EMAIL, to=("ops@example.org",), sender="zdu@example.org", smtp=smtp)
        notifier = Notifier([config], {"installation": "acme"})
        notifier.tell(NotifyEvent.DRAIN, "a call\nthat does not end")
        notifier.close()
        server.shutdown()
    assert b"Subject: [acme] a call that does not end\r\n" in said and b"To: ops@example.org\r\n" in said


def test_nobody_answers_and_nothing_waits(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Post, "status", 500)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    untold: list[str] = []
    deaf = NotifyConfig(kind=NotifyKind.COMMAND, command=("/no/such/program",))
    notifier = Notifier([NotifyConfig(kind=NotifyKind.WEBHOOK, url=web), deaf], {}, untold.append)
    began = time.monotonic()
    notifier.tell(NotifyEvent.FAILED, "stopped")
    assert time.monotonic() - began < 5
    notifier.close()
    assert len(untold) == 2 and "answered 500" in untold[0] and "secret" not in "".join(untold)
