"""A steady write load on the table of the migrations' bench, from a process of its own: what each writer waits, and
what it has done, so that nothing can be lost unseen.

    python -m bench.writers DATABASE-AS-JSON CONNECTIONS WRITES-PER-SECOND

It says "ready" when all connections write, goes on until its standard input is closed, and ends with its tally as JSON.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from core.schema import structure
from core.sql import Connection, Database, Reason, SqlError

TABLE = "xdr"


@dataclass(slots=True)
class Tally:
    """What the writers did, and the longest that one of them waited, in seconds."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    repeated: int = 0
    longest: float = 0.0

    def add(self, other: Tally) -> None:
        """Both together."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            setattr(self, each.name, max(mine, theirs) if each.name == "longest" else mine + theirs)


class Load:
    """The process with the writers, seen from the bench."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def end(self) -> Tally:
        """Stop the writers; what they did."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        return Tally(**json.loads(self._process.stdout.read()))


@contextmanager
def writing(database: Database, *, connections: int, rate: int) -> Iterator[Load]:
    """Writers at `rate` writes a second, all together, while in the context."""
    about = json.dumps({k: v for k, v in asdict(database).items() if v is not None}, default=str)
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.writers", about, str(connections), str(rate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError("the writers do not write")
        yield Load(process)
    finally:
        process.kill()
        process.wait()


def _write(connection: Connection, rows: int, rate: float, tally: Tally, stop: threading.Event) -> None:
    """One writer: half updates, the rest inserts and deletes of its own rows."""
    chance = random.Random()
    own: list[int] = []
    due = time.monotonic()
    insert = f"INSERT INTO {TABLE} (call_id, account, price, touched) VALUES ('bench', %s, 1.5, 0)"
    back = " RETURNING id"
    while not stop.is_set():
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
        kind = chance.random()
        begun = time.monotonic()
        if kind < 0.5:
            row = [chance.randint(1, rows)]
            _until_done(connection, f"UPDATE {TABLE} SET touched = touched + 1 WHERE id = %s", row, tally)
            tally.updated += 1
        elif kind < 0.75 or not own:
            own.append(_until_done(connection, insert + back, [chance.randint(1, 1000)], tally)[0][0])
            tally.inserted += 1
        else:
            _until_done(connection, f"DELETE FROM {TABLE} WHERE id = %s", [own.pop()], tally)
            tally.deleted += 1
        now = time.monotonic()
        tally.longest = max(tally.longest, now - begun)
        due = max(due, now)  # after a stall no burst: a steady load


def _until_done(connection: Connection, statement: str, values: list[Any], tally: Tally) -> list[tuple[Any, ...]]:
    """As an application does: what was rolled back for others' sake is done again."""
    while True:
        try:
            return connection.execute(statement, values).rows
        except SqlError as error:
            if error.reason not in (Reason.DEADLOCK, Reason.LOCKED):
                raise
            tally.repeated += 1


def main(about: str, connections: str, rate: str) -> None:
    """Write until standard input ends."""
    database = structure(json.loads(about), Database)
    stop, tallies = threading.Event(), [Tally() for _ in range(int(connections))]
    opened = [Connection.open(database) for _ in tallies]
    found = opened[0].one(f"SELECT max(id) FROM {TABLE} WHERE call_id <> 'bench'")
    assert found is not None
    each = int(rate) / len(tallies)
    threads = [
        threading.Thread(target=_write, args=(connection, found[0], each, tally, stop))
        for connection, tally in zip(opened, tallies, strict=True)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    for tally in tallies:
        tally.longest = 0.0  # first statements of fresh connections are no stalls
    print("ready", flush=True)
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    whole = Tally()
    for tally in tallies:
        whole.add(tally)
    print(json.dumps(asdict(whole)))


if __name__ == "__main__":
    main(*sys.argv[1:])
