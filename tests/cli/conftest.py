"""Fixtures of the neighbours: sandboxes in memory, loop devices, small filesystems, and a server that misbehaves."""

from __future__ import annotations

from tests.images.conftest import web
from tests.partitions.conftest import loop, small_tmpfs
from tests.updater.conftest import lab, memory, node, place

__all__ = ["lab", "loop", "memory", "node", "place", "small_tmpfs", "web"]
