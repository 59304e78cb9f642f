"""What later verbs need of a bundle's sections: unpacked beside the node's journal when a release is staged."""

from __future__ import annotations

import shutil
from pathlib import Path

from core.files import fsync_dir, fsync_tree
from images import sections
from images.read import Bundle


def keep_section(bundle: Bundle, section: str, target: Path) -> None:
    """Unpack a section of the bundle, durably, in place of what was at `target`: all of it or nothing. Where the bundle
    does not have it, neither has the target. Raises BundleInvalid, OSError.
    """
    target.parent.mkdir(exist_ok=True)
    fresh = target.with_name(f".{target.name}")
    for leftover in (fresh, target):
        shutil.rmtree(leftover, ignore_errors=True)
    if section in bundle.manifest.sections:
        fresh.mkdir()
        sections.unpack(bundle.section(section), fresh)
        fsync_tree(fresh)
        fresh.rename(target)
    fsync_dir(target.parent)
