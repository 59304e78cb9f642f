"""A release's section for tests: a small schema, templates as given, and a way to run the command line on a sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from images.keys import generate
from templates import manifest
from templates.history import History
from templates.manifest import Shipped
from templates.masking import Mask
from templates.options import Value
from templates.place import Outcome, place
from templates.render import Limits, NodeFacts, Rendered, render
from templates.tree import GLOBAL, Instance, Place, Tree
from updater.sandbox import create

ROOT = Path(__file__).resolve().parents[2]
NODE = NodeFacts(name="n1", release="MR96-1", role="billing")

SCHEMA = """
[groups.app]
title = "The application"
[groups.app.options.port]
type = "int"
default = 22
min = 1
max = 65535
help = "A port"
renamed_from = ["old.port", "older.port"]
[groups.app.options.name]
type = "string"
default = "x"
help = "A name"
[groups.app.options.password]
type = "secret"
help = "A secret"
[groups.app.options.on]
type = "bool"
default = true
help = "A switch"
[groups.app.options.hosts]
type = "list"
items = "address"
default = []
help = "A list"
[removed]
"app.gone" = "nobody used it"
"""


def section(directory: Path, templates: dict[str, str], files: str = "", schema: str = SCHEMA) -> Shipped:
    """Write a section and load it. Without `files`, each template goes to /etc/NAME."""
    (directory / "schema").mkdir(parents=True, exist_ok=True)
    (directory / "schema/app.toml").write_text(schema)
    for name, text in templates.items():
        (directory / name).write_text(text)
    plain = "".join(
        f'[[files]]\ntemplate = "{name}"\ntarget = "/etc/{name.removesuffix(".j2")}"\nmode = "0600"\n'
        for name in templates
    )
    (directory / "manifest.toml").write_text(files or plain)
    return manifest.load(directory)


def tree(instances: tuple[str, ...] = ("n1",), **values: Value) -> Tree:
    """A tree with global values: ``app_port=1`` sets app.port."""
    own = {name.replace("_", ".", 1): value for name, value in values.items()}
    known = {name: Instance(application="billing", server=name) for name in instances}
    return Tree(values={GLOBAL: own} if own else {}, instances=known)


def at(place_name: str) -> Place:
    """A place by its text."""
    return Place.parse(place_name)


def rendered(shipped: Shipped, values: Tree, limits: Limits | None = None) -> dict[str, Rendered]:
    """What is rendered for n1, by target."""
    return {each.target: each for each in render(shipped, values, NODE, limits)}


def put(shipped: Shipped, values: Tree, root: Path, data: Path, **options: bool) -> Outcome:
    """Render and put in place, records in `data`."""
    outcome = place(render(shipped, values, NODE), root, History(data), Mask(["s3cret-value"]), **options)
    if not options.get("dry_run"):
        History(data).finish()
    return outcome


def sandbox(directory: Path, name: str = "sandbox") -> Path:
    """A sandbox node; returns its node.toml."""
    _, public = generate(directory / f"{name}.pem")
    config = create(directory / name, slot_size=1 << 20, keys=[public], release="MR95-1", compatible="sandbox")
    config.write_text(config.read_text().replace('name = "sandbox"', f'name = "{name}"'))
    return config


def program(directory: Path, config: Path) -> Path:
    """An executable that is `updater` for that node."""
    path = directory / f"updater-{config.parent.name}"
    path.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "from updater.cli import main\n"
        f"sys.argv[1:1] = ['--config', {str(config)!r}]\n"
        "main.main()\n"
    )
    path.chmod(0o755)
    return path


def updater(path: Path, *words: str | Path, said: str = "") -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run(
        [str(path), *map(str, words)], input=said, capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def root_with(directory: Path, *programs: str) -> Iterator[Path]:
    """A root that holds these programs of this machine with all that they need, and a root user."""
    root = directory / "root-with-programs"
    for each in ("etc", "run", "dev", "tmp", "var/empty"):
        (root / each).mkdir(parents=True)
    for name in programs:
        found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert found is not None
        told = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
        needed = [word for word in told.split() if word.startswith("/")]
        for file in (found, *needed):
            target = root / file.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nsshd:x:101:65534::/run/sshd:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/sudoers").write_text("root ALL=(ALL) ALL\n")
    (root / "etc/sudoers").chmod(0o440)
    yield root


def is_root() -> bool:
    """Whether this can mount and chroot."""
    return os.geteuid() == 0
