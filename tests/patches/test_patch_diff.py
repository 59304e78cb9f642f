"""Reading diffs, and placing hunks as GNU patch does."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patches.diff import DiffError, parse
from patches.hunks import Fit, apply_hunks
from patches.merge import merge, unified

#: Few different lines, so that they repeat and places are ambiguous; odd bytes, and carriage returns.
LINES = st.lists(st.sampled_from([b"a", b"b", b"c", b"", b"}", b"x\r", b"\xff\xfe", b"-- ", b"+++ b"]), max_size=30)


def text(lines: list[bytes], ended: bool) -> bytes:
    body = b"\n".join(lines)
    return body + b"\n" if ended and body else body


CONTENT = st.builds(text, LINES, st.booleans())


@st.composite
def edited(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A file, and what an editor made of it."""
    before = draw(LINES)
    after = list(before)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(after)))
        after[at : at + draw(st.integers(0, 3))] = draw(st.lists(st.sampled_from([b"new", b"a", b""]), max_size=3))
    return text(before, draw(st.booleans())), text(after, draw(st.booleans()))


def gnu_patch(content: bytes, diff: bytes, fuzz: int = 0) -> bytes | None:
    with tempfile.TemporaryDirectory() as directory:
        file, script = Path(directory, "f"), Path(directory, "p")
        file.write_bytes(content)
        script.write_bytes(diff)
        done = subprocess.run(
            ["patch", "--binary", "-f", f"--fuzz={fuzz}", "-r", "-", "--no-backup-if-mismatch", str(file), str(script)],
            check=False,
            capture_output=True,
        )
        if done.returncode:
            return None
        return file.read_bytes() if file.exists() else b""


@given(edited())
@settings(deadline=None, max_examples=60)
def test_what_diff_writes_is_read_and_applied(pair: tuple[bytes, bytes]) -> None:
    old, new = pair
    diff = unified(old, new, "a/f", "b/f")
    if old == new:
        assert diff == b""
        return
    (file,) = parse(diff)
    content, reports = apply_hunks(old, file.hunks)
    assert content == new
    assert {report.fit for report in reports} == {Fit.APPLIES}
    assert all(report.offset == 0 for report in reports)


@given(edited())
@settings(deadline=None, max_examples=40)
def test_what_is_applied_is_seen_to_be_so(pair: tuple[bytes, bytes]) -> None:
    old, new = pair
    for file in parse(unified(old, new, "a/f", "b/f")) if old != new else ():
        content, reports = apply_hunks(new, file.hunks)
        # With lines that repeat, a hunk may fit once more elsewhere; what it must not do is to conflict.
        assert all(report.fit is not Fit.CONFLICTS for report in reports)
        if all(report.fit is Fit.ALREADY for report in reports):
            assert content == new


@given(edited(), CONTENT, st.integers(0, 2))
@settings(deadline=None, max_examples=100)
def test_agrees_with_gnu_patch_where_that_applies(pair: tuple[bytes, bytes], head: bytes, fuzz: int) -> None:
    old, new = pair
    if old == new:
        return
    diff = unified(old, new, "a/f", "b/f")
    if b"\n\\ No newline" in diff:
        head = b""  # elsewhere than at the end GNU patch makes a whole line of it; ours says that it conflicts
    moved = (head + b"\n" if head and not head.endswith(b"\n") else head) + old
    theirs = gnu_patch(moved, diff, fuzz)
    (file,) = parse(diff)
    ours, reports = apply_hunks(moved, file.hunks, fuzz)
    if theirs is not None and all(report.fit is Fit.APPLIES for report in reports):
        assert ours == theirs
    if theirs is not None:
        assert ours is not None
    if ours is not None and all(report.fit is Fit.APPLIES for report in reports):
        assert theirs == ours


@given(CONTENT, CONTENT)
@settings(deadline=None, max_examples=40)
def test_any_file_becomes_any_other_or_says_why_not(one: bytes, other: bytes) -> None:
    if one == other:
        return
    (file,) = parse(unified(one, other, "a/f", "b/f"))
    content, reports = apply_hunks(other + b"more\n", file.hunks)
    assert (content is None) == any(report.fit is Fit.CONFLICTS for report in reports)
    assert all(str(report) for report in reports)


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_garbage_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(DiffError):
        parse(data)


@given(edited(), st.integers(0, 300), st.binary(max_size=3))
@settings(deadline=None, max_examples=40)
def test_a_damaged_diff_is_read_or_refused_but_nothing_else(pair: tuple[bytes, bytes], at: int, junk: bytes) -> None:
    diff = unified(*pair, "a/f", "b/f")
    damaged = diff[:at] + junk + diff[at + 1 :]
    try:
        files = parse(damaged)
    except DiffError:
        return
    for file in files:
        apply_hunks(pair[0], file.hunks)


GIT = b"""From: somebody
Subject: [PATCH] several things

---
 4 files changed

diff --git a/etc/a b/etc/a
index 1111111..2222222 100644
--- a/etc/a
+++ b/etc/a
@@ -1 +1,2 @@ function
 one
+two
\\ No newline at end of file
diff --git a/etc/b b/etc/c
similarity index 100%
rename from etc/b
rename to etc/c
diff --git a/bin/tool b/bin/tool
old mode 100644
new mode 100755
diff --git "a/etc/\\303\\244 b" "b/etc/\\303\\244 b"
new file mode 100755
index 0000000..3333333
--- /dev/null
+++ "b/etc/\\303\\244 b"
@@ -0,0 +1 @@
+x
diff --git a/gone b/gone
deleted file mode 100644
index 3333333..0000000
--- a/gone
+++ /dev/null
@@ -1 +0,0 @@
-x
--\x20
2.39.5
"""


