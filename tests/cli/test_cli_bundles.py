"""Bundles that are damaged, not signed as they should be, or not for this node: refused before anything changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from images import keys
from images import read as bundles
from tests.cli.clilab import cli, contents, program, refused, runs, slot, status, well_told, well_told_json
from tests.updater.lab import CREATED, IMAGE, Lab, do

HEAD = bundles.HEAD


def envelope_of(raw: bytes) -> bytes:
    return raw[HEAD : HEAD + int.from_bytes(raw[HEAD - 4 : HEAD], "big")]


def manifest_of(raw: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(keys.parse(envelope_of(raw)).content())
    return found


def signed_again(lab: Lab, raw: bytes, change: Callable[[dict[str, Any]], object], *key: Path) -> bytes:
    """The bundle with another manifest, soundly signed."""
    manifest = manifest_of(raw)
    change(manifest)
    envelope = keys.sign(keys.canonical(manifest), [keys.load_signer(str(each)) for each in key or (lab.key,)])
    return raw[: HEAD - 4] + len(envelope).to_bytes(4, "big") + envelope + raw[HEAD + len(envelope_of(raw)) :]


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]


@pytest.fixture
def raw(lab: Lab) -> bytes:
    return lab.bundle("MR96-1").read_bytes()


@pytest.fixture
def bad(place: Path) -> Path:
    return place / "bad.bundle"


# -- damage


@pytest.mark.parametrize("where", ["nothing", "magic", "length", "envelope", "index", "chunks", "last byte"])
def test_a_truncated_bundle(where: str, raw: bytes, bad: Path, node: Path) -> None:
    after = HEAD + len(envelope_of(raw))
    cuts = {"nothing": 0, "magic": 5, "length": 10, "envelope": after - 9, "index": after + 99, "chunks": len(raw) // 2}
    bad.write_bytes(raw[: cuts.get(where, len(raw) - 1)])
    assert refused(node, 20, "stage", bad)["state"] == "this command changed nothing"
    well_told(cli(node, "plan", bad), 20)


def test_a_bundle_with_something_behind_it(raw: bytes, bad: Path, node: Path) -> None:
    bad.write_bytes(raw + b"\0")
    refused(node, 20, "stage", bad)


def test_a_bit_flipped_before_the_chunks(raw: bytes, bad: Path, node: Path) -> None:
    envelope, held = len(envelope_of(raw)), contents(node)
    places = [0, 7, 8, 11, HEAD, HEAD + 30, HEAD + envelope // 2, HEAD + envelope - 5, HEAD + envelope + 3]
    for at in places:
        bad.write_bytes(flipped(raw, at))
        ended = cli(node, "stage", bad)
        assert ended.code in (20, 21), (at, ended)
        well_told(ended, ended.code)
    assert contents(node) == held


def test_a_damaged_chunk_stops_the_write_and_a_good_copy_goes_on(raw: bytes, bad: Path, node: Path) -> None:
    bad.write_bytes(flipped(raw, len(raw) - 100))
    held = contents(node)
    error = well_told_json(cli(node, "stage", bad, "--json"), 20)
    assert "slot b is bad" in error["state"]
    assert status(node)["upgrade"]["state"] == "interrupted" and slot(node, "b")["state"] == "bad"
    assert contents(node)[str(node.parent / "slots/a.img")] == held[str(node.parent / "slots/a.img")]
    well_told(cli(node, "activate"), 13)
    well_told(cli(node, "resume"), 20)  # the same damage again
    bad.write_bytes(raw)
    assert cli(node, "resume").code == 0
    assert slot(node, "b")["state"] == "staged" and runs(node) == ["stage done"]


def test_a_damaged_chunk_and_abort(raw: bytes, bad: Path, node: Path) -> None:
    bad.write_bytes(flipped(raw, len(raw) - 100))
    well_told(cli(node, "stage", bad), 20)
    assert cli(node, "abort").code == 0
    assert runs(node) == ["stage aborted"] and slot(node, "b")["state"] == "bad"
    well_told(cli(node, "activate"), 34)


def test_no_bundle_at_all(place: Path, node: Path) -> None:
    (place / "fifo").mkdir()
    for where in (place / "none", place / "fifo", "http://", "http://[", "file:///none", "/dev/zero"):
        refused(node, 25, "stage", where)


def test_a_name_that_is_no_text(node: Path) -> None:
    refused(node, 25, "stage", b"\xff\n.bundle".decode(errors="surrogateescape"))


# -- signatures and dates


def test_a_key_that_is_not_trusted(lab: Lab, raw: bytes, bad: Path, place: Path, node: Path) -> None:
    other, _ = keys.generate(place / "other.pem")
    bad.write_bytes(signed_again(lab, raw, lambda _: None, other))
    error = refused(node, 21, "stage", bad)
    assert any("other keys: " in line and "none" not in line for line in error["what"])


def test_no_signature(raw: bytes, bad: Path, node: Path) -> None:
    data = json.loads(envelope_of(raw)) | {"signatures": []}
    envelope = keys.canonical(data)
    bad.write_bytes(raw[: HEAD - 4] + len(envelope).to_bytes(4, "big") + envelope + raw[HEAD + len(envelope_of(raw)) :])
    assert "0 of the 1" in refused(node, 21, "stage", bad)["message"]


def test_the_signature_of_another_manifest(lab: Lab, raw: bytes, bad: Path, node: Path) -> None:
    mine, other = json.loads(envelope_of(raw)), json.loads(envelope_of(lab.bundle("MR97-1").read_bytes()))
    envelope = keys.canonical(mine | {"signatures": other["signatures"]})
    bad.write_bytes(raw[: HEAD - 4] + len(envelope).to_bytes(4, "big") + envelope + raw[HEAD + len(envelope_of(raw)) :])
    assert "is wrong" in refused(node, 21, "stage", bad)["message"]


def test_too_few_signatures(lab: Lab, place: Path, node: Path) -> None:
    _, second = keys.generate(place / "second.pem")
    text = node.read_text()
    keys_line = next(line for line in text.splitlines() if line.startswith("keys"))
    node.write_text(text.replace(keys_line, f'keys = ["{lab.public}", "{second}"]\nthreshold = 2'))
    assert "threshold = 2" in node.read_text()
    refused(node, 21 if "threshold" not in text else 10, "stage", lab.bundle("MR96-1"))


def test_an_expired_bundle(lab: Lab, node: Path) -> None:
    expired = lab.bundle("MR96-1", expires=datetime(2026, 9, 3, tzinfo=UTC))
    assert "expired" in refused(node, 21, "stage", expired)["message"]


def test_a_clock_before_the_bundle_was_made(lab: Lab, node: Path) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return CREATED.replace(year=2001)

    def set_clock() -> None:
        bundles.datetime = Stopped  # type: ignore[misc]

    error = refused(node, 21, "stage", lab.bundle("MR96-1"), before=set_clock)
    assert any("clock" in line for line in [error["message"], *error["what"], *error["next"]])


# -- manifests


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.update(colour="red"), "colour"),
        (lambda found: found.pop("boot"), "boot"),
        (lambda found: found.pop("release"), "release"),
        (lambda found: found.update(release=95), "release"),
        (lambda found: found["image"].update(size=-1), "size"),
        (lambda found: found.update(format=2), "format"),
        (lambda found: found.update(policy={"max_jump": 0}), "max_jump"),
        (lambda found: found["boot"].update(kernel="/../../etc/shadow\n"), "kernel"),
        (lambda found: found.clear(), "missing"),
    ],
)
def test_a_signed_manifest_that_makes_no_sense(
    change: Callable[[dict[str, Any]], object], said: str, lab: Lab, raw: bytes, bad: Path, node: Path
) -> None:
    bad.write_bytes(signed_again(lab, raw, change))
    error = refused(node, 20, "stage", bad)
    assert any(said in line for line in [error["message"], *error["what"]]), error


UNFIT: list[tuple[str, int, str, dict[str, Any]]] = [
    ("another-switch", 22, "MR96-1", {"compatible": "another-switch"}),
    ("sparc", 22, "MR96-1", {"architecture": "sparc"}),
    ("99.1", 22, "MR96-1", {"minimum_agent": "99.1"}),
    ("not be installed over", 22, "MR96-1", {"installable_over": ("MR94",)}),
    ("older", 22, "MR94-1", {}),
    ("jumps over", 22, "MR101-1", {}),
    ("LTS", 22, "MR97-1", {"policy": {"lts": [96]}}),
    ("larger than slot b", 24, "MR96-1", {"size": 2 * IMAGE}),
    ("free", 24, "MR96-1", {"required_free": 1 << 50}),
]


@pytest.mark.parametrize(("said", "code", "release", "fields"), UNFIT)
def test_a_sound_bundle_for_another_node(
    said: str, code: int, release: str, fields: dict[str, Any], lab: Lab, node: Path
) -> None:
    bundle = lab.bundle(release, **fields)
    error = refused(node, code, "stage", bundle)
    assert said in error["message"] and error["message"].startswith(f"cannot stage {release}")
    planned = cli(node, "plan", bundle)
    well_told(planned, code)
    assert "✗" in planned.out


def test_downgrades_on_purpose(lab: Lab, node: Path) -> None:
    refused(node, 22, "stage", lab.bundle("MR93-1"), "--allow-downgrade")  # the data is at MR95
    assert cli(node, "stage", lab.bundle("MR94-1"), "--allow-downgrade").code == 0
    assert slot(node, "b")["release"] == "MR94-1"


def test_jumps_on_purpose_and_over_the_point_of_no_return(lab: Lab, node: Path) -> None:
    assert cli(node, "stage", lab.bundle("MR101-1"), "--allow-jump").code == 0
    assert "--accept-no-rollback" in refused(node, 35, "activate")["next"][0]
    assert cli(node, "activate", "--accept-no-rollback").code == 0
    assert slot(node, "b")["booted"] and slot(node, "b")["state"] == "good"
    assert "MR101" in refused(node, 35, "rollback")["message"]


def test_a_staged_slot_that_somebody_wrote_to(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    with (node.parent / "slots/b.img").open("r+b") as image:
        image.seek(700_000)
        image.write(b"tampered")
    assert "--again" in refused(node, 30, "activate")["next"][0]


def test_the_installed_program_says_the_same(raw: bytes, bad: Path, node: Path) -> None:
    bad.write_bytes(raw[:-1])
    held = contents(node)
    well_told(program(node, "stage", bad), 20)
    well_told_json(program(node, "stage", bad, "--json"), 20)
    assert contents(node) == held
