"""The real sites, as a controller's world: each action of a runbook, made with the drivers of the sites file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from core.errors import NotReady
from zdu import ledgers, sightings
from zdu.gates import Facts
from zdu.hands import Hands
from zdu.node_answers import NodeJob
from zdu.records import Sample
from zdu.runbook import Action, Gate, Step
from zdu.sites import Site, Sites
from zdu.world import Talk

#: Seconds for work on a node; its own verbs have shorter limits for what may hang.
STAGE: Final = 4 * 3600.0
SWITCH: Final = 3600.0
CONFIRM: Final = 3600.0

#: Seconds that a server's clock may be off: more, and records of different servers do not fit together.
SKEW: Final = 5.0


class RealWorld:
    """See `zdu.world.World`. `bundle`: a path that is the same on every server, or a URL that all of them reach."""

    def __init__(self, sites: Sites, bundle: str, target: str, fence: int, hands: Hands | None = None) -> None:
        self.sites = sites
        self.bundle = bundle
        self.target = target
        self.hands = hands or Hands(sites, fence)

    def look(self, gate: Gate) -> Facts:
        """Ask whoever knows."""
        return sightings.look(self.hands, gate)

    def act(self, step: Step, talk: Talk) -> str:
        """Make the action."""
        return _ACTIONS[step.action](self, self.hands.watched(talk.check), step, talk)

    def sample(self) -> Sample:
        """How traffic stands."""
        try:
            return sightings.sample(self.hands)
        except Exception:  # a sample that is missing is seen as a gap
            return Sample()

    def close(self) -> None:
        """Hang up."""
        self.hands.close()

    def site(self, step: Step) -> Site:
        """The site that a step is about."""
        return self.sites.by_name[step.site]


def fit(world: RealWorld, hands: Hands, server: str) -> str:
    """Look whether a server could be upgraded: its clock, and what staging would do there (carried modifications,
    space, keys, configuration). Raises what stands against it.
    """
    node = hands.node(server)
    seen = node.status()
    if abs(seen.skew) > SKEW:
        raise NotReady(
            f"the clock of {server} is {seen.skew:+.0f} s off",
            state="nothing was changed",
            next=f"on {server}: timedatectl status",
        )
    if seen.runs == world.target:
        return f"{server} has {world.target} already"
    planned = node.plan(world.bundle)
    if planned.error is not None:
        raise planned.error
    return f"{planned.title}; {len(planned.checks)} checks pass"


def _check_node(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    return fit(world, hands, step.server)


def _stage(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    news = _News(talk)
    done = hands.node(step.server).stage(talk.job, world.bundle, STAGE, on_event=news)
    return _told(done) or f"{step.release} is staged on {step.server}"


def _activate(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    node = hands.node(step.server)
    seen = node.activate(talk.job, step.release, SWITCH, on_event=_News(talk))
    if seen.upgrade is None and step.release not in (seen.runs, seen.booting):
        node.confirmed(step.release, CONFIRM)  # it was there and came back: this raises, and says why
    return f"{step.server} boots {seen.booting or seen.runs or step.release}"


def _rollback(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    """Back to the old slot: a node that never left it, or is on trial, has its open run aborted instead."""
    node = hands.node(step.server)
    seen = node.status()
    if seen.upgrade is not None and seen.upgrade.verb != "rollback":
        seen = node.abort(f"{talk.job}.abort", SWITCH)
    if seen.runs != step.release and seen.booting != step.release:
        seen = node.rollback(talk.job, step.release, SWITCH, on_event=_News(talk))
    return f"{step.server} boots {seen.booting or seen.runs or step.release}"


def _confirm(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    seen = hands.node(step.server).confirmed(step.release, CONFIRM, on_news=talk.note)
    return f"{step.server} runs {seen.runs}, confirmed"


def _dispatch(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    everywhere = {site.name for site in world.sites.sites} == set(step.sites)
    for each in hands.dispatchers:
        talk.check()
        if everywhere:
            each.restore()
        else:
            each.send_to(step.sites)
    return f"new calls go to {' and '.join(step.sites)}"


def _vip_move(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    said = []
    for each in hands.vips:
        moved = each.move(step.server)
        came = f"from {moved.before} in {1000 * moved.seconds:.0f} ms" if moved.before else "there already"
        heard = f"; {moved.silence}" if moved.silence else ""
        said.append(f"{each.address}: {step.server}, {came}{heard}")
    return "; ".join(said)


def _dispatcher_standby(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    for each in hands.vips:
        next(host for host in each.hosts if host.name == step.server).give()
    return f"{step.server} stands by"


def _dispatcher_restore(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    """It sends where the others send before it may get anything to send. The virtual IP stays where it is."""
    seen = sightings.dispatchers(hands)
    others = [each.sends_to for name, each in seen.items() if name != step.server and each.sends_to and each.serves]
    own = seen[step.server].sends_to
    if others and (own is None or set(own) != set(others[0])):
        for program in hands.dispatchers_on(step.server):
            program.send_to(others[0])
    for each in hands.vips:
        each.admit(step.server)
    return f"{step.server} is in service"


def _maintenance(verb: str) -> _Act:
    def act(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
        hands.switch("maintenance", world.site(step).maintenance, verb)
        return f"maintenance of {step.site}: {verb}"

    return act


def _standalone_enter(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    """The services are ready for it first; the ledger is what changes over, at one moment. It is asked for nothing
    that it would refuse when they have changed.
    """
    site = world.site(step)
    ledgers.claim(hands, site, talk)
    hands.switch("standalone", hands.standalone(site), "enter")
    return ledgers.enter(hands, site, talk, step.id)


def _standalone_leave(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    site = world.site(step)
    said = ledgers.switch(hands, site, talk)
    hands.switch("standalone", hands.standalone(site), "leave")
    return said


def _hold(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    return hands.replica(world.site(step)).hold()


def _rejoin(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    return hands.replica(world.site(step)).join()


def _billing(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    config = world.site(step).billing
    if config is None:
        return f"billing of {step.site} is not switched by us"
    hands.switch("billing", config, "standby")
    return f"billing of {step.site} is on stand-by"


def _sync(work: Callable[[Hands, Site, Talk], str]) -> _Act:
    return lambda world, hands, step, talk: work(hands, world.site(step), talk)


def _nothing(world: RealWorld, hands: Hands, step: Step, talk: Talk) -> str:
    return "looked at"


class _News:
    """Events of a job on a node, as notes of the step; and each of them is an occasion to leave."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def __call__(self, event: Mapping[str, Any]) -> None:
        self._talk.check()
        if event.get("kind") in ("finished", "warning", "failed") and (event.get("text") or event.get("step")):
            self._talk.note(" ".join(str(event[key]) for key in ("step", "text") if event.get(key))[:300])


