"""What runs inside a machine whose power is cut: a writer that says on the serial line what it has made durable, and a
look at everything after the next boot.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from vagrant import data
from vagrant.qemu import Machine, MachineError

#: On the data partition.
PLACE = "/data/outages"

#: Its lines on the serial console: so many numbers are in the file, and the last one in the database is.
_KEPT = re.compile(r"LAB-KEPT (\d+) (\d+);")

PROGRAM = f"""\
import json, os, sqlite3, subprocess, sys, time

COUNTER, BILLING, JOURNAL = "{PLACE}/counter", "{data.PLACE}", "/data/updater/journal.sqlite"


def numbers():
    try:
        with open(COUNTER, "rb") as file:
            lines = file.read().split(b"\\n")
    except FileNotFoundError:
        return 0
    found = 0  # what follows the last whole line was never said to be there
    while found < len(lines) - 1 and lines[found] == b"%d" % (found + 1):
        found += 1
    return found


def calls(db):
    db.execute("CREATE TABLE IF NOT EXISTS calls (n INTEGER PRIMARY KEY)")
    return db.execute("SELECT coalesce(max(n), 0) FROM calls").fetchone()[0]


def write():
    db = sqlite3.connect(BILLING, timeout=120, isolation_level=None)
    db.execute("PRAGMA synchronous = EXTRA")
    held, number = calls(db), numbers()
    new = not os.path.exists(COUNTER)
    with open(COUNTER, "r+b" if not new else "w+b", buffering=0) as file:
        os.ftruncate(file.fileno(), sum(len(str(n)) + 1 for n in range(1, number + 1)))
        file.seek(0, 2)
        if new:
            directory = os.open("{PLACE}", os.O_RDONLY)
            os.fsync(directory)
        line = open("/dev/ttyS0", "wb", buffering=0)
        while True:
            number += 1
            file.write(b"%d\\n" % number)
            os.fsync(file.fileno())
            if number % 4 == 0:
                try:
                    db.execute("INSERT INTO calls VALUES (?)", (held + 1,))
                    held += 1
                except sqlite3.OperationalError:  # a migration holds the file
                    pass
            line.write(b"\\nLAB-KEPT %d %d;\\n" % (number, held))
            time.sleep(1)


def sound(path):
    try:
        with sqlite3.connect(path, timeout=30) as db:
            return db.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        return str(error)


def said(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout.strip()


def look():
    status = said("updater", "--json", "status")
    print(json.dumps({{
        "numbers": numbers(),
        "calls": calls(sqlite3.connect(BILLING, timeout=30)),
        "billing": sound(BILLING),
        "journal": sound(JOURNAL),
        "release": open("/etc/updater-release").read().strip(),
        "balance": said("acme-balance")[1],
        "failed": said("systemctl", "--failed", "--no-legend", "--plain")[1],
        "status": json.loads(status[1]) if status[0] == 0 else status[1],
    }}))


{{"write": write, "look": look}}[sys.argv[1]]()
"""

#: The release whose application fails.
SICK = "MR97-1"

_RUN = f"/usr/bin/python3 -I {PLACE}/program.py"

#: Has numbers and calls written from now on, if that is not so already.
KEEP_WRITING = f"systemctl -q is-active lab-writer || systemd-run -q --collect --unit=lab-writer {_RUN} write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the guest was told to be durable: so many numbers in the file, so many calls in the database."""

    numbers: int
    calls: int


def install(machine: Machine) -> None:
    """Put the program on the data partition, durably."""
    machine.push(PROGRAM, f"{PLACE}/program.py")
    machine.run(f"sync -f {PLACE}")


def acknowledged(machine: Machine) -> Kept:
    """The last word on the serial line."""
    text = machine.serial.read_text(errors="replace") if machine.serial.exists() else ""
    found = [(int(match[1]), int(match[2])) for match in _KEPT.finditer(text)]
    return Kept(numbers=max((n for n, _ in found), default=0), calls=max((c for _, c in found), default=0))


def look(machine: Machine) -> dict[str, Any]:
    """Everything that is of interest in the machine. Raises MachineError when it cannot be had."""
    said = machine.run(f"{_RUN} look", timeout=120).stdout
    try:
        found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise MachineError(f"a look inside says {said!r}") from error
    return found


def faults(found: dict[str, Any], kept: Kept, booted: str) -> list[str]:
    """What is not as it must be after a cut, however it came; empty: all is well."""
    status = found["status"]
    wrong = []
    if found["numbers"] < kept.numbers:
        wrong.append(f"file: {kept.numbers} numbers were durable, {found['numbers']} are there")
    if found["calls"] < kept.calls:
        wrong.append(f"database: {kept.calls} calls were durable, {found['calls']} are there")
    wrong += [f"{name}: {found[name]}" for name in ("billing", "journal") if found[name] != "ok"]
    if found["balance"] != data.answer(found["release"]):
        wrong.append(f"acme-balance says {found['balance']}")
    if not isinstance(status, dict):
        return [*wrong, f"status: {status}"]
    running = next((slot for slot in status["slots"] if slot["booted"]), None)
    if running is None or running["slot"] != booted or running["release"] != found["release"]:
        wrong.append(f"status takes {running} for what runs, and it is {found['release']} in slot {booted}")
    if status["indicator"] == "CRITICAL":
        wrong.append(f"status: {'; '.join(status['problems'])}")
    failed = [line.split()[0] for line in found["failed"].splitlines() if line.strip()]
    # the agent says so when it finds an interrupted run; and one release of the lab is sick
    expected = {"updater-confirm.service", *(["acme.service"] if found["release"] == SICK else [])}
    return wrong + [f"{unit} failed" for unit in failed if unit not in expected]
