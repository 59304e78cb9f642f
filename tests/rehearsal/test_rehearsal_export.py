"""What an export has of a node, what stays there, and that a rehearsal can make the same of it."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import tarfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from core.errors import ConfigError
from patches.lifetime import Lifetime
from patches.registry import Kind, Registry
from templates.manifest import builtin
from templates.store import Author, Store
from templates.tree import Instance, Place, Tree
from tests.updater.lab import Lab, add_data
from updater import export_data, exporting
from updater.cli.main import app
from updater.exported import carried_hash, kept_hash, opened
from updater.exporting import Wishes, fingerprint
from updater.node import open_node
from vagrant.rehearsal.installed import recreate, trust_of

pytestmark = pytest.mark.root

#: Nobody times them: other tests run beside.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

PATCH = b"--- a/etc/app.conf\n+++ b/etc/app.conf\n@@ -1 +1 @@\n-two\n+TWO\n"


SECRET = '[groups.snmp]\ntitle = "SNMP"\n[groups.snmp.options.community]\ntype = "secret"\nhelp = "the word"\n'


def ship_templates(config: Path) -> None:
    """The release in slot a has an option that is a secret."""
    home = config.parent / "data/templates/a"
    shutil.copytree(builtin(), home)
    (home / "schema/snmp.toml").write_text(SECRET)


@pytest.fixture
def carrying(node: Path) -> Path:
    """A node that carries a patch, files and a configuration with a secret."""
    home = node.parent
    root = home / "root"
    (root / "etc/ops/tls").mkdir(parents=True)
    (root / "etc/ops/rules").write_text("route = 7\n")
    (root / "etc/ops/rules").chmod(0o640)
    (root / "etc/ops/link").symlink_to("rules")
    (root / "etc/ops/tls/site.key").write_text("-----BEGIN PRIVATE KEY-----\nsecret\n")
    (root / "etc/ops/customers").write_text("Erika Mustermann\n")
    with Registry.of(home / "data") as registry:
        registry.add(Kind.PATCH, "0001-two", content=PATCH, facts={"path": "/"}, lifetime=Lifetime(until="MR98"))
        registry.add(Kind.FILE, "/etc/ops", facts={"policy": "ours"}, reason="ours")
        registry.set_outcomes("a", Kind.FILE, [("/etc/ops/rules", "kept", {"shipped": registry.keep(b"route = 1\n")})])
    ship_templates(node)
    tree = Tree(
        values={Place.parse("global"): {"system.domain": "example.net", "snmp.community": "hush-hush"}},
        instances={"sandbox": Instance(application="billing", server="sandbox")},
    )
    with Store.open(home / "data/configuration.sqlite") as store:
        store.apply(store.save(tree, Author(who="test")).version, Author(who="test"))
    return node


def export(config: Path, *words: str) -> Path:
    path = config.parent / "node.export"
    done = CliRunner().invoke(app, ["--config", str(config), "export", str(path), *words])
    assert done.exit_code == 0, (done.output, done.exception)
    return path


def test_secrets_stay_on_the_node(carrying: Path) -> None:
    path = export(carrying, "--without-content", "/etc/ops/cust*")
    assert path.stat().st_mode & 0o777 == 0o600
    raw = path.read_bytes()
    for secret in (b"hush-hush", b"PRIVATE KEY", b"Mustermann"):
        assert secret not in raw
    with opened(path) as found:
        left = "\n".join(found.manifest.left_out)
        assert "/etc/ops/tls/site.key: a private key" in left
        assert "/etc/ops/customers: left out by the operator" in left
        assert "snmp.community" in left
        kept = {each.path: each for each in found.manifest.kept}
        assert found.read(kept["/etc/ops/rules"].digest) == b"route = 7\n"
        assert kept["/etc/ops/link"].target == "rules"
        assert kept["/etc/ops/rules"].mode == 0o640


def test_a_rehearsal_carries_what_the_node_carries(carrying: Path, tmp_path: Path) -> None:
    (carrying.parent / "root/etc/ops/tls/site.key").unlink()
    missing: list[str] = []
    with opened(export(carrying)) as found:
        made = recreate(found, tmp_path, trust_of(found, tmp_path), missing)
        exported = found.manifest
    ship_templates(made)
    assert missing == ["the value of snmp.community: a made-up one takes its place"]
    with open_node(carrying) as node, open_node(made) as again:
        assert fingerprint(node, "x") == fingerprint(again, "x")
        assert fingerprint(node, "x").kept == kept_hash(exported.kept)
        assert fingerprint(node, "x").carried == carried_hash(exported.carried)
        assert fingerprint(node, "x").configuration == exported.configured
    with Registry.of(made.parent / "data") as registry:
        assert registry.content(registry.get(Kind.PATCH, "0001-two")) == PATCH
        assert registry.outcomes("a", Kind.FILE)[0].name == "/etc/ops/rules"


@pytest.mark.parametrize("part", ["carried", "kept", "configuration"])
def test_each_part_of_the_fingerprint_notices_its_change(carrying: Path, part: str) -> None:
    with open_node(carrying) as node:
        before = fingerprint(node, "x")
        home = carrying.parent
        if part == "kept":
            (home / "root/etc/ops/rules").write_text("route = 8\n")
        elif part == "carried":
            with Registry.of(home / "data") as registry:
                registry.expire(Kind.PATCH, "0001-two", "MR97")
        else:
            with Store.open(home / "data/configuration.sqlite") as store:
                author = Author(who="test")
                version = store.clone(1, author).version
                store.set(version, Place.parse("global"), "system.domain", "example.org", author)
                store.apply(version, author)
        after = fingerprint(node, "x")
    changed = [name for name, digest in asdict(before).items() if asdict(after)[name] != digest]
    assert changed == [part]


def test_applying_the_same_again_is_no_change(carrying: Path) -> None:
    with open_node(carrying) as node:
        before = fingerprint(node, "x")
        with Store.open(carrying.parent / "data/configuration.sqlite") as store:
            store.apply(store.clone(1, Author(who="test")).version, Author(who="test"))
        assert fingerprint(node, "x") == before


@pytest.mark.parametrize("how", ["none of ours", "cut short", "another blob"])
def test_a_damaged_export_is_refused(carrying: Path, how: str) -> None:
    path = export(carrying)
    raw = path.read_bytes()
    if how == "none of ours":
        path.write_bytes(b"something else\n" * 100)
    elif how == "cut short":
        path.write_bytes(raw[:700])
    else:
        path.write_bytes(raw.replace(b"route = 7", b"route = 9"))
    with pytest.raises(ConfigError), opened(path) as found:
        for digest in found.manifest.blobs:
            found.read(digest)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), tarfile.ReadError("another")])
def test_what_fails_while_it_is_open_is_no_fault_of_the_export(carrying: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as seen, opened(export(carrying)):
        raise error
    assert seen.value is error


def test_nothing_is_written_in_a_dry_run(carrying: Path) -> None:
    before = sorted(carrying.parent.rglob("*"))
    done = CliRunner().invoke(app, ["--config", str(carrying), "export", "--dry-run"])
    assert done.exit_code == 0
    assert "1 patches" in done.output
    assert sorted(carrying.parent.rglob("*")) == before


# -- data


def test_empty_data_has_the_form_and_remembers_migrations(lab: Lab, node: Path) -> None:
    add_data(node)
    source = node.parent / "data/billing.sqlite"
    with closing(sqlite3.connect(source)) as db:
        db.executescript(
            "CREATE INDEX by_name ON accounts (name); CREATE VIEW rich AS SELECT * FROM accounts WHERE balance > 5;"
            "CREATE TRIGGER t AFTER INSERT ON accounts BEGIN UPDATE accounts SET balance = 0 WHERE id = 0; END;"
            "CREATE TABLE updater_migrations (number INTEGER, state TEXT); PRAGMA user_version = 7;"
            "INSERT INTO updater_migrations VALUES (961, 'finished');"
        )
    with opened(export(node)) as found:
        assert found.manifest.databases["billing"].data == "empty"
        copy = node.parent / "copy.sqlite"
        copy.write_bytes(found.read(found.manifest.databases["billing"].blob))
    with closing(sqlite3.connect(copy)) as db:
        names = {row[0] for row in db.execute("SELECT name FROM sqlite_schema")}
        assert {"accounts", "by_name", "rich", "t", "updater_migrations"} <= names
        assert db.execute("SELECT count(*) FROM accounts").fetchone() == (0,)
        assert db.execute("SELECT * FROM updater_migrations").fetchall() == [(961, "finished")]
        assert db.execute("PRAGMA user_version").fetchone() == (7,)
    assert b"acme-" not in copy.read_bytes()


def test_data_can_stay_on_the_node(node: Path) -> None:
    add_data(node)
    with opened(export(node, "--data", "none")) as found:
        assert found.manifest.databases["billing"].data == "left out"
        assert found.manifest.left_out == ("database billing: not wanted",)


def test_anonymised_data_keeps_its_relations_and_nobody_s_name(tmp_path: Path) -> None:
    source, target = tmp_path / "s", tmp_path / "t"
    people = [(n, f"Person{n:03} Müller", f"+49 89 {n:06}", "ok", f"x{n}".encode()) for n in range(200)]
    with closing(sqlite3.connect(source)) as db:
        db.executescript(
            "CREATE TABLE p (id INTEGER PRIMARY KEY, name TEXT UNIQUE COLLATE NOCASE, phone TEXT, state TEXT, raw);"
            "CREATE TABLE calls (phone TEXT REFERENCES p (phone), seconds INTEGER);"
            "CREATE TRIGGER no BEFORE UPDATE ON p BEGIN SELECT RAISE(ABORT, 'never'); END;"
        )
        db.executemany("INSERT INTO p VALUES (?, ?, ?, ?, ?)", people)
        db.executemany("INSERT INTO calls VALUES (?, ?)", [(row[2], row[0]) for row in people])
        db.commit()
    export_data.anonymised(source, target)
    with closing(sqlite3.connect(target)) as db:
        rows = db.execute("SELECT * FROM p ORDER BY id").fetchall()
        assert len({row[1] for row in rows}) == 200
        assert not {row[1] for row in rows} & {row[1] for row in people}
        assert {row[3] for row in rows} == {"ok"}
        assert {len(row[2]) for row in rows} == {13}
        assert all(row[4] == bytes(len(row[4])) for row in rows)
        joined = "SELECT count(*) FROM calls JOIN p USING (phone) WHERE seconds = id"
        assert db.execute(joined).fetchone() == (200,)
        assert db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchone() == ("no",)
    assert b"ller" not in target.read_bytes()


@patient
@given(st.lists(st.text(max_size=6), unique_by=str.casefold, max_size=60))
def test_masks_give_each_text_its_own(texts: list[str]) -> None:
    masks = export_data.Masks(b"k" * 32)
    made = [masks(text) for text in texts]
    long = [(text, mask) for text, mask in zip(texts, made, strict=True) if len(text) >= export_data.SHORT]
    assert len({mask.casefold() for _, mask in long}) == len({text.casefold() for text, _ in long})
    assert [masks(text) for text in texts] == made


def test_contents_are_taken_as_they_were(carrying: Path, tmp_path: Path) -> None:
    """A file that is edited while the export is made is in it as it was hashed."""
    with open_node(carrying) as node:
        manifest, blobs = exporting.collect(node, Wishes(), tmp_path)
        (carrying.parent / "root/etc/ops/rules").write_text("changed meanwhile\n")
        exporting.write(tmp_path / "x", manifest, blobs)
    with opened(tmp_path / "x") as found:
        assert all(found.read(digest) for digest in found.manifest.blobs)
    with tarfile.open(tmp_path / "x") as archive:
        assert {member.mode for member in archive} == {0o600}
