"""RPM transactions on a root: tried, or done, by the `rpm` command in a process that can harm nothing else.

Scriptlets see the root as ``/`` with a /proc and a /dev of their own, no network, no process and no mount of the
machine. What they mount or start ends with the transaction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from core.errors import CommandFailed, ModificationConflict, NotReady
from core.report import Report
from core.run import run
from patches.packages_rpm import LONG, Database, need_root, reader


class Rule(StrEnum):
    """The rule of RPM's that is broken."""

    REQUIRES = "requires"
    CONFLICTS = "conflicts"
    OBSOLETES = "obsoletes"
    FILE = "file"
    NEWER = "newer"
    INSTALLED = "installed"
    ARCHITECTURE = "architecture"
    SPACE = "space"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a transaction cannot be. `package`: the one that breaks the rule, as nevra; `of_root`: it is one of the
    root's, not of those to be installed. `other`: the dependency, or the other package. `text`: as rpm says it.
    """

    rule: Rule
    package: str
    text: str
    other: str = ""
    file: str = ""
    of_root: bool = False


#: What rpm says (lib/rpmprob.c), in the C locale.
_SAYINGS = [
    (Rule.REQUIRES, r"(?P<other>.+) is needed by (?P<of_root>\(installed\) )?(?P<package>\S+)"),
    (Rule.FILE, r"file (?P<file>.+) conflicts between attempted installs of (?P<package>\S+) and (?P<other>\S+)"),
    (Rule.FILE, r"file (?P<file>.+) from install of (?P<package>\S+) conflicts with file from package (?P<other>\S+)"),
    (Rule.CONFLICTS, r"(?P<other>.+) conflicts with (?P<of_root>\(installed\) )?(?P<package>\S+)"),
    (Rule.OBSOLETES, r"(?P<package>.+) is obsoleted by (?P<of_root>\(installed\) )?(?P<other>\S+)"),
    (Rule.NEWER, r"package (?P<other>\S+) \(which is newer than (?P<package>\S+)\) is already installed"),
    (Rule.INSTALLED, r"package (?P<package>\S+) is already installed"),
    (Rule.ARCHITECTURE, r"package (?P<package>\S+) is intended for a different (?:architecture|operating system)"),
    (Rule.ARCHITECTURE, r"package (?P<package>\S+) is intended for a (?P<other>\S+) (?:architecture|operating system)"),
    (Rule.SPACE, r"installing package (?P<package>\S+) (?P<other>needs .+)"),
    (Rule.OTHER, r"package (?P<package>\S+) does not verify: (?P<other>.+)"),
]
_PATTERNS = [(rule, re.compile(rf"\s+{saying}")) for rule, saying in _SAYINGS]


def problems_in(output: str) -> list[Problem]:
    """The problems that rpm lists."""
    found = []
    for line in output.splitlines():
        for rule, saying in _PATTERNS:
            if match := saying.fullmatch(line):
                parts = match.groupdict()
                found.append(
                    Problem(
                        rule=rule,
                        package=parts["package"],
                        text=line.strip(),
                        other=parts.get("other") or "",
                        file=parts.get("file") or "",
                        of_root=bool(parts.get("of_root")),
                    )
                )
                break
    return list(dict.fromkeys(found))


def try_install(database: Database, paths: Sequence[Path]) -> list[Problem]:
    """What would go wrong if these packages were installed together: rpm's own test transaction. Nothing is changed.

    Room is not looked at: the slot is larger than the image. The files are trusted to be packages (see `Keyring`).
    Raises NotPermitted, CommandFailed.
    """
    need_root("try packages on a root")
    if not paths:
        return []
    words = ("-U", "--test", "--ignoresize", "--nosignature")
    done = run(*database.rpm, *words, *paths, timeout=LONG, check=False)
    problems = problems_in(done.stderr + done.stdout)
    if done.code != 0 and not problems:
        raise CommandFailed("rpm cannot try the packages", what=_words_of(done.stderr.splitlines())[-12:])
    return problems


#: Only directories of the root's own are mounted upon, no symlinks that lead elsewhere. $1 is the root.
_CONFINE = """
exec 2>&1
own() { [ -d "$1" ] && [ ! -L "$1" ]; }
if own "$1/proc"; then
    mount -t proc proc "$1/proc"
    if mount --bind "$1/proc/sys" "$1/proc/sys"; then mount -o remount,bind,ro "$1/proc/sys"; fi
