"""Live calls of a site, counted by whoever knows. A count that cannot be had is None, with the reason: never 0."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

from core.errors import UpdaterError
from core.sql import Connection, Database
from zdu.drivers import CallsConfig, CallsKind
from zdu.traffic.asking import Kamailio, flat
from zdu.traffic.drain import Reading
from zdu.traffic.shell import ENDING, Shell

#: Bytes of an HTTP answer that are read.
LARGEST = 1 << 20


class Counter(Protocol):
    """One source; what a new driver brings."""

    @property
    def name(self) -> str:
        """For people."""

    def count(self) -> int:
        """Calls that it sees now. Raises UpdaterError or ValueError when that is not known."""


class Calls:
    """The calls of a site: the sum of all its sources, each asked at the same time and given `timeout` seconds."""

    def __init__(self, name: str, counters: Sequence[Counter], timeout: float) -> None:
        self.name = name
        self.counters = counters
        self.timeout = timeout
        self._under_way: dict[str, threading.Thread] = {}
        self._turn = threading.Lock()

    def read(self) -> Reading:
        """The sum; None when one of them does not tell, or is still busy with an earlier question. Raises only what
        ends all work (`zdu.traffic.shell.ENDING`). Threads that read together do it in turn.
        """
        with self._turn:
            return self._read()

    def _read(self) -> Reading:
        at = time.monotonic()
        said: dict[str, int | str | UpdaterError] = {}
        for counter in self.counters:
            if (old := self._under_way.get(counter.name)) is not None and old.is_alive():
                said[counter.name] = "the reading before has not ended"
                continue
            # A thread that nobody waits for at the end: a source that hangs does not hold the run.
            thread = threading.Thread(target=_ask, args=(counter, said), daemon=True)
            self._under_way[counter.name] = thread
            thread.start()
        for thread in self._under_way.values():
            thread.join(max(0.0, at + self.timeout - time.monotonic()))
        answers = {
            counter.name: said.get(counter.name, f"no answer in {self.timeout:g} s") for counter in self.counters
        }
        for answer in answers.values():
            if isinstance(answer, UpdaterError):
                raise answer
        why = [f"{name}: {answer}" for name, answer in answers.items() if isinstance(answer, str)]
        if not answers:
            why = ["nobody counts them"]
        if why:
            return Reading(source=self.name, count=None, at=at, why="; ".join(why))
        return Reading(source=self.name, count=sum(n for n in answers.values() if isinstance(n, int)), at=at)


def _ask(counter: Counter, said: dict[str, int | str | UpdaterError]) -> None:
    try:
        said[counter.name] = whole(counter.count())
    except ENDING as error:  # for the one who waits
        said[counter.name] = error
    except UpdaterError as error:
        said[counter.name] = "; ".join((error.message, *error.what))[:300]
    except Exception as error:  # whatever it is, the count is not known
        said[counter.name] = f"{type(error).__name__}: {error}"[:300]


def whole(found: Any) -> int:
    """A number of calls: a whole one, 0 or more, as a number or as text. Raises ValueError on anything else."""
    if isinstance(found, str) and found.strip().isascii() and found.strip().isdigit():
        return int(found.strip())
    try:
        number = int(found) if isinstance(found, (int, float, Decimal)) and not isinstance(found, bool) else -1
    except (OverflowError, ValueError):  # infinite, or not a number
        number = -1
    if number < 0 or number != found:
        raise ValueError(f"{str(found)[:60]!r} is no number of calls")
    return number


def calls(name: str, config: CallsConfig, shells: Sequence[Shell], addresses: Mapping[str, str]) -> Calls:
    """The calls of the site `name`. `shells`: its servers that are asked; `addresses`: server → address, for URLs."""
    counters: list[Counter] = []
    if config.kind is CallsKind.KAMAILIO:
        counters += [KamailioCounter(shell, config) for shell in shells]
    elif config.kind is CallsKind.COMMAND:
        counters += [CommandCounter(shell, config) for shell in shells]
    elif config.kind is CallsKind.HTTP:
        each = shells if "{host}" in config.url else shells[:1]
        urls = [config.url.replace("{host}", addresses[shell.name]) for shell in each] or [config.url]
        counters += [HttpCounter(url, config.pointer, config.timeout) for url in urls]
    else:
        assert config.database is not None
        counters.append(SqlCounter(config.database, config.query))
    return Calls(name, counters, config.timeout)


class KamailioCounter:
    """All dialogs that a Kamailio knows, those that still ring included."""

    def __init__(self, shell: Shell, config: CallsConfig) -> None:
        self.name = shell.name
        self.rpc = Kamailio(shell, config.control, config.timeout)

    def count(self) -> int:
        """Ask it."""
        return whole(flat(self.rpc.call("dlg.stats_active")).get("all"))


class SqlCounter:
    """One row with one number."""

    def __init__(self, database: Database, query: str) -> None:
        self.name = str(database)
        self.database = database
        self.query = query

    def count(self) -> int:
        """Ask it, over a connection of its own."""
        with Connection.open(self.database) as connection:
            rows = connection.execute(self.query).rows
        if len(rows) != 1 or len(rows[0]) != 1:
            raise ValueError(
                f"the query gives {len(rows)} rows of {len(rows[0]) if rows else 0} columns, not one number"
            )
        return whole(rows[0][0])


class HttpCounter:
    """A number in a JSON document."""

    def __init__(self, url: str, pointer: str, timeout: float) -> None:
        self.name = url
        self.pointer = pointer
        self.timeout = timeout

    def count(self) -> int:
        """GET it. Redirects are not followed, and only status 200 is an answer."""
        import urllib3

        with urllib3.PoolManager(retries=False, timeout=self.timeout) as pool:
            answer = pool.request("GET", self.name, preload_content=False, redirect=False)
            body = answer.read(LARGEST, decode_content=True)
            answer.release_conn()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        return whole(at_pointer(json.loads(body), self.pointer))


class CommandCounter:
    """The operator's program prints a number."""

    def __init__(self, shell: Shell, config: CallsConfig) -> None:
        self.name = shell.name
        self.shell = shell
        self.config = config

    def count(self) -> int:
        """Run it."""
        result = self.shell.run(self.config.command, timeout=self.config.timeout)
        if result.code != 0:
            lines = (result.stderr or result.stdout).strip().splitlines()
            raise ValueError(f"{self.config.command[0]} exits with {result.code}: {lines[-1] if lines else ''}")
        return whole(result.stdout)


def at_pointer(document: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) points at; the whole document where it is empty. Raises ValueError."""
    found = document
    for word in pointer.split("/")[1:]:
        key = word.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isascii() and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        else:
            raise ValueError(f"there is nothing at {pointer}")
    return found
