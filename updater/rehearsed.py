"""Records of rehearsals: written where an upgrade was rehearsed, and demanded where it is activated.

A record carries a hash over itself, or an envelope with a signature (DSSE, as bundles have). The hash notices damage;
only a signature keeps people from writing a record themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from core.errors import ConfigError, NotRehearsed, UpdaterError
from core.files import write_atomic
from core.schema import SchemaError, structure
from images import keys
from images.manifest import canonical
from images.read import Bundle
from partitions.boot.state import is_good
from updater.checks import Check, examine
from updater.exporting import fingerprint
from updater.node import Node
from zdu.rehearsal import Record, hashed, read_record, unfit

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

TYPE: Final = "application/vnd.updater.rehearsal+json"

_LARGEST: Final = 1 << 20


def write(path: Path, record: Record, signer: Signer | None = None) -> None:
    """Write a record, signed (see `images.keys.load_signer`), or with a hash over it. Raises ConfigError."""
    data = record.as_json()
    if signer is not None:
        from securesystemslib.dsse import Envelope

        envelope = Envelope(canonical(data), TYPE, {})
        envelope.sign(signer)
        data = envelope.to_dict()
    else:
        data["hash"] = hashed(data)
    try:
        write_atomic(path, json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"the record {path} cannot be written", what=error.strerror or str(error)) from error


def read(path: Path, trusted: keys.Trust | None) -> Record:
    """Read a record. `trusted`: keys of which one must have signed it (None: nobody needs to).

    Raises ConfigError where it is none, or damaged; SignatureInvalid.
    """
    try:
        raw = path.read_bytes()
        if len(raw) > _LARGEST:
            raise ValueError("it is too large")
        data = json.loads(raw)
        if isinstance(data, dict) and "payload" in data:
            signed = structure(data, keys.Signed)
            if signed.payloadType != TYPE:
                raise ValueError(f"its type is {signed.payloadType!r:.100}")
            if trusted is not None:
                keys.verify(signed, trusted)
            return read_record(json.loads(signed.content()))
        if trusted is not None:
            raise ConfigError(f"{path} is not signed", what="node.toml names keys under rehearsal.keys")
        if not isinstance(data, dict) or data.pop("hash", "") != hashed(data):
            raise ValueError("the hash over it does not hold")
        return read_record(data)
    except SchemaError as error:
        raise ConfigError(f"{path} is no record of a rehearsal", what=error.faults[:20]) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no record of a rehearsal, or damaged", what=str(error)[:200]) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The record that allows an activation."""

    path: Path
    record: Record

    def __str__(self) -> str:
        seconds = f"{self.record.seconds:.0f} s on {self.record.machine}"
        return f"rehearsed {self.record.made}, {seconds} ({self.path.name})"


def demanded(node: Node, place: Path | None) -> list[Check]:
    """For the plan of `activate`: is there a record that fits what is about to be activated? `place`: a record or a
    directory of records that the operator names; without it what node.toml says counts. No check where neither demands
    one.
    """
    if place is None and not node.config.rehearsal.require:
        return []
    return examine({"rehearsal": lambda: _found(node, place)})


def _found(node: Node, place: Path | None) -> str:
    """The record, in words. Raises NotRehearsed with the reason for each record that does not fit."""
    if place is None:
        if is_good(node.boot.read(), node.inactive):
            return f"not demanded: slot {node.inactive} was confirmed before"
        place = _place(node)
    bundle = node.journal.slot(node.inactive).get("manifest", "")
    if not bundle:
        raise _refused(node, [f"which bundle is in slot {node.inactive} was not noted"], "updater stage --again BUNDLE")
    accepted, reasons = _search(node, bundle, place)
    if accepted is None:
        raise _refused(node, reasons, "", release=str(node.release(node.inactive) or ""))
    return str(accepted)


def foreseen(node: Node, bundle: Bundle) -> list[Check]:
    """For the plan of `stage`, where node.toml demands a rehearsal: a warning while there is none of this bundle."""
    if not node.config.rehearsal.require:
        return []
    try:
        accepted, reasons = _search(node, bundle.manifest.identity, _place(node))
    except UpdaterError as error:
        return [Check(name="rehearsal", found=error.message, error=error)]
    if accepted is not None:
        return [Check(name="rehearsal", found=str(accepted))]
    return [Check(name="rehearsal", found=f"none: activate will refuse ({reasons[0]})", warning=True)]


def _place(node: Node) -> Path:
    return node.config.rehearsal.records or node.config.data / "rehearsals"


def _search(node: Node, bundle: str, place: Path) -> tuple[Accepted | None, list[str]]:
    """The newest record that fits a bundle on this node as it is now; or for each why it does not."""
    wanted = node.config.rehearsal
    here = fingerprint(node, bundle)
    trusted = keys.load_trust(wanted.keys, 1) if wanted.keys else None
    reasons = []
    for path in _records(place):
        try:
            record = read(path, trusted)
        except UpdaterError as error:
            reasons.append(f"{path.name}: {error.message}{''.join(f'; {line}' for line in error.what[:1])}")
            continue
        why = unfit(record, here, datetime.now(UTC), timedelta(days=wanted.max_age))
        if not why:
            return Accepted(path=path, record=record), []
        reasons.append(f"{path.name}: {why}")
    return None, reasons or [f"there is no record in {place}"]


def _refused(node: Node, reasons: list[str], first: str, release: str = "") -> NotRehearsed:
    return NotRehearsed(
        f"{release or 'what is staged'} has not been rehearsed with what {node.config.name} carries",
        what=reasons[:20],
        state="nothing was changed",
        next=[
            *([first] if first else []),
            "updater export FILE    then, on a machine for rehearsals: updater rehearse node BUNDLE --from FILE …",
            "updater activate --require-rehearsal RECORD    with the record that comes of it",
        ],
    )


def _records(place: Path) -> Iterator[Path]:
    """The newest first."""
    if not place.is_dir():
        yield from (path for path in (place,) if path.exists())
        return
    found = [path for path in place.glob("*.json") if path.is_file()]
    yield from sorted(found, key=lambda path: (path.stat().st_mtime, path.name), reverse=True)
