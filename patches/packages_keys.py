"""Who signed a package: checked against the operator's own keys, in a keyring that is made for the purpose.

Neither the machine's nor a slot's imported keys count.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from core.errors import ConfigError
from core.run import Result, run
from patches.packages_rpm import LONG, plain

_SIGNED = re.compile(r"Signature, key ID ([0-9a-f]+): (\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What checking a package's digests and signature against the keyring gave. `why`: in words, where it is not good.
    `signer`: key id and owner.
    """

    good: bool
    signer: str
    why: str


class Keyring:
    """Keys in a database of their own; neither the machine's nor a slot's keys count."""

    def __init__(self, directory: Path) -> None:
        self._options = _options(directory)

    @cached_property
    def _owners(self) -> dict[str, str]:
        listed = run("rpm", *self._options, "-q", "gpg-pubkey", "--qf", "%{VERSION} %{PACKAGER}\n", check=False)
        return dict(line.split(" ", 1) for line in listed.stdout.splitlines() if re.match(r"[0-9a-f]+ ", line))

    def check(self, paths: Sequence[Path]) -> list[Signature]:
        """The signature of each package file, in their order. rpm's verdict is its exit code; its words explain."""
        if not paths:
            return []
        done = self._verify(paths)
        parts = _sections(done.stdout, paths)
        if done.code == 0:
            return [self._signature(True, part) for part in parts]
        if len(paths) == 1:
            return [self._signature(False, done.stdout + done.stderr)]
        return [self.check([path])[0] for path in paths]

    def _verify(self, paths: Sequence[Path]) -> Result:
        level = ("--define", "_pkgverify_level all")
        return run("rpmkeys", *self._options, *level, "-Kv", *plain(paths), timeout=LONG, check=False)

    def _signature(self, good: bool, text: str) -> Signature:
        found = _SIGNED.findall(text)
        key = found[0][0] if found else ""
        signer = f"{key} {self._owners.get(key, '')}".strip()
        if good and found:
            return Signature(good=True, signer=signer, why="")
        if "digest: BAD" in text or any(verdict == "BAD" for _, verdict in found):
            why = "its content is not what was signed: it is damaged, or somebody changed it"
        elif any(verdict == "NOKEY" for _, verdict in found):
            why = f"signed by key {key}, which is not among the trusted ones"
        elif not found and "NOTFOUND" in text:
            why = "not signed"
        else:
            lines = [line for line in text.splitlines() if "error" in line or (found and found[0][0] in line)]
            why = f"rpm refuses it: {lines[-1].strip()}" if lines else "rpm refuses it"
        return Signature(good=False, signer=signer, why=why)


def _options(directory: Path) -> tuple[str, ...]:
    return "--dbpath", str(directory), "--define", f"_keyringpath {directory}/pubkeys/"


def _sections(text: str, paths: Sequence[Path]) -> list[str]:
    parts = {str(path): "" for path in paths}
    at = ""
    for line in text.splitlines():
        if line.endswith(":") and line[:-1] in parts:
            at = line[:-1]
        elif at:
            parts[at] += line + "\n"
    return [parts[str(path)] for path in paths]


def keys_in(directory: Path) -> list[Path]:
    """The files with trusted keys."""
    return sorted(path for path in directory.glob("*") if path.suffix in (".asc", ".gpg", ".key", ".pub"))


@contextmanager
def keyring(directory: Path) -> Iterator[Keyring]:
    """The trusted keys of a directory (armored OpenPGP public keys: *.asc, *.gpg, *.key, *.pub), ready to check with.

    Raises ConfigError where there are none, or one is no key.
    """
    keys = keys_in(directory)
    howto = f"gpg --armor --export KEY > {directory}/NAME.asc"
    if not keys:
        raise ConfigError(
            f"no key to check packages with in {directory}",
            what="a package is carried only when one of these keys has signed it",
            state="nothing was changed",
            next=howto,
        )
    memory = Path("/dev/shm")  # a database there is not synced to a disk, which would take as long as all the checks
    where = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="updater-keys-", dir=where) as scratch:
        for number, key in enumerate(keys):
            copy = Path(scratch, f"{number}.key")  # any name will do for rpm, patterns and dashes included
            copy.write_bytes(key.read_bytes())
            done = run("rpmkeys", *_options(Path(scratch)), "--import", copy, check=False)
            if done.code != 0:
                raise ConfigError(
                    f"{key} is no key to check packages with",
                    what=[line.replace(str(copy), str(key)) for line in done.stderr.splitlines()[-1:]],
                    state="nothing was changed",
                    next=howto,
                )
        yield Keyring(Path(scratch))
