"""`zdu check` and `zdu plan` as functions of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from core.errors import ConfigError, ZduRefused
from updater.cli import zdu_plan
from updater.cli.context import settings

PAGE = Path(__file__).resolve().parents[2] / "docs/sites-toml.md"

app = typer.Typer()
zdu_plan.register(app)


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    path = tmp_path / "sites.toml"
    path.write_text(PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0])
    return path


def said(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_check_tells_what_is_there(sites: Path) -> None:
    told = said("check", "--sites", sites)
    assert "acme, 2 sites, 13 servers" in told and "B can stand in for A" in told


def test_check_refuses_sites_that_could_never_be_upgraded(sites: Path) -> None:
    sites.write_text(sites.read_text().replace('roles = ["web"], host = "10.2', 'roles = ["config"], host = "10.2'))
    with pytest.raises(ZduRefused, match="stand-in"):
        said("check", "--sites", sites)


def test_plan_prints_the_runbook(sites: Path) -> None:
    told = said("plan", "MR96-1", "--from", "MR95-1", "--sites", sites)
    assert "MR95-1 → MR96-1 on acme: A is upgraded while B stands in for it" in told
    for word in ("phase 9", "go on if", "way back", "POINT OF NO RETURN", "ways back, from the step that names them"):
        assert word in told


def test_plan_as_json(sites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "json", True)
    told = json.loads(said("plan", "MR96-1", "--from", "MR95-1", "--sites", sites))
    assert [phase["name"] for phase in told["phases"]] == list("123456789")
    assert told["point_of_no_return"] == "9/finish" and len(told["digest"]) == 16


def test_plan_takes_what_servers_run_from_a_file(sites: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    found.write_text(json.dumps({"sip-a-01": "MR96-1"}))
    told = said("plan", "MR96-1", "--from", "MR95-1", "--found", found, "--sites", sites)
    assert "have MR96-1 already: sip-a-01" in told
    found.write_text(json.dumps({"sip-a-01": "95", "d1": 5}))
    with pytest.raises(ConfigError, match="has 2 faults"):
        said("plan", "MR96-1", "--found", found, "--sites", sites)


def test_plan_has_to_know_what_servers_run(sites: Path) -> None:
    with pytest.raises(ConfigError, match="not known what the servers run"):
        said("plan", "MR96-1", "--sites", sites)
    assert "not a release id" in said("plan", "96", "--from", "MR95-1", "--sites", sites)


def test_plan_refuses_with_the_rule(sites: Path) -> None:
    with pytest.raises(ZduRefused) as caught:
        said("plan", "MR101-1", "--from", "MR94-1", "--sites", sites)
    assert {line.partition(":")[0] for line in caught.value.what} == {"jump", "lts", "adjoining"}
