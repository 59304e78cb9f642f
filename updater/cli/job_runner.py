"""The process of a job, started by `updater.jobs` and never by hand; its arguments are node.toml and the job's name."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from updater.job_files import Jobs, jobs_of
from updater.node_toml import load_node


def run_job() -> None:
    """Run the verb of a job as the command line would, unless another process does or did, and write down its end."""
    config, job = Path(sys.argv[1]), sys.argv[2]
    jobs = jobs_of(load_node(config).data)
    asked = jobs.asked(job)
    if asked is None:
        return
    with jobs.claimed(job) as ours:
        if not ours:
            return
        _redirect(jobs, job)
        jobs.finish(job, _verb(config, asked.verb))


def _redirect(jobs: Jobs, job: str) -> None:
    """Nothing is read, and all that is said is kept."""
    events, log = jobs.output(job)
    streams = (
        (0, os.open(os.devnull, os.O_RDONLY)),
        (1, os.open(events, os.O_WRONLY | os.O_APPEND)),
        (2, os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)),
    )
    for number, fd in streams:
        os.dup2(fd, number)
        os.close(fd)


def _verb(config: Path, verb: tuple[str, ...]) -> int:
    from updater.cli.main import main

    sys.argv = ["updater", "--config", str(config), "--json", *verb]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # a fault of ours: it belongs into the log, and the job has ended all the same
        traceback.print_exc()
        return 1
    return 0
