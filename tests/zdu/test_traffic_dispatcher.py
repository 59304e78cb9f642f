"""Dispatchers without the programs behind them: every order of wishes, crashes, reloads and restarts; the operator's
own program; the files that are kept in step.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from core import faults
from core.errors import CommandFailed, FencedOff, GateNotPassed, Interrupted, SiteUnreachable, UpdaterError, ZduRefused
from core.run import Result
from core.schema import structure
from zdu.drivers import CallsConfig, DispatcherConfig, DispatcherKind, TargetConfig, VipConfig
from zdu.traffic.dispatcher import dispatcher
from zdu.traffic.held import HeldDispatcher, Seen
from zdu.traffic.kamailio import DISABLED, list_flags, with_flags
from zdu.traffic.shell import LocalShell
from zdu.traffic.targets import State, Target, gaps, leaks, on_each

SITES = {"A": ("a1", "a2"), "B": ("b1",), "C": ("c1", "c2")}
CONFIG = DispatcherConfig(
    kind=DispatcherKind.KAMAILIO,
    targets=tuple(TargetConfig(site=site, destinations=names) for site, names in SITES.items()),
    control="kamcmd:unix:/x",
    state_file=Path("/list"),
    timeout=0.01,
)


class MemoryShell:
    """Files of a host, in memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.files: dict[Path, bytes] = {}

    def run(self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10) -> Result:
        raise NotImplementedError

    def exists(self, path: Path) -> bool:
        return path in self.files

    def read(self, path: Path) -> bytes:
        return self.files[path]

    def write(self, path: Path, data: bytes, mode: int | None = None) -> None:
        self.files[path] = data


class MemoryHost:
    """A program that distributes, in memory. `running` and `start`: destinations that are off."""

    def __init__(self, name: str) -> None:
        self.shell = MemoryShell(name)
        self.name = name
        self.running: set[str] = set()
        self.start: set[str] = set()
        self.dead: set[str] = set()

    def see(self) -> dict[str, Seen]:
        def state(name: str) -> State:
            return State.DRAINING if name in self.running else State.DOWN if name in self.dead else State.ACTIVE

        everything = [name for names in SITES.values() for name in names]
        return {name: Seen(state=state(name), off_at_start=name in self.start) for name in everything}

    def live(self, destination: str) -> int | None:
        return self.see()[destination].live

    def hold(self, destination: str) -> None:
        self.running.add(destination)

    def let_go(self, destination: str) -> None:
        assert destination in self.running, "a destination that is active would be away until its next ping"
        self.running.discard(destination)

    def at_start(self, off: Mapping[str, bool]) -> None:
        for name, value in off.items():
            (self.start.add if value else self.start.discard)(name)


class Killed(BaseException):
    """The controller dies."""


sites = st.lists(st.sampled_from(list(SITES)), min_size=1, max_size=3, unique=True)
names = st.sampled_from([name for own in SITES.values() for name in own])
hosts = st.integers(0, 1)


class Wishes(RuleBasedStateMachine):
    """What an operator switched off is never switched on; what we held is let go at last; a restart changes nothing."""

    @initialize(off=st.lists(st.tuples(hosts, names, st.booleans()), max_size=3))
    def begin(self, off: list[tuple[int, str, bool]]) -> None:
        self.hosts = [MemoryHost("d1"), MemoryHost("d2")]
        for host, name, kept in off:
            self.hosts[host].running.add(name)
            if kept:
                self.hosts[host].start.add(name)
        self.first = [(set(host.running), set(host.start)) for host in self.hosts]
        # Off until the next start, by the operator: after a start that our file kept it off in, it stays so.
        self.off = [set(host.running) for host in self.hosts]
        self.driver = HeldDispatcher(CONFIG, self.hosts)
        self.wish: list[str] | None = []
        self.restarted = False

    @rule(wanted=sites, die=st.one_of(st.none(), st.integers(0, 12)))
    def send(self, wanted: list[str], die: int | None) -> None:
        before = [(set(host.running), set(host.start)) for host in self.hosts]
        try:
            self.act(lambda: self.driver.send_to(wanted), die)
        except Killed:
            self.wish = None
        except GateNotPassed as error:
            assert "nothing more was held" in error.state
            for host, (running, start) in zip(self.hosts, before, strict=True):
                assert host.running <= running
                assert host.start <= start
            self.wish = None
        else:
            self.wish = wanted

    @rule(die=st.one_of(st.none(), st.integers(0, 8)))
    def restore(self, die: int | None) -> None:
        try:
            self.act(self.driver.restore, die)
        except (Killed, GateNotPassed):
            self.wish = None
        else:
            self.wish = []
            self.as_at_first()

    @rule(host=hosts)
    def restart(self, host: int) -> None:
        self.hosts[host].running = set(self.hosts[host].start)
        self.first[host] = (set(self.first[host][1]), self.first[host][1])  # what was not written down is gone

    @rule(host=hosts, name=names)
    def dies(self, host: int, name: str) -> None:
        self.hosts[host].dead.add(name)

    @rule(host=hosts)
    def recover(self, host: int) -> None:
        self.hosts[host].dead.clear()

    def act(self, what: object, die: int | None) -> None:
        left = [die]

        def point(_: str) -> None:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

        faults.arm(point)
        try:
            what()  # type: ignore[operator]
        finally:
            faults.arm(None)

    def as_at_first(self) -> None:
        for host, (running, start), off in zip(self.hosts, self.first, self.off, strict=True):
            assert host.start == start
            assert running <= host.running <= off

    @invariant()
    def what_the_operator_switched_off_is_off(self) -> None:
        for host, (running, _) in zip(getattr(self, "hosts", ()), getattr(self, "first", ()), strict=True):
            assert running <= host.running

    @invariant()
    def after_a_wish_nothing_leaks_now_or_after_a_restart(self) -> None:
        if getattr(self, "wish", None):
            assert self.wish is not None
            assert leaks(self.driver.targets(), self.wish) == []
            others = {name for site, own in SITES.items() if site not in self.wish for name in own}
            for host in self.hosts:
                assert others <= host.running
                assert others <= host.start

    def teardown(self) -> None:
        if hasattr(self, "hosts"):
            for host in self.hosts:
                host.dead.clear()
            self.driver.restore()
            self.as_at_first()


