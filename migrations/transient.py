"""Directories that are gone when we are, however we end: for scratch servers, and for secrets that programs read."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from core.errors import UpdaterError
from core.run import started

#: Waits for our death, and then removes the directory: again and again, since whoever writes to it is only just dying.
_CARETAKER: Final = """
care() {
    kill -KILL $!
    tries=0
    while [ -e "$1" ] && [ $tries -lt 100 ]; do rm -rf -- "$1" 2>/dev/null; sleep 0.05; tries=$((tries + 1)); done
    exit
}
trap 'care "$1"' TERM
sleep infinity &
rmdir "$1/unattended"
wait
"""


@contextmanager
def transient_directory(parent: Path | None = None, *, visitor: str | None = None) -> Iterator[Path]:
    """A new directory of ours, with a short path. Nobody else may enter it but the user `visitor` (by their group), who
    can neither list it nor change what is in it. Removed at the end of the context; by its caretaker, if we are killed.
    """
    home = Path(tempfile.mkdtemp(prefix="scratch-", dir=parent))
    try:
        unattended = home / "unattended"
        unattended.mkdir()
        command = ("sh", "-c", _CARETAKER, "caretaker", home)
        with started(*command, log_file=Path("/dev/null"), dies_with_us=signal.SIGTERM, end=signal.SIGKILL) as care:
            while unattended.exists() and care.running:  # until then our death would be the caretaker's, too
                time.sleep(0.001)
            if visitor is not None:
                os.chown(home, -1, pwd.getpwnam(visitor).pw_gid)
                home.chmod(0o710)
            yield home
    finally:
        _remove(home)


def _remove(directory: Path) -> None:
    for _ in range(100):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.05)
    raise UpdaterError(f"the directory {directory} cannot be removed", next=f"rm -r {directory}")
