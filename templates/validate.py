"""Runs the program that knows a file's format on the new content, before it is put in place.

It runs in the target root (of the release that will read the file), in a mount namespace of its own whose /run is
empty: the candidate is written there, so nothing reaches the root's own disk, not even in a dry run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from core.errors import CommandFailed
from core.files import inside
from core.run import run
from templates.manifest import Validator

_CANDIDATE = "/run/updater/candidate"
_NOT_PREPARED = 97

#: root, owner, mode, directories to make (one word), command; the candidate is on standard input.
_SCRIPT = f"""
root=$1 owner=$2 mode=$3 directories=$4
shift 4
mount -t tmpfs -o mode=0755,size=64m none "$root/run" || exit {_NOT_PREPARED}
{{ [ "$root" = / ] || mount --bind /dev "$root/dev"; }} || exit {_NOT_PREPARED}
for each in /run/updater $directories; do mkdir -p -m 0755 "$root/$each" || exit {_NOT_PREPARED}; done
umask 077
file=$root{_CANDIDATE}
cat > "$file" && chown "$owner" "$file" && chmod "$mode" "$file" || exit {_NOT_PREPARED}
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`fault`: what the validator complains of (empty: nothing). `note`: why it was not asked."""

    fault: str = ""
    note: str = ""


def validate(
    validator: Validator, content: bytes, target: str, root: Path, *, owner: tuple[int, int], mode: int
) -> Verdict:
    """Ask the validator about the content that is to become `target` in `root`."""
    program = validator.command[0]
    if not _program_in(root, program):
        return Verdict(note=f"not validated: {program} is not installed")
    missing = [glob for glob in validator.needs if not _matches(root, glob)]
    if missing:
        return Verdict(note=f"not validated: {program} needs {missing[0]}")
    words = [word.replace("{file}", _CANDIDATE) for word in validator.command]
    try:
        done = run(
            "unshare", "--mount", "sh", "-c", _SCRIPT, "sh", root, f"{owner[0]}:{owner[1]}", f"{mode:o}",
            " ".join(validator.directories), *words,
            input=content, timeout=validator.timeout, check=False,
        )  # fmt: skip
    except CommandFailed as error:
        return Verdict(fault=error.message)
    told = [line for line in (done.stderr + done.stdout).replace(_CANDIDATE, target).splitlines() if line.strip()]
    if done.code == _NOT_PREPARED or (done.code and told and told[0].startswith("unshare:")):
        return Verdict(note=f"not validated: {program} cannot be run in {root}: {'; '.join(told[-1:])}")
    return Verdict(fault="; ".join(told[-3:]) or f"{program} says no (exit code {done.code})" if done.code else "")


def _program_in(root: Path, program: str) -> bool:
    places = (
        [program]
        if program.startswith("/")
        else [f"/{each}/{program}" for each in ("usr/sbin", "usr/bin", "sbin", "bin")]
    )
    return any(inside(root, place).is_file() for place in places)


def _matches(root: Path, glob: str) -> bool:
    path = PurePosixPath(glob)
    return any(inside(root, path.parent).glob(path.name))
