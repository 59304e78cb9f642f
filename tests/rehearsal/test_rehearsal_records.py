"""A rehearsal is demanded: by the operator's word, and by node.toml."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from core.errors import NotRehearsed, SignatureInvalid
from images.keys import generate, load_signer, load_trust
from tests.updater.lab import ROOMY, Lab
from updater import rehearsed
from updater.cli.main import app
from updater.exporting import fingerprint
from updater.node import open_node
from zdu.rehearsal import FORMAT, Record

pytestmark = pytest.mark.root


def call(config: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["--config", str(config), *words])


@pytest.fixture
def staged(lab: Lab, place: Path) -> Path:
    """A sandbox with MR96-1 staged."""
    config = lab.sandbox(place / "node", slot=ROOMY)
    done = call(config, "stage", str(lab.bundle("MR96-1")))
    assert done.exit_code == 0, done.output
    return config


def record_of(config: Path, **changed: Any) -> Record:
    """A passed rehearsal of what is staged, but for what is changed."""
    with open_node(config) as node:
        bundle = node.journal.slot("b")["manifest"]
        told: dict[str, Any] = {
            "format": FORMAT, "what": "node", "node": "sandbox", "release": "MR96-1", "start": "MR95-1",
            "fingerprint": fingerprint(node, bundle), "passed": True,
            "made": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": 1.0, "machine": "none",
        }  # fmt: skip
    return Record(**{**told, **changed})


def require(config: Path, **rehearsal: Any) -> None:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in {"require": True, **rehearsal}.items())
    config.write_text(f"{config.read_text()}\n[rehearsal]\n{lines}")


def test_with_its_record_it_is_activated(staged: Path, tmp_path: Path) -> None:
    rehearsed.write(tmp_path / "r.json", record_of(staged))
    assert call(staged, "activate", "--require-rehearsal", str(tmp_path / "r.json")).exit_code == 0


def test_without_one_it_is_refused(staged: Path, tmp_path: Path) -> None:
    done = call(staged, "activate", "--require-rehearsal", str(tmp_path))
    assert isinstance(done.exception, NotRehearsed)
    assert "there is no record" in done.exception.what[0]
    with open_node(staged) as node:
        assert node.boot.read().primary == "a"
        assert node.journal.open_run() is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"passed": False, "findings": ("stage: no",)}, "failed: stage: no"),
        ({"made": (datetime.now(UTC) - timedelta(days=40)).isoformat()}, "40 days old"),
        ({"made": (datetime.now(UTC) + timedelta(days=1)).isoformat()}, "in the future"),
    ],
)
def test_a_record_that_does_not_count_is_refused(
    staged: Path, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    rehearsed.write(tmp_path / "r.json", record_of(staged, **changed))
    done = call(staged, "activate", "--require-rehearsal", str(tmp_path / "r.json"))
    assert isinstance(done.exception, NotRehearsed)
    assert words in done.exception.what[0]


def test_a_damaged_record_is_refused(staged: Path, tmp_path: Path) -> None:
    rehearsed.write(tmp_path / "r.json", record_of(staged, passed=False))
    text = (tmp_path / "r.json").read_text()
    (tmp_path / "r.json").write_text(text.replace('"passed": false', '"passed": true'))
    done = call(staged, "activate", "--require-rehearsal", str(tmp_path))
    assert isinstance(done.exception, NotRehearsed)
    assert "hash" in done.exception.what[0]


def test_another_bundle_of_the_same_release_is_another_rehearsal(lab: Lab, staged: Path, tmp_path: Path) -> None:
    rehearsed.write(tmp_path / "r.json", record_of(staged))
    other = lab.bundle("MR96-1", changelog="built again")
    assert call(staged, "stage", "--again", str(other)).exit_code == 0
    done = call(staged, "activate", "--require-rehearsal", str(tmp_path))
    assert isinstance(done.exception, NotRehearsed)
    assert "the bundle is another one" in done.exception.what[0]


def test_node_toml_demands_it_but_not_on_the_way_forward_again(lab: Lab, staged: Path) -> None:
    require(staged)
    records = staged.parent / "data/rehearsals"
    told = call(staged, "stage", "--dry-run", str(lab.bundle("MR96-1")))
    assert "none: activate will refuse" in told.output
    assert isinstance(call(staged, "activate", "--dry-run").exception, NotRehearsed)
    assert isinstance(call(staged, "activate").exception, NotRehearsed)
    records.mkdir()
    rehearsed.write(records / "mr96.json", record_of(staged))
    assert "(mr96.json)" in call(staged, "stage", "--dry-run", str(lab.bundle("MR96-1"))).output
    assert call(staged, "activate").exit_code == 0
    assert call(staged, "rollback").exit_code == 0
    (records / "mr96.json").unlink()
    assert call(staged, "activate").exit_code == 0  # it was confirmed before


def test_where_keys_are_named_a_record_must_be_signed_by_one(staged: Path, tmp_path: Path) -> None:
    generate(tmp_path / "hall.pem")
    generate(tmp_path / "mallory.pem")
    require(staged, keys=[str(tmp_path / "hall.pub")])
    place = tmp_path / "r.json"
    for key, accepted in (("", False), (str(tmp_path / "mallory.pem"), False), (str(tmp_path / "hall.pem"), True)):
        rehearsed.write(place, record_of(staged), load_signer(key) if key else None)
        done = call(staged, "activate", "--dry-run", "--require-rehearsal", str(place))
        assert (done.exit_code == 0) is accepted, done.output


def test_a_signed_record_cannot_be_changed(staged: Path, tmp_path: Path) -> None:
    key, public = generate(tmp_path / "hall.pem")
    rehearsed.write(tmp_path / "r.json", record_of(staged, passed=False), load_signer(str(key)))
    trust = load_trust([public])
    data = json.loads((tmp_path / "r.json").read_text())
    assert not rehearsed.read(tmp_path / "r.json", trust).passed
    import base64

    payload = base64.b64decode(data["payload"]).replace(b'"passed":false', b'"passed":true')
    data["payload"] = base64.b64encode(payload).decode()
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(SignatureInvalid):
        rehearsed.read(tmp_path / "r.json", trust)
