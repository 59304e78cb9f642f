"""Runs the commands shown in a page and compares what they print with what the page shows.

A page's ```` ```console ```` blocks are run in order, in one shell, in an empty directory. A line that begins with
``$ `` is a command, the lines after it are what it must print: in that order, other lines may stand between them. ``…``
stands for anything; times, dates and amounts of bytes may differ. A screen that ends in ``exit N (…)`` must exit with
N, every other one with 0. ``<!-- run: COMMAND -->`` is run too, unseen by the reader. A block marked
```` ```console real-node ```` needs a real node: there only commands and options are checked to exist.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_MARK = "@@exit-code "
_LOOSE = [
    (re.compile(r"\b[0-9a-f]{4}…[0-9a-f]{2}\b"), "HASH"),
    (re.compile(r"\d{4}-\d\d-\d\d(-[a-z]\b)?"), "DATE"),
    (re.compile(r"\b\d\d:\d\d(:\d\d)?\b"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? ([kMGT]?B)\b(/s)?"), "SIZE"),
    (re.compile(r"\b\d+ MiB\b"), "SIZE"),
    (re.compile(r"\b\d+(\.\d+)? s\b"), "SECONDS"),
    (re.compile(r"\b\d+ %"), "PERCENT"),
    (re.compile(r"\bprocess \d+"), "process N"),
    (re.compile(r"\s+"), " "),
]


@dataclass(slots=True)
class Command:
    """A command of a page, and the lines that the page shows under it."""

    line: str
    where: str
    shown: list[str] = field(default_factory=list)
    seen: bool = True
    real_node: bool = False

    @property
    def exit_code(self) -> int:
        """What the page says that it exits with."""
        told = re.match(r"\s*exit (\d+) \(", self.shown[-1]) if self.shown else None
        return int(told[1]) if told else 0


def commands_of(page: Path) -> list[Command]:
    """Every command in the page's console blocks and hidden lines, in order."""
    found: list[Command] = []
    fence: str | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{page.name}:{number}"
        if line.lstrip().startswith("```"):
            fence = line.lstrip()[3:].strip() if fence is None else None
        elif fence in ("console", "console real-node"):
            if line.lstrip().startswith(("$ ", "# ")):  # an operator's prompt, and root's
                found.append(Command(line=line.lstrip()[2:], where=where, real_node=fence != "console"))
            elif line.strip():
                found[-1].shown.append(line)
        elif fence is None and (hidden := re.fullmatch(r"<!-- run: (.*) -->", line)):
            found.append(Command(line=hidden[1], where=where, seen=False))
    return found


def run(commands: list[Command], directory: Path, bin_directory: Path) -> list[tuple[int, str]]:
    """Run the commands in one shell; exit code and output (errors mixed in) of each."""
    # runs are named after the day: the one in a page is taken for today
    lines = [re.sub(r"\d{4}-\d\d-\d\d(?=-[a-z]\b)", f"{datetime.now(UTC):%Y-%m-%d}", each.line) for each in commands]
    script = "".join(f"{{ {line}\n}} 2>&1 </dev/null; printf '\\n{_MARK}%d\\n' $?\n" for line in lines)
    environment = {
        "PATH": f"{bin_directory}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(directory),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "COLUMNS": "120",
        "PYTHONUNBUFFERED": "1",  # errors in their place among the other lines
    }
    done = subprocess.run(
        ["bash", "-s"],
        input=script,
        cwd=directory,
        env={**environment, **{k: v for k, v in os.environ.items() if k.startswith("COV")}},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=180,
        check=False,
    )
    parts = re.split(rf"\n{_MARK}(\d+)\n", done.stdout)
    return [(int(code), text) for text, code in zip(parts[::2], parts[1::2], strict=False)]


def difference(command: Command, code: int, output: str) -> str:
    """How what was printed differs from what is shown; empty when it does not."""
    if not command.seen:
        return ""
    if code != command.exit_code:
        return f"{command.where}: exit {code}, not {command.exit_code}\n$ {command.line}\n{output}"
    rest = iter(output.splitlines())
    for shown in command.shown:
        if shown.strip() == "…":
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in _loose(shown).split("…")))
        if not any(pattern.fullmatch(_loose(line)) for line in rest):
            return f"{command.where}: does not print\n{shown}\n--- but, after `{command.line}`:\n{output}"
    return ""


def _loose(line: str) -> str:
    for pattern, word in _LOOSE:
        line = pattern.sub(word, line)
    return line.strip()
