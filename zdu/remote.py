"""A server over SSH: the same face as this machine has (`zdu.traffic.shell`), and the way to its agent."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from core.errors import CommandFailed, NotPermitted, SiteUnreachable
from core.run import ENVIRONMENT, Overran, Result
from core.ssh import DEAD, Address, Fault, Hop, Line, Said, SshError
from zdu.ssh import Reach

#: Programs get the same surroundings as on this machine; what operators install themselves is found as well.
_ENVIRONMENT: Final = ENVIRONMENT | {"PATH": f"{ENVIRONMENT['PATH']}:/usr/local/sbin:/usr/local/bin"}

#: Seconds that `timeout` there has to end a program that does not want to end.
_KILL_AFTER: Final = 2.0

#: Replaces a file durably. Target, size and mode (or nothing) are arguments; the content is on standard input. The size
#: is checked: a line that breaks looks like the end of the content.
_WRITE: Final = """
set -eu
target=$1 size=$2 mode=$3
directory=$(dirname -- "$target")
new=$(mktemp -- "$directory/.$(basename -- "$target").XXXXXXXXXX")
trap 'rm -f -- "$new"' EXIT
cat > "$new"
found=$(stat -c %s -- "$new")
if [ "$found" != "$size" ]; then echo "only $found of $size bytes came" >&2; exit 1; fi
if [ -e "$target" ]; then
    chown --reference="$target" -- "$new"
    chmod --reference="$target" -- "$new"
    if [ -n "$mode" ]; then chmod -- "$mode" "$new"; fi
else
    chmod -- "${mode:-0644}" "$new"
fi
sync -- "$new"
mv -fT -- "$new" "$target"
sync -- "$directory"
"""


class Unreachable(SiteUnreachable):
    """A server did not answer. `fault` says why; `begun`: what was asked may have been begun or done there."""

    def __init__(
        self, message: str, fault: Fault, *, what: list[str], state: str, next: list[str], begun: bool = False
    ) -> None:
        super().__init__(message, what=what, state=state, next=next)
        self.fault = fault
        self.begun = begun

    @property
    def may_pass(self) -> bool:
        """Whether the same may work in a while: the server restarts, the network is mended. A key does not mend."""
        return self.fault not in (Fault.KNOWN_HOSTS, Fault.UNKNOWN_KEY, Fault.CHANGED_KEY)


class RemoteShell:
    """A server over one line that is kept, and made anew when it has dropped. Threads may share it.

    With `sudo` in its `Reach`, everything runs through ``sudo -n``: sudo must let the user start it without a password.
    """

    def __init__(self, name: str, reach: Reach) -> None:
        self.name = name
        self.reach = reach
        hops = tuple(Hop.parse(text, reach.user) for text in reach.jump)
        target = Hop(host=reach.host, user=reach.user, port=reach.port)
        self._line = Line(
            Address(target=target, jumps=hops, key=reach.key, known_hosts=reach.known_hosts, connect=reach.connect)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. The next use calls again."""
        self._line.close()

    def run(
        self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10, repeat: bool = False
    ) -> Result:
        """As `Shell.run`. `repeat`: it may be asked a second time, because it only looks or does nothing twice.

        Raises Unreachable; CommandFailed when it is missing, was ended by a signal or overran `timeout` seconds (it was
        ended then).
        """
        said = self._run(argv, (input or "").encode(), timeout, repeat=repeat)
        assert said.code is not None
        return Result(code=said.code, stdout=_text(said.out), stderr=_text(said.err), seconds=said.seconds)

    def exists(self, path: Path) -> bool:
        """As `Shell.exists`."""
        said = self._run(["test", "-e", str(path)], b"", 10, repeat=True)
        if said.code not in (0, 1):
            raise CommandFailed(f"{path} on {self.name} cannot be looked for", what=_tail(said.err))
        return said.code == 0

    def read(self, path: Path) -> bytes:
        """As `Shell.read`."""
        said = self._run(["cat", "--", str(path)], b"", 30, repeat=True)
        if said.code != 0:
            raise CommandFailed(f"{path} on {self.name} cannot be read", what=_tail(said.err))
        return said.out

    def write(self, path: Path, data: bytes, mode: int | None = None) -> None:
        """As `Shell.write`."""
        form = f"{mode:04o}" if mode is not None else ""
        said = self._run(["sh", "-c", _WRITE, "sh", str(path), str(len(data)), form], data, 60, repeat=True)
        if said.code != 0:
            raise CommandFailed(
                f"{path} on {self.name} cannot be written", what=_tail(said.err), state="it is as it was"
            )

    # -- inside

    def _run(self, argv: Sequence[str], data: bytes, timeout: float, *, repeat: bool) -> Said:
        words = list(argv)
        sudo = ["sudo", "-n", "--"] if self.reach.sudo else []
        surroundings = ["env", *(f"{key}={value}" for key, value in _ENVIRONMENT.items() if key != "HOME")]
        limit = ["timeout", f"--kill-after={_KILL_AFTER}", f"{timeout:.3f}"]
        # The server itself ends what overruns, also when nobody can tell it any more. We wait longer than it does.
        patience = timeout + _KILL_AFTER + DEAD
        try:
            try:
                said = self._line.run([*surroundings, *limit, *sudo, *words], data, timeout=patience)
            except SshError as error:
                if not (repeat and error.fault is Fault.LOST):
                    raise
                said = self._line.run([*surroundings, *limit, *sudo, *words], data, timeout=patience)
        except SshError as error:
            if error.fault is Fault.OVERRAN:
                raise self._overran(words, timeout, "it may be running there still") from error
            if error.fault is Fault.ENDLESS:
                raise CommandFailed(f"the answer of {words[0]} on {self.name} has no end", what=error.text) from error
            raise unreachable(self.name, self.reach, error) from error
        self._look_at(words, said, timeout)
        return said

    def _look_at(self, words: list[str], said: Said, timeout: float) -> None:
        """Raises CommandFailed where `timeout` or `sudo`, and not the program itself, had the last word."""
        errors = _text(said.err)
        if said.seconds >= timeout and said.code in (124, 137, None):
            raise self._overran(words, timeout, "it was ended there")
        if said.code is None:
            raise CommandFailed(f"{words[0]} on {self.name} was ended by a signal", what=_line(words))
        if said.code in (126, 127) and "timeout: failed to run command" in errors:
            raise CommandFailed(
                f"sudo is not installed on {self.name}"
                if self.reach.sudo
                else f"{words[0]} is not installed on {self.name}, or cannot be executed",
                what=[_line(words), *_tail(said.err)[-1:]],
            )
        last = next(iter(_tail(said.err, 1)), "")
        if self.reach.sudo and said.code == 1 and last.startswith("sudo: "):
            if last.endswith("command not found"):
                raise CommandFailed(f"{words[0]} is not installed on {self.name}", what=_line(words))
            raise NotPermitted(
                f"sudo on {self.name} does not let {self.reach.user} run {words[0]}",
                what=_tail(said.err)[-2:],
                state="nothing was changed there",
                next=f"a line for sudo there: {self.reach.user} ALL=(root) NOPASSWD: ALL",
            )

    def _overran(self, words: list[str], timeout: float, state: str) -> Overran:
        return Overran(f"{words[0]} on {self.name} did not end within {timeout:g} s", what=_line(words), state=state)


