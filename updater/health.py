"""Health: is the release that just booted fit to be confirmed?"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import CommandFailed, HealthFailed
from core.report import Report
from core.run import run
from updater.node_toml import CheckKind, HealthCheck, HealthConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one check went: `reason` is empty when it passed."""

    name: str
    required: bool
    reason: str


def checks_of(config: HealthConfig) -> list[HealthCheck]:
    """The configured checks and then the executables of the drop-in directory, by name."""
    programs = sorted(path for path in _files(config.drop_in) if os.access(path, os.X_OK))
    return [
        *config.checks,
        *(HealthCheck(name=path.name, kind=CheckKind.COMMAND, command=(str(path),), timeout=60) for path in programs),
    ]


def examine(check: HealthCheck, environment: Mapping[str, str]) -> Verdict:
    """Run one check once. Commands see `environment` (UPDATER_SLOT, UPDATER_RELEASE)."""
    match check.kind:
        case CheckKind.UNIT:
            reason = _unit(check)
        case CheckKind.TCP:
            reason = _tcp(check)
        case CheckKind.HTTP:
            reason = _http(check)
        case CheckKind.COMMAND:
            reason = _command(check, environment)
    return Verdict(name=check.name, required=check.required, reason=reason)


def wait_healthy(
    config: HealthConfig, environment: Mapping[str, str], report: Report, *, step: str = "health"
) -> list[Verdict]:
    """Examine all checks again and again until every required one passes. Those that passed stay passed.

    Raises HealthFailed, naming each required check that did not pass within `config.deadline` seconds and why.
    """
    checks = checks_of(config)
    deadline = time.monotonic() + config.deadline
    passed: dict[int, Verdict] = {}  # by place, not by name: a drop-in may be called as a configured check is
    while True:
        verdicts = [passed.get(place) or examine(check, environment) for place, check in enumerate(checks)]
        passed |= {place: verdict for place, verdict in enumerate(verdicts) if not verdict.reason}
        report.progress(step, len(passed), len(checks), "checks")
        failing = [verdict for verdict in verdicts if verdict.reason and verdict.required]
        if not failing:
            for verdict in verdicts:
                if verdict.reason:
                    report.warning(f"health check {verdict.name} (wanted, not required) fails: {verdict.reason}")
            return verdicts
        if time.monotonic() + config.interval > deadline:
            raise HealthFailed(
                f"not healthy after {config.deadline:g} s: "
                + "; ".join(f"{verdict.name}: {verdict.reason}" for verdict in failing),
            )
        time.sleep(config.interval)


def _unit(check: HealthCheck) -> str:
    try:
        found = run("systemctl", "is-active", "--", check.unit, check=False, timeout=check.timeout)
    except CommandFailed as error:
        return error.message
    state = found.stdout.strip() or "unknown"
    return "" if state == "active" else f"unit {check.unit} is {state}"


def _tcp(check: HealthCheck) -> str:
    import socket

    try:
        socket.create_connection((check.host, check.port), timeout=check.timeout).close()
    except OSError as error:
        return f"{check.host}:{check.port} does not accept connections: {error.strerror or error}"
    return ""


def _http(check: HealthCheck) -> str:
    import urllib3

    try:
        answer = urllib3.request("GET", check.url, timeout=check.timeout, retries=False, redirect=False)
    except urllib3.exceptions.HTTPError as error:
        return f"{check.url} does not answer: {type(error).__name__}"
    return "" if answer.status == check.status else f"{check.url} answers {answer.status}, not {check.status}"


def _command(check: HealthCheck, environment: Mapping[str, str]) -> str:
    try:
        done = run(*check.command, check=False, timeout=check.timeout, env=environment)
    except CommandFailed as error:
        return error.message
    if done.code == 0:
        return ""
    last = (done.stderr or done.stdout).strip().splitlines()[-1:]
    return f"exit {done.code}{': ' + last[0] if last else ''}"


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_file()] if directory.is_dir() else []
