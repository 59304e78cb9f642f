"""The only place that starts another program."""

from __future__ import annotations

import logging
import os
import pwd
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import CommandFailed
from core.stopping import not_now

log = logging.getLogger("updater.run")

#: Programs get this and nothing of ours: same output on every machine, no secrets by accident.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/root"}


class Overran(CommandFailed):
    """A program was still at it when its time was up, and was ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished program left. `seconds` is wall time."""

    code: int
    stdout: str
    stderr: str
    seconds: float


def run(
    *argv: str | os.PathLike[str],
    timeout: float = 60,
    check: bool = True,
    input: str | bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Result:
    """Run a program to its end, without a shell and without a terminal.

    `env` is added to the fixed `ENVIRONMENT`. `on_line` receives each line of standard output as it comes.
    Raises CommandFailed when it is missing, overruns `timeout` seconds (its whole process group is ended), or, with
    `check`, exits with anything but 0.
    """
    import sh  # costs as much as all of Typer, so only those pay who run something

    words = [os.fspath(word) for word in argv]
    line = shlex.join(words)
    lines: list[str] = []

    def each(text: str) -> None:
        lines.append(text)
        if on_line is not None:
            on_line(text.rstrip("\n"))

    running: Any = None

    def end() -> None:
        if running is not None:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)

    overran = threading.Event()

    def overrun() -> None:
        overran.set()
        end()

    timer = threading.Timer(timeout, overrun)  # sh's own time limit looks ten times a second: 0.1 s for every program
    timer.daemon = True
    started = time.monotonic()
    try:
        with not_now():
            command: Any = sh.Command(words[0], [*ENVIRONMENT["PATH"].split(":")])
            running = command(
                *words[1:],
                _bg=True,  # so that it can be ended below, whatever stops the waiting
                _bg_exc=False,
                _new_group=True,
                _tty_out=False,
                _truncate_exc=False,
                _env={**ENVIRONMENT, **(env or {})},
                _cwd=str(cwd) if cwd else None,
                _in=input,
                _ok_code=range(256),
                _return_cmd=True,
                _out=each if on_line is not None else None,
                _decode_errors="replace",
            )
            timer.start()
        done = running.wait()
    except sh.CommandNotFound as error:
        raise CommandFailed(f"{words[0]} is not installed", what=line) from error
    except sh.ForkException as error:
        raise CommandFailed(f"{words[0]} cannot be started", what=[line, *_tail(str(error))[-1:]]) from error
    except BaseException as error:  # Ctrl-C and SIGTERM too: nothing of ours goes on behind our back
        end()
        if not isinstance(error, sh.SignalException):
            raise
        if overran.is_set():
            raise Overran(f"{words[0]} did not end within {timeout:g} s", what=line) from error
        raise CommandFailed(f"{words[0]} was ended by a signal", what=[line, *_tail(error.stderr)]) from error
    finally:
        timer.cancel()
    seconds = time.monotonic() - started
    stdout = "".join(lines) if on_line is not None else _text(done.stdout)
    result = Result(code=done.exit_code, stdout=stdout, stderr=_text(done.stderr), seconds=seconds)
    log.debug("%s  # exit %d, %.2f s", line, result.code, seconds)
    if check and result.code != 0:
        raise CommandFailed(
            f"{words[0]} failed with exit code {result.code}",
            what=[line, *_tail(result.stderr or result.stdout)],
        )
    return result


class Started:
    """A program that goes on beside us. `pid` is its process, and its process group."""

    def __init__(self, pid: int, process: Any) -> None:
        self.pid = pid
        self._process = process

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return bool(self._process.is_alive()[0])

    def end(self, how: signal.Signals = signal.SIGTERM, *, wait: float = 10) -> None:
        """Send the signal to its group, and SIGKILL if that has not ended it within `wait` seconds."""
        self._send(how)
        until = time.monotonic() + wait
        while self.running and time.monotonic() < until:
            time.sleep(0.005)
        self._send(signal.SIGKILL)
        with suppress(Exception):  # only to reap it: its exit code is the signal's
            self._process.wait()

    def _send(self, how: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self.running:  # an ended one's number may be another's by now
                os.killpg(self.pid, how)


@contextmanager
def started(
    *argv: str | os.PathLike[str],
    log_file: Path,
    user: str | None = None,
    dies_with_us: signal.Signals = signal.SIGKILL,
    end: signal.Signals = signal.SIGTERM,
    env: Mapping[str, str] | None = None,
) -> Iterator[Started]:
    """A program that runs while the context is held, and gets `dies_with_us` when our process (or the thread that
    entered the context) dies in any way. Its output goes to `log_file`. `user`: whom it runs as, when we are root.

    Raises CommandFailed when it is missing. That it went well is for the caller to find out.
    """
    import sh

    words = [os.fspath(word) for word in argv]
    drop = []
    if user is not None and os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        drop = [f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups"]
    search = ENVIRONMENT["PATH"].split(":")
    try:
        sh.Command(words[0], search)  # asked here: setpriv would only put it into the log
        setpriv: Any = sh.Command("setpriv", search)
        running = setpriv(
            *drop,
            f"--pdeathsig={dies_with_us.name.removeprefix('SIG')}",
            "--",
            *words,
            _bg=True,
            _bg_exc=False,
            _new_group=True,
            _tty_out=False,
            _env={**ENVIRONMENT, **(env or {})},
            _in="",
            _ok_code=range(256),
            _return_cmd=True,
            _out=str(log_file),
            _err_to_out=True,
        )
    except sh.CommandNotFound as error:
        raise CommandFailed(f"{error} is not installed", what=shlex.join(words)) from error
    log.debug("%s  # started, process %d", shlex.join(words), running.pid)
    program = Started(running.pid, running.process)
    try:
        yield program
    finally:
        program.end(end)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def _tail(raw: str | bytes, lines: int = 12) -> list[str]:
    text = raw if isinstance(raw, str) else _text(raw)
    return [line for line in text.splitlines() if line.strip()][-lines:]
