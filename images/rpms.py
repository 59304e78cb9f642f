"""A root tree from RPM repositories and a list of packages, installed with dnf."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from core.errors import CommandFailed, NotPermitted
from core.run import run
from images.manifest import canonical

_LONG: Final = 3600.0
#: What dnf and rpm leave behind that differs from run to run and is of no use in a slot.
_TRACES: Final = (
    "var/cache/dnf",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dnf",
    "var/log/dnf*",
    "var/log/hawkey*",
    "tmp/*",
)
_TRACES_OF_DATABASE: Final = ("__db.*", ".rpm.lock", "*-shm", "*-wal")


def install(tree: Path, packages: Sequence[str], repositories: Sequence[str], architecture: str) -> tuple[bytes, int]:
    """Install the packages, and what they need, into the new directory `tree`. Repositories are URLs or directories
    with repodata; their packages count as trusted by whoever names them here.

    Returns the list of all installed packages (canonical JSON, a sorted list of name-version-release.architecture) and
    the newest time at which one of them was built (seconds since 1970). Needs root. Raises NotPermitted, CommandFailed.
    """
    if os.geteuid() != 0:
        raise NotPermitted("packages are installed into a root tree by root only", next="run it as root (sudo)")
    store = tree.with_name("rpms")
    sources = []
    for number, repository in enumerate(repositories):
        url = repository if "://" in repository else Path(repository).absolute().as_uri()
        sources.append(f"--repofrompath=r{number},{url}")
    tree.mkdir()
    _dnf(tree, architecture, *sources, "--downloadonly", f"--downloaddir={store}", "install", *packages)
    files = sorted(store.glob("*.rpm"))
    if not files:
        raise CommandFailed("dnf found nothing to install", what=", ".join(packages))
    built = run("rpm", "-qp", "--nosignature", "--qf", "%{BUILDTIME}\n", *files, timeout=_LONG).stdout.split()
    newest = max(map(int, built))
    shutil.rmtree(tree)
    tree.mkdir()
    _dnf(tree, architecture, "install", *files, epoch=newest)
    listed = run("rpm", "--root", tree, "-qa", "--qf", "%{NEVRA}\n", timeout=_LONG).stdout.split()
    _tidy(tree)
    shutil.rmtree(store)
    return canonical(sorted(listed)), newest


def _dnf(tree: Path, architecture: str, *words: str | Path, epoch: int | None = None) -> None:
    """Run dnf for the tree, without any configuration of this machine. With `epoch`, rpm records that as the time of
    installation.
    """
    kept = tree.with_name("dnf")
    kept.mkdir(exist_ok=True)
    options = {
        # inside the tree: dnf puts its root before them, whatever they are. `_tidy` takes these away
        "cachedir": "/var/cache/dnf",
        "logdir": "/var/log",
        "persistdir": "/var/lib/dnf",
        "reposdir": kept / "none",
        "varsdir": kept / "none",
        "plugins": "False",
        "install_weak_deps": "False",
        "keepcache": "False",
        "gpgcheck": "False",
    }
    config = kept / "dnf.conf"
    config.write_text("[main]\n" + "".join(f"{name}={value}\n" for name, value in options.items()))
    env = {"SOURCE_DATE_EPOCH": str(epoch)} if epoch is not None else {}
    where = [f"--installroot={tree}", "--releasever=1", f"--forcearch={architecture}"]
    run("dnf", "-y", "-q", "-c", config, *where, *words, timeout=_LONG, env=env)


def _tidy(tree: Path) -> None:
    """Take away traces of this run; a machine makes its own id on first boot."""
    databases = [
        str(path.relative_to(tree))
        for path in (tree / "var/lib/rpm", tree / "usr/lib/sysimage/rpm", *tree.glob("root/.rpmdb"))
    ]
    traces = [*_TRACES, *(f"{database}/{trace}" for database in databases for trace in _TRACES_OF_DATABASE)]
    for trace in traces:
        for path in tree.glob(trace):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    machine = tree / "etc/machine-id"
    if machine.is_file():
        machine.write_text("uninitialized\n")
