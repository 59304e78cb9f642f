"""Patches on a root: reports, all or nothing across crashes, hostile trees."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import faults
from core.errors import ConfigError, ModificationConflict
from patches.capture import capture
from patches.hunks import Fit
from patches.patch import Patch, apply, check, conflict
from patches.replace import recover


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc/app").mkdir(parents=True)
    (root / "etc/app/a.conf").write_text("one\ntwo\nthree\n")
    (root / "etc/app/b.conf").write_text("b\n")
    (root / "etc/app/tool").write_text("#!/bin/sh\n")
    (root / "etc/app/tool").chmod(0o640)
    (root / "gone").write_text("x\n")
    return root


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults.arm(None)


def tree(root: Path) -> dict[str, object]:
    """Everything of a root that can be compared."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        s = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(root))] = (stat.filemode(s.st_mode), s.st_uid, s.st_gid, content)
    return found


def change(path: str, old: str, new: str, prefix: str = "") -> bytes:
    return f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-{old}\n+{new}\n".encode()


def patch(data: bytes, name: str = "0001-x", **more: object) -> Patch:
    return Patch(name=name, data=data, **more)  # type: ignore[arg-type]


ALL = (
    b"diff --git a/etc/app/a.conf b/etc/app/a.conf\n--- a/etc/app/a.conf\n+++ b/etc/app/a.conf\n"
    b"@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
    b"diff --git a/etc/app/b.conf b/etc/app/c.conf\nsimilarity index 50%\nrename from etc/app/b.conf\n"
    b"rename to etc/app/c.conf\n--- a/etc/app/b.conf\n+++ b/etc/app/c.conf\n@@ -1 +1 @@\n-b\n+c\n"
    b"diff --git a/etc/app/tool b/etc/app/tool\nold mode 100644\nnew mode 100755\n"
    b"diff --git a/usr/lib/new/deep b/usr/lib/new/deep\nnew file mode 100755\n--- /dev/null\n+++ b/usr/lib/new/deep\n"
    b"@@ -0,0 +1 @@\n+hello\n"
    b"diff --git a/gone b/gone\ndeleted file mode 100644\n--- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n"
)


def test_all_that_git_can_say_is_applied_once(root: Path, tmp_path: Path) -> None:
    (report,) = check([patch(ALL)], root)
    assert str(report) == "5 files, 4 hunks, applies cleanly"
    assert [(file.action, file.fit.value) for file in report.files] == [
        (action, "applies") for action in ("change", "rename", "mode", "create", "delete")
    ]
    done = apply([patch(ALL)], root, tmp_path / "journal")
    assert {each.path for each in done} == {
        "/etc/app/a.conf", "/etc/app/b.conf", "/etc/app/c.conf", "/etc/app/tool", "/usr/lib/new/deep", "/gone",
    }  # fmt: skip
    assert (root / "etc/app/a.conf").read_text() == "one\nTWO\nthree\n"
    assert (root / "etc/app/c.conf").read_text() == "c\n"
    assert not (root / "etc/app/b.conf").exists() and not (root / "gone").exists()
    assert stat.S_IMODE((root / "etc/app/tool").stat().st_mode) == 0o750
    assert stat.S_IMODE((root / "usr/lib/new/deep").stat().st_mode) == 0o755
    assert not list(root.rglob(".*.updater*")) and not (tmp_path / "journal").exists()
    (again,) = check([patch(ALL)], root)
    assert again.fit is Fit.ALREADY, again
    assert apply([patch(ALL)], root, tmp_path / "journal") == []


def test_order_counts_and_one_patch_builds_upon_another(root: Path, tmp_path: Path) -> None:
    first, second = patch(change("etc/app/b.conf", "b", "c"), "1"), patch(change("etc/app/b.conf", "c", "d"), "2")
    assert [r.fit for r in check([first, second], root)] == [Fit.APPLIES, Fit.APPLIES]
    assert [r.fit for r in check([second, first], root)] == [Fit.CONFLICTS, Fit.APPLIES]
    (done,) = apply([first, second], root, tmp_path / "journal")
    assert done.patches == ("1", "2") and done.before != done.after
    assert (root / "etc/app/b.conf").read_text() == "d\n"


