"""What systemd-boot (252) does with the entries on an ESP: sorts them, takes the first, counts it. After
src/boot/efi/boot.c: config_entry_compare, config_select_default_entry, config_entry_bump_counters.
"""

from __future__ import annotations

import re
from functools import cmp_to_key
from pathlib import Path

from partitions.boot.state import Slot


def boot(entries: Path) -> tuple[Slot, bool] | None:
    """Start once: the slot that is booted and whether that was counted (its file is renamed then); None: no entry."""
    found = [_Entry(path) for path in entries.iterdir() if path.name.endswith(".conf") and path.name[0] != "."]
    if not found:
        return None
    chosen = min(found, key=cmp_to_key(_compare))
    if chosen.left is not None and chosen.left > 0:
        name = f"{chosen.stem}+{chosen.left - 1}-{chosen.done + 1}.conf"
        chosen.path.rename(entries / name)
        return chosen.slot, True
    return chosen.slot, False


class _Entry:
    def __init__(self, path: Path) -> None:
        self.path = path
        match = re.fullmatch(r"(.+?)(?:\+(\d+)(?:-(\d+))?)?\.conf", path.name)
        assert match
        self.stem = match[1]
        self.left = None if match[2] is None else int(match[2])
        self.done = int(match[3] or 0)
        fields = dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
        self.sort_key, self.version = fields.get("sort-key", ""), fields.get("version", "")
        self.slot: Slot = "a" if "updater.slot=a" in fields["options"].split() else "b"
        assert (path.parent.parent.parent / fields["linux"].lstrip("/")).is_file(), "an entry whose kernel is missing"


def _compare(one: _Entry, two: _Entry) -> int:
    exhausted = (one.left == 0) - (two.left == 0)
    if exhausted:
        return exhausted
    if bool(one.sort_key) != bool(two.sort_key):
        return 1 if two.sort_key else -1
    if one.sort_key != two.sort_key:
        return 1 if one.sort_key > two.sort_key else -1
    if one.sort_key and one.version != two.version:
        return -1 if _numbers(one.version) > _numbers(two.version) else 1
    if one.stem != two.stem:
        return -1 if _numbers(one.stem) > _numbers(two.stem) else 1
    return 0


def _numbers(text: str) -> list[tuple[int, str]]:
    """Close enough to strverscmp_improved for the names that we make: digits compare as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