def test_git_knows_more_than_lines() -> None:
    change, rename, mode, create, delete = parse(GIT)
    assert (change.old, change.new, change.hunks[0].section) == (b"a/etc/a", b"b/etc/a", "function")
    assert change.hunks[0].new == [b"one\n", b"two"]
    assert rename.renamed and (rename.old, rename.new) == (b"etc/b", b"etc/c")
    assert (mode.old_mode, mode.new_mode, mode.hunks) == (0o100644, 0o100755, ())
    assert (create.old, create.new, create.new_mode) == (None, "b/etc/ä b".encode(), 0o100755)
    assert (delete.old, delete.new) == (b"a/gone", None)


def test_plain_diffs_tell_by_the_date_what_is_not_there() -> None:
    diff = b"--- x.orig\t1970-01-01 00:00:00.000000000 +0000\n+++ x\t2026-01-01 10:00:00.0 +0100\n@@ -0,0 +1 @@\n+x\n"
    (file,) = parse(diff)
    assert (file.old, file.new) == (None, b"x")


def test_a_patch_that_was_mailed_with_carriage_returns() -> None:
    (file,) = parse(b"--- a/f\r\n+++ b/f\r\n@@ -1 +1 @@\r\n-old\r\n+new\r\n")
    assert apply_hunks(b"old\n", file.hunks)[0] == b"new\n"


@pytest.mark.parametrize(
    ("diff", "word"),
    [
        (b"diff --git a/x b/x\nnew file mode 120000\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+/etc/shadow\n", "symlink"),
        (b"diff --git a/x b/x\nindex 1..2 100644\nGIT binary patch\nliteral 1\n", "binary"),
        (b"diff --git a/x b/x\nnew file mode 104755\n", "mode 104755"),
        (b"--- a/x\n+++ b/x\n@@ -1,2 +1 @@\n-x\n", "before its header"),
        (b"--- a/x\n+++ b/x\n@@ -9 +9 @@\n-x\n+y\n@@ -1 +1 @@\n-x\n+y\n", "order"),
        (b"@@ -1 +1 @@\n-x\n+y\n", "without the names"),
        (b"*** a\n--- b\n", "no unified diff"),
    ],
)
def test_what_is_not_done_is_said(diff: bytes, word: str) -> None:
    with pytest.raises(DiffError, match=word):
        parse(diff)


def test_of_blocks_that_are_alike_the_one_that_the_release_has_mended_is_not_passed_over() -> None:
    block, mended = b"if x:\n  send\nend\n", b"if x:\n  check\n  send\nend\n"
    (file,) = parse(b"--- a/f\n+++ b/f\n@@ -2,3 +2,4 @@\n if x:\n+  check\n   send\n end\n")
    content, (report,) = apply_hunks(b"top\n" + mended + block, file.hunks)
    assert (content, report.fit) == (b"top\n" + mended + block, Fit.ALREADY)
    content, (report,) = apply_hunks(b"top\ntop\n" + block + mended, file.hunks)  # moved: neither stands where it says
    assert (content, report.fit) == (b"top\ntop\n" + mended + mended, Fit.APPLIES)


def test_a_conflict_shows_the_lines() -> None:
    (file,) = parse(b"--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n")
    content, (report,) = apply_hunks(b"new\na\nX\nc\n", file.hunks)
    assert content is None
    assert str(report) == "line 3 is `X`, the patch expects `b`"
    _, (short,) = apply_hunks(b"a\n", file.hunks)
    assert str(short) == "the file ends before line 2, the patch expects `b`"


@given(CONTENT, CONTENT)
@settings(deadline=None, max_examples=25)
def test_merging_with_one_side_unchanged_is_the_other(base: bytes, new: bytes) -> None:
    assert merge(base, base, new).content == new
    assert merge(base, new, base).content == new
    assert merge(base, new, new).content == new


@given(LINES, st.lists(st.sampled_from([b"t", b"o"]), max_size=3), st.lists(st.sampled_from([b"p", b""]), max_size=3))
@settings(deadline=None, max_examples=40)
def test_changes_far_apart_merge(middle: list[bytes], top: list[bytes], end: list[bytes]) -> None:
    fixed = [b"1", b"2", *middle, b"8", b"9"]
    base = text([b"head", *fixed, b"tail"], True)
    ours, theirs = text([*top, b"HEAD", *fixed, b"tail"], True), text([b"head", *fixed, b"TAIL", *end], True)
    assert merge(base, ours, theirs).content == text([*top, b"HEAD", *fixed, b"TAIL", *end], True)


def test_a_conflict_of_a_merge_names_the_lines() -> None:
    merged = merge(b"1\nport 22\n3\n", b"0\n1\nport 2222\n3\n", b"1\nport 23\n3\n")
    assert merged.content is None
    assert merged.conflicts == ("near line 3: ours has `port 2222`, the release has `port 23`",)