def test_a_conflict_names_file_hunk_and_lines_and_changes_nothing(root: Path, tmp_path: Path) -> None:
    before = tree(root)
    bad = patch(b"--- a/etc/app/a.conf\n+++ b/etc/app/a.conf\n@@ -1,3 +1,3 @@\n one\n-2\n+TWO\n three\n", "0002-y")
    with pytest.raises(ModificationConflict) as raised:
        apply([patch(change("etc/app/b.conf", "b", "c")), bad], root, tmp_path / "journal")
    assert raised.value.what == ("/etc/app/a.conf, hunk 1 of 1: line 2 is `two`, the patch expects `2`",)
    assert "0002-y" in raised.value.message and any("--without 0002-y" in line for line in raised.value.next)
    assert tree(root) == before
    assert "patches do not apply" in conflict([*check([bad, bad], root)]).message


@pytest.mark.parametrize(
    ("diff", "word"),
    [
        (change("../../outside", "x", "y"), "leads out"),
        (b"--- a/../x\n+++ /etc/../../x\n@@ -1 +1 @@\n-x\n+y\n", "leads out|absolute"),
        (change("link/target", "x", "y"), "symlink"),
        (change("up/target", "x", "y"), "symlink"),
        (change("etc/app/leaf", "x", "y"), "is a symlink"),
        (change("pipe", "x", "y"), "no regular file"),
        (b"--- /dev/null\n+++ b/link/new\n@@ -0,0 +1 @@\n+x\n", "symlink"),
        (b"diff --git a/gone b/link/new\nrename from gone\nrename to link/new\n", "symlink"),
        (b"--- /dev/null\n+++ b/gone/below\n@@ -0,0 +1 @@\n+x\n", "no directory"),
        (change("nowhere", "x", "y"), "no such file"),
    ],
)
def test_nothing_leaves_the_root(root: Path, tmp_path: Path, diff: bytes, word: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "target").write_text("x\n")
    (root / "link").symlink_to(outside)
    (root / "up").symlink_to("../outside")
    (root / "etc/app/leaf").symlink_to(outside / "target")
    os.mkfifo(root / "pipe")
    (report,) = check([patch(diff)], root)
    assert report.fit is Fit.CONFLICTS
    assert re.search(word, report.conflicts()[0])
    with pytest.raises(ModificationConflict):
        apply([patch(diff)], root, tmp_path / "journal")
    assert [path.name for path in outside.iterdir()] == ["target"]
    assert (outside / "target").read_text() == "x\n"