Wishes.TestCase.settings = settings(max_examples=150, stateful_step_count=15, deadline=None)
TestWishes = Wishes.TestCase


class Timid(SiteUnreachable):
    """An error that takes more than words."""

    def __init__(self, message: str, fault: int) -> None:
        super().__init__(message, next="look at the network")
        self.fault = fault


@pytest.mark.parametrize("end", [FencedOff("another controller"), Interrupted("Ctrl-C")])
def test_what_ends_the_work_is_not_taken_for_a_fault_of_a_host(end: UpdaterError) -> None:
    hosts, asked = [MemoryHost("d1"), MemoryHost("d2")], list[str]()

    def act(host: MemoryHost) -> None:
        asked.append(host.name)
        raise end

    with pytest.raises(type(end)) as caught:
        on_each(hosts, act, "hold A")
    assert caught.value is end
    assert asked == ["d1"]
    hosts[0].see = lambda: act(hosts[0])  # type: ignore[assignment, method-assign, return-value]
    driver = HeldDispatcher(replace(CONFIG, profile="site"), hosts)
    for use in (driver.check, driver.targets, lambda: driver.live("A"), lambda: driver.send_to(["A"]), driver.restore):
        with pytest.raises(type(end)):
            use()


def test_an_error_of_a_host_keeps_its_kind_and_the_others_are_told() -> None:
    hosts, done = [MemoryHost("d1"), MemoryHost("d2")], list[str]()

    def act(host: MemoryHost) -> None:
        if host.name == "d1":
            raise Timid("d1 cannot be reached", 3)
        done.append(host.name)

    with pytest.raises(SiteUnreachable, match="cannot hold A on d1") as caught:
        on_each(hosts, act, "hold A")
    assert done == ["d2"]
    assert (caught.value.state, caught.value.next[0]) == ("done on d2", "look at the network")
    assert isinstance(caught.value.__cause__, Timid)


def target(host: str, site: str, state: State, *, kept: bool = True) -> Target:
    return Target(host=host, site=site, destination=f"sip:{site}", state=state, kept=kept)


def test_leaks_and_gaps() -> None:
    found = [
        target("d1", "A", State.DRAINING),
        target("d1", "B", State.ACTIVE),
        target("d2", "A", State.ACTIVE),
        target("d2", "B", State.DOWN),
    ]
    assert leaks(found, ["B"]) == ["sip:A (A) on d2 gets new calls"]
    assert gaps(found, ["B"]) == ["d2 cannot send to B: sip:B is down"]
    assert gaps(found, ["C"]) == [f"{d} cannot send to C: it has no destination there" for d in ("d1", "d2")]
    assert leaks([target("d1", "A", State.DOWN)], ["B"]) == [
        "sip:A (A) on d1 is down, and gets new calls when it is back"
    ]
    assert leaks([target("d1", "A", State.DRAINING, kept=False)], ["B"]) == [
        "sip:A (A) on d1 gets new calls after a reload or a restart"
    ]


LIST = """# sites
1 sip:10.9.0.31:5060 0 10 duid=a;weight=50
1\tsip:10.9.0.32:5060
2 sip:10.9.0.31:5060 8 0
   1   sip:10.9.0.33:5060;transport=tcp   9   0   # not a comment here

junk
"""


def test_the_list_file_of_kamailio() -> None:
    assert list_flags(LIST, 1) == {
        "sip:10.9.0.31:5060": 0,
        "sip:10.9.0.32:5060": 0,
        "sip:10.9.0.33:5060;transport=tcp": 9,
    }
    held = with_flags(LIST, 1, dict.fromkeys(list_flags(LIST, 1), True))
    assert held == LIST.replace("31:5060 0 10", "31:5060 4 10").replace("32:5060\n", "32:5060 4\n").replace(
        "tcp   9", "tcp   13"
    )
    assert list_flags(held, 2) == {"sip:10.9.0.31:5060": 8}, "another set is another matter"


