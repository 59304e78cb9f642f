"""Ctrl-C, SIGTERM and a lost terminal: an exception that always arrives, and at no moment when something would be left
behind.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

ASK_US_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


#: Seconds in which another signal is the same wish: who presses Ctrl-C twice must not stop the cleaning up. After
#: that it counts again, should something have swallowed the first one, or hang.
SAME_WISH = 10.0


class Stopped(BaseException):
    """A signal asked us to end; `signal` says which. Not an Exception, nor a KeyboardInterrupt: these are caught by
    code that means something else, some of it (invoke's) to go on."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


_held = 0
_waiting: signal.Signals | None = None
_since: float | None = None


@contextmanager
def stoppable() -> Iterator[None]:
    """Until the context ends, the signals raise `Stopped` in the main thread. One that is ignored stays ignored."""
    global _since
    _since = None
    with ExitStack() as after:
        for number in ASK_US_TO_END:
            if signal.getsignal(number) is not signal.SIG_IGN:
                after.callback(signal.signal, number, signal.signal(number, _stop))
        after.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
        sys.unraisablehook = _unraisable
        yield


@contextmanager
def not_now() -> Iterator[None]:
    """Signals wait until the context ends: something is being made that nobody could clean up yet."""
    global _held, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if not _held and _waiting is not None:
            number, _waiting = _waiting, None
            signal.raise_signal(number)


def _stop(number: int, _: FrameType | None) -> None:
    global _waiting, _since
    if _held:
        _waiting = signal.Signals(number)
    elif _since is None or time.monotonic() - _since > SAME_WISH:
        _since = time.monotonic()
        raise Stopped(signal.Signals(number))


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """An exception in a finalizer goes nowhere. Python runs many while it imports, and we import late: there, one
    signal in a hundred was lost. It is sent again, when the finalizer has ended."""
    if isinstance(lost.exc_value, Stopped):
        global _since
        _since = None
        main = threading.main_thread().ident
        assert main is not None
        again = threading.Timer(0.01, signal.pthread_kill, (main, lost.exc_value.signal))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)
