"""The manual page is that of the command line as it is."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import subprocess
from typing import Any

import pytest
from docscreens import ROOT

PAGE = ROOT / "docs/updater.1"


def _generator() -> Any:
    loader = importlib.machinery.SourceFileLoader("man_page", str(ROOT / "tools/man-page"))
    spec = importlib.util.spec_from_loader("man_page", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_it_is_in_step_with_the_command_line() -> None:
    assert PAGE.read_text(encoding="utf-8") == _generator().man_page(), "run: tools/man-page > docs/updater.1"


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff here")
def test_groff_has_nothing_to_say_against_it() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", str(PAGE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
