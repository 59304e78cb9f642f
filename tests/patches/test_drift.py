"""Snapshots of a root, and what differs from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3

from core.errors import NotReady
from patches.declared import declared_by
from patches.drift import compare, load, save, snapshot


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("etc/a", "etc/b", "etc.d/c", "etc/d/e", "var/log/x", "usr/bin/tool"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "etc/link").symlink_to("a")
    return root


def drift(root: Path, book: Path, **more: object) -> list[tuple[str, str, str]]:
    return [(each.path, each.how.value, each.declared) for each in compare(root, load(book), **more)]  # type: ignore[arg-type]


def test_nothing_differs_from_its_own_snapshot(root: Path, tmp_path: Path) -> None:
    save(snapshot(root), tmp_path / "book")
    assert list(load(tmp_path / "book")) == list(snapshot(root))
    assert drift(root, tmp_path / "book") == []


def test_each_way_to_differ(root: Path, tmp_path: Path) -> None:
    save(snapshot(root), tmp_path / "book")
    (root / "etc/a").write_text("ETC/A")
    (root / "etc/b").unlink()
    (root / "etc/d/new").write_text("")
    (root / "etc/link").unlink()
    (root / "etc/link").symlink_to("b")
    (root / "usr/bin/tool").chmod(0o755)
    (root / "var/log/x").write_text("grows")
    (root / "etc.d/c").unlink()
    (root / "etc.d/c").mkdir()
    assert drift(root, tmp_path / "book") == [
        ("/etc/a", "changed", ""),
        ("/etc/b", "missing", ""),
        ("/etc/d/new", "added", ""),
        ("/etc/link", "changed", ""),
        ("/etc.d/c", "changed", ""),
        ("/usr/bin/tool", "mode", ""),
    ]


def test_what_is_declared_is_said(root: Path, tmp_path: Path) -> None:
    save(snapshot(root), tmp_path / "book")
    (root / "etc/a").write_text("patched")
    (root / "etc/b").write_text("patched, and then changed")
    (root / "etc/d/e").write_text("ours")
    digest = blake3(b"patched").hexdigest()
    explain = declared_by(root, {"/etc/a": (digest, "patch"), "/etc/b": (digest, "patch")}, {"/etc/d": "keep /etc/d"})
    assert drift(root, tmp_path / "book", declared=explain) == [
        ("/etc/a", "changed", "patch"),
        ("/etc/b", "changed", ""),
        ("/etc/d/e", "changed", "keep /etc/d"),
    ]


def test_a_damaged_list_is_said_to_be_so(root: Path, tmp_path: Path) -> None:
    save(snapshot(root), tmp_path / "book")
    data = (tmp_path / "book").read_bytes()
    (tmp_path / "book").write_bytes(data[: len(data) // 2])
    with pytest.raises(NotReady):
        list(load(tmp_path / "book"))
    with pytest.raises(NotReady):
        list(load(tmp_path / "none"))
