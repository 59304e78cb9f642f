"""The calls of a rehearsal, as scenarios of sipp: who makes them, and who answers."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent / "sites_files"
CALLER, SITE = HERE / "caller.xml", HERE / "site.xml"


def patient(scenario: Path, t1: int = 4000) -> str:
    """The scenario with another T1, the milliseconds after which a message is sent again: emulated machines may take
    seconds to answer.
    """
    return scenario.read_text().replace('retrans="500"', f'retrans="{t1}"')