fi
if own "$1/dev"; then
    mount -t tmpfs -o mode=755,size=1m,nosuid tmpfs "$1/dev"
    for node in null zero full random urandom; do : >"$1/dev/$node"; mount --bind "/dev/$node" "$1/dev/$node"; done
    ln -s /proc/self/fd "$1/dev/fd"
fi
shift
exec "$@"
"""
_ALONE = ("unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")


def install(database: Database, paths: Sequence[Path], names: Sequence[str], report: Report, step: str) -> None:
    """Install the packages (`names`: their nevras) in one transaction.

    Raises ModificationConflict naming the package and its scriptlet, with what the scriptlet said, or the problems; the
    root is then half installed and has to be written anew. NotPermitted, CommandFailed.
    """
    need_root("install packages")
    begun = 0
    expected = set(names)
    lines: list[str] = []

    def heard(line: str) -> None:
        nonlocal begun
        lines.append(line)
        if line in expected:
            begun += 1
            report.progress(step, begun, len(names), "packages")

    rpm = ("rpm", *database.options, "-Uv", "--nosignature", *map(str, paths))
    done = run(*_ALONE, "sh", "-ec", _CONFINE, "sh", database.root, *rpm, timeout=LONG, check=False, on_line=heard)
    failures = failures_in(lines, expected)
    problems = problems_in("\n".join(lines))
    if failures or problems or done.code != 0:
        told = [line for failure in failures for line in failure.lines] + [each.text for each in problems]
        names_of = ", ".join(dict.fromkeys(failure.package for failure in failures)) or "carried packages"
        raise ModificationConflict(
            f"installing {names_of} failed",
            what=told or _words_of([*lines, *done.stderr.splitlines()])[-12:],
            state="the slot is half installed; it stays marked bad and is written anew by resume, or left by abort",
            next=[f"updater stage … --without {failure.package}" for failure in failures[:3]],
        )
    missing = expected - {each.nevra for each in reader().installed(database)}
    if missing:
        raise NotReady("rpm said that it installed all packages, and did not", what=sorted(missing))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A package that could not be installed, or whose scriptlet failed. `lines`: in words, with its output."""

    package: str
    lines: tuple[str, ...]


_SCRIPTLET = re.compile(r"(?:error|warning): %(?P<name>\w+)\((?P<package>[^()]+)\) scriptlet failed, (?P<how>.*)")
_LUA = re.compile(r'error: lua script failed: \[string "%(?P<name>\w+)\((?P<package>[^()]+)\)"\]:(?P<how>.*)')
_FOLLOWS = re.compile(r"error: (?P<package>\S+): install (?:failed|skipped)")
#: rpm's names of the sections, as its messages and as spec files have them.
_SECTIONS = {"prein": "pre", "postin": "post", "preun": "preun", "postun": "postun"}


def failures_in(lines: Sequence[str], names: set[str]) -> list[Failure]:
    """The failures that rpm told of, each with the scriptlet's output: the lines since rpm spoke last."""
    failures: list[Failure] = []
    said: list[str] = []
    for line in lines:
        if line in names or line in ("Preparing packages...", "Verifying packages..."):
            said = []
        elif match := _SCRIPTLET.fullmatch(line) or _LUA.fullmatch(line):
            section = _SECTIONS.get(match["name"], match["name"])
            told = f"%{section} of {match['package']} failed: {match['how']}"
            output = [f"    | {each}" for each in _words_of(said)[-12:]]
            failures.append(Failure(package=match["package"], lines=(told, *output)))
            said = []
        elif match := _FOLLOWS.fullmatch(line):
            if not any(failure.package == match["package"] for failure in failures):
                told = f"{match['package']} could not be installed"
                output = [f"    | {each}" for each in _words_of(said)[-12:]]
                failures.append(Failure(package=match["package"], lines=(told, *output)))
            said = []
        else:
            said.append(line)
    return failures


def _words_of(lines: Sequence[str]) -> list[str]:
    """Without the remark that Debian's rpm makes on each start."""
    return [line for line in lines if line.strip() and not line.startswith("rpm: ")]
