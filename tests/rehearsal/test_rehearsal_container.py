"""The root in which a way back is proved: the real data is seen in it, and nothing of it can be touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.errors import CommandFailed, NotReady, RehearsalFailed
from core.run import run
from vagrant import container

pytestmark = pytest.mark.root

SIZE = 8 << 20


class Host:
    """A slot, a data partition with a database in use, and the copy of it."""

    def __init__(self, home: Path) -> None:
        self.lower, self.data, self.work, self.copy = (home / name for name in ("lower", "data", "work", "copy"))
        for path in (self.lower / "var/lib", self.data / "billing", self.work):
            path.mkdir(parents=True)
        self.live = self.data / "billing/x.sqlite"
        for path in (self.live, *self.beside):
            path.write_text("live")
        self.copy.write_text("copy")

    @property
    def beside(self) -> list[Path]:
        """What SQLite has beside a database in use."""
        return [self.live.with_name(f"{self.live.name}-{each}") for each in ("wal", "shm", "journal")]

    def put_together(self, path: str, then: str) -> str:
        """What a script says with the copy in place of the database at `path`."""
        words = container.assembled(self.lower, self.work, SIZE, self.data, {Path(path): self.copy}, then=then)
        return run("unshare", "--mount", *words).stdout


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("how", ["directory", "file", "in the data", "data elsewhere", "none"])
def test_symlinks_of_the_release_lead_nowhere_outside_its_root(host: Host, how: str) -> None:
    path = "/var/lib/billing/x.sqlite"
    if how == "directory":
        (host.lower / "var/lib/billing").symlink_to(host.live.parent)
    elif how == "file":
        (host.lower / "var/lib/billing").mkdir()
        (host.lower / path[1:]).symlink_to(host.live)
    elif how == "in the data":
        (host.data / "by-name").symlink_to(host.live.parent)
        path = f"{host.data}/by-name/x.sqlite"
    elif how == "data elsewhere":
        place = host.lower / str(host.data)[1:]
        place.parent.mkdir(parents=True)
        place.symlink_to("/srv/data")
        (host.lower / "var/lib/billing").symlink_to(host.live.parent)
    else:
        path = str(host.live)
    place = "/srv/data" if how == "data elsewhere" else str(host.data)
    said = host.put_together(path, f'cd "$root{place}/billing" && cat x.sqlite && echo && ls && echo new > x.sqlite')
    assert said.split() == ["copy", "x.sqlite"]
    assert host.copy.read_text() == "new\n"
    assert [each.read_text() for each in (host.live, *host.beside)] == ["live"] * 4


def test_a_symlink_that_goes_round_in_circles_ends_it(host: Host) -> None:
    (host.lower / "var/lib/billing").symlink_to("/var/lib/billing")
    with pytest.raises(CommandFailed, match="unshare failed"):
        host.put_together("/var/lib/billing/x.sqlite", "echo put together")
    assert all(each.exists() for each in host.beside)


def test_what_is_written_has_a_bound(host: Host) -> None:
    (host.data / "large").write_bytes(bytes(2 * SIZE))
    said = host.put_together(str(host.live), f'(exec 3>>"$root{host.data}/large") 2>&1 || echo refused')
    assert "No space left" in said and "refused" in said


def test_memory_and_time_are_bound() -> None:
    words = " ".join(container._scope("x.scope", 1 << 30))
    assert "-p MemoryMax=1073741824 -p MemorySwapMax=0 -p CPUWeight=10 -p IOWeight=10" in words
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < container._available() <= total


def test_a_release_that_wants_more_memory_is_no_broken_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "_scope", lambda *_: ())
    monkeypatch.setattr(container, "_starved", lambda unit: True)
    with (
        pytest.raises(NotReady, match="more memory") as told,
        container.booted(tmp_path / "none", tmp_path, data=None, copies={}, deadline=20),
    ):
        raise RehearsalFailed("never reached")
    assert any("does not boot" in line for line in told.value.what)
