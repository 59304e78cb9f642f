"""node.toml for the machine of a rehearsal."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any, Final

from updater.exported import Exported

#: How one gets into the machine, whatever release runs: they go from slot to slot with the node's own files.
ACCESS: Final = ("/root/.ssh/authorized_keys", "/etc/ssh/ssh_host_ed25519_key", "/etc/ssh/ssh_host_ed25519_key.pub")


def toml_of(export: Exported) -> dict[str, Any]:
    """As it is on the node."""
    return tomllib.loads(export.read(export.manifest.toml).decode())


def rewritten(toml: Mapping[str, Any], export: Exported, missing: list[str]) -> dict[str, Any]:
    """node.toml for the machine: its own disk, its own boot loader, no databases that stayed behind."""
    made: dict[str, Any] = json.loads(json.dumps(toml))
    made["slots"] = {slot: {"device": f"/dev/disk/by-partlabel/slot-{slot}"} for slot in ("a", "b")}
    if made["boot"].get("backend", "grub") != "grub":
        missing.append(f"the boot loader {made['boot']['backend']}: GRUB takes its place")
        made["boot"]["backend"] = "grub"
    made.pop("rehearsal", None)
    left = {name for name, each in export.manifest.databases.items() if not each.blob}
    made["databases"] = {name: each for name, each in made.get("databases", {}).items() if name not in left}
    migrations = made.get("migrations", {})
    if migrations.pop("replicas", []):
        missing.append("replicas: nothing waits for them")
    if migrations.get("backup") == "command":
        missing.append("the program that backs databases up: copies are made instead")
        migrations |= {"backup": "snapshot", "backup_command": []}
    stage = made.setdefault("stage", {})
    stage["carry"] = [*stage.get("carry", ["/etc/updater"]), *ACCESS]
    return made


def dumped(table: Mapping[str, Any]) -> str:
    """TOML, with inline tables."""
    return "".join(f"{json.dumps(key)} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value)
