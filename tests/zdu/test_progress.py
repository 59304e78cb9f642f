"""What comes next, what has to be approved, and whether there is a way back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.errors import RollbackRefused, WrongState
from core.release import Release
from tests.zdu.sitelab import installation, wish
from zdu.limits import LimitsConfig
from zdu.planning import plan
from zdu.progress import Progress, check_approval, next_steps, wants_approval, way_back_from
from zdu.records import Approve, StepState
from zdu.runbook import Action, Step

SITES = installation(limits=LimitsConfig(parallel_stages=3))
RUNBOOK = plan(SITES, wish(SITES))
START = Progress(runbook=RUNBOOK)


def done(*steps: Step) -> dict[str, StepState]:
    return {step.id: StepState.DONE for step in steps}


def up_to(action: Action, *, begun: bool = True, progress: Progress = START) -> Progress:
    """A run that has come to the first step with this action."""
    steps = progress.runbook.steps
    number = next(n for n, step in enumerate(steps) if step.action is action)
    states = done(*steps[:number]) | ({steps[number].id: StepState.BEGUN} if begun else {})
    return replace(progress, states=states)


def test_as_many_steps_at_a_time_as_the_limits_allow() -> None:
    first = next_steps(START)
    assert [step.id for step in first] == ["1/check-node/a-01", "1/check-node/a-02", "1/check-node/a-03"]
    assert next_steps(START, frozenset(step.id for step in first)) == ()
    after = replace(START, states=done(first[0]))
    assert [step.server for step in next_steps(after, frozenset({first[1].id}))] == ["a-03", "a-04"]


def test_a_batch_waits_for_all_of_the_one_before() -> None:
    checks = RUNBOOK.batches[0]
    assert {s.action for s in next_steps(replace(START, states=done(*checks[:-1])))} == {Action.CHECK_NODE}
    assert {s.action for s in next_steps(replace(START, states=done(*checks)))} == {Action.VERIFY_SITE}


@pytest.mark.parametrize("state", [StepState.BEGUN, StepState.FAILED])
def test_what_was_begun_and_is_not_under_way_is_begun_again(state: StepState) -> None:
    progress = up_to(Action.SYNC_TRANSFER)
    step = progress.batch[0]
    assert next_steps(replace(progress, states={**progress.states, step.id: state})) == (step,)


def test_a_paused_run_begins_nothing() -> None:
    assert next_steps(replace(START, paused=True)) == ()


def test_the_end() -> None:
    progress = replace(START, states=done(*RUNBOOK.steps))
    assert progress.finished and progress.phase is None and progress.seconds_left == 0
    assert next_steps(progress) == () and wants_approval(progress) == ""


def test_phases_are_approved_before_their_first_step() -> None:
    progress = replace(up_to(Action.DISPATCH_TO, begun=False), approve=Approve.PHASE)
    assert wants_approval(progress) == "2" and next_steps(progress) == ()
    approved = replace(progress, approved=frozenset({"2"}))
    assert wants_approval(approved) == "" and next_steps(approved)
    inside = replace(up_to(Action.STANDALONE_ENTER, begun=False), approve=Approve.PHASE)
    assert wants_approval(inside) == ""


def test_each_batch_is_approved_by_its_first_step_and_not_again_once_begun() -> None:
    progress = replace(up_to(Action.STANDALONE_ENTER, begun=False), approve=Approve.EACH)
    assert wants_approval(progress) == "2/standalone-enter/B"
    assert wants_approval(replace(up_to(Action.STANDALONE_ENTER), approve=Approve.EACH)) == ""


def test_only_what_waits_can_be_approved() -> None:
    progress = replace(up_to(Action.DISPATCH_TO, begun=False), approve=Approve.PHASE)
    check_approval(progress, "2", RUNBOOK.digest)
    with pytest.raises(WrongState, match="3 does not wait") as caught:
        check_approval(progress, "3")
    assert caught.value.next == ("updater zdu approve 2",)
    with pytest.raises(WrongState, match="another one than was approved"):
        check_approval(progress, "2", "0" * 16)
    with pytest.raises(WrongState, match="does not wait"):
        check_approval(START, "1")


def test_the_way_back_is_that_of_where_the_run_stands() -> None:
    back = way_back_from(SITES, up_to(Action.DRAIN_WAIT))
    told = [f"{step.action} {step.where}".rstrip() for step in back.steps if step.action is not Action.FINISH]
    way = RUNBOOK.ways_back[up_to(Action.DRAIN_WAIT).batch[0].way_back]
    assert tuple(told) == way.actions
    assert back.back and (back.start, back.target) == ("MR95-1", "MR96-1")
    with pytest.raises(WrongState, match="on its way back already"):
        way_back_from(SITES, Progress(runbook=back))


def test_a_run_that_has_done_nothing_has_little_to_undo() -> None:
    assert [step.action for step in way_back_from(SITES, START).steps] == [Action.FINISH]


def test_past_the_point_of_no_return_there_is_no_way_back() -> None:
    far = Progress(runbook=plan(SITES, wish(SITES, Release(93, 1), accept_no_rollback=True)))
    before = up_to(Action.ACTIVATE_NODE, begun=False, progress=far)
    assert not before.past_return and way_back_from(SITES, before)
    after = up_to(Action.ACTIVATE_NODE, progress=far)
    assert after.past_return
    with pytest.raises(RollbackRefused) as caught:
        way_back_from(SITES, after)
    assert "MR93-1 does not read it" in caught.value.what[0]
