"""The billing engine of a site, as small as it can be: reads in the call server's log which calls began and ended, has
each authorized and charged by the ledger, and tells how many calls the site still has. Started as a program.

What it was about to do when it was killed it finds in the logs again: a charge goes by its call's identifier, so it may
be made twice.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from zlib import crc32

from core.errors import UpdaterError
from core.sql import Database, Engine
from zdu.standalone.delta import DeltaLedger
from zdu.standalone.entries import NotHere, Xdr
from zdu.standalone.ledger import Ledger, Site
from zdu.standalone.main import MainLedger
from zdu.standalone.session import Binlog, Session

PRICE = Decimal("0.10")

#: Seconds between two looks into the log, unless the configuration says otherwise.
LOOK = 0.02


def account_of(call: str, accounts: int) -> str:
    """The account that pays for a call."""
    return f"acct{crc32(call.encode()) % accounts:04d}"


class Lines:
    """The whole lines of all logs in a directory, each once, in the order in which they were written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}

    def new(self) -> list[list[str]]:
        """Those since the last time, as words: begin or end, call, and the time of day (three words)."""
        found = []
        for path in sorted(self._directory.glob("*.log")):
            with path.open("rb") as log:
                log.seek(self._read.get(path, 0))
                whole = log.read().rpartition(b"\n")[0]
            if whole:
                self._read[path] = self._read.get(path, 0) + len(whole) + 1
                found += [line.split() for line in whole.decode().splitlines()]
        return [words for words in found if len(words) == 5]


class BillingEngine:
    """The engine of one site, with several workers; a call stays with one of them."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.lines = Lines(Path(config["calls"]))
        self.done = Path(config["charged"])
        self.guard = threading.Lock()
        self.begun: dict[str, float] = {}  # call → when; gone when it is charged
        self.counts = {"begun": 0, "ended": 0, "charged": 0, "refused": 0, "again": 0}
        self.trouble = ""
        self.queues: list[SimpleQueue[tuple[str, float | None]]] = [SimpleQueue() for _ in range(config["workers"])]

    def ledger(self) -> Ledger:
        """With connections of its own."""
        main, delta, base = (self._database(name) for name in ("main", "delta", "base"))
        return Ledger(
            site=Site(self.config["site"]),
            main=MainLedger(Session(main, patience=2)),
            delta=DeltaLedger(
                Session(delta, binlog=Binlog.DOMAIN, patience=2), Session(base, read_only=True, patience=2)
            ),
            patience=2,
        )

    def run(self) -> None:
        """For ever."""
        charged = {line.split()[0] for line in self.done.read_text().splitlines()} if self.done.exists() else set()
        self._take(self.lines.new(), charged, first=True)
        for queue in self.queues:
            threading.Thread(target=self._work, args=(queue,), daemon=True).start()
        self._listen()
        while True:
            self._take(self.lines.new(), charged)
            time.sleep(self.config.get("look", LOOK))

    def told(self) -> dict[str, Any]:
        """How it stands. `calls`: begun and not charged yet."""
        with self.guard:
            return {"calls": len(self.begun), "trouble": self.trouble} | self.counts

    def _take(self, lines: list[list[str]], charged: set[str], *, first: bool = False) -> None:
        ended = {words[1] for words in lines if words[0] == "end"}
        for what, call, _, _, at in lines:
            if call in charged:
                continue
            queue = self.queues[crc32(call.encode()) % len(self.queues)]
            with self.guard:
                if what == "begin":
                    self.begun[call] = float(at)
                    self.counts["begun"] += 1
                else:
                    self.counts["ended"] += 1
            if what == "end":
                queue.put((call, float(at)))
            elif not (first and call in ended):  # one that is over needs to be authorized no more
                queue.put((call, None))

    def _work(self, queue: SimpleQueue[tuple[str, float | None]]) -> None:
        ledger = self.ledger()
        while True:
            call, ended = queue.get()
            account = account_of(call, self.config["accounts"])
            if ended is None:
                self._insist(lambda: ledger.authorize(account, call=call, price=PRICE, at_most=600))  # noqa: B023
                continue
            began = self.begun[call]
            xdr = Xdr.of_call(
                call,
                call=call,
                account=account,
                price=PRICE,
                seconds=max(1, round(ended - began)),
                started=datetime.fromtimestamp(began, UTC),
            )
            self._insist(lambda: ledger.charge(xdr))  # noqa: B023
            with self.guard, self.done.open("a") as done:
                done.write(f"{call} {time.time()}\n")
                self.counts["charged"] += 1
                del self.begun[call]

    def _insist(self, work: Callable[[], Any]) -> None:
        """Until it is done: a database that is away comes back, and a ledger that is closed opens."""
        while True:
            try:
                work()
                return
            except (UpdaterError, ValueError) as error:
                with self.guard:
                    self.trouble = f"{type(error).__name__}: {error}"[:300]
                    self.counts["again" if isinstance(error, NotHere) else "refused"] += 1
                print(f"{datetime.now(UTC):%H:%M:%S.%f} {self.trouble}", flush=True)
                time.sleep(0.05)

    def _listen(self) -> None:
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(told()).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer((self.config["address"], self.config["port"]), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def _database(self, name: str) -> Database:
        host, database = self.config[name]
        password = Path(self.config["password"])
        return Database(
            engine=Engine.MARIADB, host=host, database=database, user=self.config["user"], password_file=password
        )


def main(config: str) -> None:
    """Run with a configuration file, for ever."""
    BillingEngine(json.loads(Path(config).read_text())).run()


if __name__ == "__main__":
    main(sys.argv[1])
