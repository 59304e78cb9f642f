"""A sandbox node as the controller sees it, over real SSH: verbs as jobs, broken lines, reboots, errors, fences."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.errors import (
    BundleInvalid,
    CommandFailed,
    FencedOff,
    GateNotPassed,
    HealthFailed,
    NotReady,
    SiteUnreachable,
    WrongState,
)
from core.ssh import Fault
from tests.zdu.sshlab import Releases, SandboxNode, Sshd, node, slow, sshd, until
from zdu.agent import job_name
from zdu.node_answers import JobState
from zdu.nodes import Node
from zdu.remote import RemoteShell, Unreachable

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="sshd wants root"),
]


@dataclass
class Far:
    """A server with a node on it."""

    server: Sshd
    local: SandboxNode
    shell: RemoteShell

    def node(self, fence: int = 1, **options: Any) -> Node:
        """The node, for a controller with this token."""
        return Node(self.shell, fence=fence, command=str(self.local.program), poll=0.05, **options)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Releases:
    return Releases(tmp_path_factory.mktemp("releases"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def far(server: Sshd, releases: Releases, tmp_path: Path) -> Iterator[Far]:
    server.stop()
    server.know()
    server.start()
    with RemoteShell("sip-01", server.reach()) as shell:
        yield Far(server, node(tmp_path / "sip-01", releases), shell)


def bundle(releases: Releases, release: str = "MR96-1") -> str:
    return str(releases.bundle(release))


def test_the_whole_story(far: Far, releases: Releases) -> None:
    seen = far.node()
    before = seen.status()
    assert (before.node, before.runs, before.good, before.complete, before.booting) == (
        "sip-01",
        "MR95-1",
        True,
        "",
        "",
    )
    assert abs(before.skew) <= 2
    planned = seen.plan(bundle(releases))
    assert planned.error is None
    assert planned.title == "MR95-1 → MR96-1 on sip-01"
    assert {"write", "flip", "reboot"} <= {step.step for step in planned.steps}
    assert all(check.ok for check in planned.checks)

    told: list[str] = []
    seen.stage("r.stage", bundle(releases), 60, on_event=lambda event: told.append(str(event.get("step", ""))))
    assert {"write", "seal"} <= set(told)
    staged = seen.facts(fit=True, health=True)
    assert (staged.runs, staged.other, staged.booting, staged.fit) == ("MR95-1", "MR96-1", None, True)
    assert (staged.good, staged.healthy, staged.problems) == (True, True, ())

    seen.activate("r.activate", "MR96-1", 60)
    after = seen.confirmed("MR96-1", 60)
    assert (after.runs, after.good, after.complete) == ("MR96-1", True, "MR95-1")
    seen.rollback("r.back", "MR95-1", 60)
    assert seen.confirmed("MR95-1", 60).runs == "MR95-1"


def test_everything_is_safe_to_repeat(far: Far, releases: Releases) -> None:
    seen = far.node()
    for _ in range(2):
        assert seen.stage("s", bundle(releases), 60).state is JobState.DONE
    for _ in range(2):
        assert seen.activate("a", "MR96-1", 60).runs == "MR96-1"
    assert seen.abort("x", 60).runs == "MR96-1", "there is nothing to abort"
    # The same step in a later attempt of the run: the name was used, the work is to be done all the same.
    assert seen.rollback("r", "MR95-1", 60).runs == "MR95-1"
    assert seen.activate("a", "MR96-1", 60).runs == "MR96-1"


def test_a_job_outlives_lines_that_are_cut_again_and_again(far: Far, releases: Releases) -> None:
    slow(far.local.config, 3)
    stop = threading.Event()

    def cut() -> None:
        until((far.local.directory / "waiting").exists)
        for _ in range(4):
            far.server.cut()
            stop.wait(1)

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        done = far.node().stage("s", bundle(releases), 60)
    finally:
        stop.set()
        cutting.join()
    assert done.text == "MR96-1 is staged in slot b"
    assert done.id == "s", "it ran once, under its first name"


def test_a_server_that_is_away_is_waited_for(far: Far, releases: Releases) -> None:
    """As in a reboot: sshd is gone while the node changes over."""
    seen = far.node()
    seen.stage("s", bundle(releases), 60)
    seen.activate("a", "MR96-1", 60)
    far.server.cut()
    far.server.stop()
    back = threading.Timer(1.0, far.server.start)
    back.start()
    news: list[str] = []
    try:
        assert seen.confirmed("MR96-1", 30, on_news=news.append).good
    finally:
        back.join()
    assert "does not answer" in news[0]
    assert len(news) <= 2, "only what is new is told"


def test_a_server_that_stays_away_is_no_failure_but_not_known(far: Far) -> None:
    far.server.cut()
    far.server.stop()
    with pytest.raises(GateNotPassed, match=r"not confirmed on MR96-1 within 0\.3 s") as told:
        far.node().confirmed("MR96-1", 0.3)
    assert "it was not given up" in told.value.state
    with pytest.raises(SiteUnreachable):
        far.node().status()


def test_another_host_key_after_the_reboot_is_not_waited_for(far: Far) -> None:
    far.server.cut()
    far.server.stop()
    far.server.new_host_key()
    far.server.start()
    with pytest.raises(Unreachable) as told:
        far.node().confirmed("MR95-1", 30)
    assert told.value.fault is Fault.CHANGED_KEY


def test_a_release_that_is_not_healthy_falls_back(far: Far, releases: Releases) -> None:
    far.local.unhealthy("MR96-1")
    seen = far.node()
    seen.stage("s", bundle(releases), 60)
    seen.activate("a", "MR96-1", 60)
    with pytest.raises(HealthFailed, match="sip-01 tried MR96-1 and went back to MR95-1") as told:
        seen.confirmed("MR96-1", 30)
    assert "10-release" in told.value.what[0]
    assert told.value.state == "it runs MR95-1, confirmed"
    # And when the step is done again, for a controller that came later: the same answer, no endless boots.
    with pytest.raises(WrongState):
        seen.activate("a", "MR96-1", 60)
    far.local.unhealthy()
    seen.stage("s", bundle(releases), 60)
    seen.activate("a", "MR96-1", 60)
    assert seen.confirmed("MR96-1", 30).good


def test_another_release_than_the_awaited_one(far: Far) -> None:
    with pytest.raises(WrongState, match="runs MR95-1, and is not on its way to MR97-1"):
        far.node().confirmed("MR97-1", 30)


def test_an_activation_that_was_interrupted_goes_on(far: Far, releases: Releases) -> None:
    """Its process is killed between flip and reboot; the next controller asks the node, and resumes."""
    hook = far.local.directory / "hooks" / "after-activate.d" / "10-die"
    hook.parent.mkdir(parents=True)
    once = far.local.directory / "died"
    hook.write_text(f"#!/bin/sh\n[ -e {once} ] && exit 0\n: > {once}\nkill -9 $PPID\n")
    hook.chmod(0o755)
    seen = far.node()
    seen.stage("s", bundle(releases), 60)
    seen.activate("a", "MR96-1", 60)
    assert once.exists()
    assert seen.confirmed("MR96-1", 60).runs == "MR96-1"


def test_abort_gives_up_what_is_open(far: Far, releases: Releases) -> None:
    hook = far.local.directory / "hooks" / "after-stage.d" / "10-fail"
    hook.parent.mkdir(parents=True)
    hook.write_text("#!/bin/sh\nkill -9 $PPID\n")
    hook.chmod(0o755)
    seen = far.node()
    with pytest.raises(CommandFailed, match="does not come to an end"):
        seen.stage("s", bundle(releases), 60)
    assert seen.status().upgrade is not None
    facts = seen.facts(fit=True)
    assert facts.fit is False
    assert any("is open" in problem for problem in facts.problems)
    assert seen.abort("x", 60).upgrade is None
    assert seen.status().runs == "MR95-1"


# -- errors


def test_errors_of_the_node_are_the_same_here(far: Far, tmp_path: Path) -> None:
    broken = tmp_path / "broken.bundle"
    broken.write_bytes(b"no bundle at all")
    with pytest.raises(BundleInvalid, match=r"^sip-01: ") as told:
        far.node().stage("s", str(broken), 60)
    assert told.value.exit_code == 20
    assert told.value.state
    assert all(line.startswith("on sip-01: ") for line in told.value.next)
    with pytest.raises(BundleInvalid):
        far.node().plan(str(broken))


def test_what_stands_against_a_plan_is_told_with_it(far: Far, releases: Releases) -> None:
    planned = far.node().plan(bundle(releases, "MR94-1"))
    assert planned.error is not None
    assert planned.error.kind == "incompatible"
    assert [check.name for check in planned.checks if not check.ok]


def test_a_stale_controller_is_fenced_off(far: Far, releases: Releases) -> None:
    far.node(fence=2).stage("s", bundle(releases), 60)
    with pytest.raises(FencedOff, match="sip-01: a newer controller was here"):
        far.node(fence=1).activate("a", "MR96-1", 60)
    with pytest.raises(FencedOff):
        far.node(fence=1).stage("s2", bundle(releases), 60)
    assert far.node(fence=1).status().runs == "MR95-1" and far.node(fence=1).fence() == 2, "looking is open to all"


def test_a_job_that_takes_too_long_goes_on(far: Far, releases: Releases) -> None:
    slow(far.local.config, 1.5)
    with pytest.raises(GateNotPassed, match="has not ended within"):
        far.node().stage("s", bundle(releases), 0.2)
    assert far.node(fence=2).stage("s", bundle(releases), 60).id == "s", "the next controller waits for the same job"


def test_a_node_that_is_slow_for_a_while_is_asked_again(far: Far, releases: Releases) -> None:
    """Each verb is slow once: its job begins once all the same, and is followed to its end."""
    program = far.local.program
    asked = program.with_name("asked")
    first, rest = program.read_text().split("\n", 1)
    program.write_text(f'{first}\nif ! grep -qx "$3" {asked}; then echo "$3" >> {asked}; sleep 60; fi\n{rest}')
    asked.touch()
    job = far.node(answer=4).stage("s", bundle(releases), 120)
    assert (job.state, job.id) == (JobState.DONE, "s")
    assert set(asked.read_text().split()) == {"start", "status"}


def test_the_waiting_can_be_ended(far: Far) -> None:
    class EndError(Exception):
        pass

    def end(_: float) -> None:
        raise EndError

    far.server.cut()
    far.server.stop()
    with pytest.raises(EndError):
        far.node(pause=end).confirmed("MR96-1", 60)


def test_no_agent_an_older_one_and_nonsense(far: Far) -> None:
    with pytest.raises(CommandFailed, match="not installed"):
        Node(far.shell, fence=1, command="/no/updater").status()
    far.local.program.write_text("#!/bin/sh\necho 'No such command' >&2\nexit 2\n")
    with pytest.raises(NotReady, match="does not understand the controller"):
        far.node().job("a")
    far.local.program.write_text("#!/bin/sh\necho hello\n")
    with pytest.raises(CommandFailed, match="no answer that can be read"):
        far.node().status()
    far.local.program.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(CommandFailed, match=r"did not end within 0\.5 s"):
        far.node(answer=0.5).status()
    far.local.program.write_text("""#!/bin/sh\necho '{"node": 1}'\n""")
    with pytest.raises(CommandFailed, match="not understood") as told:
        far.node().status()
    assert any(line.startswith("node: ") for line in told.value.what)


def test_unknown_jobs_and_names(far: Far) -> None:
    with pytest.raises(WrongState, match="there is no job none"):
        far.node().job("none")
    assert job_name("2026-11-21-a", "4/activate-node/bil-01#2") == "2026-11-21-a.4.activate-node.bil-01_2"
    assert len(job_name("r", "x" * 500)) == 110
    far.node().start("plain", "verify")
    assert far.node().follow("plain", 60).state in (JobState.DONE, JobState.FAILED)
