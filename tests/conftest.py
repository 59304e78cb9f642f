"""The order in which tests begin, and what all of them need."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

T = TypeVar("T")

#: What takes minutes begins first, so that no worker is left alone with it at the end. The first test of all makes the
#: disks of the machines on a new computer, which takes minutes too; the other worker does something else meanwhile.
_FIRST = (
    "vm/test_lab.py",
    "zdu/test_whole.py",
    "vm",
    "zdu/test_controller_crash.py",
    "zdu/test_ledger_crash.py",
    "updater/test_crash.py",
)

_HERE = Path(__file__).parent


#: A filesystem in memory, and the bytes that must be free there for all that the tests make at a time.
_MEMORY = Path("/dev/shm")
_ROOM = 8 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Temporary files are in one directory, with what killed processes leave, and it goes at the end. It is in memory
    where there is room: what is under test syncs after each step, databases after each transaction, and waiting for a
    disk would take as long as all the rest. No power is cut under these files.

    Tests send Ctrl-C and SIGHUP to programs. These would inherit our deafness where we were started in the background.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM
        place = Path(tempfile.mkdtemp(prefix="ut-", dir=_MEMORY if roomy else None))
        place.chmod(0o1777)
        config.add_cleanup(lambda: shutil.rmtree(place, ignore_errors=True))
        os.environ["TMPDIR"] = str(place)
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(place.parent))  # tests that failed keep theirs
    tempfile.tempdir = None  # pytest has asked for it already
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by that, and leave the rest as it is."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    return next((at for at, name in enumerate(_FIRST) if _is_in(item, name)), len(_FIRST))


def _is_in(item: pytest.Item, name: str) -> bool:
    return item.path.is_relative_to(_HERE / name)


class Drawn(Protocol):
    """Chooses from many things of a kind which of them are tried, in their order."""

    def __call__(self, things: Iterable[T], share: int = 4) -> list[T]: ...


@pytest.fixture(
    params=[pytest.param(False, id="a share"), pytest.param(True, id="all of them", marks=pytest.mark.long)]
)
def drawn(request: pytest.FixtureRequest) -> Drawn:
    """All of them in ``make test-long``; else one of `share`, drawn anew each time, and always one at least."""
    rng = random.Random(seed := random.SystemRandom().randrange(1 << 32))
    if not request.param:
        print(f"drawn with seed {seed}")

    def draw(things: Iterable[T], share: int = 4) -> list[T]:
        everything = list(things)
        if request.param:
            return everything
        chosen = set(rng.sample(range(len(everything)), -(-len(everything) // share)))
        return [thing for number, thing in enumerate(everything) if number in chosen]

    return draw
