"""Where the own files of a release lie: in a real filesystem, and as ranges."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vagrant.cuts.own_files import Ranges, find
from vagrant.disk import make_image
from vagrant.tree import File, put

_range = st.tuples(st.integers(0, 60), st.integers(1, 12))


@pytest.mark.root
@pytest.mark.xdist_group("loop")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a loop device, so it needs root")
def test_they_are_where_the_filesystem_has_them(tmp_path: Path) -> None:
    own = {"/usr/bin/program": "program\n" * 9000, "/usr/lib/deep/er": "x" * 5000, "/boot/vmlinuz": "kernel" * 3000}
    other = {"/etc/conf": "setting\n" * 1000}
    put(tmp_path / "tree", {name: File(content=text) for name, text in (own | other).items()})
    image = make_image(tmp_path / "tree", tmp_path / "image", size=64 << 20)
    (tmp_path / "mounted").mkdir()
    ranges = find(image, tmp_path / "mounted")
    raw = image.read_bytes()
    whole = b"".join(raw[offset : offset + length] for offset, length in ranges.ranges)
    assert all(text.encode() in whole for text in own.values())
    assert b"setting" not in whole
    assert not (tmp_path / "mounted").is_mount()


@given(st.lists(_range, max_size=15), _range)
def test_ranges_meet_what_they_share(given_ranges: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ranges = Ranges.of(given_ranges)
    plain = {byte for offset, length in given_ranges for byte in range(offset, offset + length)}
    assert {b for offset, length in ranges.ranges for b in range(offset, offset + length)} == plain
    assert all(a + n < b for (a, n), (b, _) in zip(ranges.ranges, ranges.ranges[1:], strict=False))
    met = [byte for offset, length in ranges.meeting(*asked) for byte in range(offset, offset + length)]
    assert sorted(plain & set(range(asked[0], sum(asked)))) == met
