"""Sandboxes of the roof's own lab."""

from __future__ import annotations

from tests.updater.conftest import lab, memory, node, place

__all__ = ["lab", "memory", "node", "place"]
