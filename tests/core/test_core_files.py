"""Files that survive a cut, locks between real processes, and paths that stay inside."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyfakefs.fake_filesystem import FakeFilesystem

from core.errors import Busy, UpdaterError
from core.files import exclusive_lock, inside, overwrite_in_place, write_atomic


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


# -- write_atomic


def test_new_content_mode_and_nothing_left_behind(fs: FakeFilesystem) -> None:
    fs.create_file("/d/f", contents="old")
    write_atomic(Path("/d/f"), "new", mode=0o600)
    assert Path("/d/f").read_text() == "new"
    assert Path("/d/f").stat().st_mode & 0o777 == 0o600
    assert names(Path("/d")) == ["f"]


def test_a_full_disk_leaves_the_old_file(fs: FakeFilesystem) -> None:
    fs.create_dir("/d")
    fs.set_disk_usage(1000, "/")
    Path("/d/f").write_text("old")
    with pytest.raises(OSError) as caught:
        write_atomic(Path("/d/f"), b"x" * 2000)
    assert caught.value.errno == errno.ENOSPC
    assert Path("/d/f").read_text() == "old"
    assert names(Path("/d")) == ["f"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failure_anywhere_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "f"
    target.write_text("old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no luck")

    monkeypatch.setattr(Path if call == "replace" else os, call, fail)
    with pytest.raises(OSError, match="no luck"):
        write_atomic(target, "new")
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["f"]


@pytest.mark.root
def test_a_really_full_disk(small_tmpfs: Callable[[int], Path]) -> None:
    place = small_tmpfs(64 << 10)
    (place / "f").write_text("old")
    with pytest.raises(OSError) as caught:
        write_atomic(place / "f", bytes(1 << 20))
    assert caught.value.errno == errno.ENOSPC
    assert (place / "f").read_text() == "old" and names(place) == ["f"]


def test_a_symlink_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".f.{os.getpid()}.tmp").symlink_to(victim)
    with pytest.raises(OSError):
        write_atomic(tmp_path / "f", "new")
    assert victim.read_text() == "precious"


# -- overwrite_in_place


def test_overwriting_keeps_the_inode_and_the_blocks(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"a" * 1024)
    before = target.stat()
    overwrite_in_place(target, b"b" * 1024)
    assert target.read_bytes() == b"b" * 1024
    assert (target.stat().st_ino, target.stat().st_blocks) == (before.st_ino, before.st_blocks)


@pytest.mark.parametrize("size", [0, 1023, 1025])
def test_another_size_is_refused(tmp_path: Path, size: int) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"a" * 1024)
    with pytest.raises(ValueError, match="1024 bytes"):
        overwrite_in_place(target, bytes(size))
    assert target.read_bytes() == b"a" * 1024


def test_what_does_not_read_back_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"a" * 16)
    monkeypatch.setattr(os, "pread", lambda *_: b"rotten")
    with pytest.raises(OSError, match="read back"):
        overwrite_in_place(target, b"b" * 16)


# -- exclusive_lock

_HOLDER = """
import sys
from pathlib import Path
from core.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1]), purpose="stage a.bundle"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def _holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with _holder(lock) as process:
        with pytest.raises(Busy) as caught, exclusive_lock(lock, purpose="activate"):
            pass
        assert caught.value.what == (f"held by stage a.bundle, process {process.pid}",)
        assert "cannot activate" in caught.value.message


def test_it_dies_with_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with _holder(lock) as process:
        process.kill()
        process.wait()
        with exclusive_lock(lock, purpose="activate"):
            assert lock.read_text() == f"activate, process {os.getpid()}\n"


def test_it_is_free_after_the_context_even_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), exclusive_lock(tmp_path / "lock", purpose="a"):
        raise RuntimeError
    with exclusive_lock(tmp_path / "lock", purpose="b"):
        pass


# -- inside

_NAMES = st.sampled_from(["a", "b", "c"])
_PARTS = st.lists(st.one_of(_NAMES, st.sampled_from(["..", "."])), min_size=1, max_size=5)
_TARGETS = st.tuples(st.booleans(), _PARTS).map(lambda pair: ("/" if pair[0] else "") + "/".join(pair[1]))
#: Places in the tree, each with what is there: a directory, or a symlink with this target.
_TREES = st.lists(
    st.tuples(st.lists(_NAMES, min_size=1, max_size=3), st.one_of(st.none(), _TARGETS)), min_size=1, max_size=8
)


def _plant(root: Path, tree: list[tuple[list[str], str | None]]) -> None:
    for parts, target in tree:
        place = root.joinpath(*parts)
        if os.path.lexists(place) or any(parent.is_symlink() for parent in place.parents if parent != root):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if target is None:
            place.mkdir()
        else:
            place.symlink_to(target)


def _as_the_kernel(root: Path, path: str) -> tuple[str, int, int] | None:
    """What a process in a real chroot finds there: (kind, device, inode); None for nothing, "loop" for circles."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chroot(root)
            os.chdir("/")
            try:
                found = Path(path).stat()
                answer = f"there {found.st_dev} {found.st_ino}"
            except OSError as error:
                answer = "loop 0 0" if error.errno == errno.ELOOP else "none 0 0"
            os.write(writing, answer.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as source:
        kind, device, inode = source.read().split()
    os.waitpid(child, 0)
    return None if kind == "none" else (kind, int(device), int(inode))


@pytest.mark.root
@settings(max_examples=150, deadline=None)
@given(tree=_TREES, path=_TARGETS)
def test_hostile_symlinks_lead_where_a_chroot_leads(tree: list[tuple[list[str], str | None]], path: str) -> None:
    home = Path(tempfile.mkdtemp())
    try:
        root = home / "root"
        root.mkdir()
        _plant(root, tree)
        expected = _as_the_kernel(root, "/" + path)
        try:
            found = inside(root, path)
        except UpdaterError:
            assert expected is None or expected[0] == "loop"
            return
        assert found == root.resolve() or root.resolve() in found.parents
        assert not any(place.is_symlink() for place in (found, *found.parents) if root.resolve() in place.parents)
        if expected is not None and expected[0] == "there":
            seen = found.stat()
            assert (seen.st_dev, seen.st_ino) == expected[1:]
    finally:
        shutil.rmtree(home)


def test_dots_stop_at_the_root_and_what_is_missing_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "etc").symlink_to("/../../real")
    assert inside(tmp_path, "/etc/../../x/y") == tmp_path / "x/y"
    assert inside(tmp_path, "etc/new/file") == tmp_path / "real/new/file"


def test_circles_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("/a")
    with pytest.raises(UpdaterError, match="followed"):
        inside(tmp_path, "a/x")