def test_a_hard_link_to_a_file_outside_is_never_written_through(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("b\n")
    (root / "etc/app/b.conf").unlink()
    (root / "etc/app/b.conf").hardlink_to(tmp_path / "secret")
    apply([patch(change("etc/app/b.conf", "b", "c"))], root, tmp_path / "journal")
    assert (tmp_path / "secret").read_text() == "b\n"


def test_merged_usr_is_followed(root: Path, tmp_path: Path) -> None:
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/x").write_text("x\n")
    (root / "lib").symlink_to("usr/lib")
    apply([patch(change("lib/x", "x", "y"))], root, tmp_path / "journal")
    assert (root / "usr/lib/x").read_text() == "y\n"


def test_names_can_be_stripped_or_given(root: Path) -> None:
    deep = b"--- app-1.0/src/conf/b.conf\n+++ app-1.1/src/conf/b.conf\n@@ -1 +1 @@\n-b\n+c\n"
    assert check([patch(deep, strip=3, path="/etc/app/")], root)[0].fit is Fit.APPLIES
    assert check([patch(deep, path="/etc/app/b.conf")], root)[0].fit is Fit.APPLIES
    assert check([patch(deep)], root)[0].fit is Fit.CONFLICTS
    assert (
        check([patch(b"--- /etc/app/b.conf.orig\n+++ /etc/app/b.conf\n@@ -1 +1 @@\n-b\n+c\n")], root)[0].fit
        is Fit.APPLIES
    )
    with pytest.raises(ConfigError, match="cannot be read"):
        check([patch(b"no patch")], root)


def test_captured_drift_is_a_patch_that_makes_it_again(root: Path, tmp_path: Path) -> None:
    for pristine, current in ((b"one\ntwo\nthree\n", b"one\n2\nthree"), (None, b"new\n"), (b"x\n", None)):
        data = capture("/etc/app/ä b", pristine, current)
        place = root / "etc/app/ä b"
        place.unlink(missing_ok=True)
        if pristine is not None:
            place.write_bytes(pristine)
        apply([patch(data)], root, tmp_path / "journal")
        assert (place.read_bytes() if place.exists() else None) == current
    with pytest.raises(ConfigError, match="not text"):
        capture("/x", b"\0", b"a")


class _PowerCut(BaseException):
    pass


def _points(root: Path, journal: Path) -> int:
    passed: list[str] = []
    faults.arm(passed.append)
    apply([patch(ALL)], root, journal)
    faults.arm(None)
    return len(passed)


def test_a_power_cut_anywhere_leaves_all_or_nothing(root: Path, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    pristine = tree(root)
    spare = tmp_path / "spare"
    shutil.copytree(root, spare, symlinks=True)
    count = _points(spare, journal)
    whole = tree(spare)
    assert count > 10
    for cut in range(count):
        again = tmp_path / f"cut{cut}"
        shutil.copytree(root, again, symlinks=True)
        seen = 0

        def die(name: str, cut: int = cut) -> None:
            nonlocal seen
            seen += 1
            if seen > cut:
                raise _PowerCut(name)

        faults.arm(die)
        with pytest.raises(_PowerCut):
            apply([patch(ALL)], again, journal)
        faults.arm(None)
        recover(again, journal)
        assert tree(again) in (pristine, whole), cut
        apply([patch(ALL)], again, journal)
        assert tree(again) == whole, cut


def test_an_error_in_the_middle_restores(root: Path, tmp_path: Path) -> None:
    before, identities = tree(root), {path: path.stat().st_ino for path in root.rglob("*.conf")}
    seen = 0

    def full(name: str) -> None:
        nonlocal seen
        seen += name == "patch:replaced"
        if seen == 3:
            raise OSError(28, "No space left on device")

    faults.arm(full)
    with pytest.raises(OSError, match="No space"):
        apply([patch(ALL)], root, tmp_path / "journal")
    assert tree(root) == before
    assert {path: path.stat().st_ino for path in root.rglob("*.conf")} == identities


def test_names_of_ours_that_a_tree_brings_along_are_not_believed(root: Path, tmp_path: Path) -> None:
    (root / "etc/app/.b.conf.updater-before").write_text("planted\n")
    (root / "etc/app/.a.conf.updater-after").symlink_to(tmp_path / "elsewhere")
    apply([patch(ALL)], root, tmp_path / "journal")
    assert not (tmp_path / "elsewhere").exists()
    assert (root / "etc/app/c.conf").read_text() == "c\n"


def test_a_root_that_was_written_anew_is_not_restored(root: Path, tmp_path: Path) -> None:
    journal, fresh = tmp_path / "journal", tmp_path / "fresh"
    shutil.copytree(root, fresh)
    (fresh / "usr/lib/new").mkdir(parents=True)
    (fresh / "usr/lib/new/deep").write_text("of the next image")

    def die(name: str) -> None:
        if name == "patch:all-replaced":
            raise _PowerCut

    faults.arm(die)
    with pytest.raises(_PowerCut):
        apply([patch(ALL)], root, journal)
    faults.arm(None)
    before = tree(fresh)
    recover(fresh, journal)
    assert tree(fresh) == before
    assert not journal.exists()
