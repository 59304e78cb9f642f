"""Random runs of random plans in a world of their own: with calls all the time, failures, aborts, and controllers that
die at any place. Nobody is harmed, and from wherever a run stands it can go on, and go back.
"""

from __future__ import annotations

from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.errors import RollbackRefused, ZduRefused
from core.release import Release
from tests.zdu.rehearsal import Rehearsal, in_service
from tests.zdu.sitelab import NEW, installation, wish
from tests.zdu.world import ACCOUNTS, World
from zdu.limits import LimitsConfig, Role
from zdu.planning import plan
from zdu.runbook import Action

any_number = st.integers(0, 1_000_000)

#: Actions with several effects: what is left of them when they end in the midst is neither the old nor the new state.
IN_PARTS = (
    Action.DISPATCH_TO,
    Action.STANDALONE_ENTER,
    Action.ACTIVATE_NODE,
    Action.VIP_MOVE,
    Action.SYNC_LOCK,
    Action.SYNC_TRANSFER,
)


class Machine(RuleBasedStateMachine):
    run: Rehearsal

    @initialize(
        secondaries=st.integers(1, 3),
        servers=st.integers(4, 7),
        dispatchers=st.integers(2, 3),
        distance=st.sampled_from([0, 1, 1, 1, 3]),
        done=st.sets(any_number, max_size=4),
        parallel=st.integers(1, 4),
        waves=st.integers(1, 2),
        everywhere=st.booleans(),
        head_start=st.integers(0, 60),
    )
    def plan_it(
        self,
        secondaries: int,
        servers: int,
        dispatchers: int,
        distance: int,
        done: set[int],
        parallel: int,
        waves: int,
        everywhere: bool,
        head_start: int,
    ) -> None:
        limits = LimitsConfig(
            parallel_servers=parallel,
            parallel_sites=waves,
            max_unavailable={Role.SIP: 1} if parallel % 2 else {},
            minimum_capacity=100,
        )
        sites = installation(
            secondaries,
            servers=servers,
            dispatchers=dispatchers,
            limits=limits,
            normally=() if everywhere else ("A",),
            stand_in="B",
        )
        start = Release(NEW.number - distance, NEW.build + (distance == 0))
        names = list(sites.servers)
        found = {names[number % len(names)]: NEW for number in done}
        wanted = wish(sites, start, NEW, found=found, accept_no_rollback=True, downgrade=True)
        try:
            runbook = plan(sites, wanted)
        except ZduRefused:
            assume(False)
        self.start = {name: str(release) for name, release in wanted.found.items()}
        self.target = dict.fromkeys(names, str(NEW))
        self.adjoining = distance <= 1
        self.run = Rehearsal(sites, World(sites, dict(wanted.found)), runbook)
        for batch in range(head_start):
            self.run.world.call(ACCOUNTS[batch % 2], 4, batch)
            self.go_on(1)

    @rule(account=st.sampled_from(ACCOUNTS), wanted=st.integers(1, 30), pick=any_number)
    def call(self, account: str, wanted: int, pick: int) -> None:
        self.run.world.call(account, wanted, pick)

    @precondition(lambda self: self.run.world.calls)
    @rule(pick=any_number, used=st.integers(0, 30))
    def hang_up(self, pick: int, used: int) -> None:
        calls = list(self.run.world.calls)
        self.run.world.hang_up(calls[pick % len(calls)], used)

    @precondition(lambda self: self.run.ready())
    @rule(pick=any_number)
    def begin(self, pick: int) -> None:
        steps = self.run.ready()
        self.run.begin(steps[pick % len(steps)])

    @precondition(lambda self: self.run.under_way)
    @rule(pick=any_number, times=st.integers(1, 4))
    def advance(self, pick: int, times: int) -> None:
        for _ in range(times):
            steps = self.run.active()
            if steps:
                self.run.advance(steps[pick % len(steps)])

    @rule(batches=st.integers(1, 6))
    def without_trouble(self, batches: int) -> None:
        self.go_on(batches)

    @rule(action=st.sampled_from(IN_PARTS), effects=st.integers(0, 4), back=st.booleans())
    def into(self, action: Action, effects: int, back: bool) -> None:
        """To the midst of the next step of this kind, if there is one, and maybe back from there."""
        ahead = [batch for batch in self.run.progress.runbook.batches if batch[0].action is action]
        ahead = [batch for batch in ahead if not any(step.id in self.run.progress.states for step in batch)]
        while ahead and self.run.progress.batch != ahead[0]:
            self.go_on(1)
        for step in self.run.ready()[:1] if ahead else ():
            self.run.begin(step)
            for _ in range(effects):
                if step.id in self.run.under_way:
                    self.run.advance(step)
            if back and not self.run.progress.runbook.back:
                self.abort(really=1)

    def go_on(self, batches: int) -> None:
        """So many batches of steps; calls end when they are waited for."""
        for _ in range(batches):
            batch = self.run.progress.batch
            for step in batch:
                while step.id in self.run.under_way or step in self.run.ready():
                    if step.id not in self.run.under_way:
                        self.run.begin(step)
                    elif not self.run.advance(step):
                        self.run.world.hang_up(next(iter(self.run.world.calls)), 7)

    @precondition(lambda self: any(step.action is Action.ACTIVATE_NODE for step in self.run.active()))
    @rule(pick=any_number)
    def a_release_fails_its_health_check(self, pick: int) -> None:
        steps = [step for step in self.run.active() if step.action is Action.ACTIVATE_NODE]
        self.run.world.falls_back.add(steps[pick % len(steps)].server)

    @rule()
    def the_controller_dies(self) -> None:
        self.run.crash()

    @precondition(lambda self: not self.run.progress.runbook.back and not self.run.progress.finished)
    @rule(really=st.integers(0, 5))
    def abort(self, really: int) -> None:
        if really or self.run.progress.runbook.phase_of[self.run.progress.batch[0].id] == "1":
            return
        past = self.run.progress.past_return
        try:
            self.run.abort()
        except RollbackRefused:
            assert past and not self.adjoining
        else:
            assert not past or self.adjoining, "the last step, which closes the run, was begun at most"

    @invariant()
    def nobody_is_harmed(self) -> None:
        if hasattr(self, "run"):
            self.run.world.check()

    def teardown(self) -> None:
        if not hasattr(self, "run"):
            return
        onward = self.run.fork()
        onward.to_the_end()
        in_service(onward, self.start if onward.progress.runbook.back else self.target)
        if not self.run.progress.runbook.back and not self.run.progress.past_return:
            self.run.abort()
            self.run.to_the_end()
            in_service(self.run, self.start)


