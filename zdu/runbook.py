"""The runbook of a zero-downtime upgrade: phases, and in them steps, each with its gate and its way back.

Plain data: it is printed, approved, and written down by the controller, which executes it as it was written. Read back
with ``core.schema.structure(data, Runbook)``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any


class Action(StrEnum):
    """What a step does. The words stand in runs that another release of the controller will read. All of them are safe
    to repeat: each makes sure of something, and does nothing where it is so already.
    """

    CHECK_NODE = "check-node"
    STAGE_NODE = "stage-node"
    DISPATCH_TO = "dispatch-to"
    STANDALONE_ENTER = "standalone-enter"
    MAINTENANCE_ENTER = "maintenance-enter"
    DRAIN_WAIT = "drain-wait"
    REPLICA_HOLD = "replica-hold"
    ACTIVATE_NODE = "activate-node"  # on the db-primary with the blocking changes of the database before it
    ROLLBACK_NODE = "rollback-node"
    CONFIRM_NODE = "confirm-node"
    VIP_MOVE = "vip-move"
    DISPATCHER_STANDBY = "dispatcher-standby"
    DISPATCHER_RESTORE = "dispatcher-restore"
    VERIFY_SITE = "verify-site"
    MAINTENANCE_LEAVE = "maintenance-leave"
    SYNC_LOCK = "sync-lock"
    STANDALONE_LEAVE = "standalone-leave"
    SYNC_TRANSFER = "sync-transfer"
    SYNC_CLOSE = "sync-close"
    REPLICA_REJOIN = "replica-rejoin"
    BILLING_STANDBY = "billing-standby"
    FINISH = "finish"


class GateKind(StrEnum):
    """What can be asked of the real state before and after a step (`zdu.gates` decides)."""

    READY = "ready"  # the node is fit for an upgrade, and runs `release`
    STAGED = "staged"  # its other slot holds `release`, complete
    RUNS = "runs"  # it runs `release`, confirmed and healthy
    BOOTING = "booting"  # it boots, or runs, `release`
    SENDS_TO = "sends-to"  # every dispatcher in service sends new calls to `sites`, and nowhere else
    STANDS_ALONE = "stands-alone"
    ASKS_MAIN = "asks-main"  # the site does not stand alone
    CLOSED = "closed"  # the site is in maintenance
    OPEN = "open"  # it is not
    NO_CALLS = "no-calls"
    HELD = "held"  # the replica has applied all of the main database's changes, and has stopped
    STILL = "still"  # the replica has stopped; what the main database has since is not asked
    FOLLOWS = "follows"  # the replica runs and is not behind
    VIP_AT = "vip-at"  # the virtual IPs are at this dispatcher, nowhere else, and answer
    STANDBY = "standby"  # the dispatcher is out of service, and holds no virtual IP
    IN_SERVICE = "in-service"  # the dispatcher could take the virtual IPs, and sends to where the others send
    HEALTHY = "healthy"  # the checks of the site pass
    LOCKED = "locked"  # the main database held back, once, what the delta amounted to; the switch locks the rest
    TRANSFERRED = "transferred"  # no call record is left that only the delta database has
    BALANCED = "balanced"  # sums agree on both sides, nothing is locked
    BILLING_RESTS = "billing-rests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What must be true: of a `site`, a `server`, a `release`, or (SENDS_TO) of several `sites`."""

    kind: GateKind
    site: str = ""
    server: str = ""
    release: str = ""
    sites: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. `id`: unique in its runbook. `needs`: what must be true when it begins; `gates`: what must be true
    before anything after it begins. `sites`: where new calls go (dispatch-to only). `seconds`: expected.
    `batch`: steps of the same number may be under way together, `at_most` of them at a time; every step of a batch must
    be done before the next batch begins. `way_back`: key into `Runbook.ways_back`: the way back once this step has
    begun; empty: there is none.
    """

    id: str
    action: Action
    what: str
    needs: tuple[Gate, ...]
    gates: tuple[Gate, ...]
    seconds: float
    batch: int
    at_most: int = 1
    site: str = ""
    server: str = ""
    sites: tuple[str, ...] = ()
    release: str = ""
    way_back: str = ""

    @property
    def where(self) -> str:
        """Server, site, or the sites that new calls go to."""
        return self.server or self.site or "+".join(self.sites)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A phase. `name`: its number, with the wave behind it where there are several: ``8``, ``8.2``."""

    name: str
    title: str
    steps: tuple[Step, ...]

    @property
    def seconds(self) -> float:
        """How long it is expected to take, with what runs side by side."""
        return expected(self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class WayBack:
    """How to get from somewhere in a run to service on the release it began with. `moves`: in words, one line each;
    `actions`: the same as an action and a place each.
    """

    moves: tuple[str, ...]
    seconds: float
    actions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Runbook:
    """What will be done, in order. `back`: it is itself a way back. `stand_in`: the site that stands alone meanwhile.
    `point_of_no_return`: id of the step from whose beginning on there is no way back within the run. `passed`: servers
    that have the release already.
    """

    installation: str
    start: str
    target: str
    main: str
    stand_in: str
    phases: tuple[Phase, ...]
    ways_back: dict[str, WayBack]
    point_of_no_return: str
    no_return_why: str
    adjoining: bool
    passed: tuple[str, ...] = ()
    back: bool = False

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """All steps in order."""
        return tuple(step for phase in self.phases for step in phase.steps)

    @cached_property
    def batches(self) -> tuple[tuple[Step, ...], ...]:
        """All steps in order, those together that may be under way together."""
        return tuple(batches(self.steps))

    @cached_property
    def by_id(self) -> dict[str, Step]:
        """Steps by their id."""
        return {step.id: step for step in self.steps}

    @cached_property
    def phase_of(self) -> dict[str, str]:
        """Id of a step → name of its phase."""
        return {step.id: phase.name for phase in self.phases for step in phase.steps}

    @property
    def seconds(self) -> float:
        """How long the whole is expected to take."""
        return sum(phase.seconds for phase in self.phases)

    def as_json(self) -> dict[str, Any]:
        """Plain data with the names of the fields as keys."""
        return asdict(self)

    @cached_property
    def digest(self) -> str:
        """What an approval is for: changes when anything in the runbook does."""
        plain = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(plain.encode()).hexdigest()[:16]


def batches(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    """Neighbours of the same batch, together."""
    group: list[Step] = []
    for step in steps:
        if group and group[0].batch != step.batch:
            yield tuple(group)
            group = []
        group.append(step)
    if group:
        yield tuple(group)


def expected(steps: tuple[Step, ...]) -> float:
    """Expected seconds of steps in order, with what runs side by side."""
    total = 0.0
    for group in batches(steps):
        rounds = -(-len(group) // group[0].at_most)
        total += rounds * max(step.seconds for step in group)
    return total