def _told(job: NodeJob) -> str:
    return str((job.result or {}).get("text") or "")


_Act = Callable[[RealWorld, Hands, Step, Talk], str]

_ACTIONS: Final[Mapping[Action, _Act]] = {
    Action.CHECK_NODE: _check_node,
    Action.STAGE_NODE: _stage,
    Action.DISPATCH_TO: _dispatch,
    Action.STANDALONE_ENTER: _standalone_enter,
    Action.MAINTENANCE_ENTER: _maintenance("enter"),
    Action.DRAIN_WAIT: _nothing,
    Action.REPLICA_HOLD: _hold,
    Action.ACTIVATE_NODE: _activate,
    Action.ROLLBACK_NODE: _rollback,
    Action.CONFIRM_NODE: _confirm,
    Action.VIP_MOVE: _vip_move,
    Action.DISPATCHER_STANDBY: _dispatcher_standby,
    Action.DISPATCHER_RESTORE: _dispatcher_restore,
    Action.VERIFY_SITE: _nothing,
    Action.MAINTENANCE_LEAVE: _maintenance("leave"),
    Action.SYNC_LOCK: _sync(ledgers.lock),
    Action.STANDALONE_LEAVE: _standalone_leave,
    Action.SYNC_TRANSFER: _sync(ledgers.transfer),
    Action.SYNC_CLOSE: _sync(ledgers.close),
    Action.REPLICA_REJOIN: _rejoin,
    Action.BILLING_STANDBY: _billing,
    Action.FINISH: _nothing,
}
