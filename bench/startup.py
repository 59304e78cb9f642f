"""How long the command line takes to say anything: whole processes of the same interpreter, in turns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.stage import UPDATER
from bench.timing import Contender, Sample, in_turns, seconds

#: The least that a program of two commands can be. `plain`: without the coloured boxes around its help.
_BARE = """import typer
app = typer.Typer({plain})
@app.command()
def hello(name: str) -> None:
    "Say hello."
    print(name)
@app.command()
def bye(name: str) -> None:
    "Say bye."
    print(name)
if __name__ == "__main__":
    app()
"""


def measure(folder: Path, config: Path, turns: int) -> dict[str, Sample]:
    """Seconds of `updater --help`, of `updater status` on the node of `config`, and of bare Typer programs."""
    contenders = [
        _process("bare Typer --help", sys.executable, str(_script(folder / "bare.py", ""))),
        _process("plain Typer --help", sys.executable, str(_script(folder / "plain.py", "rich_markup_mode=None"))),
        _process("updater --help", *UPDATER),
        _process("updater status", *UPDATER, "--config", str(config), last="status"),
    ]
    for contender in contenders:  # compiles what is to be compiled
        contender()
    return in_turns(contenders, turns)


def _script(path: Path, plain: str) -> Path:
    path.write_text(_BARE.format(plain=plain))
    return path


def _process(name: str, *command: str, last: str = "--help") -> Contender:
    return seconds(name, lambda: subprocess.run([*command, last], check=True, stdout=subprocess.DEVNULL))
