"""What people see of a run: status, live view, report, history; and the command line around it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from core.errors import Busy, HookFailed, UpdaterError, WrongState, ZduRefused
from tests.zdu import controllerlab as lab
from updater.cli import zdu as cli
from updater.cli import zdu_common as common
from updater.cli.context import settings
from zdu import screens, watch
from zdu.lease import take
from zdu.overview import SiteRow, overview
from zdu.records import Approve, RunState, Word
from zdu.rehearsed import differs
from zdu.report import as_html, as_json, deviations, outcome, read
from zdu.runbook import Action
from zdu.runs import Runs
from zdu.sites import Sites
from zdu.tables import Tables

pytestmark = pytest.mark.xdist_group("controller")


class Acme:
    """A finished run, and after it one that has stopped."""

    def __init__(self, folder: Path) -> None:
        self.sites: Sites = lab.sites(folder)
        self.runbook = lab.runbook(self.sites)
        world = lab.MemoryWorld(lab.model(self.sites))
        with lab.controller(self.sites, world) as controller:
            self.done = controller.start(self.runbook, bundle="/<b>.bundle", approve=Approve.NONE, who="ada").run
            world = lab.MemoryWorld(lab.model(self.sites))
            self.failing = lab.first(self.runbook, Action.CONFIRM_NODE, "a-02").id
            failing = lab.first(self.runbook, Action.ACTIVATE_NODE, "a-02").id
            world.faults.before[failing] = HookFailed("a-02: <script>alert(1)</script> failed", next="look at a-02")
            controller._world = lambda run, fence: world
            self.stopped = controller.start(self.runbook, bundle="b", approve=Approve.NONE, who="bob").run


@pytest.fixture(scope="module")
def acme() -> Iterator[Acme]:
    with lab.short_folder() as folder:
        yield Acme(folder)


@pytest.fixture
def tables(acme: Acme) -> Iterator[Tables]:
    with Tables.open(acme.sites.controller.database) as opened:
        yield opened


def test_status_of_a_run_that_stopped(acme: Acme, tables: Tables) -> None:
    view = overview(tables, acme.sites, acme.stopped)
    text = screens.text(view)
    assert "MR95-1 → MR96-1" in text and "phase 4 of 9" in text
    assert re.search(r"site A  main .* maintenance .*a-02 activate failed", text)
    assert re.search(r"site B .* stand-alone", text)
    assert "→ B" in text and "d1 VIP" in text
    assert "stopped: a-02" in text and "next  look at a-02" in text
    assert "way back now:" in text and "point of no return: none before" in text
    assert not view.stale and view.done < view.total and view.seconds_left > 60
    told = json.loads(json.dumps(view.as_json()))
    assert told["state"] == "stopped" and told["phase"] == "4" and told["sites"][1]["state"] == "stand-alone"


def test_status_of_a_run_that_is_done(acme: Acme, tables: Tables) -> None:
    view = overview(tables, acme.sites, acme.done)
    assert view.run.state is RunState.DONE and not view.way_back and not view.under_way
    assert all(word == "✓ MR96-1" for site in view.sites for word in site.nodes.values())
    assert "left" not in screens.text(view)


def test_many_servers_are_counted() -> None:
    nodes = {f"a-{number:02}": "staged" if number % 2 else "" for number in range(40)}
    row = SiteRow(name="A", kind="main", calls=None, state="in service", nodes=nodes, lag=None, delta=None)
    assert screens._site_line(row).replace("\u00a0", " ").endswith("20 as before  20 staged")


def test_a_controller_that_died_is_told(acme: Acme, tables: Tables) -> None:
    try:
        tables.work(lambda db: db.execute("UPDATE zdu_runs SET state = 'running' WHERE id = %s", (acme.stopped.id,)))
        run = Runs(tables).run(acme.stopped.id)
        assert run is not None
        view = overview(tables, acme.sites, run)
        assert view.stale and "updater zdu resume" in screens.text(view)
    finally:
        tables.work(lambda db: db.execute("UPDATE zdu_runs SET state = 'stopped' WHERE id = %s", (acme.stopped.id,)))


def test_watch_without_a_terminal(acme: Acme, tables: Tables, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch.watch(tables, acme.sites, acme.done, say=lambda _: None) == acme.done
    lines = capsys.readouterr().out.splitlines()
    assert sum("✓" in line and "dispatch-to" in line for line in lines) == 4


def test_what_is_heavy_is_imported_late() -> None:
    heavy = "{'dbos', 'rich', 'sqlalchemy', 'fabric', 'paramiko'}"
    code = f"import updater.cli.zdu, zdu.controller, zdu.watch, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_live_picture_can_be_drawn(acme: Acme, tables: Tables) -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    view = overview(tables, acme.sites, acme.stopped)
    console.print(watch._picture(view, Runs(tables).events(acme.stopped.id), "", (120, 40)))
    assert "[q]uit" in console.export_text()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50), (60, 20)])
@pytest.mark.parametrize("which", ["done", "stopped"])
def test_nothing_is_lost_on_a_small_screen(acme: Acme, tables: Tables, which: str, width: int, height: int) -> None:
    view = overview(tables, acme.sites, getattr(acme, which))
    recent = Runs(tables).events(getattr(acme, which).id)
    lines = [line for line, _ in screens.picture(view, recent, "", (width, height))]
    assert max(map(len, lines)) <= width and lines[-1].startswith("[p]ause")
    if width >= 80:
        assert len(lines) <= height - 1, "\n".join(lines)
    plain, folded = (sorted(made.split()) for made in (screens.text(view), screens.text(view, width)))
    assert plain == folded, "every word is there"
    for server in acme.sites.servers:
        assert any(f"{server} " in line for line in lines), server


def test_what_waits_for_somebody_says_what_to_do(acme: Acme, tables: Tables) -> None:
    view = overview(tables, acme.sites, acme.stopped)
    assert "STOPPED in phase 4 of 9" in screens.text(view) and " next: " not in screens.text(view)
    silent = replace(view, leg=replace(view.leg, error={"message": "it failed"}))
    assert "→ updater zdu resume" in screens.text(silent) and "→ updater zdu abort" in screens.text(silent)
    for state, word in ((RunState.PAUSED, "resume"), (RunState.WAITING, "approve 4")):
        run = replace(view.run, state=state, waits_for="4" if state is RunState.WAITING else "", text="")
        said = screens.text(replace(view, run=run))
        assert f"{str(state).upper()} in phase 4" in said and f"→ updater zdu {word}" in said
    old = replace(view, sampled="2026-01-01T00:00:00+00:00", run=replace(view.run, state=RunState.RUNNING))
    assert "calls, lag and delta are those of" in screens.text(old)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "rect", "polygon", "polyline", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag


@pytest.mark.parametrize("which", ["done", "stopped"])
def test_the_report_needs_nothing_else(acme: Acme, tables: Tables, which: str) -> None:
    records = read(Runs(tables), getattr(acme, which))
    page = as_html(records)
    parsed = Page()
    parsed.feed(page)
    assert not parsed.open and "script" not in parsed.tags and "link" not in parsed.tags
    assert not re.search(r"""(src|href|url)\s*[=(]""", page) and "http:" not in page and "https:" not in page
    assert "<script>" not in page and "<b>.bundle" not in page
    assert parsed.tags.count("svg") >= 2 and "default-src 'none'" in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for drawing in drawings:
        assert re.search(r'role="img"><title>[^<]+</title>', drawing), "read out by what reads pages out"
        assert len(re.findall(r">\d\d:\d\d:\d\d<", drawing)) == 6, "the axis of time has labels"
    assert ">calls</text>" in drawings[0], "the other axis says what it counts"
    assert "prefers-color-scheme: dark" in page and "@media print" in page
    assert not re.search(r"""(fill|stroke)="(#000|black|#0002)""", "".join(drawings)), "can be seen on a dark screen"
    assert parsed.tags.count("details") == len(records.steps)
    json.dumps(as_json(records))