def unreachable(name: str, reach: Reach, error: SshError) -> Unreachable:
    """The error of a line in words for people, with what to do."""
    where, on_the_way = error.where, error.where.host != reach.host or error.where.port != reach.port
    who = f"{where.host}, on the way to {name}," if on_the_way else name
    known = reach.known_hosts
    compare = (
        f"ssh-keyscan -p {where.port} {shlex.quote(where.host)}    shows its keys; compare them with the server's own"
    )
    begun = error.fault is Fault.LOST
    what = [f"{where}: {error.text}"]
    what += [f"{word} {key}" for word, key in (("known    ", error.known), ("offered  ", error.offered)) if key]
    login = f"-p {where.port} {where.user}@{where.host}"
    match error.fault:
        case Fault.UNKNOWN_KEY:
            message = f"the host key of {who} is not known"
            steps = [compare, f"then add its line to {known}"]
        case Fault.CHANGED_KEY:
            message = f"{who} shows another host key than the one that is known"
            steps = [
                "find out why: a new installation, another machine at this address, or somebody in between",
                f"if it is right: ssh-keygen -R {shlex.quote(where.known_as)} -f {known}",
                compare,
                f"then add its line to {known}",
            ]
        case Fault.KNOWN_HOSTS:
            message = f"the known host keys cannot be read, so {who} is not spoken to"
            steps = [f"ls -l {known}", compare]
        case Fault.DENIED:
            message = f"{who} does not let {where.user} in"
            steps = [f"ssh {f'-i {reach.key} ' if reach.key else ''}{login}    says more"]
        case Fault.LOST:
            message = f"the line to {who} broke in the middle of a command"
            steps = [f"ssh {login}    whether it answers"]
        case _:
            message = f"{who} cannot be reached over SSH"
            steps = [f"ssh {login}    says more"]
    state = "whether the command came to its end there is not known" if begun else "nothing was asked of it"
    return Unreachable(message, error.fault, what=what, state=state, next=steps, begun=begun)


def _line(words: Sequence[str]) -> str:
    """The command, short enough to be read: some carry a whole script."""
    text = " ".join(shlex.join(words).split())
    return text if len(text) <= 200 else f"{text[:200]} …"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def _tail(raw: bytes, lines: int = 8) -> list[str]:
    return [line for line in _text(raw).splitlines() if line.strip()][-lines:]
