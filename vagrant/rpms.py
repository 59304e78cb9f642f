"""Real packages, made by rpmbuild and signed with keys of our own, and a small root: for tests, the demo and bench."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_DESCRIPTORS = ("Requires", "Provides", "Conflicts", "Obsoletes")


def shell(*argv: str | Path, **env: str) -> str:
    """Run a program; its output is in the error where it fails."""
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


def shell_root(root: Path) -> None:
    """Make a root with a shell and nothing else, as a release that was not made of RPM packages."""
    for name in ("usr/bin", "usr/lib", "usr/lib64", "etc", "proc", "dev", "tmp", "opt", "var/lib"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    shutil.copy2("/bin/dash", root / "usr/bin/sh")
    for line in shell("ldd", "/bin/dash").splitlines():
        for word in line.split():
            if word.startswith("/"):
                target = root / word.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(word, target)


class Rpms:
    """Makes packages. `keys`: the directory of trusted keys, which has that of "acme" and not that of "mallory"."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = directory / "keys"
        self.keys.mkdir()
        self._home = directory / "gnupg"
        self._home.mkdir(mode=0o700)
        self._count = 0
        self._made: dict[str, Path] = {}
        for owner in ("acme", "mallory"):
            unattended = ("--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "")
            self._gpg(*unattended, "--quick-gen-key", f"{owner} <{owner}@example.org>", "ed25519", "sign", "never")
        self.export("acme", self.keys / "acme.asc")

    def export(self, owner: str, path: Path) -> None:
        """The public key of an owner."""
        path.write_text(self._gpg("--armor", "--export", owner))

    def close(self) -> None:
        """End the agent that gpg started for our own directory."""
        shell("gpgconf", "--homedir", self._home, "--kill", "all")

    def _gpg(self, *words: str) -> str:
        return shell("gpg", "--homedir", self._home, *words)

    def make(
        self,
        name: str,
        version: str = "1",
        *,
        release: str = "1",
        epoch: int = 0,
        signed: str = "acme",
        files: Mapping[str, str] | None = None,
        config: Mapping[str, str] | None = None,
        scriptlets: Mapping[str, str] | None = None,
        **dependencies: Sequence[str],
    ) -> Path:
        """Build a package. `dependencies`: requires, provides, conflicts, obsoletes. `scriptlets`: section, such as
        "pre" or "post -p <lua>", and its text. `signed`: by whom, or "". The same again is the same file.
        """
        wanted = repr((name, version, release, epoch, signed, files, config, scriptlets, dependencies))
        if wanted in self._made:
            return self._made[wanted]
        self._count += 1
        work = self.directory / f"{self._count:03}"
        work.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", f"Release: {release}", "Summary: test", "License: none"]
        lines += ["BuildArch: noarch", "AutoReqProv: no", *([f"Epoch: {epoch}"] if epoch else [])]
        lines += [f"{tag}: {each}" for tag in _DESCRIPTORS for each in dependencies.get(tag.lower(), ())]
        lines += ["%description", "test", "%install", "mkdir -p %{buildroot}"]
        owned = {**(files or {}), **(config or {})}
        for number, (path, content) in enumerate(owned.items()):
            (work / f"{number}").write_text(content)
            lines.append(f"install -D -m 644 {work}/{number} '%{{buildroot}}{path}'")
        for section, text in (scriptlets or {}).items():
            lines += [f"%{section}", text]
        lines += [
            "%files",
            *(f'"{path}"' for path in files or {}),
            *(f"%config(noreplace) {path}" for path in config or {}),
        ]
        spec = work / "package.spec"
        spec.write_text("\n".join(lines) + "\n")
        shell("rpmbuild", "-bb", "--quiet", "--define", f"_topdir {work}/build", "--define", f"_rpmdir {work}", spec)
        [made] = (work / "noarch").glob("*.rpm")
        if signed:
            self.sign(made, signed)
        self._made[wanted] = made
        return made

    def sign(self, path: Path, owner: str) -> None:
        """Sign a package with the owner's key."""
        home = f"--homedir {self._home} --batch --pinentry-mode loopback"
        macros = {"__gpg": "/usr/bin/gpg", "_gpg_name": owner, "_gpg_sign_cmd_extra_args": home}
        shell("rpmsign", "--addsign", *(word for k, v in macros.items() for word in ("--define", f"{k} {v}")), path)
