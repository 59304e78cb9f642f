"""Moves: what runbooks are made of. A move is one action on a site, or on many servers of it; it becomes steps.

The way there and the way back are made of the same moves, so that both are in the same words and behind the same gates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from zdu.limits import LimitsConfig, Role
from zdu.runbook import Action, Phase, Step
from zdu.sites import Server, Sites
from zdu.vocabulary import Move, gates_of, seconds_of, words

#: Databases first: what the others need must be there when they come.
_RANKS: Final = {Role.DB_PRIMARY: 0, Role.DB_REPLICA: 1, Role.CONFIG: 2}
_LAST: Final = 3

_ON_SERVERS: Final = frozenset({Action.CHECK_NODE, Action.STAGE_NODE, Action.ACTIVATE_NODE, Action.ROLLBACK_NODE})


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMoves:
    """The moves of a phase. Moves in one inner tuple may be under way together."""

    name: str
    title: str
    moves: tuple[tuple[Move, ...], ...]


def ranked(sites: Sites, names: Iterable[str]) -> list[list[str]]:
    """Servers in groups that must come one after the other: the primary database, replicas, configuration, the rest."""
    groups: list[list[str]] = [[] for _ in range(_LAST + 1)]
    for name in names:
        groups[min(_RANKS.get(role, _LAST) for role in sites.servers[name].roles)].append(name)
    return [group for group in groups if group]


def chunks(servers: Iterable[Server], limits: LimitsConfig) -> Iterator[list[Server]]:
    """Servers in the order given, as many at a time as the limits allow."""
    chunk: list[Server] = []
    roles: Counter[Role] = Counter()
    for server in servers:
        over = any(roles[role] + 1 > limits.max_unavailable.get(role, len(chunk) + 1) for role in server.roles)
        if chunk and (over or len(chunk) >= limits.parallel_servers):
            yield chunk
            chunk, roles = [], Counter()
        chunk.append(server)
        roles.update(server.roles)
    if chunk:
        yield chunk


class Expansion:
    """Makes steps of moves: counts batches, and keeps the ids of steps apart."""

    def __init__(self, sites: Sites, stand_in: str, prefix: str = "") -> None:
        self._sites = sites
        self._stand_in = stand_in
        self._prefix = prefix
        self._batch = 0
        self._ids: Counter[str] = Counter()

    def phase(self, phase: PhaseMoves) -> Phase:
        """The phase as steps, without ways back."""
        steps = [step for group in phase.moves for step in self.steps(phase.name, group)]
        return Phase(name=phase.name, title=phase.title, steps=tuple(steps))

    def steps(self, phase: str, group: tuple[Move, ...]) -> Iterator[Step]:
        """The steps of moves that may be under way together."""
        switched = [move for move in group if move.action in (Action.ACTIVATE_NODE, Action.ROLLBACK_NODE)]
        together = [move for move in group if move not in switched]
        if together:
            self._batch += 1
            singles = [(move, name) for move in together for name in move.servers or ("",)]
            at_most = self._sites.limits.parallel_stages if together[0].action in _ON_SERVERS else len(singles)
            for move, name in singles:
                yield self._step(phase, move, move.action, name, at_most)
        for move in switched:
            for chunk in self._chunks(move):
                for action in (move.action, Action.CONFIRM_NODE):
                    self._batch += 1
                    for server in chunk:
                        yield self._step(phase, move, action, server.name, len(chunk))

    def _chunks(self, move: Move) -> Iterator[list[Server]]:
        groups = ranked(self._sites, move.servers)
        for group in groups if move.action is Action.ACTIVATE_NODE else groups[::-1]:
            yield from chunks((self._sites.servers[name] for name in group), self._sites.limits)

    def _step(self, phase: str, move: Move, action: Action, server: str, at_most: int) -> Step:
        where = server or move.site or "+".join(move.sites)
        name = f"{self._prefix}{phase}/{action}{f'/{where}' if where else ''}"
        self._ids[name] += 1
        release = move.runs.get(server, move.release)
        needs, gates = gates_of(self._sites, self._stand_in, action, move, server, release)
        return Step(
            id=name if self._ids[name] == 1 else f"{name}#{self._ids[name]}",
            action=action,
            what=words(self._sites, self._stand_in, action, move, server),
            needs=needs,
            gates=gates,
            seconds=seconds_of(self._sites, action, server),
            batch=self._batch,
            at_most=at_most,
            site=move.site,
            server=server,
            sites=move.sites,
            release=release,
        )


def time_for(sites: Sites, moves: Iterable[Move]) -> float:
    """How long moves, one after the other, are expected to take."""
    total = 0.0
    for move in moves:
        if move.action in (Action.ACTIVATE_NODE, Action.ROLLBACK_NODE):
            rounds = sum(
                1 for group in ranked(sites, move.servers) for _ in chunks(_servers(sites, group), sites.limits)
            )
            total += rounds * sites.expect.activate + 1
        else:
            total += seconds_of(sites, move.action, "")
    return total


def _servers(sites: Sites, names: Iterable[str]) -> Iterator[Server]:
    return (sites.servers[name] for name in names)
