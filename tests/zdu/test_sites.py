"""sites.toml: what is sound loads, and every fault is told, with its path."""

from __future__ import annotations

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from core.schema import SchemaError, structure
from zdu.limits import Role
from zdu.sites import Sites, load_sites

PAGE = Path(__file__).resolve().parents[2] / "docs/sites-toml.md"
EXAMPLE: dict[str, Any] = tomllib.loads(PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0])


def changed(path: str, value: Any) -> dict[str, Any]:
    """The example with one key changed, by its path; None: left out."""
    data = copy.deepcopy(EXAMPLE)
    place: Any = data
    *way, last = [int(word) if word.isdigit() else word for word in re.findall(r"\w+", path)]
    for word in way:
        place = place.setdefault(word, {}) if isinstance(place, dict) else place[word]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return data


def faults(data: dict[str, Any]) -> list[str]:
    with pytest.raises(SchemaError) as caught:
        structure(data, Sites)
    return caught.value.faults


def test_the_example_is_sound() -> None:
    sites = structure(EXAMPLE, Sites)
    assert (sites.main.name, [site.name for site in sites.secondaries], sites.normally) == ("A", ["B"], ("A",))
    assert [server.name for server in sites.main.with_role(Role.SIP)] == ["sip-a-01", "sip-a-02"]
    assert sites.site_of["d1"] == "" and sites.site_of["db-b-01"] == "B"


