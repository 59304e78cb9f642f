"""What the tests of the roof share: tiny signed bundles, sandboxes, and what can be seen of one."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blake3 import blake3

from core.errors import UpdaterError
from core.report import Report
from images import keys
from images.build import BuildSpec, build
from partitions.boot.state import SLOTS, Slot, broken, next_boot
from updater import recovery, sandbox, status, upgrade
from updater.cli.node import followed
from updater.machine import Sandbox
from updater.node import Node, open_node
from updater.staging import seal_holds

IMAGE = 1 << 20
ROOMY = 3 << 20  # a slot in which the image's filesystem has something to grow into
CHUNK = 64 << 10
CREATED = datetime(2026, 9, 2, 1, 0, tzinfo=UTC)

#: The whole sandbox waits for nothing: one look at the health checks per boot.
IMPATIENT = ("deadline = 2\ninterval = 0.2", "deadline = 0\ninterval = 0.01")


@dataclass
class Lab:
    """Bundles by release, made when they are first asked for and signed with one key; and sandboxes that trust it."""

    home: Path
    key: Path
    public: Path
    made: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def create(cls, home: Path) -> Lab:
        """A lab with a new key in `home`."""
        key, public = keys.generate(home / "release.pem")
        return cls(home=home, key=key, public=public)

    def bundle(self, release: str, **changed: Any) -> Path:
        """A bundle of a tiny ext4 image with content of its own per release; `changed`: fields of BuildSpec."""
        name = f"{release}-{blake3(repr(sorted(changed.items())).encode()).hexdigest()[:8]}" if changed else release
        if name not in self.made:
            tree = self.home / f"tree-{name}"
            (tree / "boot").mkdir(parents=True)
            noise = random.Random(name)
            for file in ("vmlinuz-6.1", "initrd.img-6.1"):
                (tree / "boot" / file).write_bytes(f"{release} {file}".encode() + noise.randbytes(100_000))
            spec: dict[str, Any] = {"compatible": "sandbox", "size": IMAGE, "chunk_size": CHUNK, "created": CREATED}
            spec |= {"level": 1, "tree": tree} | changed
            output = self.home / f"{name}.bundle"
            self.made[name] = build(BuildSpec(release=release, **spec), output, [keys.load_signer(str(self.key))])
        return self.made[name]

    def with_data(self, release: str, **files: str) -> Path:
        """A bundle with `CATALOGUE` in it; `files` are put beside or in place of those."""
        catalogue = self.home / f"catalogue-{blake3(repr(files).encode()).hexdigest()[:8]}"
        if not catalogue.exists():
            catalogue.mkdir()
            for name, text in {**CATALOGUE, **files}.items():
                (catalogue / name).write_text(text)
        return self.bundle(release, sections={"migrations": catalogue})

    def sandbox(
        self, directory: Path, release: str = "MR95-1", *, slot: int = IMAGE, carry: tuple[Path, ...] = ()
    ) -> Path:
        """A sandbox whose slot a holds recognisable bytes and "runs" `release`. Returns its node.toml.

        `slot`: bytes per slot. As long as no release is called unhealthy there is no health check to wait for.
        """
        config = sandbox.create(directory, slot_size=slot, keys=[self.public], release=release, compatible="sandbox")
        text = config.read_text().replace(*IMPATIENT)
        config.write_text(text.replace("carry = []", f"carry = {json.dumps([str(path) for path in carry])}"))
        (directory / "slots" / "a.img").write_bytes(blake3(release.encode()).digest(length=slot))
        (directory / "health.d" / "10-release").chmod(0o644)
        return config


def add_data(config: Path) -> None:
    """The node serves an SQLite database, and makes no backups of it. See `CATALOGUE`."""
    path = config.parent / "data/billing.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT NOT NULL, balance NUMERIC NOT NULL)")
        db.executemany("INSERT INTO accounts VALUES (?, ?, ?)", [(n, f"acme-{n}", n / 4) for n in range(1, 26)])
    db.close()
    where = f'\n[databases.billing]\nengine = "sqlite"\npath = "{path}"\n[migrations]\nbackup = "none"\n'
    config.write_text(config.read_text() + where)


def rows(config: Path) -> dict[str, Any]:
    """Tables, indexes and accounts of the node's database; nothing where it has none."""
    path = config.parent / "data/billing.sqlite"
    if not path.exists():
        return {}
    db = sqlite3.connect(path)
    try:
        schema = db.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'updater%' AND sql IS NOT NULL")
        return {"schema": dict(schema.fetchall()), "accounts": db.execute("SELECT * FROM accounts").fetchall()}
    finally:
        db.close()


#: What a release with data migrates: a column that is filled in batches, and then an index that stops writers.
CATALOGUE = {
    "catalogue.toml": '[databases.billing]\nengine = "sqlite"\n',
    "0961-micros.toml": """\
database = "billing"
phase = "non-blocking"
summary = "whole numbers"
[[up]]
sql = "ALTER TABLE accounts ADD COLUMN micros INTEGER"
[[up]]
[up.batch]
table = "accounts"
key = "id"
rows = 10
pause = 0.0
statement = "UPDATE accounts SET micros = balance * 100 WHERE id > :low AND id <= :high"
[[down]]
sql = "ALTER TABLE accounts DROP COLUMN micros"
""",
    "0962-names.toml": """\
database = "billing"
phase = "blocking"
[[up]]
sql = "CREATE UNIQUE INDEX by_name ON accounts (name)"
[[down]]
sql = "DROP INDEX by_name"
""",
    "0963-balance.toml": """\
database = "billing"
phase = "cleanup"
[[up]]
sql = "ALTER TABLE accounts DROP COLUMN balance"
""",
}


