"""The rehearsed installation for real: four machines on one network, configured, in service on the old release."""

from __future__ import annotations

import io
import json
import secrets
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from core.sql import Connection, Database, Engine, SqlError
from vagrant.disk import overlay
from vagrant.network import Lan
from vagrant.node import Lab
from vagrant.qemu import Machine
from vagrant.rehearsal import sites_release
from vagrant.rehearsal.sites_books import fill
from vagrant.rehearsal.sites_places import (
    BOOKS,
    CALLER,
    CONTROLLER,
    D1,
    D2,
    DELTA,
    PLACES,
    USER,
    VIP,
    A,
    B,
    Place,
    files,
    sites_toml,
)
from vagrant.tree import test_keys
from zdu.standalone.schema import install_delta
from zdu.standalone.session import Binlog, Session

T = TypeVar("T")

#: Of each machine, MiB.
MEMORY = 640


class RehearsalError(Exception):
    """The rehearsed installation did not do what it should."""


@dataclass(frozen=True, slots=True)
class Installation:
    """All of it. `work`: the controller's directory, where everybody's logs are too."""

    lan: Lan
    machines: Mapping[str, Machine]
    work: Path
    accounts: int

    def machine(self, place: Place) -> Machine:
        """The machine of a place."""
        return self.machines[place.name]

    def database(self, place: Place, name: str) -> Database:
        """A database there, from the controller's point of view."""
        return Database(
            engine=Engine.MARIADB, host=place.address, database=name, user=USER, password_file=self.work / "password"
        )

    def told(self, place: Place) -> dict[str, Any]:
        """What the billing engine of a site tells of itself."""
        with self.lan.inside(), urllib.request.urlopen(f"http://{place.address}:8080/calls", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def live(self, place: Place) -> int | None:
        """Calls of a site that are not over and charged; None when it does not say."""
        with suppress(OSError):
            return int(self.told(place)["calls"])
        return None

    def lines(self, place: Place) -> list[list[str]]:
        """What the call server of a site wrote down: begin or end, call, and three words of time."""
        said = self.machine(place).run(f"cat {sites_release.DATA}/calls/*.log", timeout=120).stdout
        return [line.split() for line in said.splitlines()]

    def late(self, place: Place) -> int:
        """Calls that came to a site while it was closed, apart from those on their way then (two seconds)."""
        said = self.machine(place).run(f"cat {sites_release.DATA}/state-maintenance.history", timeout=60, check=False)
        moments = [(float(at), word) for at, word in (line.split() for line in said.stdout.splitlines())]
        begun = [float(words[4]) for words in self.lines(place) if words[0] == "begin" and len(words) == 5]
        found = 0
        for number, (at, word) in enumerate(moments):
            if word == "maintenance":
                end = next((other for other, opened in moments[number:] if opened == "open"), time.time())
                found += sum(at + 2 < moment < end for moment in begun)
        return found

    def runs(self) -> dict[str, str]:
        """What each machine says that it runs."""
        found = {}
        for place in PLACES:
            status = json.loads(self.machine(place).run("updater --json status", timeout=120).stdout)
            found[place.name] = next((str(slot["release"]) for slot in status["slots"] if slot["booted"]), "")
        return found

    def holds(self, place: Place) -> bool:
        """Whether a dispatcher has the virtual IP."""
        return f"inet {VIP}/" in self.machine(place).run("ip -4 address show eth1", timeout=60).stdout


def until(true: Callable[[], T], what: str, timeout: float, every: float = 0.5) -> T:
    """Poll until it is true, and return what it said. Raises RehearsalError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (said := true()):
        if time.monotonic() > deadline:
            raise RehearsalError(f"not within {timeout:g} s: {what}")
        time.sleep(every)
    return said


@contextmanager
def installation(work: Path, *, accounts: int = 40, say: Callable[[str], None] = print) -> Iterator[Installation]:
    """Everything up, and in service on the old release."""
    lab = Lab()
    base = sites_release.disk(lab)
    with Lan(f"{CONTROLLER}/24", f"{CALLER}/24") as lan:
        machines = {
            place.name: Machine(
                overlay(base, work / f"{place.name}.qcow2"),
                work / place.name,
                memory=MEMORY,
                cpus=1,
                lan=lan.plug(place.name),
            )
            for place in PLACES
        }
        try:
            made = Installation(lan, machines, work, accounts)
            _set_up(made, (lab.keys / "release.pub").read_text(), say)
            yield made
        finally:
            for machine in machines.values():
                machine.__exit__(None, None, None)


def _set_up(made: Installation, release_key: str, say: Callable[[str], None]) -> None:
    password = secrets.token_hex(12)
    secret = made.work / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    keys = test_keys()
    (made.work / "known_hosts").write_text("".join(f"{place.address} {keys.host_public}" for place in PLACES))
    (made.work / "sites.toml").write_text(sites_toml(made.work, keys.private))

    def configure(place: Place) -> None:
        machine = made.machine(place)
        machine.wait_for_boot(timeout=400)
        say(f"{place.label} has booted")
        machine.run("tar --extract --directory=/", input=_tar(files(place, password, release_key, made.accounts)))
        machine.run(
            "mkdir -p /data/updater; chmod 600 /etc/updater/secrets/*; "
            "f=/etc/rehearsal/users.sql; [ ! -e $f ] || chgrp mysql $f; "
            "updater keep add /etc/rehearsal --policy ours && systemctl start rehearsal-network && "
            f"systemctl start --no-block {' '.join(sites_release.SERVICES)}",
            timeout=300,
        )

    for place in PLACES:
        made.machine(place).start()
    with ThreadPoolExecutor(max_workers=len(PLACES)) as pool:
        try:
            list(pool.map(configure, PLACES))
        except BaseException:
            for machine in made.machines.values():  # who waits for one need not wait any longer
                machine.kill()
            raise
    say("configured; databases …")
    _databases(made)
    for place in (A, B):
        until(lambda place=place: made.live(place) is not None, f"billing of {place.site}", 120)  # type: ignore[misc]
    for place in (D1, D2):
        until(lambda place=place: _sees_both(made, place), f"{place.name} finds both sites alive", 120)  # type: ignore[misc]
    until(lambda: made.holds(D1) and not made.holds(D2), "d1 has the virtual IP", 120)


def _databases(made: Installation) -> None:
    """Books on the main database, a replica that follows it, and a delta database beside that."""
    main, replica = made.database(A, "mysql"), made.database(B, "mysql")
    for database in (main, replica):
        until(lambda database=database: _answers(made, database), f"MariaDB on {database.host}", 240)  # type: ignore[misc]
    with made.lan.inside():
        with Connection.open(main) as there:
            there.execute("RESET MASTER")
        with Connection.open(replica) as here:
            here.execute("RESET MASTER")
            here.execute(
                "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = 3306, MASTER_USER = %s, MASTER_PASSWORD = %s, "
                "MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1",
                (A.address, USER, main.password()),
            )
            here.execute("SET SESSION gtid_domain_id = 7")
            here.execute(f"CREATE DATABASE {DELTA}")
            here.execute("START SLAVE")
        with closing(Session(made.database(B, DELTA), binlog=Binlog.DOMAIN)) as delta:
            install_delta(delta)
        with Connection.open(main) as there:
            there.execute(f"CREATE DATABASE {BOOKS}")
        with closing(Session(made.database(A, BOOKS))) as books:
            fill(books, made.accounts)


def _answers(made: Installation, database: Database) -> bool:
    with suppress(SqlError), made.lan.inside(), Connection.open(database):
        return True
    return False


def _sees_both(made: Installation, place: Place) -> bool:
    said = made.machine(place).run("kamcmd -s unix:/run/kamailio/ctl dispatcher.list", timeout=60, check=False)
    return said.stdout.count("FLAGS: AP") >= 2


def _tar(content: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in content.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size, entry.mode, entry.mtime = len(text.encode()), 0o640, int(time.time())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()