def test_the_nearest_word_on_ssh_counts() -> None:
    sites = structure(EXAMPLE, Sites)
    near = sites.reach("sip-b-01")
    assert (near.host, near.port, near.user, near.sudo) == ("10.2.0.41", 2222, "release", True)
    assert near.jump == ("release@bastion-b.acme.example",)
    assert sites.reach("d1").jump == () and sites.reach("db-a-01").port == 22


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("sites[0].servers[2].roles", ["billing", "baking"], "sites[0].servers[2].roles[1]: "),
        ("sites[0].servers[2].roles", [], "sites[0].servers[2].roles: must not be empty"),
        ("sites[0].servers[0].roles", ["billing"], "sites[0].servers: a main site has one server with the role db-pri"),
        ("sites[1].servers[0].roles", ["db-primary"], "sites[1].servers: a secondary site has no server with the role"),
        ("sites[1].servers[0].roles", ["dispatcher"], "sites[1].servers[0].roles: dispatchers stand in front"),
        ("sites[1].kind", "main", "sites[1].servers: a main site has one server"),
        ("sites[0].kind", "secondary", "sites[0].servers: a secondary site has no"),
        (
            "sites[1].servers[3].name",
            "db-a-01",
            "sites[1].servers[3].name: 'db-a-01' is the name of sites[0].servers[0]",
        ),
        ("sites[1].servers[1].name", "a b", "sites[1].servers[1].name: 'a b' must be made of letters"),
        ("sites[1].servers[1].host", "10.2.0.11", "sites[1].servers[1].host: 10.2.0.11 port 22 is sites[1].servers[0]"),
        ("sites[1].name", "A", "sites: the name 'A' is used twice"),
        ("sites[1].calls.hosts", ["sip-a-01"], "sites[1].calls.hosts[0]: 'sip-a-01' is no server of this site"),
        ("sites[1].calls.kind", "sql", "sites[1].calls.query: a count of kind sql needs it"),
        ("sites[1].calls.timeout", 0, "sites[1].calls.timeout: must be more than 0"),
        ("sites[1].maintenance.command", [], "sites[1].maintenance.command: must not be empty"),
        ("sites[1].standalone.delta", None, "sites[1].standalone.delta: a site of kind mariadb needs it"),
        ("sites[1].standalone.delta.engine", "postgresql", "sites[1].standalone.delta: must be mariadb or sqlite"),
        ("sites[1].database.socket", "/run/x", "sites[1].database.host: give either host or socket"),
        ("sites[0].checks[0].url", "ftp://x", "sites[0].checks[0].url: must begin with http"),
        ("sites[0].ssh.port", 0, "sites[0].ssh.port: must be from 1 to 65535"),
        ("sites[0].ssh.jump", ["a b"], "sites[0].ssh.jump[0]: 'a b' is not"),
        ("ssh.known_hosts", "known_hosts", "ssh.known_hosts: known_hosts must be absolute"),
        ("stand_in", "A", "stand_in: 'A' is no secondary site"),
        ("dispatchers.normally", ["C"], "dispatchers.normally[0]: there is no site 'C'"),
        ("dispatchers.servers[0].roles", ["sip"], "dispatchers.servers[0].roles: a dispatcher has the role dispatcher"),
        ("dispatchers.programs[0].control", "", "dispatchers.programs[0].control: a dispatcher of kind kamailio needs"),
        ("dispatchers.programs[0].targets[1].site", "C", "dispatchers.programs[0].targets: there is no site 'C'"),
        (
            "dispatchers.programs[0].targets[1].site",
            "A",
            "dispatchers.programs[0].targets: the site 'A' stands there tw",
        ),
        ("dispatchers.vips[0].address", "front", "dispatchers.vips[0].address: 'front' is no IP address"),
        ("dispatchers.vips[0].weight", 255, "dispatchers.vips[0].weight: must be from 1 to 254"),
        ("dispatchers.vips[0].probe.host", "x", "dispatchers.vips[0].probe.host: there is no server 'x'"),
        ("dispatchers.vips", [], "dispatchers.vips: must not be empty"),
        ("limits.parallel_servers", 0, "limits.parallel_servers: must be at least 1"),
        ("limits.max_unavailable.dispatcher", 2, "limits.max_unavailable.dispatcher: never more than one"),
        ("limits.max_unavailable.cook", 2, "limits.max_unavailable"),
        ("drain.kill_after", 60, "drain.kill_after: unknown key"),
        ("drain.readings", 1, "drain.readings: must be at least 2"),
        ("windows[0].hours", "1-5", "windows[0].hours: '1-5' is not a window"),
        ("notify[0].url", "", "notify[0].url: kind webhook needs it"),
        ("notify[1].to", ["noc"], "notify[1].to[0]: 'noc' is no address"),
        ("controller.database.engine", "mariadb", "controller.database"),
        ("policy.max_jump", 0, "policy.max_jump: must be at least 1"),
        ("sites[0].servers[0].port", 22, "sites[0].servers[0].port: unknown key"),
        ("limits", "many", "limits: expected a table"),
    ],
)
def test_a_fault_is_told_with_its_path(path: str, value: Any, fault: str) -> None:
    assert any(line.startswith(fault) for line in faults(changed(path, value))), faults(changed(path, value))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
    broken = text.replace('"db-primary"', '"db-primry"').replace("readings", "reedings").replace("weight", "w")
    broken = broken.replace("alert_after = 5400", 'alert_after = "5400"').replace("jump = [", "jumps = [", 1)
    path = tmp_path / "sites.toml"
    path.write_text(broken)
    with pytest.raises(ConfigError) as caught:
        load_sites(path)
    told = caught.value.what
    assert "3 faults" in caught.value.message
    assert [line.partition(":")[0] for line in told] == [
        "sites[0].servers[0].roles[0]",
        "sites[0].ssh.jumps",
        "drain.alert_after",
    ]


def test_faults_between_tables_are_told_at_once() -> None:
    data = changed("stand_in", "C")
    data["dispatchers"]["normally"] = ["C", "D"]
    data["sites"][1]["servers"][3]["name"] = "db-a-01"
    assert len(faults(data)) == 4


@pytest.mark.parametrize("text", ["", "sites = 5", "[[sites]]\nname = 5", "name = [", "\x00"])
def test_what_is_no_sites_file_is_an_error_that_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sites.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_sites(path)
