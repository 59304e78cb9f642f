"""Reading over HTTP from servers good and bad, and the read-ahead."""

from __future__ import annotations

import threading
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.errors import BundleInvalid, SourceUnreachable
from images.read import Bundle
from images.source import HttpSource, Patience, ReadAhead, open_source
from tests.images.bundlelab import NOW, Made, Web, answer

HASTY = Patience(connect=1, silence=0.3, slowest=1 << 20, tries=2, backoff=0.01)

Mood = Callable[[Any, int, int], bool]


@pytest.fixture
def served(web: Web, made: Made) -> Web:
    web.data = made.raw
    return web


def test_a_good_server(served: Web, made: Made) -> None:
    with Bundle.open(served.url, made.trust, now=NOW) as bundle:
        bundle.verify_all()
        assert bundle.section("notes") == b"a section\n"
    assert len(served.asked) <= 2  # the size, and one block: the bundle is small


def test_many_chunks_few_round_trips(served: Web, made: Made) -> None:
    source = ReadAhead(HttpSource(served.url, HASTY), block=32 << 10, keep=8)
    with Bundle.open(source, made.trust, now=NOW) as bundle:
        bundle.verify_all()
    assert len(served.asked) <= len(made.raw) // (32 << 10) + 4


def stall(handler: Any, first: int, last: int) -> bool:
    released.wait(5)
    return True


def trickle(served: Web) -> Mood:
    def mood(handler: Any, first: int, last: int) -> bool:
        if last == first:
            return False
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {first}-{last}/{len(served.data)}")
        handler.send_header("Content-Length", str(last - first + 1))
        handler.send_header("ETag", served.etag)
        handler.end_headers()
        while not released.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()
        return True

    return mood


released = threading.Event()


@pytest.fixture(autouse=True)
def _release() -> Any:
    """Lets stalling handlers go when the test is over."""
    released.clear()
    yield
    released.set()


def whole_file(handler: Any, first: int, last: int) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", "5")
    handler.end_headers()
    handler.wfile.write(b"hello")
    return True


def not_found(handler: Any, first: int, last: int) -> bool:
    handler.send_error(404)
    return True


def overloaded(handler: Any, first: int, last: int) -> bool:
    handler.send_error(503)
    return True


def round_in_circles(handler: Any, first: int, last: int) -> bool:
    handler.send_response(302)
    handler.send_header("Location", "/again?token=secret")
    handler.send_header("Content-Length", "0")
    handler.end_headers()
    return True


def garbage(handler: Any, first: int, last: int) -> bool:
    handler.wfile.write(b"\x00\xff no http here\r\n\r\n")
    handler.close_connection = True
    return True


@pytest.mark.parametrize(
    ("mood", "told"),
    [
        (stall, "stalls"),
        (whole_file, "ignores Range"),
        (not_found, "answers 404"),
        (overloaded, "answers 503"),
        (round_in_circles, "redirects"),
        (garbage, "broke"),
    ],
)
def test_servers_that_cannot_be_opened(served: Web, mood: Mood, told: str) -> None:
    served.mood = mood
    with pytest.raises(SourceUnreachable) as caught:
        HttpSource(served.url.replace("http://", "http://user:secret@") + "?token=secret", HASTY)
    assert told in "\n".join(caught.value.what)
    assert "secret" not in str(caught.value.as_json())


def close_early(served: Web) -> Mood:
    def mood(handler: Any, first: int, last: int) -> bool:
        if last == first:
            return False
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {first}-{last}/{len(served.data)}")
        handler.send_header("Content-Length", str(last - first + 1))
        handler.send_header("ETag", served.etag)
        handler.end_headers()
        handler.wfile.write(served.data[first : (first + last) // 2])
        handler.close_connection = True
        return True

    return mood


def lies(**headers: str) -> Callable[[Web], Mood]:
    def make(served: Web) -> Mood:
        def mood(handler: Any, first: int, last: int) -> bool:
            if last == first:
                return False
            answer(handler, served, first, last, **headers)
            return True

        return mood

    return make


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (close_early, "broke"),
        (trickle, "too slow"),
        (lies(Content_Range="bytes 7-1006/99999"), "sends others"),
        (lies(Content_Range="bytes 0-999/*"), "sends others"),
        (lies(Content_Range=""), "sends others"),
        (lies(Content_Range="lines 0-999/1000"), "sends others"),
        (lies(Content_Length="12"), "a length other"),
        (lies(Content_Encoding="gzip"), "encoded"),
        (lies(ETag='"2"'), "changed"),
        (lies(Last_Modified="Tue, 01 Sep 2026 00:00:00 GMT"), "changed"),
    ],
    ids=[
        "closes-early",
        "trickles",
        "other-range",
        "no-length",
        "no-range",
        "lines",
        "length",
        "gzip",
        "etag",
        "modified",
    ],
)
def test_servers_that_fail_later(served: Web, make: Callable[[Web], Mood], told: str) -> None:
    source = HttpSource(served.url, HASTY)
    served.mood = make(served)
    started = time.monotonic()
    with pytest.raises(SourceUnreachable) as caught:
        source.read(0, 1000)
    assert told in "\n".join(caught.value.what)
    assert time.monotonic() - started < 4
    source.close()


