"""Inheritance, renames, faults: the pure part of configuration."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from templates import check, schema
from templates.options import Level, Option, Type
from templates.schema import SchemaFile, combine
from templates.tree import (
    GLOBAL,
    Instance,
    Place,
    Target,
    Tree,
    changed,
    difference,
    explain,
    for_server,
    resolve,
    resolve_all,
)
from tests.templates.configlab import at, section, tree

NAMES = st.sampled_from(["x", "y", "z"])
OPTIONS = ["g.a", "g.b", "g.c"]
PLACES = st.one_of(
    st.just(GLOBAL),
    st.builds(Place, st.sampled_from([Level.APPLICATION, Level.INSTANCE, Level.ENVIRONMENT]), NAMES),
)
VALUES = st.dictionaries(PLACES, st.dictionaries(st.sampled_from(OPTIONS), st.integers(0, 9)), max_size=8)
TREES = st.builds(
    lambda values, applications: Tree(
        values=values, instances={name: Instance(application=of, server=name) for name, of in applications.items()}
    ),
    VALUES,
    st.dictionaries(NAMES, NAMES),
)
DEFAULTS: dict[str, Any] = dict.fromkeys(OPTIONS, 100)


def naive(where: Tree, instance: str, environment: str, option: str) -> Any:
    """The rule as the documentation has it, written down once more."""
    known = where.instances.get(instance)
    asked = [f"environment:{environment}"] if environment else []
    asked += [f"instance:{instance}"] if instance else []
    asked += [f"application:{known.application}"] if known else []
    for place in [*asked, "global"]:
        for candidate, own in where.values.items():
            if str(candidate) == place and option in own:
                return own[option]
    return 100


@given(TREES, st.sampled_from(["", "x", "y", "never-created"]), st.sampled_from(["", "x", "y", "never-created"]))
def test_a_value_is_that_of_the_nearest_level(where: Tree, instance: str, environment: str) -> None:
    target = where.target(instance, environment)
    found = resolve(where, target, DEFAULTS)
    for option in OPTIONS:
        assert found[option] == naive(where, instance, environment, option)
        told = explain(where, target, option, 100)
        assert told.value == found[option]
        assert told.hidden[-1:] == ((None, 100),) or told.place is None


@given(TREES)
def test_all_instances_at_once_are_as_one_by_one(where: Tree) -> None:
    each = {name: resolve(where, where.target(name), DEFAULTS) for name in where.instances}
    assert resolve_all(where, DEFAULTS) == each


@given(TREES, PLACES, st.sampled_from(OPTIONS), st.integers(0, 9))
def test_set_and_unset(where: Tree, place: Place, option: str, value: int) -> None:
    done = changed(where, place, option, value)
    assert done.values[place][option] == value
    assert [line[:2] for line in difference(where, done)] in ([], [(place, option)])
    back = changed(done, place, option, None)
    assert option not in back.values.get(place, {})
    assert difference(back, changed(where, place, option, None)) == []


def test_fourteen_everywhere_and_ten_in_one_environment() -> None:
    where = Tree(values={GLOBAL: {"g.a": 14}, at("environment:acme"): {"g.a": 10}})
    ask = {
        name: resolve(where, Target(environment=name), DEFAULTS)["g.a"] for name in ("acme", "beta", "not-yet-created")
    }
    assert ask == {"acme": 10, "beta": 14, "not-yet-created": 14}
    assert resolve(where, Target(instance="new"), DEFAULTS)["g.a"] == 14


def test_an_environment_wins_over_instance_and_application() -> None:
    where = Tree(
        values={
            GLOBAL: {"g.a": 1},
            at("application:billing"): {"g.a": 2},
            at("instance:n1"): {"g.a": 3},
            at("environment:acme"): {"g.a": 4},
        },
        instances={"n1": Instance(application="billing", server="n1")},
    )
    found = explain(where, where.target("n1", "acme"), "g.a", 0)
    assert (found.value, found.place) == (4, at("environment:acme"))
    assert [(str(place or "default"), value) for place, value in found.hidden] == [
        ("instance:n1", 3),
        ("application:billing", 2),
        ("global", 1),
        ("default", 0),
    ]


@pytest.mark.parametrize(
    "text", ["", "global:x", "instance", "instance:", "instance:../x", "planet:earth", "instance:a b"]
)
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ValueError, match="no "):
        Place.parse(text)


def test_a_server_gets_no_secret_of_another() -> None:
    where = Tree(
        values={
            GLOBAL: {"app.password": "all"},
            at("instance:n1"): {"app.password": "one", "app.port": 1},
            at("instance:n2"): {"app.password": "two", "app.port": 2},
            at("application:web"): {"app.password": "web"},
        },
        instances={
            "n1": Instance(application="billing", server="n1"),
            "n2": Instance(application="web", server="n2"),
        },
    )
    mine = for_server(where, "n1", frozenset({"app.password"}))
    assert mine.values == {
        GLOBAL: {"app.password": "all"},
        at("instance:n1"): {"app.password": "one", "app.port": 1},
        at("instance:n2"): {"app.port": 2},
    }


# -- names of older releases


def known(tmp_path: Any) -> schema.Schema:
    return section(tmp_path / "s", {}, files="files = []\n").schema


def test_names_of_an_older_release(tmp_path: Any) -> None:
    old = Tree(values={GLOBAL: {"old.port": 5, "app.gone": 1, "app.prot": 3}, at("instance:n1"): {"older.port": 7}})
    new, notes = check.upgraded(old, known(tmp_path))
    assert new.values == {GLOBAL: {"app.port": 5}, at("instance:n1"): {"app.port": 7}}
    assert [note.change for note in notes] == ["removed", "unknown", "renamed", "renamed"]
    told = "\n".join(map(str, notes))
    assert "global: app.gone is no longer an option: nobody used it" in told
    assert "near: app.port" in told


OLD_NAMES = st.sampled_from(["old.port", "older.port", "app.port", "app.gone", "nonsense", "app.name"])


@given(st.dictionaries(PLACES, st.dictionaries(OLD_NAMES, st.integers(0, 9), max_size=4), max_size=4))
def test_renaming_twice_changes_nothing_more(values: dict[Place, dict[str, Any]]) -> None:
    shape = combine({"f": SchemaFile(groups=_groups(), removed={"app.gone": "why"})})
    once, notes = check.upgraded(Tree(values=values), shape)
    assert check.upgraded(once, shape) == (once, [])
    for place, own in values.items():
        if "app.port" in own:  # the new name counts
            assert once.values[place]["app.port"] == own["app.port"]
        elif {"old.port", "older.port"} & own.keys():
            assert once.values[place]["app.port"] in (own.get("old.port"), own.get("older.port"))
    lost = sum(name not in ("app.port", "app.name") for own in values.values() for name in own)
    assert len(notes) == lost  # nothing vanishes without a word


def _groups() -> dict[str, Any]:
    port = Option(type=Type.INT, help="h", default=1, renamed_from=("old.port", "older.port"))
    name = Option(type=Type.INT, help="h", default=1)
    return {"app": schema.Group(title="t", options={"port": port, "name": name})}


def test_faults_of_a_configuration_are_told_all_at_once(tmp_path: Any) -> None:
    wrong = Tree(
        values={
            GLOBAL: {"app.port": 99999, "app.on": "yes", "nonsense.x": 1},
            at("instance:n1"): {"app.password": 5, "app.hosts": ["ok.example", "not ok"]},
        }
    )
    assert check.faults(wrong, known(tmp_path)) == [
        "global: app.on: expected true or false, found text",
        "global: app.port: must be from 1 to 65535, not 99999",
        "global: nonsense.x is unknown to this release",
        "instance:n1: app.hosts: [1]: 'not ok' is no ip or host",
        "instance:n1: app.password: expected text",
    ]
    assert check.faults(tree(app_port=5), known(tmp_path)) == []


# -- bad schema files


def test_every_fault_of_a_schema_is_told_by_its_path(tmp_path: Any) -> None:
    (tmp_path / "a.toml").write_text(
        """
        [groups.app]
        title = "t"
        [groups.app.options.port]
        type = "int"
        default = 70000
        max = 65535
        help = "h"
        [groups.app.options.colour]
        type = "enum"
        help = "h"
        [groups.app.options.key]
        type = "secret"
        default = "shipped"
        help = "h"
        [groups.app.options.what]
        type = "colour"
        help = "h"
        surprise = 1
        [groups.app.options.pattern]
        type = "string"
        pattern = "(("
        help = "h"
        """
    )
    (tmp_path / "b.toml").write_text("groups = 5")
    (tmp_path / "c.toml").write_text("this is = = no toml")
    (tmp_path / "d.toml").write_text(
        '[groups.node]\ntitle = "t"\n[groups.x.options.a]\ntype="int"\nhelp="h"\nrenamed_from=["x.b"]\n'
        '[groups.x.options.b]\ntype="int"\nhelp="h"\n[groups.x]\ntitle="t"\n'
    )
    with pytest.raises(ConfigError) as caught:
        schema.load(tmp_path)
    told = "\n".join(caught.value.what)
    for wanted in (
        "a.toml: groups.app.options.port.default: must be at most 65535, not 70000",
        "a.toml: groups.app.options.colour.choices: an enum needs some",
        "a.toml: groups.app.options.key.default: a secret must not be shipped",
        "a.toml: groups.app.options.what.surprise: unknown key",
        "a.toml: groups.app.options.what.type",
        "a.toml: groups.app.options.pattern.pattern: is no regular expression",
        "b.toml: ",
        "c.toml: is not TOML",
        "d.toml: groups.node: is no good name for a group",
        "x.b is an option of this release itself",
    ):
        assert wanted in told, told


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ({"type": Type.BOOL}, ["true", "off"], ["1", ""]),
        ({"type": Type.INT, "min": 3}, ["3", "+7"], ["2", "3.0", "", "9" * 30, "0x5"]),
        ({"type": Type.STRING, "pattern": "[a-z]+"}, ["abc"], ["", "abc\n", "A"]),
        ({"type": Type.STRING}, ["", "ä ö"], ["two\nlines", "\x1b[31m"]),
        ({"type": Type.STRING, "multiline": True}, ["two\nlines"], ["\0"]),
        (
            {"type": Type.ADDRESS},
            ["10.0.0.1", "2001:db8::1", "a-b.example"],
            ["10.0.0.256", "a b", "", "-a", "fe80::1%eth0"],
        ),
        (
            {"type": Type.ADDRESS, "forms": ("endpoint",)},
            ["10.0.0.1:5060", "[::1]:80", "a.b:1"],
            ["::1:80", "a", "a:0"],
        ),
        ({"type": Type.ADDRESS, "forms": ("interface",)}, ["10.0.0.5/24"], ["10.0.0.5", "10.0.0.5/33"]),
        ({"type": Type.ADDRESS, "forms": ("network",)}, ["10.0.0.0/24"], ["10.0.0.5/24", "10.0.0.0"]),
        ({"type": Type.LIST, "max": 2}, ["a,b", '["a"]', ""], ["a,b,c", "[1]", "[", "[[]]"]),
        ({"type": Type.LIST, "items": Type.INT}, ["1, 2", "[1]"], ["1,x"]),
    ],
)
def test_values(kind: dict[str, Any], good: list[str], bad: list[str]) -> None:
    option = Option(help="h", **kind)
    for text in good:
        assert option.fault(option.parse(text)) == ""
    for text in bad:
        with pytest.raises(ValueError, match=r"."):
            option.parse(text)


@given(st.sampled_from(list(Type)), st.text() | st.integers() | st.lists(st.text() | st.integers()) | st.floats())
def test_no_value_breaks_the_check_and_no_secret_is_told(kind: Type, value: Any) -> None:
    extra: dict[str, Any] = {"choices": ("a",)} if kind is Type.ENUM else {}
    fault = Option(type=kind, help="h", **extra).fault(value)
    assert isinstance(fault, str)
    if kind is Type.SECRET and isinstance(value, str) and len(value) > 3 and fault:
        assert value not in fault