lines = st.one_of(
    st.builds(
        "{} sip:{}{}{}".format,
        st.integers(0, 3),
        st.sampled_from("abc"),
        st.one_of(st.just(""), st.integers(0, 15).map(" {}".format)),
        st.sampled_from(["", "  ", "\r"]),
    ),
    st.text(st.characters(blacklist_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=20).map(
        "#{}".format
    ),
    st.just(""),
)


@given(
    st.lists(lines), st.sampled_from(["\n", ""]), st.dictionaries(st.sampled_from(["sip:a", "sip:b"]), st.booleans())
)
def test_only_the_flags_of_what_is_named_change(found: list[str], end: str, off: dict[str, bool]) -> None:
    text = "\n".join(found) + end
    changed = with_flags(text, 1, off)
    before, after = list_flags(text, 1), list_flags(changed, 1)
    assert after == {
        name: (flags | DISABLED if off[name] else flags & ~DISABLED) if name in off else flags
        for name, flags in before.items()
    }
    assert changed.count("\n") == text.count("\n")
    for old, new in zip(text.split("\n"), changed.split("\n"), strict=True):
        if not any(name in old for name in off):
            assert old == new
    assert with_flags(changed, 1, off) == changed


PROGRAM = """#!/usr/bin/env python3
import json, pathlib, sys
state = pathlib.Path(__file__).with_suffix(".state")
sites = state.read_text().split() if state.exists() else ["A", "B"]
if sys.argv[1] == "targets":
    print(json.dumps({"targets": [
        {"destination": "pool-" + site, "site": site, "state": "active" if site in sites else "draining", "live": 3}
        for site in "AB"]}))
elif sys.argv[1] == "send-to":
    if "X" in pathlib.Path(__file__).name and sys.argv[2:] == ["B"]:
        sys.exit("no licence for that")
    state.write_text(" ".join(sys.argv[2:]))
elif sys.argv[1] == "restore":
    state.unlink(missing_ok=True)
"""


def of_program(path: Path, text: str = PROGRAM) -> DispatcherConfig:
    path.write_text(text)
    path.chmod(0o755)
    return DispatcherConfig(
        kind=DispatcherKind.COMMAND,
        targets=tuple(TargetConfig(site=site, destinations=(f"pool-{site}",)) for site in "AB"),
        command=(str(path),),
    )


def test_a_program_of_the_operator(tmp_path: Path) -> None:
    driver = dispatcher(of_program(tmp_path / "switch"), [LocalShell("d1")])
    assert driver.check() == []
    assert {t.site: t.state for t in driver.targets()} == {"A": State.ACTIVE, "B": State.ACTIVE}
    assert {t.site: (t.state, t.ours) for t in driver.send_to(["B"])} == {
        "A": (State.DRAINING, True),
        "B": (State.ACTIVE, False),
    }
    assert [(reading.source, reading.count) for reading in driver.live("A")] == [("d1", 3)]
    assert {t.state for t in driver.restore()} == {State.ACTIVE}
    with pytest.raises(ZduRefused, match="cannot send to C"):
        driver.send_to(["C"])


def test_a_program_that_fails_or_does_not_do_it(tmp_path: Path) -> None:
    driver = dispatcher(of_program(tmp_path / "X"), [LocalShell("d1")])
    with pytest.raises(CommandFailed, match="cannot send to B on d1") as caught:
        driver.send_to(["B"])
    assert "no licence for that" in caught.value.what[0]
    assert caught.value.state == "done on no host"
    lazy = dispatcher(of_program(tmp_path / "lazy", PROGRAM.replace("state.write_text", "str")), [LocalShell("d1")])
    with pytest.raises(GateNotPassed, match="does not send to B as it was told") as unheard:
        lazy.send_to(["B"])
    assert unheard.value.what == ("pool-A (A) on d1 gets new calls",)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[]",
        '{"targets": [{"destination": "x"}]}',
        '{"targets": [{"destination": "x", "site": "A", "state": "fine"}]}',
        '{"targets": [{"destination": "x", "site": "A", "state": "active", "more": 1}]}',
    ],
)
def test_a_program_that_does_not_tell(tmp_path: Path, said: str) -> None:
    driver = dispatcher(of_program(tmp_path / "mute", f"#!/bin/sh\necho '{said}'\n"), [LocalShell("d1")])
    with pytest.raises(CommandFailed, match="does not tell its targets"):
        driver.targets()
    assert "does not tell its targets" in driver.check()[0]
    assert [reading.count for reading in driver.live("A")] == [None]


def test_the_tables_of_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "zdu-drivers.md").read_text()
    programs, vips, counters = (tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL))
    kamailio = structure(programs["dispatchers"]["programs"][0], DispatcherConfig)
    assert [target.site for target in kamailio.targets] == ["A", "B"]
    assert structure(vips["dispatchers"]["vips"][0], VipConfig).probe.host == "sip-a-01"
    assert structure(counters["sites"]["calls"], CallsConfig).kind == "sql"
    said = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    assert {target["state"] for target in said["targets"]} <= set(State)