def make_unhealthy(directory: Path, *releases: str) -> None:
    """The health check of these releases fails."""
    (directory / "unhealthy").write_text("".join(f"{release}\n" for release in releases))
    (directory / "health.d" / "10-release").chmod(0o755)


def add_hooks(directory: Path, moments: tuple[str, ...], script: str = "") -> None:
    """Hang a hook on each moment. It writes the moment's name, and a line per call, to the file ``hooks-ran``."""
    for moment in moments:
        hook = directory / "hooks" / f"{moment}.d" / "10-note"
        hook.parent.mkdir()
        hook.write_text(
            script or '#!/bin/sh\nhere="${0%/*}"; name="${here##*/}"\necho "${name%.d}" >> "${0%/hooks/*}/hooks-ran"\n'
        )
        hook.chmod(0o755)


def copy_sandbox(source: Path, target: Path) -> Path:
    """A copy of a sandbox that nobody uses, at home in its new place. Returns its node.toml."""
    shutil.copytree(source, target)
    for name in ("node.toml", "health.d/10-release"):
        file = target / name
        file.write_text(file.read_text().replace(f"{source}/", f"{target}/"))
    return target / "node.toml"


# -- what people and systemd do with a node, each as if in a process of its own


def do(config: Path, verb: str, *arguments: Any, report: Report | None = None, **options: Any) -> str:
    """A verb of the command line, followed over the reboots of the sandbox. Returns the outcome's state."""
    verbs: Mapping[str, Callable[..., Any]] = {
        "stage": upgrade.stage,
        "activate": upgrade.activate,
        "rollback": upgrade.rollback,
        "confirm": recovery.confirm,
        "resume": recovery.resume,
        "abort": recovery.abort,
    }
    report = report or Report()
    if verb == "stage":
        arguments = (str(arguments[0]),)
        options = {"wishes": upgrade.Wishes(**options)}
    with open_node(config) as node:
        outcome = verbs[verb](node, *arguments, report, **options)
        return str(followed(node, outcome, report).state)


def attempt(config: Path, verb: str, *arguments: Any, **options: Any) -> str:
    """As `do`; a refusal is an answer too: the error's kind and message."""
    try:
        return do(config, verb, *arguments, **options)
    except UpdaterError as error:
        return f"{error.kind}: {error.message}"


def power_cycle(config: Path) -> None:
    """Off and on: the model of the boot loader picks a slot. What systemd then starts is up to the caller."""
    with open_node(config) as node:
        assert isinstance(node.machine, Sandbox)
        node.machine.reboot()


def look(config: Path) -> dict[str, Any]:
    """All that can be seen of a node, as plain data. Times, ids and reasons are left out, so that two nodes that went
    the same way look the same.
    """
    with open_node(config) as node:
        state = node.boot.read()
        run = node.journal.open_run()
        runs = node.journal.runs()
        shown = status.status_of(node)
        for form in (status.nagios, status.prometheus, lambda found: json.dumps(found.as_json())):
            assert form(shown)
        return {
            "booted": node.booted,
            "boot": node.machine.boot_id(),
            "next boot": next_boot(state),
            "environment": {slot: f"{state[slot].state} {state[slot].tries}" for slot in SLOTS},
            "primary": state.primary,
            "broken": broken(state),
            "content": {slot: _bytes_of(node.device(slot)) for slot in SLOTS},
            "records": {slot: _record(node, slot) for slot in SLOTS},
            "slots": {each.slot: f"{each.release} {each.state}" for each in shown.slots},
            "data": str(node.data_release),
            "migrated": node.journal.fact("migrated"),
            "rows": rows(config),
            "attempts": node.journal.fact("attempts") or [],
            "open run": run and run.verb,
            "wrote": run is not None and "write" in node.journal.steps(run),
            "runs": len(runs),
            "last run": f"{runs[0].verb} {runs[0].state}" if runs else "",
            "hooks": hooks_ran(config),
            "status": replace(shown, at=""),
        }


def _bytes_of(device: Path) -> str:
    """Identity of the bytes of a slot, but for those in which e2fsck and resize2fs write down what time it is."""
    raw = bytearray(device.read_bytes())
    for offset, length in ((0x2C, 8), (0x40, 4), (0x178, 8), (0x3FC, 4)):  # mtime+wtime, lastcheck, kbytes, checksum
        raw[1024 + offset : 1024 + offset + length] = bytes(length)
    return blake3(raw).hexdigest()[:16]


def _record(node: Node, slot: Slot) -> dict[str, Any]:
    record = {key: value for key, value in node.journal.slot(slot).items() if key != "written"}
    if "seal" in record:
        record["seal"] = "holds" if seal_holds(node, slot) else "broken"
    return record | ({"failed": bool(record["failed"])} if "failed" in record else {})


def hooks_ran(config: Path) -> set[str]:
    """The moments at which hooks of `add_hooks` ran, at least once."""
    file = config.parent / "hooks-ran"
    return set(file.read_text().split()) if file.exists() else set()
