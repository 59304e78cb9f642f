"""Counting live calls, with the real sources. What cannot be read is never 0."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CommandFailed, FencedOff
from core.run import Result
from core.sql import Connection, Database, Engine
from tests.zdu.lab import until
from tests.zdu.programs import CONTROL, VIP, Caller, two_sites
from zdu.drivers import CallsConfig, CallsKind
from zdu.traffic.asking import every, flat, tree
from zdu.traffic.calls import Calls, at_pointer, calls, whole
from zdu.traffic.drain import Reading
from zdu.traffic.shell import LocalShell


def not_known(reading: Reading, why: str) -> None:
    assert reading.count is None, reading
    assert why in reading.why


@pytest.mark.root
@pytest.mark.xdist_group("sites")
def test_dialogs_of_kamailio() -> None:
    with two_sites() as network:
        config = CallsConfig(kind=CallsKind.KAMAILIO, control=CONTROL, timeout=3)
        counted = calls("front", config, network.shells, {})
        assert counted.read().count == 0
        caller = Caller(network.caller, VIP, calls=50, rate=100, talk=1.5)
        until(lambda: network.a.live() + network.b.live() == 50, "all calls are up", timeout=2)
        assert counted.read().count == 50
        cross = {reading.source: reading.count for reading in network.dispatcher().live("A")}
        assert cross == {"d1": network.a.live(), "d2": 0}
        assert caller.outcome().perfect
        assert counted.read().count == 0
        network.dispatchers[1].process.stop()
        not_known(counted.read(), "d2: no answer on d2 from Kamailio")
        readings = network.dispatcher().live("A")
        assert [reading.count for reading in readings] == [0, None]
        assert readings[1].source == "d2"


@pytest.fixture(params=["sqlite", "mariadb"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "mariadb":
        made: Database = request.getfixturevalue("fresh_mariadb")()
    else:
        path = tmp_path / "calls.sqlite"
        path.touch()
        made = Database(engine=Engine.SQLITE, path=path)
    with Connection.open(made) as connection:
        connection.execute("CREATE TABLE Calls (id INTEGER PRIMARY KEY, ended INTEGER)")
        connection.execute("INSERT INTO Calls VALUES (1, NULL), (2, NULL), (3, 12)")
    return made


def test_a_query(database: Database) -> None:
    def read(query: str) -> Reading:
        config = CallsConfig(kind=CallsKind.SQL, database=database, query=query)
        return calls("A", config, [], {}).read()

    assert read("SELECT count(*) FROM Calls WHERE ended IS NULL").count == 2
    assert read("SELECT count(*) FROM Calls WHERE id = 99").count == 0
    not_known(read("SELECT id FROM Calls"), "3 rows of 1 columns")
    not_known(read("SELECT id FROM Calls WHERE id = 99"), "0 rows")
    not_known(read("SELECT id, ended FROM Calls WHERE id = 3"), "1 rows of 2 columns")
    not_known(read("SELECT ended FROM Calls WHERE id = 1"), "None")
    not_known(read("SELECT -1"), "is no number of calls")
    not_known(read("SELECT count(*) FROM Elsewhere"), "")
    not_known(read("SELECT sum(ended) FROM Calls WHERE id = 99"), "None")


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    gone = Database(engine=Engine.SQLITE, path=tmp_path / "none.sqlite")
    config = CallsConfig(kind=CallsKind.SQL, database=gone, query="SELECT 0")
    not_known(calls("A", config, [], {}).read(), "unable to open")


Answer = tuple[int, bytes, float]


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, Answer]]]:
    """A URL, and what it answers by path: status, body, seconds until then."""
    answers: dict[str, Answer] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, seconds = answers[self.path]
            time.sleep(seconds)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/good")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}", answers
    web.shutdown()
    web.server_close()


def test_json_over_http(server: tuple[str, dict[str, Answer]]) -> None:
    url, answers = server
    answers |= {
        "/good": (200, b'{"calls": {"live": 7, "text": "12", "half": 1.5, "yes": true}, "list": [0, 3]}', 0),
        "/down": (503, b'{"calls": {"live": 0}}', 0),
        "/moved": (302, b"", 0),
        "/text": (200, b"0 calls", 0),
        "/slow": (200, b"0", 1.0),
        "/empty": (200, b"", 0),
    }

    def read(path: str, pointer: str = "/calls/live", timeout: float = 2.0) -> Reading:
        config = CallsConfig(kind=CallsKind.HTTP, url=url + path, pointer=pointer, timeout=timeout)
        return calls("A", config, [], {}).read()

    assert read("/good").count == 7
    assert read("/good", "/calls/text").count == 12
    assert read("/good", "/list/0").count == 0
    not_known(read("/good", "/calls/half"), "is no number of calls")
    not_known(read("/good", "/calls/yes"), "is no number of calls")
    not_known(read("/good", "/calls"), "is no number of calls")
    not_known(read("/good", "/calls/dead"), "there is nothing at /calls/dead")
    not_known(read("/good", "/list/2"), "there is nothing at /list/2")
    not_known(read("/down"), "status 503")
    not_known(read("/moved"), "status 302")
    not_known(read("/text", ""), "JSONDecodeError")
    not_known(read("/empty", ""), "JSONDecodeError")
    began = time.monotonic()
    not_known(read("/slow", "", 0.3), "")
    assert time.monotonic() - began < 10


def test_several_servers_are_added_and_one_that_fails_spoils_it(server: tuple[str, dict[str, Answer]]) -> None:
    url, answers = server
    answers["/one"], answers["/two"] = (200, b"3", 0), (200, b"4", 0)
    shells = [LocalShell("one"), LocalShell("two")]
    config = CallsConfig(kind=CallsKind.HTTP, url=f"{url}/{{host}}")
    counted = calls("A", config, shells, {"one": "one", "two": "two"})
    assert counted.read().count == 7
    answers["/two"] = (500, b"0", 0)
    not_known(counted.read(), "/two: ValueError: status 500")


def test_a_program_of_the_operator(tmp_path: Path) -> None:
    def read(text: str, timeout: float = 30.0) -> Reading:
        program = tmp_path / "calls"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        config = CallsConfig(kind=CallsKind.COMMAND, command=(str(program), "live"), timeout=timeout)
        return calls("A", config, [LocalShell("b1")], {}).read()

    assert read('test "$1" = live && echo 5').count == 5
    assert read("echo 0").count == 0
    not_known(read("echo 0; echo gone >&2; exit 1"), "exits with 1: gone")
    not_known(read("true"), "is no number of calls")
    not_known(read("echo -1"), "is no number of calls")
    not_known(read("echo 1; echo 2"), "is no number of calls")
    not_known(read("sleep 5", 0.2), "")
    config = CallsConfig(kind=CallsKind.COMMAND, command=(str(tmp_path / "none"),))
    not_known(calls("A", config, [LocalShell("b1")], {}).read(), "not installed")


class Counted:
    """A source that does what it is told."""

    def __init__(self, name: str, act: Callable[[], Any]) -> None:
        self.name = name
        self.count = act


def test_a_source_that_hangs_is_not_asked_again_and_does_not_hold_the_others() -> None:
    release, asked = threading.Event(), list[int]()

    def hang() -> int:
        asked.append(1)
        release.wait(10)
        return 0

    counted = Calls("A", [Counted("good", lambda: 2), Counted("bad", hang)], timeout=0.5)
    not_known(counted.read(), "bad: no answer in 0.5 s")
    not_known(counted.read(), "bad: the reading before has not ended")
    assert len(asked) == 1
    release.set()
    for thread in counted._under_way.values():
        thread.join()
    assert counted.read().count == 2, "an old answer does not count, a new one does"
    assert len(asked) == 2


def test_what_ends_the_work_is_not_a_count_that_is_not_known() -> None:
    def fenced() -> int:
        raise FencedOff("another controller holds the run")

    with pytest.raises(FencedOff):
        Calls("A", [Counted("odd", fenced)], timeout=1).read()


def test_a_source_that_raises_anything_is_not_known() -> None:
    def fail() -> int:
        raise ZeroDivisionError("oh")

    not_known(Calls("A", [Counted("odd", fail)], timeout=1).read(), "ZeroDivisionError: oh")
    not_known(Calls("A", [], timeout=1).read(), "nobody counts them")


@given(
    st.one_of(
        st.integers(), st.floats(), st.text(), st.booleans(), st.none(), st.decimals(allow_nan=False), st.just([0])
    )
)
def test_only_whole_numbers_are_numbers_of_calls(found: Any) -> None:
    if isinstance(found, str):
        good = found.strip().isascii() and found.strip().isdigit()
    else:
        number = isinstance(found, (int, float, Decimal)) and not isinstance(found, bool)
        good = number and 0 <= found < float("inf") and found == int(found)
    if good:
        assert whole(found) == int(found)
    else:
        with pytest.raises(ValueError):
            whole(found)


def test_pointers() -> None:
    document = {"a/b": {"~": [1, {"": 2}]}}
    assert at_pointer(document, "/a~1b/~0/0") == 1
    assert at_pointer(document, "/a~1b/~0/1/") == 2
    assert at_pointer(5, "") == 5
    with pytest.raises(ValueError):
        at_pointer(document, "/a~1b/~0/-1")


def test_the_text_of_kamcmd() -> None:
    lines = ["{", "NRSETS: 1", "RECORDS: {", "SET: {", "ID: 1", "DEST: {", "URI: sip:a:5060", "}"]
    lines += ["DEST: {", "URI: sip:b;x=y: z", "NONE:", "}", "}", "}", "}"]
    said = tree("".join(f"\t{line}\n" for line in lines))
    assert [flat(one)["URI"] for one in every(said, "DEST")] == ["sip:a:5060", "sip:b;x=y: z"]
    assert flat(every(said, "SET")[0])["ID"] == "1"
    assert tree("27") == "27"


class Mute:
    """A shell whose kamcmd says what it is told to."""

    name = "d1"

    def __init__(self, stdout: str, code: int = 0) -> None:
        self.result = Result(code=code, stdout=stdout, stderr="", seconds=0.0)

    def run(self, *_: object, **__: object) -> Result:
        return self.result


@pytest.mark.parametrize("said", ["", "{\n}\n", "{\n\tongoing: 3\n}", "error: 500 - no", "0 0", "{\n\tall:\n}"])
def test_a_strange_answer_of_kamailio_is_not_known(said: str) -> None:
    from zdu.traffic.calls import KamailioCounter

    config = CallsConfig(kind=CallsKind.KAMAILIO, control="kamcmd:unix:/x")
    with pytest.raises((ValueError, CommandFailed)):
        KamailioCounter(Mute(said), config).count()  # type: ignore[arg-type]
