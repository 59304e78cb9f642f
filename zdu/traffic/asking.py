"""Questions to sockets of other hosts, and to Kamailio and HAProxy in their own words."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from core.errors import CommandFailed
from zdu.traffic import talk as words
from zdu.traffic.shell import Shell


def ask(shell: Shell, way: str, where: str, said: str, timeout: float) -> str:
    """Have the host ask one of its sockets (see `zdu.traffic.talk`). Raises CommandFailed when there is no answer."""
    argv = ["python3", "-I", "-c", _script(), way, where, str(timeout)]
    try:
        result = shell.run(argv, input=said, timeout=timeout + 5)
    except CommandFailed as error:  # its words are a whole program: nobody wants to read that
        raise CommandFailed(f"{shell.name} cannot ask {way} {where}", what=error.message) from error
    if result.code != 0:
        raise CommandFailed(f"no answer on {shell.name} from {way} {where}", what=result.stderr.strip()[-300:])
    return result.stdout


@cache
def _script() -> str:
    return Path(words.__file__).read_text(encoding="utf-8")


class Kamailio:
    """Kamailio's remote procedures. `control`: ``kamcmd:ADDRESS`` (binrpc), ``fifo:PATH``, ``unixgram:PATH`` or
    ``http://…`` (JSON-RPC).
    """

    def __init__(self, shell: Shell, control: str, timeout: float) -> None:
        self.shell = shell
        self.control = control
        self.timeout = timeout

    def call(self, method: str, *values: str | int) -> Any:
        """What it returns: text, or a tree of dicts and lists. Raises CommandFailed with what it said."""
        way, _, where = self.control.partition(":")
        if way == "kamcmd":
            return self._binrpc(where, method, values)
        if way in ("http", "https"):
            way, where = "http", self.control
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(values), "reply_name": "@REPLY@"}
        answer = ask(self.shell, way, where, json.dumps(request, separators=(",", ":")), self.timeout)
        try:
            said = json.loads(answer)
            if "result" in said:
                return said["result"]
            fault = said["error"]["message"]
        except (ValueError, KeyError, TypeError) as error:
            raise CommandFailed(f"no JSON-RPC on {self.shell.name} from {self.control}", what=answer[:300]) from error
        raise self._refused(method, fault)

    def _binrpc(self, where: str, method: str, values: tuple[str | int, ...]) -> Any:
        # A number is a number to it: `s:` keeps text text.
        written = [str(value) if isinstance(value, int) else f"s:{value}" for value in values]
        result = self.shell.run(["kamcmd", "-s", where, method, *written], timeout=self.timeout)
        said = result.stdout.strip()
        if result.code != 0:
            raise CommandFailed(
                f"no answer on {self.shell.name} from Kamailio at {where}", what=(result.stderr.strip() or said)[-300:]
            )
        if said.startswith("error: "):  # with exit code 0
            raise self._refused(method, said.removeprefix("error: "))
        return tree(said)

    def _refused(self, method: str, fault: str) -> CommandFailed:
        return CommandFailed(f"Kamailio on {self.shell.name} refuses {method}", what=fault[:300])


def tree(text: str) -> Any:
    """The text form of kamcmd: ``name: value`` in braces becomes a list of dicts with one key each (names come more
    than once); anything else stays text.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or lines[0] != "{":
        return text
    top: list[Any] = []
    open_lists = [top]
    for line in lines[1:]:
        name, _, value = line.partition(": ")
        if line == "}":
            open_lists.pop()
            if not open_lists:
                break
        elif value == "{":
            inner: list[Any] = []
            open_lists[-1].append({name: inner})
            open_lists.append(inner)
        else:
            open_lists[-1].append({name.rstrip(":"): value})
    return top


def every(found: Any, name: str) -> list[Any]:
    """All values of that name in a tree, wherever they are."""
    if isinstance(found, list):
        return [value for item in found for value in every(item, name)]
    if isinstance(found, dict):
        return [value for key, held in found.items() for value in ([held] if key == name else every(held, name))]
    return []


def flat(found: Any) -> dict[str, Any]:
    """The first level of a tree as one dict."""
    if isinstance(found, dict):
        return found
    return {key: value for item in found for key, value in item.items()} if isinstance(found, list) else {}


def haproxy(shell: Shell, socket: str, command: str, timeout: float) -> str:
    """One command to HAProxy's admin socket; what it printed. Raises CommandFailed when it does not answer."""
    return ask(shell, "stream", socket, command + "\n", timeout).strip("\n")
