"""The whole zero-downtime upgrade, for real: over SSH, with calls going on, a data migration in it, and with faults.

What is measured is measured from outside: by the caller, and in the books. In all of it no call fails, none is cut,
each is charged exactly once, and the replica is the same as the main database in the end.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zdu.lab import until
from tests.zdu.programs import VIP
from tests.zdu.whole import troubles
from tests.zdu.whole.installation import NEW, OLD
from tests.zdu.whole.services import boots, unhealthy
from tests.zdu.whole.story import Story, story, the_whole

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("sites")]

RATE = 20


def test_the_whole_upgrade_while_everybody_calls(tmp_path: Path) -> None:
    with story(rate=RATE, logs=tmp_path) as told:
        ending = the_whole(told)
        report = told.controller.report()
    ending.require_nothing_lost()
    assert ending.migrated == {"A": (True, True, True), "B": (True, True, True)}
    assert ending.books.at_a and ending.books.at_b and ending.books.posted, "both served, B alone for a while"
    assert min(ending.drains_ms.values()) >= 0, "nothing was decided before the last charge"
    assert len(ending.gaps_ms) == 2, "to d2 and back"
    assert report["run"]["state"] == "done"
    print(ending)


@pytest.mark.long
def test_a_server_that_is_not_healthy_is_left_and_the_way_back_restores_service(tmp_path: Path) -> None:
    """Expected: a-sip tries the new release, falls back by itself, the run stops there and says why. `abort` goes the
    printed way back: everybody on the old release, in the ordinary course of things. The data stays migrated, and the
    old release works with it.
    """
    with story(rate=RATE, logs=tmp_path) as told:
        controller = told.controller
        one_try(told, "a-sip")
        unhealthy(told.host("a-sip"), NEW)
        controller.run()
        assert controller.wait() != 0
        (error,) = controller.errors
        assert error["kind"] == "health" and "a-sip" in error["message"], error
        status = controller.ask("status")
        assert status["state"] == "stopped", status
        assert told.made.runs()["a-db"] == NEW
        controller.begin("abort")
        assert controller.wait() == 0, controller.said()
        assert in_ordinary_service(told)
        ending = told.end()
    ending.require_nothing_lost()
    ending.require_everybody_runs(OLD)
    assert ending.migrated == {"A": (True, True, True), "B": (True, True, True)}


@pytest.mark.long
def test_troubles_on_the_way(tmp_path: Path) -> None:
    """One upgrade, and everything goes wrong that can; each trouble with what is expected of it in its place."""
    with story(rate=RATE, logs=tmp_path) as told:
        made, controller = told.made, told.controller
        controller.run()

        # The replica breaks after staging. Expected: B does not stand alone on a replica that lacks something. The run
        # waits there, and says so; calls are served by A. It goes on when the replica is mended.
        controller.reaches("1/stage-node/a-db", "finished")
        troubles.break_replica(made)
        controller.reaches("2/standalone-enter/B")
        served = told.traffic.made()
        told.traffic.flows(2 * RATE)
        assert not controller.has("finished", "2/standalone-enter/B")
        assert told.traffic.made() > served and not told.traffic.failed()
        # A call that does not end. Expected: it is waited for, and somebody is told; it ends by itself, uncut.
        long = told.traffic.long_call(20)
        troubles.mend_replica(made)
        controller.reaches("drain-wait", "alert")
        assert long.running and not boots(told.host("a-sip"))

        # The controller is killed while it waits. Expected: nothing changes for anybody; `resume` waits on.
        kill_and_resume(told)
        controller.reaches("3/drain-wait/A", "finished")
        assert not long.running

        # The line to B is cut while B stands alone, before A's servers boot. Expected: B serves and charges by itself;
        # the run waits for the line where it has to know how B stands, and goes on when it is back.
        controller.reaches("4/replica-hold/B", "finished")
        troubles.cut_between_sites(made)
        charged = made.b.told()["charged"]
        controller.reaches("4/activate-node/a-db", "started")
        until(lambda: made.b.told()["charged"] > charged + 3 * RATE, "B charges alone", 30)
        assert not controller.has("finished", "4/activate-node/a-db") and not boots(told.host("a-db"))
        assert not told.traffic.failed()
        troubles.join_sites(made)

        # The first dispatcher dies while the virtual IP moves away from it. Expected: the other one takes the address
        # by itself, no caller notices; the run does not go on with a dispatcher that it cannot ask. After it is back,
        # `resume` does the move again.
        controller.reaches("5/vip-move/d2", "started")
        troubles.die(told.host("d1"))
        until(lambda: made.keepers[1].holds(VIP), "d2 takes the address")
        told.traffic.flows(2 * RATE)
        assert not controller.has("finished", "5/vip-move/d2")
        controller.kill()
        troubles.come_back(told.host("d1"))
        made.dispatchers[0].ready(1)
        controller.begin("resume")

        # The controller is killed again and again. Expected: each time `resume` goes on from the step it was in.
        for action in ("5/activate-node/d2", "6/sync-lock/B", "6/sync-transfer/B", "8/activate-node/b-sip"):
            controller.reaches(action, "started")
            kill_and_resume(told)
        assert controller.wait() == 0, controller.said()
        assert in_ordinary_service(told)
        ending = told.end()
    ending.require_nothing_lost()
    ending.require_everybody_runs(NEW)
    assert ending.migrated == {"A": (True, True, True), "B": (True, True, True)}


def kill_and_resume(told: Story) -> None:
    """The controller dies, and somebody starts it again."""
    told.controller.kill()
    told.controller.begin("resume")


def one_try(told: Story, name: str) -> None:
    """A new release gets one boot there, so that it is known sooner that it does not do."""
    config = told.host(name).directory / "node" / "node.toml"
    text = config.read_text()
    assert "tries = 3" in text and "deadline = 30" in text
    config.write_text(text.replace("tries = 3", "tries = 1").replace("deadline = 30", "deadline = 10"))


def in_ordinary_service(told: Story) -> bool:
    """Both sites take new calls, the main one has the books, the first dispatcher has the address."""
    for site in (told.made.a, told.made.b):
        before = site.told()["begun"]
        until(lambda site=site, before=before: site.told()["begun"] > before, f"new calls come to {site.name}")  # type: ignore[misc]
    for name, word in (("maintenance", "open"), ("standalone", "normal"), ("billing", "standby")):
        assert (told.host("b-sip").directory / f"state-{name}").read_text().strip() == word
    return told.made.keepers[0].holds(VIP) and not told.made.keepers[1].holds(VIP)
