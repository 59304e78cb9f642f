"""The configuration tree, and how a value is found in it. Pure.

Values are set at places: global, one application, one instance of an application, one virtual environment. Asked for
an instance and an environment (either may be missing), the value is that of the first of these which has one:

    the environment → the instance → its application → global → the release's default

So what is set for an environment holds for it wherever it is served, and an instance or an environment that nobody has
created yet inherits from above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from templates.options import Level, Value

#: Names of applications, instances, servers and environments: they become parts of paths and of names of units.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

#: Option name → value; only what is set.
Values = Mapping[str, Value]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place where values can be set. `name` is empty for global."""

    level: Level
    name: str = ""

    def __str__(self) -> str:
        return f"{self.level}:{self.name}" if self.name else str(self.level)

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read ``global``, ``application:billing``, ``instance:bil-a-03``, ``environment:acme``. Raises ValueError."""
        level, _, name = text.partition(":")
        if level not in list(Level) or bool(name) == (level == Level.GLOBAL):
            raise ValueError(f"{text!r} is no place such as global, application:NAME, instance:NAME, environment:NAME")
        if name and not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no good name: letters, digits, and . _ - inside")
        return cls(Level(level), name)


GLOBAL = Place(Level.GLOBAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """An application on a server. `server` is the instance's own name where one server does one thing."""

    application: str
    server: str

    def __post_init__(self) -> None:
        for key in ("application", "server"):
            if not NAME.fullmatch(getattr(self, key)):
                raise ValueError(f"{key}: {getattr(self, key)!r} is no good name: letters, digits, and . _ - inside")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom a value is for. Names that the tree does not know are allowed: they inherit."""

    application: str = ""
    instance: str = ""
    environment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A value and where it was found; `hidden`: values that it hides, nearest first. `place` is None for a default."""

    value: Any
    place: Place | None
    hidden: tuple[tuple[Place | None, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """All values of one configuration, and which instances there are."""

    values: Mapping[Place, Values] = field(default_factory=dict)
    instances: Mapping[str, Instance] = field(default_factory=dict)

    def target(self, instance: str = "", environment: str = "", application: str = "") -> Target:
        """The target of that name, its application looked up. `application`: for an instance that is not known."""
        known = self.instances.get(instance)
        return Target(
            application=known.application if known else application, instance=instance, environment=environment
        )

    def instances_on(self, server: str) -> dict[str, Instance]:
        """The instances of one server."""
        return {name: each for name, each in self.instances.items() if each.server == server}

    def environments(self) -> list[str]:
        """The environments for which anything is set."""
        return sorted(place.name for place in self.values if place.level is Level.ENVIRONMENT)


def chain(target: Target) -> Iterator[Place]:
    """The places that are asked for the target, the one that wins first."""
    if target.environment:
        yield Place(Level.ENVIRONMENT, target.environment)
    if target.instance:
        yield Place(Level.INSTANCE, target.instance)
    if target.application:
        yield Place(Level.APPLICATION, target.application)
    yield GLOBAL


def resolve(tree: Tree, target: Target, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Every option's value for the target. O(options): one merge per place."""
    found = dict(defaults)
    for place in reversed(list(chain(target))):
        found.update(tree.values.get(place, {}))
    return found


def resolve_all(tree: Tree, defaults: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every option's value for every instance. What instances of an application share is merged once."""
    shared: dict[str, dict[str, Any]] = {}
    found = {}
    for name, instance in tree.instances.items():
        if instance.application not in shared:
            shared[instance.application] = resolve(tree, Target(application=instance.application), defaults)
        found[name] = {**shared[instance.application], **tree.values.get(Place(Level.INSTANCE, name), {})}
    return found


def explain(tree: Tree, target: Target, option: str, default: Any = None) -> Found:
    """Where the option's value for the target comes from, and what it hides."""
    asked: list[tuple[Place | None, Any]] = [
        (place, tree.values[place][option]) for place in chain(target) if option in tree.values.get(place, {})
    ]
    asked.append((None, default))
    (place, value), *hidden = asked
    return Found(value=value, place=place, hidden=tuple(hidden))


def changed(tree: Tree, place: Place, option: str, value: Value | None) -> Tree:
    """The tree with one value set (None: unset, inherited again)."""
    values = {where: dict(own) for where, own in tree.values.items()}
    own = values.setdefault(place, {})
    if value is None:
        own.pop(option, None)
    else:
        own[option] = value
    return Tree(values={where: own for where, own in values.items() if own}, instances=tree.instances)


def difference(old: Tree, new: Tree) -> list[tuple[Place, str, Value | None, Value | None]]:
    """What is set differently: place, option, old value, new value (None: not set); ordered by place and option."""
    lines = []
    for place in sorted(old.values.keys() | new.values.keys()):
        before, after = old.values.get(place, {}), new.values.get(place, {})
        for option in sorted(before.keys() | after.keys()):
            one, other = before.get(option), after.get(option)
            if (type(one), one) != (type(other), other):
                lines.append((place, option, one, other))
    return lines


def for_server(tree: Tree, server: str, secrets: frozenset[str]) -> Tree:
    """What one server needs of the tree: everything, but of `secrets` (options) only those that are for it."""
    mine = tree.instances_on(server)
    applications = {each.application for each in mine.values()}

    def concerns(place: Place) -> bool:
        match place.level:
            case Level.APPLICATION:
                return place.name in applications
            case Level.INSTANCE:
                return place.name in mine or place.name == server
        return True

    values = {
        place: own if concerns(place) else {name: value for name, value in own.items() if name not in secrets}
        for place, own in tree.values.items()
    }
    return Tree(values={place: own for place, own in values.items() if own}, instances=tree.instances)
