"""What each action of a runbook needs before it begins, what proves it done, what it is called, how long it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from zdu.limits import Role
from zdu.runbook import Action, Gate, GateKind
from zdu.sites import Sites

#: How many sites are named in one line.
_NAMED: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One action: on `servers` of one site (or dispatchers), on a `site`, or on all dispatchers (`sites`). `release`:
    what the servers are to run afterwards. `runs`: what each of them runs now, to be checked.
    """

    action: Action
    site: str = ""
    servers: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    release: str = ""
    runs: dict[str, str] = field(default_factory=dict)


def gates_of(
    sites: Sites, stand_in: str, action: Action, move: Move, server: str, release: str
) -> tuple[tuple[Gate, ...], tuple[Gate, ...]]:
    """What must be true before an action, and after it."""
    site = move.site
    main = sites.main.name

    def at_site(kind: GateKind, name: str = site) -> Gate:
        return Gate(kind=kind, site=name)

    def at_server(kind: GateKind) -> Gate:
        return Gate(kind=kind, server=server, release=release)

    def at_dispatcher(kind: GateKind, name: str = server) -> Gate:
        return Gate(kind=kind, server=name)

    empty = (at_site(GateKind.CLOSED), at_site(GateKind.NO_CALLS))
    follows = (at_site(GateKind.FOLLOWS),) if site and site != main else ()
    others = [each.name for each in sites.dispatchers.servers if each.name != server]
    match action:
        case Action.CHECK_NODE:
            return (), (at_server(GateKind.READY),)
        case Action.STAGE_NODE:
            return (), (at_server(GateKind.STAGED),)
        case Action.DISPATCH_TO:
            return (), (Gate(kind=GateKind.SENDS_TO, sites=move.sites),)
        case Action.STANDALONE_ENTER:
            return follows, (at_site(GateKind.STANDS_ALONE),)
        case Action.MAINTENANCE_ENTER:
            return (), (at_site(GateKind.CLOSED),)
        case Action.DRAIN_WAIT:
            return (at_site(GateKind.CLOSED),), (at_site(GateKind.NO_CALLS),)
        case Action.REPLICA_HOLD:
            booked = [each.name for each in sites.sites if each.name != site]
            return tuple(at_site(GateKind.NO_CALLS, name) for name in booked), (at_site(GateKind.HELD),)
        case Action.ACTIVATE_NODE | Action.ROLLBACK_NODE:
            before: tuple[Gate, ...] = empty if site else (at_dispatcher(GateKind.STANDBY),)
            if site == main:
                # Held it was before; since then migrations, and their records, move the main database on.
                before += (at_site(GateKind.STILL, stand_in),)
            return before, (at_server(GateKind.BOOTING),)
        case Action.CONFIRM_NODE:
            return (), (at_server(GateKind.RUNS),)
        case Action.VIP_MOVE:
            return (at_dispatcher(GateKind.IN_SERVICE),), (at_dispatcher(GateKind.VIP_AT),)
        case Action.DISPATCHER_STANDBY:
            in_service = tuple(at_dispatcher(GateKind.IN_SERVICE, name) for name in others)
            return in_service, (at_dispatcher(GateKind.STANDBY),)
        case Action.DISPATCHER_RESTORE:
            return (), (at_dispatcher(GateKind.IN_SERVICE),)
        case Action.VERIFY_SITE:
            return (), (at_site(GateKind.HEALTHY), *follows)
        case Action.MAINTENANCE_LEAVE:
            return (), (at_site(GateKind.OPEN),)
        case Action.SYNC_LOCK:
            return (at_site(GateKind.OPEN, main),), (at_site(GateKind.LOCKED),)
        case Action.STANDALONE_LEAVE:
            return (at_site(GateKind.OPEN, main), at_site(GateKind.LOCKED)), (at_site(GateKind.ASKS_MAIN),)
        case Action.SYNC_TRANSFER:
            return (at_site(GateKind.ASKS_MAIN),), (at_site(GateKind.TRANSFERRED),)
        case Action.SYNC_CLOSE:
            return (at_site(GateKind.TRANSFERRED),), (at_site(GateKind.BALANCED),)
        case Action.REPLICA_REJOIN:
            return (), follows
        case Action.BILLING_STANDBY:
            return (at_site(GateKind.ASKS_MAIN),), (at_site(GateKind.BILLING_RESTS),)
        case Action.FINISH:
            return (), ()


