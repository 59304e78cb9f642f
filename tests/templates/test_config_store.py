"""Saved configurations: complete, frozen once applied, private."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_config_tree import TREES

from core import faults
from core.errors import ConfigError, NotReady, WrongState
from templates.exchange import Secrets, dumps, export, read, write
from templates.store import Author, Store, digest, parse_version
from templates.tree import GLOBAL, Instance, Tree
from tests.templates.configlab import at

ME = Author(who="me", why="because")


def test_nobody_else_reads_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Store.open(tmp_path / "s") as store:
            store.clone(None, ME)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_clone_change_apply_and_back(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        store.clone(None, ME)
        store.set(1, GLOBAL, "app.port", 14, ME)
        store.apply(1, ME)
        store.clone(1, ME)
        store.set(2, at("environment:acme"), "app.port", 10, ME)
        store.set_instance(2, "n1", Instance(application="billing", server="n1"), ME)
        assert store.active() is not None and store.active().version == 1  # type: ignore[union-attr]
        store.apply(2, ME)
        store.apply(store.earlier().version, ME)
        assert [(each.version, each.active, each.is_draft) for each in store.listed()] == [
            (2, False, False),
            (1, True, False),
        ]
        assert store.tree(1).values == {GLOBAL: {"app.port": 14}}
        assert store.tree(2).values == {GLOBAL: {"app.port": 14}, at("environment:acme"): {"app.port": 10}}
        with pytest.raises(WrongState):
            store.earlier()
        told = [(each.version, each.what, each.who) for each in store.history()]
        assert told[0] == (1, "applied", "me")
        assert all("14" not in each.detail for each in store.history())


def test_what_was_applied_cannot_be_changed(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        store.clone(None, ME)
        store.set(1, GLOBAL, "app.port", 14, ME)
        store.apply(1, ME)
        for change in (
            lambda: store.set(1, GLOBAL, "app.port", 15, ME),
            lambda: store.set(1, GLOBAL, "app.new", 15, ME),
            lambda: store.unset(1, GLOBAL, "app.port", ME),
            lambda: store.set_instance(1, "n1", Instance(application="a", server="n1"), ME),
        ):
            with pytest.raises(WrongState, match="v1 was applied and cannot be changed"):
                change()
        assert store.tree(1).values == {GLOBAL: {"app.port": 14}}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE settings SET value = '15'",
        "DELETE FROM settings",
        "INSERT INTO settings VALUES (1, 'global', 'x', '1')",
        "UPDATE configurations SET digest = NULL",
        "DELETE FROM configurations",
        "INSERT INTO instances VALUES (1, 'n', 'a', 's')",
    ],
)
def test_not_even_with_sql(tmp_path: Path, statement: str) -> None:
    with Store.open(tmp_path / "s") as store:
        store.clone(None, ME)
        store.set(1, GLOBAL, "app.port", 14, ME)
        store.apply(1, ME)
    with sqlite3.connect(tmp_path / "s") as db, pytest.raises(sqlite3.IntegrityError, match="frozen"):
        db.execute(statement)


def test_a_store_that_was_tampered_with_is_noticed(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        store.clone(None, ME)
        store.set(1, GLOBAL, "app.port", 14, ME)
        store.apply(1, ME)
    with sqlite3.connect(tmp_path / "s") as db:
        db.execute("DROP TRIGGER frozen_settings_update")
        db.execute("UPDATE settings SET value = '15'")
    with Store.open(tmp_path / "s") as store, pytest.raises(NotReady, match="is not what was applied"):
        store.tree(1)


def test_a_store_of_a_newer_agent_or_none_at_all(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s"):
        pass
    with sqlite3.connect(tmp_path / "s") as db:
        db.execute("INSERT INTO store VALUES (9)")
    with pytest.raises(NotReady, match="newer agent"):
        Store.open(tmp_path / "s")
    (tmp_path / "text").write_text("this is no database, " * 100)
    for path in (tmp_path / "text", tmp_path, tmp_path / "no/such/file"):
        with pytest.raises(NotReady):
            Store.open(path)


def test_received_is_taken_once_and_never_twice_under_one_number(tmp_path: Path) -> None:
    one, other = Tree(values={GLOBAL: {"a.b": 1}}), Tree(values={GLOBAL: {"a.b": 2}})
    with Store.open(tmp_path / "s") as store:
        assert store.receive(41, one, ME)
        assert not store.receive(41, one, ME)
        assert store.receive(42, other, ME)
        assert store.receive(41, one, ME)  # the configuration host went back
        with pytest.raises(WrongState, match="another configuration v42"):
            store.receive(42, one, ME)
        assert store.tree(41) == one
        assert store.clone(None, ME).version == 43


def test_what_is_changed_by_another_while_it_is_applied_is_frozen_whole_or_refused(tmp_path: Path) -> None:
    def set_elsewhere(port: int) -> None:
        def at_the_point(name: str) -> None:
            if name == "config:apply":
                faults.arm(None)
                with Store.open(tmp_path / "s") as other:
                    other.set(1, GLOBAL, "app.port", port, ME)

        faults.arm(at_the_point)

    with Store.open(tmp_path / "s") as store:
        store.clone(None, ME)
        store.set(1, GLOBAL, "app.port", 14, ME)
        try:
            set_elsewhere(15)
            with pytest.raises(WrongState, match="v1 was changed while it was being applied"):
                store.apply(1, ME, expected=digest(store.tree(1)))
            assert store.saved(1).is_draft and store.active() is None
            set_elsewhere(16)
            store.apply(1, ME)
        finally:
            faults.arm(None)
        assert store.tree(1).values == {GLOBAL: {"app.port": 16}}


def test_two_who_receive_the_same_at_once(tmp_path: Path) -> None:
    tree = Tree(values={GLOBAL: {"a.b": 1}})

    class Late(Store):
        """Somebody else is quicker: just before it takes the lock."""

        @contextmanager
        def _transaction(self) -> Iterator[sqlite3.Connection]:
            with Store.open(tmp_path / "s") as other:
                other.receive(41, tree, ME)
            with super()._transaction() as db:
                yield db

    with Late.open(tmp_path / "s") as store:
        assert not store.receive(41, tree, ME)
        assert store.tree(41) == tree


@given(TREES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_saved_comes_back(tmp_path: Path, tree: Tree) -> None:
    (tmp_path / "s").unlink(missing_ok=True)
    with Store.open(tmp_path / "s") as store:
        saved = store.apply(store.save(tree, ME).version, ME)
        assert digest(store.tree(1)) == digest(tree) == saved.digest
        assert digest(store.tree(store.clone(1, ME).version)) == saved.digest


# -- files

VALUE = (
    st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.text() | st.lists(st.text() | st.integers(0, 9), max_size=3)
)
ANY = st.dictionaries(
    st.sampled_from([GLOBAL, at("instance:n1"), at("environment:e.x")]),
    st.dictionaries(st.sampled_from(["a.b", "a.secret", "c.d"]), VALUE, min_size=1),
)
SECRET = frozenset({"a.secret"})


@given(ANY, st.booleans(), st.sampled_from(list(Secrets)))
@settings(max_examples=60, deadline=None)
def test_what_is_exported_is_imported(values: Any, toml: bool, how: Secrets) -> None:
    tree = Tree(values=values, instances={"n1": Instance(application="a", server="n1")})
    text = dumps(export(tree, 41, SECRET, how, "passphrase"), toml=toml)
    got, version, missing = read(text, name="f", passphrase="passphrase", base=tree)
    assert version == 41
    assert missing == []
    assert digest(got) == digest(tree)


def test_secrets_are_left_out_or_sealed(tmp_path: Path) -> None:
    tree = Tree(values={GLOBAL: {"a.secret": "s3cret-value", "a.b": 1}})
    left_out = dumps(export(tree, 1, SECRET), toml=True)
    sealed = dumps(export(tree, 1, SECRET, Secrets.SEAL, "p"), toml=True)
    assert "s3cret-value" not in left_out + sealed
    assert read(left_out, name="f")[2] == ["global: a.secret"]
    for text, passphrase in ((sealed, "q"), (sealed, ""), (sealed.replace('"a.b" = 1', '"a.b" = 2'), "p")):
        with pytest.raises(ConfigError):
            read(text, name="f", passphrase=passphrase)
    write(tmp_path / "f", sealed)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100000,
        '{"a":' * 50000,
        "format = 2",
        'format = 1\nvalues."planet:x" = {}',
        "format = 1\nvalues.global = {a = {}}",
        'format = 1\ninstances.x = {application = "../..", server = "x"}',
        "format = 1\nsurprise = 1",
        json.dumps({"format": 1, "sealed": "AAAA"}),
        json.dumps({"format": 1, "values": {"global": {"a": None}}}),
    ],
)
def test_files_that_are_no_configuration(text: str) -> None:
    with pytest.raises(ConfigError):
        read(text, name="f", passphrase="p")


def test_versions_as_people_write_them() -> None:
    assert parse_version("v41") == parse_version("41") == 41
    for text in ("", "v", "x1", "v-1", "1.5", "v9999999999999"):
        with pytest.raises(ConfigError):
            parse_version(text)
