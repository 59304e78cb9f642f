"""What the pages claim about the code is so: tables, links, commands, words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import typer
from docscreens import PAGES, ROOT

from core.errors import UpdaterError
from partitions.boot.contract import BootLayout, SlotPlace
from partitions.boot.grub_config import EARLY_CONFIG, TARGETS, mkimage_arguments, render_config
from updater.cli.main import app
from updater.node_toml import NodeConfig

DOCS = ROOT / "docs"
ALL_TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def _rows(page: Path) -> Iterator[list[str]]:
    """The rows of a page's tables, as cells."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not set(line) <= set("|-: "):
            yield [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _classes(base: type[UpdaterError]) -> Iterator[type[UpdaterError]]:
    yield base
    for each in base.__subclasses__():
        if each.__module__ == base.__module__:
            yield from _classes(each)


def test_exit_codes_are_those_of_the_errors() -> None:
    wanted = {(str(each.exit_code), each.kind) for each in _classes(UpdaterError)}
    told = {(row[0], row[1]) for row in _rows(DOCS / "exit-codes.md") if row[0].isdigit() and row[1] != "–"}
    assert told == wanted


def _keys(shape: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, type and default of every key, as the page writes them."""
    hints = get_type_hints(shape)
    for each in fields(shape):
        kind, name = hints[each.name], f"{path}{each.name}"
        kind = _without_none(kind)
        inner = get_args(kind)[0] if get_args(kind) and get_args(kind)[-1] is Ellipsis else kind
        if get_origin(kind) is dict:
            yield from _keys(get_args(kind)[1], f"{name}.NAME.")
        elif is_dataclass(inner) and inner is not kind:
            yield from _keys(inner, f"{name}[].")
        elif is_dataclass(kind):
            yield from _keys(kind, f"{name}.")
        else:
            yield name, _type(kind), _default(each)


def _without_none(kind: Any) -> Any:
    given = [each for each in get_args(kind) if each is not type(None)]
    return given[0] if type(None) in get_args(kind) else kind


def _type(kind: Any) -> str:
    arguments = get_args(kind)
    if arguments and arguments[-1] is Ellipsis:
        return f"list of {_type(arguments[0])}"
    if arguments:
        return " or ".join(f'"{each}"' for each in arguments)
    if isinstance(kind, type) and issubclass(kind, str) and kind is not str:
        return " or ".join(f'"{each.value}"' for each in kind)  # type: ignore[attr-defined]
    return {"str": "text", "int": "integer", "float": "number", "bool": "boolean", "Path": "path"}[kind.__name__]


def _default(each: Any) -> str:
    if each.default is MISSING and each.default_factory is MISSING:
        return "required"
    return f"`{_toml(each.default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f"{value:g}" if isinstance(value, int | float) else f'"{value}"'


def test_node_toml_has_every_key_with_its_type_and_default() -> None:
    wanted = set(_keys(NodeConfig))
    told = {
        (row[0].strip("`"), row[1].replace("`", ""), row[2])
        for row in _rows(DOCS / "node-toml.md")
        if row[0][:1] == "`"
    }
    assert told == wanted


def _commands(command: Any, name: str = "updater") -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, each in getattr(command, "commands", {}).items():
        yield from _commands(each, f"{name} {word}")


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_explained(name: str) -> None:
    assert name in ALL_TEXT
    options = {option for each in COMMANDS[name].params for option in each.opts if option.startswith("--")}
    missing = {option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", ALL_TEXT)}
    assert not missing


def _anchor(heading: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists() and file.is_relative_to(ROOT), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_anchor, headings), f"{page.name}: {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        if page.suffix == ".md":
            links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
            waiting += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert not set(PAGES) - reached


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_no_place_of_the_machine_they_were_written_on(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"(?:/tmp/(?!node\b)|/home/|/mnt/|/work\b|\.\./\.\./\.\.)\S*|\bsessions?\b", text)
    assert not found


@pytest.mark.parametrize("target", TARGETS)
def test_the_installing_page_makes_the_same_grub_as_the_code(target: str) -> None:
    text = (DOCS / "installing.md").read_text(encoding="utf-8")
    common = re.search(r'MODULES="([^"]*)"', text)
    command = re.search(rf"\$ (grub-mkimage -O {target} -o (\S+) .*)", text)
    assert common is not None
    assert command is not None
    shown = command[1].replace("$MODULES", common[1]).split()
    assert shown == mkimage_arguments(target, output=command[2], early_config="early.cfg")
    assert re.findall(r"^\$ echo '(.*)' >>? early.cfg$", text, re.MULTILINE) == EARLY_CONFIG.splitlines()


def test_the_boot_page_quotes_the_script() -> None:
    """Every quoted line of GRUB script is in the generated file."""
    place = SlotPlace(root="PARTUUID=x", partition=2)
    whole = render_config(BootLayout(a=place, b=place)).decode()
    script = {line.strip() for line in whole.splitlines()}
    quoted = (
        (DOCS / "boot.md").read_text(encoding="utf-8").partition("## GRUB: the script")[2].partition("## A boot")[0]
    )
    lines = [line.strip() for block in re.findall(r"```\n(.*?)```", quoted, re.DOTALL) for line in block.splitlines()]
    wanted = [
        line for line in lines if line not in ("", "…") and not re.match(r"set updater_(kernel|initrd|arg)", line)
    ]
    assert wanted and not [line for line in wanted if line not in script]