Machine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase


def test_what_the_site_has_charged_and_main_knows_counts_once_for_its_callers() -> None:
    """On the way back the accounts are locked while the site still serves: found by the machine above."""
    state = Machine()
    state.plan_it(
        secondaries=1,
        servers=4,
        dispatchers=2,
        distance=0,
        head_start=12,
        parallel=3,
        waves=1,
        everywhere=False,
        done=set(),
    )
    state.go_on(4)
    state.abort(really=0)
    state.hang_up(pick=0, used=0)
    state.go_on(11)
    state.call(account="ada", pick=0, wanted=1)
    for wanted in (7, 26):
        state.call(account="bob", pick=0, wanted=wanted)
    state.go_on(3)
    state.call(account="bob", pick=0, wanted=1)
    state.nobody_is_harmed()
    state.teardown()


def test_a_dispatcher_that_stands_by_for_a_move_comes_back_before_it_gets_the_address() -> None:
    """The way back from the midst of a move: found by the machine above."""
    state = Machine()
    state.plan_it(
        secondaries=1,
        servers=4,
        dispatchers=2,
        distance=0,
        head_start=0,
        parallel=1,
        waves=1,
        everywhere=False,
        done=set(),
    )
    state.into(action=Action.VIP_MOVE, effects=2, back=False)
    state.teardown()
