"""`updater stage` itself, the whole program, on a sandbox node whose inactive slot is a loop device."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from updater.sandbox import create

UPDATER = (sys.executable, "-c", "import sys; from updater.cli.main import main; sys.exit(main())")


def node(folder: Path, device: Path, public_key: Path) -> Path:
    """A sandbox that is ready to stage to the device; returns its node.toml."""
    config = create(folder, slot_size=4096, keys=[public_key], release="MR95-1", compatible="sandbox")
    text = config.read_text()
    slot = f'b.device = "{folder.resolve()}/slots/b.img"'
    assert slot in text
    config.write_text(text.replace(slot, f'b.device = "{device}"'))
    return config


def stager(config: Path, bundle: Path) -> Callable[[], dict[str, float]]:
    """What stages the bundle, all of it, each time; gives the seconds of each step, of the whole process
    (`stage`), and the peak of its memory in MB (`peak`).
    """

    def stage() -> dict[str, float]:
        with TemporaryDirectory() as place:
            result = Path(place, "result")
            command = [*UPDATER, "--config", str(config), "--json", "stage", "--again", str(bundle)]
            metered = [sys.executable, "-m", "bench.meter", str(result), *command]
            done = subprocess.run(metered, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"stage: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            found = json.loads(result.read_text())
        events = [json.loads(line) for line in done.stdout.splitlines()]
        steps = {event["step"]: event["data"]["seconds"] for event in events if event["kind"] == "finished"}
        whole = {"stage": found["seconds"], "peak": found["peak"] / 1e6}
        return {f"stage: {step}": steps[step] for step in steps} | whole

    return stage
