"""Run a command and write how long it took, and the most memory that it or a child of it ever held, to a file as JSON.

A process of its own, and a small one: Linux counts the memory of the process that starts a program as the program's.

    python -m bench.meter RESULT COMMAND...
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main(result: str, *command: str) -> int:
    """Returns the command's exit code."""
    begun = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, used = os.wait4(child, 0)
    found = {"seconds": time.perf_counter() - begun, "peak": used.ru_maxrss * 1024}
    Path(result).write_text(json.dumps(found))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
