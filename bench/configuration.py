"""How long configuration takes: rendering the files of one node into a root, and resolving a large tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.timing import Figure, in_turns, said, seconds, table
from templates import manifest
from templates.history import History
from templates.manifest import Shipped
from templates.masking import Mask
from templates.options import Level, Value
from templates.place import place as put
from templates.render import NodeFacts, render
from templates.tree import GLOBAL, Instance, Place, Tree, resolve_all

APPLICATIONS, GROUP = 10, 50
#: Somewhat more than any template that comes with the program: ten values, a condition, a loop over a list.
_VALUES = "".join(f"option_{n} = {{{{ gGROUP.o{n} }}}}\n" for n in range(10))
_TEMPLATE = f"""\
# file NUMBER
{_VALUES}{{% if gGROUP.o11 == "a default" %}}
mode = {{{{ gGROUP.o12 | upper }}}} on {{{{ node.name }}}}
{{% else %}}
mode = {{{{ gGROUP.o13 }}}}
{{% endif %}}
{{% for host in g0.hosts %}}
server {{{{ host }}}}:{{{{ NUMBER + loop.index }}}} {{{{ "backup" if loop.last else "active" }}}}
{{% endfor %}}
"""
_HOSTS = 'type = "list"\nitems = "address"\ndefault = []\nhelp = "Hosts"\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How many files are rendered, how large the tree is, and how many turns."""

    files: int = 200
    options: int = 5000
    instances: int = 500
    turns: int = 7


def measure(extent: Extent, place: Path) -> list[Figure]:
    """Make templates and a tree in a directory inside `place`, measure, print; returns the figures."""
    with TemporaryDirectory(prefix="updater-bench-", dir=place) as scratch:
        shipped = _section(Path(scratch, "section"), extent)
        tree = _tree(extent)
        defaults = shipped.schema.defaults
        rendering = f"render and place {extent.files} files"
        resolving = f"{extent.options} options × {extent.instances} instances"
        contenders = [
            seconds(rendering, _renderer(shipped, tree, Path(scratch))),
            seconds(resolving, lambda: resolve_all(tree, defaults)),
        ]
        with said(f"{extent.turns} turns of rendering into a new root, and of resolving a tree"):
            found = in_turns(contenders, extent.turns)
    print(table(found, "s"))
    return [
        Figure("render_200_files_s", found[rendering].median, "s", "<= 1"),
        Figure("resolve_tree_s", found[resolving].median, "s", "<= 2"),
    ]


def _section(directory: Path, extent: Extent) -> Shipped:
    """A release's section on the disk, and loaded: options in groups, and templates that look at one group each."""
    (directory / "schema").mkdir(parents=True)
    groups = range(extent.options // GROUP)
    for group in groups:
        lines = [f'[groups.g{group}]\ntitle = "Group {group}"']
        lines += [
            f'[groups.g{group}.options.o{number}]\ntype = "string"\ndefault = "a default"\nhelp = "An option"'
            for number in range(GROUP - (group == 0))
        ]
        lines += [f"[groups.g0.options.hosts]\n{_HOSTS}"] if group == 0 else []
        (directory / f"schema/g{group}.toml").write_text("\n".join(lines))
    for number in range(extent.files):
        text = _TEMPLATE.replace("NUMBER", str(number)).replace("GROUP", str(number % len(groups)))
        (directory / f"{number}.j2").write_text(text)
    files = (f'[[files]]\ntemplate = "{n}.j2"\ntarget = "/etc/part{n % 20}/{n}.conf"\n' for n in range(extent.files))
    (directory / manifest.MANIFEST).write_text("".join(files))
    return manifest.load(directory)


def _tree(extent: Extent) -> Tree:
    """Values at every level: a tenth of the options for each application, a hundredth for each instance."""
    names = [f"g{n // GROUP}.o{n % GROUP}" for n in range(extent.options) if n != GROUP - 1]
    applications = [f"application-{n}" for n in range(APPLICATIONS)]
    instances = {
        f"n{n}": Instance(application=applications[n % APPLICATIONS], server=f"n{n}") for n in range(extent.instances)
    }
    values: dict[Place, dict[str, Value]] = {
        GLOBAL: {"g0.hosts": [f"10.0.0.{n}" for n in range(1, 9)], **dict.fromkeys(names[::5], "of all")}
    }
    for n, name in enumerate(applications):
        values[Place(Level.APPLICATION, name)] = dict.fromkeys(names[n::10], f"of {name}")
    for n, name in enumerate(instances):
        values[Place(Level.INSTANCE, name)] = dict.fromkeys(names[n % 100 :: 100], f"of {name}")
    return Tree(values=values, instances=instances)


def _renderer(shipped: Shipped, tree: Tree, folder: Path) -> Callable[[], object]:
    """What renders for one node, into a root of its own each time."""
    number = count()

    def work() -> None:
        new = folder / f"root-{next(number)}"
        new.mkdir()
        done = put(render(shipped, tree, NodeFacts(name="n1", release="MR96-1")), new, History(new / "data"), Mask([]))
        assert len(done.changed) == len(shipped.manifest.files)

    return work