def test_the_report_says_how_it_went(acme: Acme, tables: Tables) -> None:
    done = read(Runs(tables), acme.done)
    assert outcome(done).startswith("acme was upgraded from MR95-1 to MR96-1 in ") and not deviations(done)
    stopped = read(Runs(tables), acme.stopped)
    assert "waits for a decision" in outcome(stopped)
    assert any("failed: a-02" in line for line in deviations(stopped))


def test_a_rehearsal_is_known_by_its_report(acme: Acme, tables: Tables) -> None:
    report = json.loads(json.dumps(as_json(read(Runs(tables), acme.done))))
    assert differs(report, acme.runbook) == ""
    assert "stopped, not done" in differs(as_json(read(Runs(tables), acme.stopped)), acme.runbook)
    assert "no report" in differs({}, acme.runbook) and "no report" in differs({"run": 1}, acme.runbook)
    report["run"]["target"] = "MR97-1"
    assert "MR97-1" in differs(report, acme.runbook)
    report["run"]["target"] = "MR96-1"
    del report["legs"][0]["runbook"]["phases"][4]
    assert "phase 5" in differs(report, acme.runbook)


# -- the command line


@pytest.fixture
def call(acme: Acme, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(common, "load", lambda _: acme.sites)
    monkeypatch.setattr(common, "user", lambda: "eve")
    monkeypatch.setattr(settings, "json", False)

    def run(*words: str) -> str:
        result = CliRunner().invoke(cli.app, list(words))
        if isinstance(result.exception, UpdaterError):
            raise result.exception
        assert result.exit_code == 0, result.output + str(result.exception)
        return result.output

    return run


def test_status_and_history(acme: Acme, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "stopped: a-02" in call("status")
    assert acme.done.id in call("status", "--run", acme.done.id)
    listed = call("history").splitlines()
    assert listed[0].startswith(acme.stopped.id) and listed[1].startswith(acme.done.id)
    monkeypatch.setattr(settings, "json", True)
    assert json.loads(call("status"))["run"] == acme.stopped.id
    assert [each["state"] for each in json.loads(call("history"))] == ["stopped", "done"]
    assert json.loads(call("report", "--run", acme.done.id))["outcome"].startswith("acme was upgraded")


def test_report_writes_a_page(acme: Acme, call: Any, tmp_path: Path) -> None:
    path = tmp_path / "night.html"
    assert str(path) in call("report", str(path), "--run", acme.done.id)
    assert path.read_text().startswith("<!doctype html>")


def test_words_that_nobody_hears_are_refused(acme: Acme, call: Any) -> None:
    with pytest.raises(WrongState, match="does not wait for approval"):
        call("approve", "4")
    with pytest.raises(WrongState, match="nobody works on the run"):
        call("pause")
    with pytest.raises(WrongState, match="there is no run 1999"):
        call("status", "--run", "1999")


def test_words_for_a_controller_that_lives(acme: Acme, tables: Tables, call: Any) -> None:
    lease = take(tables, "acme", purpose="resume")
    try:
        with pytest.raises(Busy, match="another controller"):
            call("resume")
        assert "is passed on" in call("pause")
        said = Runs(tables).said(acme.stopped.id)[-1]
        assert said.word is Word.PAUSE and said.who == "eve" and not said.taken
    finally:
        lease.release()
        tables.work(lambda db: db.execute("DELETE FROM zdu_words"))


def test_an_approval_of_the_wrong_step(acme: Acme, tables: Tables, call: Any) -> None:
    def state(state: str, waits: str) -> None:
        tables.work(
            lambda db: db.execute(
                "UPDATE zdu_runs SET state = %s, waits_for = %s WHERE id = %s", (state, waits, acme.stopped.id)
            )
        )

    state("waiting", "5")
    try:
        with pytest.raises(WrongState, match="4 does not wait") as caught:
            call("approve", "4")
        assert caught.value.next == ("updater zdu approve 5",)
        assert "5 is approved" in call("approve", "5", "--as", "ada")
        assert Runs(tables).said(acme.stopped.id)[-1].who == "ada"
    finally:
        state("stopped", "")
        tables.work(lambda db: db.execute("DELETE FROM zdu_words"))


def test_nothing_is_running(acme: Acme, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = lab.sites(tmp_path)
    monkeypatch.setattr(common, "load", lambda _: empty)
    for verb in ("pause", "resume", "abort"):
        with pytest.raises(WrongState, match="no run is open"):
            call(verb)
    with pytest.raises(WrongState, match="on record"):
        call("status")
    assert "no run" in call("history")


def test_a_rehearsal_is_asked_for(acme: Acme) -> None:
    with pytest.raises(ZduRefused, match="the rule rehearsal"):
        cli._require_rehearsal(acme.runbook, None)
