"""The rehearsed installation on paper, and what is made of its outcome."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.release import Release
from updater.node_toml import load_node
from vagrant.rehearsal.sites import Ending
from vagrant.rehearsal.sites_books import Books
from vagrant.rehearsal.sites_calls import Outcome
from vagrant.rehearsal.sites_places import D1, PASSWORD, PLACES, A, files, sites_toml
from vagrant.rehearsal.sites_release import CONFIG, NEW, OLD
from vagrant.rehearsal.sites_run import Cut
from zdu.planning import plan
from zdu.policy import Wish
from zdu.sites import load_sites


@pytest.fixture
def sites_file(tmp_path: Path) -> Path:
    (tmp_path / "sites.toml").write_text(sites_toml(tmp_path, tmp_path / "key"))
    return tmp_path / "sites.toml"


def test_the_installation_can_be_upgraded_without_downtime(sites_file: Path) -> None:
    sites = load_sites(sites_file)
    old, new = Release.parse(OLD), Release.parse(NEW)
    book = plan(sites, Wish(target=new, found=dict.fromkeys(sites.servers, old)))
    activated = [step.server for step in book.steps if step.action == "activate-node"]
    assert activated == ["a1", "d1", "d2", "b1"]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_each_machine_is_configured(place: object, tmp_path: Path) -> None:
    found = files(place, "secret", "key", 10)  # type: ignore[arg-type]
    (tmp_path / "node.toml").write_text(found["/etc/updater/node.toml"])
    node = load_node(tmp_path / "node.toml")
    assert node.name == place.name  # type: ignore[attr-defined]
    assert bool(node.databases) is (place == A)
    assert found[PASSWORD] == "secret"
    assert not any("@" + "VIP@" in text or "@DATA@" in text for text in found.values())
    assert (f"{CONFIG}/kamailio.cfg" in found) is (place not in PLACES[:2])


def test_power_cuts_are_read() -> None:
    cut = Cut.parse("power:A/a1@activate-node")
    assert cut.falls("4/activate-node/a1")
    assert not cut.falls("8/activate-node/b1")
    assert not cut.falls("4/replica-hold/B")
    assert Cut.parse("power:dispatchers/d1@vip-move").falls("5/vip-move/d2")
    assert str(Cut(D1, "vip-move")) == "power:dispatchers/d1@vip-move"
    for wrong in ("a1@x", "power:a1@vip-move", "power:A/d1@vip-move", "power:A/a1"):
        with pytest.raises(ValueError, match="power:SITE/SERVER@STEP"):
            Cut.parse(wrong)
    with pytest.raises(ValueError, match="no such step, but check-node"):
        Cut.parse("power:A/a1@actvate-node")


GOOD = Ending(
    seconds=1, planned=1, code=0, error="", stops=(), undone=(), per_second=2.0,
    calls=Outcome(made=10, good=10, failed=0, retransmissions=3, slowest_ms=500),
    books=Books(xdrs=10, missing=0, foreign=0, posted=4, wrong=(), differs=(), migrated=("A", "B")),
    at={"A": 5, "B": 5}, runs=dict.fromkeys(("a1", "d1"), NEW), boots={"a1": ["a", "b"], "d1": ["a", "b"]},
    late={"A": 0, "B": 0}, report={}, cuts=(), uncut=(),
)  # fmt: skip


def test_nothing_fails_on_the_night_when_all_went_well() -> None:
    assert GOOD.faults() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"code": 21, "error": "a1 fell back"}, "a1 fell back"),
        ({"stops": ("a1 is slow",)}, "a1 is slow"),
        ({"undone": ("9/finish",)}, "9/finish"),
        ({"calls": replace(GOOD.calls, good=9)}, "1 of 10 calls"),
        ({"books": replace(GOOD.books, missing=2)}, "2 calls were not charged"),
        ({"books": replace(GOOD.books, wrong=("account x",))}, "account x"),
        ({"books": replace(GOOD.books, differs=("billing.t: differs",))}, "billing.t"),
        ({"books": replace(GOOD.books, migrated=("A",))}, "on A only"),
        ({"runs": {"a1": OLD}}, f"a1 runs {OLD}"),
        ({"boots": {"a1": ["a"]}}, "a1 did not boot slot b"),
        ({"late": {"A": 1, "B": 0}}, "1 calls came to A"),
        ({"uncut": ("power:A/a1@rollback-node",)}, "power:A/a1@rollback-node"),
    ],
)
def test_the_verdict_names_what_went_wrong(changed: dict[str, object], said: str) -> None:
    faults = replace(GOOD, **changed).faults()  # type: ignore[arg-type]
    assert len(faults) == 1 and said in faults[0]
