"""The page on sites.toml has every key of every table, with its type and default, and an example that loads."""

from __future__ import annotations

import re
import tomllib
import types
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from core.release import Policy, Release
from core.schema import structure
from core.sql import Database
from updater.cli.zdu_plan import releases_now
from zdu import drivers, limits, sites
from zdu.planning import plan
from zdu.policy import Wish
from zdu.ssh import SshConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs/sites-toml.md").read_text(encoding="utf-8")

#: Heading → the table that it describes.
TABLES = {
    "The file": sites.Sites,
    "sites": sites.Site,
    "servers": sites.Server,
    "ssh": SshConfig,
    "calls": drivers.CallsConfig,
    "standalone": drivers.StandaloneConfig,
    "checks": sites.SiteCheck,
    "programs of the operator": drivers.SwitchConfig,
    "dispatchers": sites.DispatchersConfig,
    "programs": drivers.DispatcherConfig,
    "targets": drivers.TargetConfig,
    "vips": drivers.VipConfig,
    "probe": drivers.ProbeConfig,
    "controller": limits.ControllerConfig,
    "databases": Database,
    "limits": limits.LimitsConfig,
    "drain": limits.DrainConfig,
    "expect": limits.ExpectConfig,
    "windows": limits.WindowConfig,
    "notify": limits.NotifyConfig,
}


def _rows(heading: str) -> set[tuple[str, str, str]]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {(row[0].strip("`"), row[1], row[2]) for row in cells}


def _type(kind: Any) -> str:
    arguments = [each for each in get_args(kind) if each not in (Ellipsis, type(None))]
    if get_origin(kind) in (Union, types.UnionType):
        return _type(arguments[0])
    if get_origin(kind) is dict:
        return "table of integer by role"
    if arguments:
        inner = _type(arguments[0])
        return "list of tables" if inner == "table" else f"list of {inner}"
    if is_dataclass(kind):
        return "table"
    if issubclass(kind, StrEnum):
        return " or ".join(f'"{each.value}"' for each in kind)
    return {"str": "text", "int": "integer", "float": "number", "bool": "boolean", "Path": "path"}[kind.__name__]


def _default(each: Field[Any]) -> str:
    if each.default is MISSING and each.default_factory is MISSING:
        return "required"
    if each.default_factory is not MISSING:
        return "`{}`"
    value = each.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, int | float) else "`[]`" if value == () else f'`"{value}"`'


@pytest.mark.parametrize("heading", TABLES)
def test_every_key_of_every_table_is_there(heading: str) -> None:
    shape = TABLES[heading]
    hints = get_type_hints(shape)
    assert _rows(heading) == {(each.name, _type(hints[each.name]), _default(each)) for each in fields(shape)}


def test_no_table_is_left_out() -> None:
    waiting: list[Any] = [sites.Sites]
    seen: set[Any] = set()
    while waiting:
        shape = waiting.pop()
        if shape in seen:
            continue
        seen.add(shape)
        for kind in get_type_hints(shape).values():
            waiting += [each for each in (kind, *get_args(kind)) if is_dataclass(each) and isinstance(each, type)]
    assert seen - {Policy} == set(TABLES.values())


def test_the_example_loads_and_can_be_planned() -> None:
    example = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    loaded = structure(tomllib.loads(example[1]), sites.Sites)
    wish = Wish(target=Release.parse("MR96-1"), found=releases_now(loaded, "MR95-1", None))
    runbook = plan(loaded, wish)
    assert (runbook.main, runbook.stand_in, len(runbook.phases)) == ("A", "B", 9)
    assert loaded.reach("sip-b-01").port == 2222
    assert loaded.reach("sip-b-01").user == "release"


def test_every_rule_has_its_line() -> None:
    room = Path(__file__).resolve().parents[2] / "zdu"
    source = "".join((room / f"{name}.py").read_text(encoding="utf-8") for name in ("policy", "situation"))
    rules = set(re.findall(r'rule="([a-z-]+)"|_rule\("([a-z-]+)"', source))
    told = {row[0] for row in _rules()}
    assert told == {one or other for one, other in rules}


def _rules() -> list[list[str]]:
    section = PAGE.partition("\n## Rules\n")[2]
    return [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in section.splitlines() if "| `" in line
    ]
