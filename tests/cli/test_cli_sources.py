"""Servers that stall, break off, lie, or change what they serve; and what they leave behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from images import source
from tests.cli.clilab import cli, contents, refused, runs, slot, status, well_told, well_told_json
from tests.images.bundlelab import Web, answer
from tests.updater.lab import Lab

BLOCK = 32 << 10


def impatient() -> None:
    """The node gives up soon, and reads in small pieces, so that a tiny bundle takes many requests."""
    patience = source.Patience
    source.Patience = lambda: patience(connect=1, silence=0.2, tries=2, backoff=0.01)  # type: ignore[misc,assignment]
    source.ReadAhead.__init__.__kwdefaults__["block"] = BLOCK


def stalls(handler: Any, served: Web, first: int, last: int) -> None:
    time.sleep(0.5)


def stalls_in_the_body(handler: Any, served: Web, first: int, last: int) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {first}-{last}/{len(served.data)}")
    handler.send_header("Content-Length", str(last - first + 1))
    handler.end_headers()
    handler.wfile.write(served.data[first : first + 1])
    handler.wfile.flush()
    time.sleep(0.5)
    handler.close_connection = True


def closes_early(handler: Any, served: Web, first: int, last: int) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {first}-{last}/{len(served.data)}")
    handler.send_header("Content-Length", str(last - first + 1))
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(served.data[first : (first + last) // 2])
    handler.close_connection = True


def hangs_up(handler: Any, served: Web, first: int, last: int) -> None:
    handler.close_connection = True


def ignores_ranges(handler: Any, served: Web, first: int, last: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(served.data)))
    handler.end_headers()
    handler.wfile.write(served.data)


def sends_other_bytes(handler: Any, served: Web, first: int, last: int) -> None:
    answer(handler, served, first, last, Content_Range=f"bytes {first + 1}-{last + 1}/{len(served.data)}")


def lies_about_the_size(handler: Any, served: Web, first: int, last: int) -> None:
    answer(handler, served, first, last, Content_Range=f"bytes {first}-{last}/{len(served.data) + 9}")


def is_another_file_now(handler: Any, served: Web, first: int, last: int) -> None:
    answer(handler, served, first, last, ETag='"2"')


def fails(handler: Any, served: Web, first: int, last: int) -> None:
    handler.send_error(503)


def has_lost_it(handler: Any, served: Web, first: int, last: int) -> None:
    handler.send_error(404)


FAULTS = [stalls, stalls_in_the_body, closes_early, hangs_up, ignores_ranges, sends_other_bytes, fails, has_lost_it]


@pytest.fixture
def raw(lab: Lab, web: Web) -> bytes:
    web.data = lab.bundle("MR96-1").read_bytes()
    return web.data


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_at_fault_from_the_start(fault: Any, raw: bytes, web: Web, node: Path) -> None:
    web.mood = lambda handler, first, last: fault(handler, web, first, last) or True
    refused(node, 25, "stage", web.url, before=impatient)


@pytest.mark.parametrize("fault", [*FAULTS, is_another_file_now, lies_about_the_size])
def test_a_server_that_fails_in_mid_write(fault: Any, raw: bytes, web: Web, node: Path) -> None:
    held = contents(node)[str(node.parent / "slots/a.img")]

    def mood(handler: Any, first: int, last: int) -> bool:
        if first < 3 * BLOCK:
            return False
        fault(handler, web, first, last)
        return True

    web.mood = mood
    error = well_told_json(cli(node, "stage", web.url, "--json", before=impatient), 25)
    assert "slot b is bad" in error["state"]
    assert contents(node)[str(node.parent / "slots/a.img")] == held
    assert status(node)["upgrade"]["state"] == "interrupted" and slot(node, "b")["state"] == "bad"
    web.mood = lambda handler, first, last: False
    resumed = cli(node, "resume", before=impatient)
    assert resumed.code == 0, resumed
    assert slot(node, "b")["state"] == "staged" and runs(node) == ["stage done"]


@pytest.mark.parametrize("fault", [has_lost_it, fails])
def test_a_server_that_wants_more_than_the_journal_has(fault: Any, raw: bytes, web: Web, node: Path) -> None:
    """Neither a password nor a signed query is recorded, so `resume` cannot tell them; `stage` can."""
    url = web.url.replace("http://", "http://user:secret@") + "?signature=secret"

    def mood(handler: Any, first: int, last: int) -> bool:
        known = "Authorization" in handler.headers and handler.path.endswith("?signature=secret")
        if known and (first < 3 * BLOCK or healed):
            return False
        fault(handler, web, first, last)
        return True

    healed: list[bool] = []
    web.mood = mood
    well_told(cli(node, "stage", url, before=impatient), 25)
    healed.append(True)
    error = well_told_json(cli(node, "resume", "--json", before=impatient), 25)
    assert error["next"][0].startswith("updater stage URL")
    assert "is open" in error["state"]
    assert "secret" not in cli(node, "history", "--json").out
    assert b"secret" not in (node.parent / "data/journal.sqlite").read_bytes()
    assert cli(node, "stage", url, before=impatient).code == 0
    assert slot(node, "b")["state"] == "staged" and runs(node) == ["stage done"]


def test_other_bytes_from_an_honest_server(raw: bytes, web: Web, node: Path) -> None:
    web.data = raw[:-200] + bytes(200)
    well_told(cli(node, "stage", web.url, before=impatient), 20)
    web.data = raw
    assert cli(node, "resume", before=impatient).code == 0


def test_resume_with_another_bundle_behind_the_url(lab: Lab, raw: bytes, web: Web, node: Path) -> None:
    web.data = raw[:-200] + bytes(200)
    well_told(cli(node, "stage", web.url), 20)
    web.data = lab.bundle("MR97-1").read_bytes()
    refused(node, 22, "resume")
    assert cli(node, "abort").code == 0


def test_nobody_listens(node: Path, web: Web) -> None:
    refused(node, 25, "stage", "http://127.0.0.1:1/release.bundle", before=impatient)


def test_a_password_in_a_url_is_shown_nowhere(raw: bytes, web: Web, node: Path) -> None:
    url = web.url.replace("http://", "http://me:secret-word@") + "?token=secret-word"
    web.mood = lambda handler, first, last: fails(handler, web, first, last) or True
    ended = cli(node, "stage", url, before=impatient)
    well_told(ended, 25)
    web.mood = lambda handler, first, last: False
    assert cli(node, "stage", url, before=impatient).code == 0
    assert "secret-word" not in ended.out + ended.err
    assert not any(b"secret-word" in path.read_bytes() for path in (node.parent / "data").iterdir() if path.is_file())