def test_a_server_that_lies_in_the_bytes(served: Web, made: Made) -> None:
    """Everything about the answers is right, but not what they carry."""
    served.data = made.raw[:-1] + bytes([made.raw[-1] ^ 1])
    with Bundle.open(served.url, made.trust, now=NOW) as bundle, pytest.raises(BundleInvalid):
        bundle.verify_all()


def test_file_that_changes_in_mid_read(served: Web, made: Made) -> None:
    with Bundle.open(HttpSource(served.url, HASTY), made.trust, now=NOW) as bundle:
        served.etag = '"2"'
        with pytest.raises(SourceUnreachable, match="cannot read"):
            bundle.verify_all()


def test_a_passing_fault_is_borne(served: Web, made: Made) -> None:
    source = HttpSource(served.url, HASTY)
    broken = close_early(served)
    turns = iter([broken, overloaded])
    served.mood = lambda handler, first, last: next(turns, lambda *_: False)(handler, first, last)
    patient = HttpSource(served.url, Patience(connect=1, silence=1, tries=4, backoff=0.01))
    assert bytes(patient.read(5, 1000)) == made.raw[5:1005]
    source.close()
    patient.close()


def test_nobody_listens() -> None:
    with pytest.raises(SourceUnreachable) as caught:
        HttpSource("http://127.0.0.1:9/x", HASTY)
    assert "refused" in "\n".join(caught.value.what)


@pytest.mark.parametrize("url", ["http://", "http://[", "http://127.0.0.1:99999/", "https://\x00/"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(SourceUnreachable):
        open_source(url)


def test_credentials_go_to_the_server_only(served: Web, made: Made) -> None:
    source = HttpSource(served.url.replace("http://", "http://user:secret@"), HASTY)
    assert served.headers[0]["authorization"].startswith("Basic ")
    assert "secret" not in source.name
    with pytest.raises(BundleInvalid) as caught:
        source.read(len(made.raw), 1)
    assert "secret" not in str(caught.value.as_json())
    source.close()


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("user:p%40ss", "user:p@ss"),
        ("u%3Aser:p:s%25", "u:ser:p:s%"),
        ("jörg:€", "jörg:€"),
        ("user", "user:"),
    ],
)
def test_credentials_are_sent_as_they_are_meant(served: Web, written: str, sent: str) -> None:
    HttpSource(served.url.replace("http://", f"http://{written}@"), HASTY).close()
    assert served.headers[0]["authorization"] == f"Basic {b64encode(sent.encode()).decode()}"


def test_credentials_come_from_netrc_too(served: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password p%40€\n")
    (tmp_path / ".netrc").chmod(0o600)
    HttpSource(served.url, HASTY).close()
    assert served.headers[0]["authorization"] == f"Basic {b64encode('user:p%40€'.encode()).decode()}"


def sends_on(location: str, body: bytes = b"", *, forever: bool = False) -> Mood:
    """The first request is sent elsewhere, with a body that may trickle for longer than anybody should wait."""

    def mood(handler: Any, first: int, last: int) -> bool:
        if handler.path != "/mr95-1.bundle":
            return False
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.end_headers()
        handler.close_connection = True
        handler.wfile.write(body)
        for _ in range(100 if forever else 0):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            if released.wait(0.05):
                break
        return True

    return mood


def test_what_comes_with_a_redirect_is_not_waited_for(served: Web, made: Made) -> None:
    served.mood = sends_on("/there", forever=True)
    started = time.monotonic()
    source = HttpSource(served.url, HASTY)
    assert bytes(source.read(5, 1000)) == made.raw[5:1005]
    assert time.monotonic() - started < 2
    source.close()


def test_credentials_do_not_go_where_a_redirect_leads(served: Web) -> None:
    here, elsewhere = "/there", served.url.replace("127.0.0.1", "localhost").replace("mr95-1.bundle", "there")
    for location, told in ((here, True), (elsewhere, False)):
        served.mood = sends_on(location, b"moved")
        served.headers.clear()
        HttpSource(served.url.replace("http://", "http://user:secret@"), HASTY).close()
        assert ["authorization" in headers for headers in served.headers] == [True, told]


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "http://[", "http://127.0.0.1:99999/"])
def test_a_redirect_to_nowhere(served: Web, location: str) -> None:
    served.mood = sends_on(location)
    with pytest.raises(SourceUnreachable) as caught:
        HttpSource(served.url, HASTY)
    assert "no address" in caught.value.what[0]


def test_read_ahead_fetches_a_block_once_for_all_threads() -> None:
    class Slow:
        name = "slow"
        size = 1000
        asked = 0

        def read(self, offset: int, length: int) -> bytes:
            self.asked += 1
            started.set()
            go.wait(5)
            return bytes((offset + n) % 251 for n in range(length))

        def close(self) -> None:
            pass

    started, go = threading.Event(), threading.Event()
    slow = Slow()
    ahead = ReadAhead(slow, block=100, keep=2)
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(bytes(ahead.read(10, 50)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait(5)
    go.set()
    for thread in threads:
        thread.join(5)
    assert slow.asked == 1
    assert got == [bytes(n % 251 for n in range(10, 60))] * 4
    assert bytes(ahead.read(50, 900)) == bytes(n % 251 for n in range(50, 950))
    assert bytes(ahead.read(990, 10)) == bytes(n % 251 for n in range(990, 1000))
    with pytest.raises(BundleInvalid):
        ahead.read(990, 11)
