"""Kept files: policies, copying with all that belongs to a file, hostile trees, edits after staging."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import faults
from core.errors import ModificationConflict, UpdaterError
from patches.keep import Fate, Kept, carry, check, conflict
from patches.kept_paths import Keep, Policy, walk
from patches.kept_record import changed_since, record


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "etc/app").mkdir(parents=True)
    (target / "etc/app").mkdir(parents=True)
    return source, target


def nothing(path: str) -> bytes | None:
    return None


def keeps(*patterns: str, policy: Policy = Policy.OURS) -> list[Keep]:
    return [Keep(pattern=pattern, policy=policy) for pattern in patterns]


def do(what: list[Keep], roots: tuple[Path, Path], base: dict[str, bytes] | None = None) -> dict[str, Kept]:
    return {kept.path: kept for kept in carry(what, *roots, (base or {}).get) if not kept.directory}


BASE, OURS, THEIRS = b"1\n2\n3\n4\n5\n", b"0\n1\n2\n3\n4\n5\n", b"1\n2\n3\n4\n5\n6\n"


@pytest.mark.parametrize(
    ("policy", "ours", "theirs", "base", "fate", "content"),
    [
        ("ours", OURS, None, None, "kept", OURS),
        ("ours", OURS, OURS, None, "kept", OURS),
        ("ours", BASE, THEIRS, BASE, "ours", BASE),
        ("theirs", OURS, THEIRS, BASE, "theirs", THEIRS),
        ("merge", OURS, THEIRS, BASE, "merged", b"0\n1\n2\n3\n4\n5\n6\n"),
        ("merge", BASE, THEIRS, BASE, "theirs", THEIRS),
        ("merge", OURS, BASE, BASE, "ours", OURS),
        ("merge", OURS, THEIRS, None, "conflict", None),
        ("merge", b"x\n", b"y\n", b"z\n", "conflict", None),
        ("merge", b"\0", THEIRS, BASE, "conflict", None),
        ("ask", OURS, THEIRS, BASE, "conflict", None),
        ("ask", OURS, BASE, BASE, "ours", OURS),
        ("ask", BASE, THEIRS, BASE, "theirs", THEIRS),
    ],
)
def test_policies(
    roots: tuple[Path, Path],
    policy: str,
    ours: bytes,
    theirs: bytes | None,
    base: bytes | None,
    fate: str,
    content: bytes | None,
) -> None:
    source, target = roots
    (source / "etc/f").write_bytes(ours)
    if theirs is not None:
        (target / "etc/f").write_bytes(theirs)
    known = {"/etc/f": base} if base is not None else {}
    what = keeps("/etc/f", policy=Policy(policy))
    (found,) = check(what, source, target, known.get)
    assert found.fate == fate
    assert found.shipped == theirs
    assert str(found)
    if fate == "conflict":
        with pytest.raises(ModificationConflict) as raised:
            do(what, roots, known)
        assert "/etc/f" in raised.value.what[0] and raised.value.next
        assert (target / "etc/f").read_bytes() == theirs
    else:
        assert do(what, roots, known)["/etc/f"].fate == fate
        assert (target / "etc/f").read_bytes() == content


def test_a_nearer_entry_holds(roots: tuple[Path, Path]) -> None:
    source, target = roots
    for name in ("a", "b.conf", "c.conf"):
        (source / "etc/app" / name).write_text("ours")
        (target / "etc/app" / name).write_text("theirs")
    what = [
        Keep(pattern="/etc/app/*.conf", policy=Policy.THEIRS),
        Keep(pattern="/etc/app", policy=Policy.OURS),
        Keep(pattern="/etc/app/c.conf", policy=Policy.OURS),
    ]
    found = do(what, roots)
    assert {path: kept.fate.value for path, kept in found.items()} == {
        "/etc/app/a": "ours", "/etc/app/b.conf": "theirs", "/etc/app/c.conf": "ours",
    }  # fmt: skip


def test_patterns(roots: tuple[Path, Path]) -> None:
    source, _ = roots
    for name in ("x/1.conf", "x/y/2.conf", "x/.h.conf", "x/3.txt"):
        (source / "srv" / name).parent.mkdir(parents=True, exist_ok=True)
        (source / "srv" / name).write_text("")
    (source / "srv/loop").symlink_to(".")

    def files(pattern: str) -> list[str]:
        found = walk(keeps(pattern), source)
        return [each.path for each in found if not stat.S_ISDIR(each.stat.st_mode)]

    assert files("/srv/x/*.conf") == ["/srv/x/.h.conf", "/srv/x/1.conf"]
    assert files("/srv/**/*.conf") == ["/srv/x/.h.conf", "/srv/x/1.conf", "/srv/x/y/2.conf"]
    assert files("/srv/?/[13].*") == ["/srv/x/1.conf", "/srv/x/3.txt"]
    assert files("/srv/x/**") == ["/srv/x/.h.conf", "/srv/x/1.conf", "/srv/x/3.txt", "/srv/x/y/2.conf"]
    assert files("/nowhere/*") == files("/nowhere") == []
    for bad in ("etc", "/../etc", "/", "/a\0"):
        with pytest.raises(ValueError, match="no absolute path"):
            Keep(pattern=bad)


def test_links_holes_times_and_what_is_not_carried(roots: tuple[Path, Path]) -> None:
    source, target = roots
    home = source / "etc/app"
    (home / "one").write_text("linked")
    (home / "two").hardlink_to(home / "one")
    (home / "link").symlink_to("/etc/shadow")
    with (home / "sparse").open("wb") as out:
        out.truncate(64 << 20)
        out.seek(32 << 20)
        out.write(b"data")
    os.utime(home / "one", ns=(10**18, 10**18 + 5))
    os.mkfifo(home / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "socket"))
    os.utime(home, ns=(10**18, 10**18))
    for _ in range(2):  # again, as after a crash
        found = do(keeps("/etc/app"), roots)
        there = target / "etc/app"
        assert {path for path, kept in found.items() if kept.fate is Fate.REFUSED} == {
            "/etc/app/pipe", "/etc/app/socket",
        }  # fmt: skip
        assert (there / "one").stat().st_ino == (there / "two").stat().st_ino
        assert (there / "one").stat().st_mtime_ns == 10**18 + 5
        assert there.stat().st_mtime_ns == 10**18
        assert str((there / "link").readlink()) == "/etc/shadow"
        assert (there / "sparse").stat().st_size == (home / "sparse").stat().st_size
        assert (there / "sparse").stat().st_blocks * 512 < 1 << 20
        assert (there / "sparse").read_bytes()[32 << 20 :][:4] == b"data"
        assert not list(there.glob(".*.updater"))


def test_hostile_trees_do_not_get_out(roots: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = roots
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    # In the target, where we write: directories and files replaced by links that lead out.
    (target / "srv").symlink_to(outside)
    (target / "opt").symlink_to("../../../../../../" + str(outside))
    (target / "etc/app/f").symlink_to(outside / "secret")
    (target / "etc/app/d").symlink_to(outside)
    for place in ("srv/new", "opt/new", "etc/app/f", "etc/app/d/new"):
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        (source / place).write_text("ours")
    # In the source, where we read: a link in place of a parent.
    (source / "var").symlink_to(outside)
    do(keeps("/srv", "/opt/new", "/etc/app", "/var/secret", "/var/*"), roots)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert (target / "etc/app/f").read_text() == "ours" and (target / "etc/app/d/new").read_text() == "ours"
    assert not list(target.rglob("secret"))


@pytest.mark.skipif(os.geteuid() != 0, reason="makes devices")
def test_devices_are_refused_and_setuid_stays_with_its_owner(roots: tuple[Path, Path]) -> None:
    source, target = roots
    os.mknod(source / "etc/app/disk", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    (source / "etc/app/tool").write_text("")
    os.chown(source / "etc/app/tool", 1000, 1000)
    (source / "etc/app/tool").chmod(0o4755)
    found = do(keeps("/etc/app"), roots)
    assert found["/etc/app/disk"].fate is Fate.REFUSED
    there = (target / "etc/app/tool").stat()
    assert (stat.S_IMODE(there.st_mode), there.st_uid) == (0o4755, 1000)
    assert not (target / "etc/app/disk").exists()


def test_kinds_that_differ(roots: tuple[Path, Path]) -> None:
    source, target = roots
    (source / "etc/app/x").mkdir()
    (source / "etc/app/x/y").write_text("ours")
    (target / "etc/app/x").write_text("theirs")
    for policy, fates in ((Policy.ASK, ["conflict"]), (Policy.THEIRS, []), (Policy.OURS, ["kept"])):
        found = check(keeps("/etc/app", policy=policy), source, target, nothing)
        assert [kept.fate.value for kept in found] == fates, policy
    do(keeps("/etc/app"), roots)
    assert (target / "etc/app/x/y").read_text() == "ours"


def test_a_tree_without_end_is_refused(roots: tuple[Path, Path]) -> None:
    source, _ = roots
    deep = source / "etc/app" / "/".join("d" * 250)
    deep.mkdir(parents=True)
    with pytest.raises(UpdaterError, match="directories deep"):
        list(walk(keeps("/etc"), source))


def test_edits_after_staging_are_found(roots: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = roots
    for name in ("a", "b", "c", "d"):
        (source / "etc/app" / name).write_text(name)
    (source / "etc/app.d").mkdir()  # sorts between /etc/app and /etc/app/a, as text
    (source / "etc/app.d/e").write_text("")
    what, book = keeps("/etc/app", "/etc/app.d"), tmp_path / "staged"
    list(record(carry(what, source, target, nothing), book))
    assert list(changed_since(book, what, source)) == []
    (source / "etc/app/a").write_text("A")
    (source / "etc/app/b").unlink()
    (source / "etc/app/c").chmod(0o600)
    (source / "etc/app/new").mkdir()
    (source / "etc/app/new/f").write_text("")
    found = [(each.path.removeprefix("/etc/app/"), each.how) for each in changed_since(book, what, source)]
    assert found == [("a", "changed"), ("b", "removed"), ("c", "changed"), ("new", "added"), ("new/f", "added")]


class _PowerCut(BaseException):
    pass


def test_a_power_cut_between_any_two_files_is_made_good_by_doing_it_again(roots: tuple[Path, Path]) -> None:
    source, target = roots
    for name in ("a", "b", "c"):
        (source / "etc/app" / name).write_text(f"ours {name}")
        (target / "etc/app" / name).write_text("theirs")
    (source / "etc/app/d").hardlink_to(source / "etc/app/a")

    def cut(at: int) -> bool:
        seen = 0

        def die(name: str) -> None:
            nonlocal seen
            seen += 1
            if seen > at:
                raise _PowerCut

        faults.arm(die)
        try:
            do(keeps("/etc/app"), roots)
        except _PowerCut:
            return True
        finally:
            faults.arm(None)
        return False

    assert [cut(at) for at in range(6)] == [True] * 4 + [False] * 2
    assert {path.name: path.read_text() for path in (target / "etc/app").iterdir()} == {
        "a": "ours a", "b": "ours b", "c": "ours c", "d": "ours a",
    }  # fmt: skip


NAMES = st.text(st.sampled_from("ab.-/ é"), min_size=1, max_size=6)


@given(st.sets(NAMES, max_size=8), st.sets(NAMES, max_size=3))
@settings(deadline=None, max_examples=40)
def test_the_walk_is_in_order_and_meets_each_file_once(
    tmp_path_factory: pytest.TempPathFactory, names: set[str], kept: set[str]
) -> None:
    source = tmp_path_factory.mktemp("walk")
    for name in names:
        place = source / name.strip("/. ").replace("..", "x")
        if not place.exists():
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("")
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue
    tops = ["/" + name.strip("/. ").replace("..", "x") for name in kept]
    found = [each.path for each in walk([Keep(pattern=top) for top in tops if len(top) > 1], source)]
    assert found == sorted(set(found), key=lambda path: Path(path).parts)


def test_a_long_list_stays_flat(roots: tuple[Path, Path]) -> None:
    source, target = roots
    for directory in range(40):
        (source / f"etc/app/{directory}").mkdir()
        for name in range(100):
            (source / f"etc/app/{directory}/{name}").touch()
    peaks = []
    for _ in range(3):  # what is measured is the whole process, and threads of others may be at work in it
        tracemalloc.start()
        count = sum(1 for _ in check(keeps("/etc/app"), source, target, nothing))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == 4000
    assert min(peaks) < 1 << 20


def test_many_conflicts_fit_on_a_screen() -> None:
    error = conflict(Kept(path=f"/etc/{n}", policy=Policy.ASK, fate=Fate.CONFLICT, why="differs") for n in range(10**6))
    assert len(error.what) == 21


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two directories, each on a real ext4 filesystem in a loop mount."""
    mounted = []
    for name in ("one", "two"):
        image, point = tmp_path / f"{name}.img", tmp_path / name
        point.mkdir()
        with image.open("wb") as out:
            out.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
        mounted.append(point)
    yield mounted[0], mounted[1]
    for point in mounted:
        subprocess.run(["umount", point], check=False)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel takes it: (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACCESS = acl((1, 6, NOBODY), (2, 4, 1234), (4, 4, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY))
DEFAULT = acl((1, 7, NOBODY), (2, 7, 77), (4, 5, NOBODY), (16, 7, NOBODY), (32, 5, NOBODY))
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # net_bind_service


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_attributes_survive_on_real_filesystems(ext4: tuple[Path, Path]) -> None:
    source, target = ext4
    (source / "etc").mkdir()
    (target / "etc").mkdir()
    os.setxattr(target / "etc", "system.posix_acl_default", DEFAULT)  # what is made below inherits an ACL
    for name in ("plain", "listed", "server", "labelled"):
        (source / "etc" / name).write_text("x")
    wanted = {
        "listed": ("system.posix_acl_access", ACCESS),
        "server": ("security.capability", CAPABILITY),
        "labelled": ("security.selinux", b"system_u:object_r:etc_t:s0\0"),
        "plain": ("user.note", b"\0\xff"),
    }
    os.chown(source / "etc/server", 12, 34)
    for name, (key, value) in wanted.items():
        os.setxattr(source / "etc" / name, key, value)
    (source / "etc/server").chmod(0o755)
    assert not [kept for kept in carry(keeps("/etc/*"), source, target, nothing) if kept.fate is not Fate.KEPT]
    for name in wanted:
        ours, there = source / "etc" / name, target / "etc" / name
        assert {k: os.getxattr(there, k) for k in os.listxattr(there)} == {
            k: os.getxattr(ours, k) for k in os.listxattr(ours)
        }, name
        assert (there.stat().st_mode, there.stat().st_uid) == (ours.stat().st_mode, ours.stat().st_uid)
    assert subprocess.run(["getcap", target / "etc/server"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_other_filesystems_are_not_entered(ext4: tuple[Path, Path]) -> None:
    (ext4[0] / "file").write_text("")
    above = ext4[0].parent
    assert "/one/file" in [each.path for each in walk(keeps("/one"), above)]  # named itself
    paths = {each.path for each in walk(keeps(f"/{above.name}"), above.parent)}
    assert f"/{above.name}/one" in paths
    assert f"/{above.name}/one/file" not in paths


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_patched_file_keeps_its_attributes(ext4: tuple[Path, Path], tmp_path: Path) -> None:
    from patches.patch import Patch, apply

    root, _ = ext4
    file = root / "server"
    file.write_text("old\n")
    os.chown(file, 12, 34)
    os.setxattr(file, "system.posix_acl_access", ACCESS)
    os.setxattr(file, "security.capability", CAPABILITY)
    before = file.stat()
    apply([Patch(name="x", data=b"--- a/server\n+++ b/server\n@@ -1 +1 @@\n-old\n+new\n")], root, tmp_path / "journal")
    after = file.stat()
    assert file.read_text() == "new\n"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert os.getxattr(file, "system.posix_acl_access") == ACCESS
    assert os.getxattr(file, "security.capability") == CAPABILITY
