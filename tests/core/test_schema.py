"""The border: whatever comes in, it is either the shape that was asked for or a list of faults with their places."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from core.schema import SchemaError, load_toml, structure
from updater.node_toml import NodeConfig, load_node


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    size: int
    share: float = 0.5
    on: bool = False

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size: must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    inner: Inner
    many: tuple[Inner, ...] = ()
    where: Path = Path("/")
    colour: Colour = Colour.RED
    word: Literal["a", "b"] = "a"
    by_name: dict[str, int] = field(default_factory=dict)
    perhaps: str | None = None


def test_a_sound_one() -> None:
    made = structure(
        {"name": "n", "inner": {"size": 1, "share": 1}, "many": [{"size": 2}], "where": "/x", "colour": "red"}, Outer
    )
    assert made == Outer(name="n", inner=Inner(size=1, share=1), many=(Inner(size=2),), where=Path("/x"))


def test_all_faults_at_once_each_with_its_place() -> None:
    wrong = {
        "name": 5,
        "inner": {"size": "7", "on": 1, "sizes": 1},
        "many": [{"size": 1}, {"size": -1}, {}],
        "word": "c",
        "by_name": {"x": "1"},
        "colour": "blue",
        "extra": True,
    }
    with pytest.raises(SchemaError) as caught:
        structure(wrong, Outer)
    faults = caught.value.faults
    for place in (
        "name: expected str",
        "inner.size: expected int",
        "inner.on: expected bool",
        "inner.sizes: unknown key",
        "many[1]",
        "many[2].size: missing",
        "word",
        "by_name",
        "colour",
        "extra: unknown key",
    ):
        assert any(fault.startswith(place) for fault in faults), f"{place} is not in {faults}"
    assert len(faults) == 10


@pytest.mark.parametrize("wrong", [None, 5, "text", [], [1]])
def test_no_table_at_all(wrong: Any) -> None:
    with pytest.raises(SchemaError):
        structure(wrong, Outer)
    with pytest.raises(SchemaError):
        structure({"name": "n", "inner": wrong}, Outer)


def test_text_is_no_list_and_true_is_no_number() -> None:
    for key, value in (("many", "abc"), ("many", {"size": 1}), ("name", True)):
        with pytest.raises(SchemaError) as caught:
            structure({"name": "n", "inner": {"size": 1}, key: value}, Outer)
        assert len(caught.value.faults) == 1
    with pytest.raises(SchemaError):
        structure({"name": "n", "inner": {"size": True}}, Outer)


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "inner", "many", "size", "where", "x"]) | st.text(max_size=3), inner)
    ),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(_plain)
def test_any_data_is_a_shape_or_a_schema_error(data: Any) -> None:
    with contextlib.suppress(SchemaError):
        assert isinstance(structure(data, Outer), Outer)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(NodeConfig.__slots__), _plain))
def test_any_table_for_a_node(data: dict[str, Any]) -> None:
    try:
        structure(data, NodeConfig)
    except SchemaError as error:
        assert error.faults and all("\n" not in fault for fault in error.faults)


# -- node.toml as text

SOUND = """
name = "n1"
compatible = "acme-switch"
data = "/data/updater"
slots.a.device = "/dev/disk/by-partlabel/slot-a"
slots.b.device = "/dev/disk/by-partlabel/slot-b"
boot = { backend = "grub", esp = "/efi", tries = 3 }
trust = { keys = ["/etc/updater/keys/release.pub"] }
[[health.checks]]
name = "web"
kind = "tcp"
port = 80
[policy]
lts = [80, 93]
"""


def test_a_sound_node_toml(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(SOUND)
    config = load_node(file)
    assert config.slots["b"].device.name == "slot-b" and config.policy.lts == (80, 93)


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ('data = "/data/updater"', 'data = "data"', "data"),
        ("slot-b", "slot-a", "slots.b.device: is the same"),
        ("tries = 3", "tries = 10", "boot.tries: must be from 1 to 9"),
        ("tries = 3", "tires = 3", "boot.tires: unknown key"),
        ("port = 80", "", "health.checks[0].port: a check of kind tcp needs it"),
        ('"grub"', '"lilo"', "boot.backend"),
        ('["/etc/updater/keys/release.pub"]', "[]", "trust.threshold"),
        ("lts = [80, 93]", "max_jump = 0", "policy.max_jump: must"),
    ],
)
def test_each_fault_is_named_by_its_place(old: str, new: str, place: str, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(SOUND.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_node(file)
    assert any(line.startswith(place) for line in caught.value.what), caught.value.what


_damage = st.tuples(
    st.integers(0, len(SOUND)),
    st.integers(0, 9),
    st.binary(max_size=6) | st.sampled_from(list(b'"[]={}.\n')).map(lambda b: bytes([b])),
)


@settings(max_examples=300, deadline=None)
@given(damage=st.lists(_damage, min_size=1, max_size=4))
def test_a_damaged_node_toml_is_a_config_error_or_still_sound(
    damage: list[tuple[int, int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(SOUND.encode())
    for at, length, new in damage:
        raw[at : at + length] = new
    file = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    file.write_bytes(raw)
    with contextlib.suppress(ConfigError):
        load_node(file)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_a_config_error(text: str) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_text(text, encoding="utf-8", errors="surrogatepass")
        with pytest.raises(ConfigError):
            load_node(Path(file.name))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_toml(tmp_path / "none", Outer, what="the file")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path, Outer, what="the file")
