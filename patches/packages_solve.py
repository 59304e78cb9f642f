"""What becomes of each carried package in a release, and which rule it breaks, in words. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from core.release import Release
from patches.lifetime import Decision, decide_all
from patches.packages_rpm import Header
from patches.packages_transaction import Problem, Rule
from patches.packages_version import Evr, compare
from patches.registry import Entry

_DEPENDENCY = re.compile(r"(\S+)(?: ([<>=]+) (\S+))?")


class State(StrEnum):
    """Where a carried package stands."""

    CARRIED = "carried"
    INSTALLED = "installed"
    SUPERSEDED = "superseded"
    CONFLICTING = "conflicting"
    EXPIRED = "expired"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A carried package: its entry in the registry, and what it says of itself (without its files)."""

    entry: Entry
    header: Header

    @property
    def name(self) -> str:
        """name-[epoch:]version-release.architecture; its name in the registry too."""
        return self.header.nevra


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What becomes of a package in a release. Only `CARRIED` ones are installed; `CONFLICTING` ones block."""

    package: Package
    state: State
    why: str
    details: tuple[str, ...] = ()

    @property
    def decision(self) -> Decision:
        """In the form that plans show."""
        carried = self.state in (State.CARRIED, State.INSTALLED)
        return Decision(kind="package", name=self.package.name, carried=carried, why=self.why, details=self.details)


def known_as(package: Package, word: str) -> bool:
    """Whether the operator may mean this package: by name, name-version-release, or all of it."""
    header = package.header
    return word in (header.name, header.nevra, f"{header.name}-{header.evr}", f"{header.name}.{header.architecture}")


def choose(
    packages: Sequence[Package], target: Release, installed: Sequence[Header], without: Collection[str] = ()
) -> list[Choice]:
    """The choice on each package, in their order, for a release whose own packages are `installed`."""
    lifetimes = decide_all("package", ((each.name, each.entry.lifetime) for each in packages), target)
    first = [_by_lifetime(package, decision, without) for package, decision in zip(packages, lifetimes, strict=True)]
    alive = [choice.package.header for choice in first if choice.state is State.CARRIED]
    return [_among(choice, alive, installed) if choice.state is State.CARRIED else choice for choice in first]


def _by_lifetime(package: Package, decision: Decision, without: Collection[str]) -> Choice:
    if any(known_as(package, word) for word in without):
        return Choice(package=package, state=State.LEFT_OUT, why="left out this once (--without)")
    state = State.CARRIED if decision.carried else State.EXPIRED
    return Choice(package=package, state=state, why=decision.why, details=decision.details)


def _among(choice: Choice, alive: Sequence[Header], installed: Sequence[Header]) -> Choice:
    """The choice, seen beside the other carried packages and those of the release."""
    header = choice.package.header

    def superseded(why: str) -> Choice:
        return replace(choice, state=State.SUPERSEDED, why=why)

    for other in alive:
        if _same(other, header) and compare(other.evr, header.evr) > 0:
            return superseded(f"superseded by {other.nevra}, which is carried too")
        if other.name != header.name and takes_over(other, header):
            return superseded(f"superseded by {other.nevra}, which is carried too and obsoletes it")
    for theirs in installed:
        if _same(theirs, header) and compare(theirs.evr, header.evr) >= 0:
            same = "the same" if compare(theirs.evr, header.evr) == 0 else "a newer one"
            return superseded(f"superseded: the release itself has {same}, {theirs.nevra}")
        if theirs.name != header.name and takes_over(theirs, header):
            return superseded(f"superseded: {theirs.nevra} of the release obsoletes it")
    taken = [theirs.nevra for theirs in installed if theirs.name != header.name and takes_over(header, theirs)]
    if taken:
        why = f"{header.nevra} obsoletes {', '.join(taken)} of the release, which would be removed"
        return replace(choice, state=State.CONFLICTING, why=why)
    older = [theirs.nevra for theirs in installed if _same(theirs, header)]
    return replace(choice, details=(*choice.details, *(f"takes the place of {each} of the release" for each in older)))


def _same(one: Header, other: Header) -> bool:
    """Whether rpm takes one for another version of the other (architectures may lie side by side)."""
    architectures = {one.architecture, other.architecture}
    return one.name == other.name and (len(architectures) == 1 or "noarch" in architectures)


def takes_over(one: Header, other: Header) -> bool:
    """Whether `one` obsoletes `other`."""
    return any(names(dependency, other) for dependency in one.obsoletes)


def names(dependency: str, header: Header) -> bool:
    """Whether ``name [op version]`` is true of the package itself (what it provides is not looked at)."""
    found = _DEPENDENCY.fullmatch(dependency)
    if found is None or found[1] != header.name:
        return False
    if found[2] is None:
        return True
    wanted = Evr.parse(found[3])
    own = header.evr if wanted.release else header.evr._replace(release="")
    order = compare(own, wanted)
    return ("=" in found[2] and order == 0) or ("<" in found[2] and order < 0) or (">" in found[2] and order > 0)


# -- problems, in words


def blamed(problem: Problem, packages: Sequence[Package], installed: Sequence[Header]) -> list[Package]:
    """The carried packages that a problem of the transaction comes from."""
    named = [package for package in packages if package.name in (problem.package, problem.other)]
    if named or not problem.of_root:
        return named
    if problem.rule is Rule.CONFLICTS:
        return [package for package in packages if _gives(package.header, problem.other)]
    replaced = [each for each in installed if _gives(each, problem.other)]
    return [package for package in packages if any(_same(each, package.header) for each in replaced)]


def _gives(header: Header, dependency: str) -> bool:
    wanted = dependency.split(" ")[0]
    return any(each.split(" ")[0] == wanted for each in header.provides) or wanted == header.name


def in_words(problem: Problem, packages: Sequence[Package], installed: Sequence[Header]) -> str:
    """The rule that is broken, as an operator understands it."""
    ours = {package.name for package in packages}
    match problem.rule:
        case Rule.REQUIRES if problem.of_root:
            return f"{problem.package} of the release needs {problem.other}, which would go"
        case Rule.REQUIRES:
            return (
                f"{problem.package} needs {problem.other}, which nothing provides{_nearest(problem.other, installed)}"
            )
        case Rule.CONFLICTS:
            of = " of the release" if problem.of_root else ""
            headers = [*(package.header for package in packages), *installed]
            met = [each.nevra for each in headers if _gives(each, problem.other) and each.nevra != problem.package]
            here = f" ({', '.join(met)}{'' if ours & set(met) else ' of the release'})" if met else ""
            return f"{problem.package}{of} does not go together with {problem.other}{here}"
        case Rule.FILE:
            of = "which is carried too" if problem.other in ours else "of the release"
            return f"{problem.package} has the file {problem.file}, which is also in {problem.other} {of}, and differs"
        case Rule.SPACE:
            return f"{problem.package} {problem.other}"
        case _:
            return problem.text


def _nearest(dependency: str, installed: Iterable[Header]) -> str:
    """What the release has of it, in another version."""
    wanted = dependency.split(" ")[0]
    found = [provided for each in installed for provided in each.provides if provided.split(" ")[0] == wanted]
    return f"; the release has {found[0]}" if found else ""