def words(sites: Sites, stand_in: str, action: Action, move: Move, server: str = "") -> str:
    """What an action does, for people. Without a server: all of the move at once."""
    main, site, release = sites.main.name, move.site, move.release
    who = server or _count(move)
    where = f"{who} of {site}" if site and move.servers else who
    boots = "boots" if server or len(move.servers) == 1 else "boot"
    match action:
        case Action.CHECK_NODE:
            return f"ask {where} whether it is fit, and what it runs; nothing is changed"
        case Action.STAGE_NODE:
            return f"install {release} on the inactive slot of {who}, with what it carries; it serves on"
        case Action.DISPATCH_TO:
            return f"new calls and registrations go to {_names(move.sites)}; calls that run stay where they are"
        case Action.STANDALONE_ENTER:
            return f"{site} authorizes and charges by itself, into its delta database; its replica stays read-only"
        case Action.MAINTENANCE_ENTER:
            return f"{site} accepts nothing new; its calls go on, and are charged as they end"
        case Action.DRAIN_WAIT:
            return f"wait until the last call on {site} has ended by itself; no call is cut"
        case Action.REPLICA_HOLD:
            return f"the replica of {site} takes over {main}'s last change and stops: the old data, whole"
        case Action.ACTIVATE_NODE if any(Role.DB_PRIMARY in sites.servers[each].roles for each in (server,) if each):
            return f"blocking changes of the database, then {server} boots {release}"
        case Action.ACTIVATE_NODE:
            return f"{where} {boots} {release}"
        case Action.ROLLBACK_NODE:
            return f"{where} {boots} the old slot, {release}"
        case Action.CONFIRM_NODE:
            return f"{server} is healthy on {release} and keeps it"
        case Action.VIP_MOVE:
            return f"the virtual IP goes to {server or move.servers[0]}, and answers there"
        case Action.DISPATCHER_STANDBY:
            return f"{who} leaves the others, one of which holds the virtual IP"
        case Action.DISPATCHER_RESTORE:
            return f"{who} sends calls where the others send them, and is ready for the virtual IP, which stays"
        case Action.VERIFY_SITE:
            return f"health checks of {site}{'' if site == main else ', and its replica follows'}"
        case Action.MAINTENANCE_LEAVE:
            return f"{site} may be used again"
        case Action.SYNC_LOCK:
            return f"{main} holds back, for each account, what was spent on {site}"
        case Action.STANDALONE_LEAVE:
            return f"{site} asks {main} for authorization again; its delta database gets nothing more"
        case Action.SYNC_TRANSFER:
            return f"call records of {site} are posted on {main}, each once; what was held back is let go with them"
        case Action.SYNC_CLOSE:
            return f"sums on {site} and {main} are the same, nothing is held back; the delta is closed"
        case Action.REPLICA_REJOIN:
            return f"the replica of {site} follows {main} again, the changes of the database included"
        case Action.BILLING_STANDBY:
            return f"billing of {site} goes to stand-by"
        case Action.FINISH:
            return "close the run; everybody concerned is told"


def place(move: Move) -> str:
    """Where a move is made, in a word or two."""
    if len(move.servers) > 1:
        return f"{move.site} ({len(move.servers)} servers)"
    return move.servers[0] if move.servers else move.site or "+".join(move.sites)


def _count(move: Move) -> str:
    return move.servers[0] if len(move.servers) == 1 else f"{len(move.servers)} servers"


def _names(names: tuple[str, ...]) -> str:
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def seconds_of(sites: Sites, action: Action, server: str) -> float:
    """How long an action is expected to take, once."""
    expect = sites.expect
    if action is Action.ACTIVATE_NODE:
        primary = bool(server) and Role.DB_PRIMARY in sites.servers[server].roles
        return 1.0 + (expect.migrate if primary else 0.0)
    return {
        Action.CHECK_NODE: expect.check,
        Action.STAGE_NODE: expect.stage,
        Action.DISPATCH_TO: expect.dispatch,
        Action.STANDALONE_ENTER: expect.standalone,
        Action.MAINTENANCE_ENTER: expect.maintenance,
        Action.DRAIN_WAIT: expect.drain,
        Action.REPLICA_HOLD: expect.replica,
        Action.ROLLBACK_NODE: 1.0,
        Action.CONFIRM_NODE: expect.activate,
        Action.VIP_MOVE: expect.vip,
        Action.DISPATCHER_STANDBY: expect.vip,
        Action.DISPATCHER_RESTORE: expect.dispatch,
        Action.VERIFY_SITE: expect.verify,
        Action.MAINTENANCE_LEAVE: expect.maintenance,
        Action.SYNC_LOCK: expect.standalone,
        Action.STANDALONE_LEAVE: expect.standalone,
        Action.SYNC_TRANSFER: expect.sync,
        Action.SYNC_CLOSE: expect.check,
        Action.REPLICA_REJOIN: expect.replica,
        Action.BILLING_STANDBY: expect.maintenance,
    }.get(action, 0.0)
