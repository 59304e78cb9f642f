"""Scratch directories go when their user goes, however that was."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.scratch import scratch

_HOLD = """
import sys, time
from pathlib import Path
from core.scratch import scratch
with scratch(Path(sys.argv[1]), "copy") as made:
    (made / "rows").write_text("secret")
    print(made, flush=True)
    time.sleep(60)
"""


def test_it_is_private_and_goes_with_the_context(tmp_path: Path) -> None:
    with scratch(tmp_path, "copy") as made:
        assert made.parent == tmp_path and made.stat().st_mode & 0o777 == 0o700
        (made / "deep").mkdir()
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), scratch(tmp_path, "copy"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    other = tmp_path / "copy-of-mine"
    other.write_text("a file")
    holders = [
        subprocess.Popen([sys.executable, "-c", _HOLD, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        killed, living = (Path(each.stdout.readline().strip()) for each in holders if each.stdout)
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        assert (killed / "rows").exists()
        with scratch(tmp_path, "copy") as made:
            assert not killed.exists()
            assert (living / "rows").exists() and made.exists() and other.exists()
    finally:
        for each in holders:
            each.kill()
            each.communicate()
