"""Positions of MariaDB's replication: for each domain, how far. Pure."""

from __future__ import annotations

from collections.abc import Iterator

Position = dict[int, int]


def parse(text: str) -> Position:
    """``0-1-15,7-2-3`` as domain → number; of several servers in one domain, the highest. Raises ValueError."""
    position: Position = {}
    for domain, _, number in entries(text):
        position[domain] = max(number, position.get(domain, 0))
    return position


def entries(text: str) -> Iterator[tuple[int, int, int]]:
    """Domain, server and number of each entry."""
    for entry in filter(None, (part.strip() for part in text.split(","))):
        domain, server, number = entry.split("-")
        yield int(domain), int(server), int(number)


def without(text: str, domain: int) -> str:
    """The same position without one domain."""
    kept = (f"{d}-{server}-{number}" for d, server, number in entries(text) if d != domain)
    return ",".join(kept)


def covers(applied: str, written: str, *, apart_from: int) -> bool:
    """Whether all that was written has been applied, in every domain but one."""
    here = parse(applied)
    return all(here.get(domain, 0) >= number for domain, number in parse(without(written, apart_from)).items())


def own_writes(binlog_state: str, applied: str, server: int, *, apart_from: int) -> list[str]:
    """What a replica has written itself, in domains of its main database: that one does not know of it. (What it wrote
    when it was the main database itself is behind what it has applied since.)
    """
    here = parse(applied)
    return [
        f"{domain}-{by}-{number}"
        for domain, by, number in entries(binlog_state)
        if by == server and domain != apart_from and number > here.get(domain, 0)
    ]
