"""Root trees of releases: the base tree, the agent, and what makes one release differ from another."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from core.files import inside
from core.run import run
from patches.packages_platform import prepare
from vagrant import base, cache, data

PROJECT = Path(__file__).resolve().parent.parent

#: Where the agent and all it needs lie in a tree; nothing of it mixes with the system's own Python packages.
AGENT = PurePosixPath("/usr/lib/updater/site-packages")

#: Of the machines of rehearsals, a node needs only what its own commands are made of.
ON_NODES = frozenset({"vagrant/__init__.py", "vagrant/cli.py", "vagrant/prove.py", "vagrant/container.py"})

LAUNCHER = f"""#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "{AGENT}")
from updater.cli.main import main

sys.exit(main())
"""


class Variant(StrEnum):
    """How the application of a release is when it is booted."""

    SOUND = "sound"
    UNHEALTHY = "unhealthy"  # boots, but its application fails: acme.service is failed, acme-health exits 1


SICK = "echo 'acme does not answer: licence table is empty' >&2\nexit 1\n"

#: A file with one of these names in this directory makes the release in slot b behave like that, from its next boot on.
TRICKS = PurePosixPath("/data/lab")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file to be put into a tree. `mode`: permission bits."""

    content: str | bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A symlink to be put into a tree."""

    target: str


Files = Mapping[str, File | Link]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestKeys:
    """Keys of the lab: the user's private key, the public halves in OpenSSH format. The directory is the cache's."""

    private: Path
    public: str
    host_private: str
    host_public: str


def release_tree(
    release: str, *, variant: Variant = Variant.SOUND, files: Files | None = None, foundation: Path | None = None
) -> Path:
    """The cached root tree of a release (about a second when base and agent are there).

    `files` go in last, by absolute path; a symlink under `/etc/systemd/system/*.wants` enables a unit. Unchanged
    files are hard links into the base: whoever wants to change one in place makes a copy first (`copy`).
    `foundation`: another cached tree than the base tree to start from.
    """
    foundation, agent, keys = foundation or base.base_tree(), agent_tree(), test_keys()
    content = {**_identity(release, foundation), **_application(release, variant), **_access(keys), **(files or {})}

    def build(part: Path) -> None:
        run("cp", "-al", foundation, part, timeout=120)
        run("cp", "-al", f"{agent}/.", part, timeout=120)
        put(part, content)
        prepare(part)  # an RPM database, in which the tree stands as one package

    return cache.cached("tree", cache.key(foundation.name, agent.name, _digest(content)), build)


def copy(tree: Path, into: Path) -> Path:
    """A copy whose files may be edited in place. `into` must not exist."""
    run("cp", "-a", tree, into, timeout=120)
    return into


def put(tree: Path, files: Files) -> None:
    """Put files into a tree. One that exists is replaced, never written to: it may be shared with other trees."""
    for name, thing in files.items():
        parent = inside(tree, PurePosixPath(name).parent)
        parent.mkdir(parents=True, exist_ok=True)
        path = parent / PurePosixPath(name).name
        path.unlink(missing_ok=True)
        if isinstance(thing, Link):
            path.symlink_to(thing.target)
        else:
            path.write_bytes(thing.content.encode() if isinstance(thing.content, str) else thing.content)
            path.chmod(thing.mode)


def enabled(unit: str, content: str, *, wanted_by: str = "multi-user.target") -> Files:
    """A systemd unit and the symlink that starts it at boot."""
    return {
        f"/etc/systemd/system/{unit}": File(content=content),
        f"/etc/systemd/system/{wanted_by}.wants/{unit}": Link(target=f"../{unit}"),
    }


def agent_tree() -> Path:
    """The cached tree with nothing but the agent: its packages with bytecode, and /usr/bin/updater."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    needs = _dependencies(project["project"]["dependencies"])
    packages = [PROJECT / name for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    sources = sorted(path for package in packages for path in package.rglob("*") if _is_source(path))
    entries = _entry_points(project["project"])
    digest = cache.key(needs.name, LAUNCHER, entries, *(part for path in sources for part in (str(path), path)))

    def build(part: Path) -> None:
        site = inside(part, AGENT)
        site.parent.mkdir(parents=True)
        run("cp", "-al", needs, site)
        put(part, {f"{AGENT}/{path.relative_to(PROJECT)}": File(content=path.read_bytes()) for path in sources})
        put(part, {"/usr/bin/updater": File(content=LAUNCHER, mode=0o755)})
        put(part, {f"{AGENT}/updater-0.dist-info/METADATA": File(content=_metadata(project["project"]))})
        put(part, {f"{AGENT}/updater-0.dist-info/entry_points.txt": File(content=entries)})
        _compile(*(site / package.name for package in packages))

    return cache.cached("agent", digest, build)


def test_keys() -> TestKeys:
    """Keys for SSH into machines of the lab, made once per cache. They open nothing else."""

    def build(part: Path) -> None:
        part.mkdir(mode=0o700)
        for name in ("user", "host"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"updater-lab {name}", "-f", part / name)

    path = cache.cached("keys", cache.key("ed25519"), build)
    return TestKeys(
        private=path / "user",
        public=(path / "user.pub").read_text(),
        host_private=(path / "host").read_text(),
        host_public=(path / "host.pub").read_text(),
    )


def _identity(release: str, foundation: Path) -> dict[str, File | Link]:
    os_release = (foundation / "usr/lib/os-release").read_text()
    name = f'IMAGE_ID=acme-switch\nIMAGE_VERSION="{release}"\n'
    return {
        "/etc/acme.conf": File(content="# The application's settings, as the vendor ships them\ntimeout = 30\n"),
        "/etc/updater-release": File(content=f"{release}\n"),
        "/usr/lib/os-release": File(content=os_release + name),
    }


def _application(release: str, variant: Variant) -> dict[str, File | Link]:
    """What the machine is there for: acme.service, acme-balance (reads the data), acme-health (says how it is)."""
    sound = variant is not Variant.UNHEALTHY
    files: dict[str, File | Link] = {
        "/usr/bin/acme-balance": File(content=data.program(release), mode=0o755),
        "/usr/bin/acme-health": File(
            content=f"#!/bin/sh\n[ -e {TRICKS}/unhealthy ] || exec acme-balance\n{SICK}"
            if sound
            else f"#!/bin/sh\n{SICK}",
            mode=0o755,
        ),
        **enabled(
            "acme.service",
            "[Unit]\nDescription=The operator's application\n[Service]\nType=exec\n"
            f"ExecStart={'/usr/bin/sleep infinity' if sound else '/usr/bin/false'}\n",
        ),
    }
    files |= _trick("panic", "echo c > /proc/sysrq-trigger")
    files |= _trick("hang", "exec sleep infinity", after="lab-panic.service")
    return files


def _trick(name: str, command: str, after: str = "") -> Files:
    """Misbehaviour on demand, before sysinit.target is reached: so no sshd, no multi-user.target, no agent. Once for
    each demand, so that one try may panic and the next one hang.
    """
    demand = f"{TRICKS}/{name}"
    return enabled(
        f"lab-{name}.service",
        f"[Unit]\nDefaultDependencies=no\nRequiresMountsFor=/data\nBefore=sysinit.target\nAfter={after}\n"
        f"ConditionKernelCommandLine=updater.slot=b\nConditionPathExists={demand}\n"
        f"[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart=/bin/sh -c 'rm {demand}; sync; {command}'\n",
        wanted_by="sysinit.target",
    )


def _access(keys: TestKeys) -> dict[str, File | Link]:
    return {
        "/root/.ssh/authorized_keys": File(content=keys.public, mode=0o600),
        "/etc/ssh/ssh_host_ed25519_key": File(content=keys.host_private, mode=0o600),
        "/etc/ssh/ssh_host_ed25519_key.pub": File(content=keys.host_public),
    }


def _dependencies(needs: list[str]) -> Path:
    """What the project depends on, for the guest's Python and libc, whichever Python runs this."""

    def build(part: Path) -> None:
        target = ["--python-version=3.11", "--implementation=cp", "--only-binary=:all:"]
        target += [
            f"--platform={name}_x86_64" for name in ("manylinux_2_34", "manylinux_2_28", "manylinux2014", "linux")
        ]
        settings = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
        proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", f"--target={part}"]
        run(*pip, *target, *needs, timeout=600, env={**settings, **proxies})
        cache.remove(part / "bin")
        _compile(part)

    return cache.cached("needs", cache.key(*needs), build)


def _compile(*sites: Path) -> None:
    """Bytecode that Python trusts without looking at the source. Only the guest's own version of Python can make it;
    with another one the agent works as well, but starts slowly."""
    if sys.version_info[:2] != (3, 11):
        return
    # some packages bring files for other versions of Python, so the exit code says nothing
    options = ["--invalidation-mode", "unchecked-hash", "-j0"]
    run(sys.executable, "-m", "compileall", "-q", *options, *sites, timeout=300, check=False)


def _metadata(project: dict[str, str]) -> str:
    return f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"


def _entry_points(project: dict[str, Any]) -> str:
    lines = (
        line
        for group, entries in project.get("entry-points", {}).items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    )
    return "".join(f"{line}\n" for line in lines)


def _is_source(path: Path) -> bool:
    name = str(path.relative_to(PROJECT))
    return path.is_file() and "__pycache__" not in path.parts and (not name.startswith("vagrant/") or name in ON_NODES)


def _digest(files: Files) -> str:
    return cache.key(*(f"{name} {thing!r}" for name, thing in sorted(files.items())))
