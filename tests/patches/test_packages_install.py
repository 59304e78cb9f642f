"""Carried packages meet a root: what is found before anything is changed, and what installing does."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from core import faults
from core.errors import ModificationConflict, NotReady, SignatureInvalid
from core.release import Release
from core.report import Kind
from patches import packages as module
from patches.packages import Packages
from patches.packages_rpm import database_of, reader
from patches.packages_solve import Choice, State
from tests.patches.rpmlab import (
    Rpms,
    carry,
    listening,
    packages,
    plain_root,
    prepared_root,
    registry,
    release_has,
    root,
    rpms,
    shell,
)

__all__ = ["packages", "plain_root", "prepared_root", "registry", "root", "rpms"]
pytestmark = pytest.mark.root

MR96 = Release.parse("MR96-1")


def decide(packages: Packages, root: Path, *without: str) -> list[Choice]:
    return packages.decide(MR96, root, without)


def conflict(packages: Packages, root: Path, *without: str) -> str:
    """What `examine` says against installing, as text; the root is the same before and after."""
    before = tree(root)
    with pytest.raises(ModificationConflict) as caught:
        packages.examine(decide(packages, root, *without), root)
    assert tree(root) == before
    assert caught.value.state == "nothing was changed"
    return "\n".join([caught.value.message, *caught.value.what, *caught.value.next])


def install(packages: Packages, root: Path) -> str:
    choices = decide(packages, root)
    packages.examine(choices, root)
    return packages.install(choices, root, listening()[0])


def tree(root: Path) -> list[str]:
    """Every path but those of the database, which sqlite touches on reading."""
    return sorted(str(path) for path in root.rglob("*") if "lib/rpm" not in str(path))


def installed(root: Path) -> set[str]:
    database = database_of(root)
    assert database is not None
    return {each.nevra for each in reader().installed(database)} - {"platform-1-1.noarch"}


# -- what can be


def test_packages_with_dependencies_go_in_together_in_one_transaction(
    packages: Packages, rpms: Rpms, root: Path
) -> None:
    tool = rpms.make("tool", requires=["acme-base >= 2", "/bin/sh"], files={"/opt/tool": "tool"})
    base = rpms.make("acme-base", "2.1", provides=["virtual"], epoch=1, requires=["/usr/bin/sh"])
    carry(packages, tool, base)
    choices = decide(packages, root)
    assert [str(choice.decision) for choice in choices] == ["carried to every release"] * 2
    assert not packages.is_installed(choices, root)
    packages.examine(choices, root)
    assert installed(root) == set()
    report, events = listening()
    assert packages.install(choices, root, report) == "2 installed"
    assert installed(root) == {"tool-1-1.noarch", "acme-base-1:2.1-1.noarch"}
    assert (root / "opt/tool").read_text() == "tool"
    progress = [event.data for event in events if event.kind is Kind.PROGRESS]
    assert progress[-1]["done"] == progress[-1]["total"] == 2
    assert packages.is_installed(choices, root)
    packages.remove("tool")
    assert packages.is_installed(packages.recall([choice.package.name for choice in choices]), root)
    assert packages.install(choices, root, report) == "2 installed", "again changes nothing"
    assert {state for _, state, _ in module.outcomes(choices, root)} == {"installed"}


def test_dependencies_in_a_circle_are_solved_inside_the_set(packages: Packages, rpms: Rpms, root: Path) -> None:
    carry(packages, rpms.make("ring-a", requires=["ring-b"]), rpms.make("ring-b", requires=["ring-a"]))
    assert install(packages, root) == "2 installed"
    assert installed(root) == {"ring-a-1-1.noarch", "ring-b-1-1.noarch"}


def test_shared_libraries_of_a_debian_root_are_dependencies_as_anywhere(
    packages: Packages, rpms: Rpms, root: Path
) -> None:
    carry(packages, rpms.make("linked", requires=["libc.so.6()(64bit)", "libc.so.6(GLIBC_2.34)(64bit)"]))
    assert install(packages, root) == "1 installed"


def test_nothing_carried_needs_no_database(packages: Packages, plain_root: Path) -> None:
    choices = packages.decide(MR96, plain_root)
    packages.examine(choices, plain_root)
    assert packages.install(choices, plain_root, listening()[0]) == "0 installed"


def test_an_older_version_of_the_release_is_replaced_and_the_plan_says_so(
    packages: Packages, rpms: Rpms, root: Path
) -> None:
    release_has(root, rpms.make("sngrep", "1.6", files={"/opt/sngrep": "old"}))
    carry(packages, rpms.make("sngrep", "1.7", files={"/opt/sngrep": "new"}))
    [choice] = decide(packages, root)
    assert choice.details == ("takes the place of sngrep-1.6-1.noarch of the release",)
    install(packages, root)
    assert installed(root) == {"sngrep-1.7-1.noarch"}
    assert (root / "opt/sngrep").read_text() == "new"


# -- what is dropped, with a line


@pytest.mark.parametrize(
    ("theirs", "word"), [({"version": "1.7"}, "the same"), ({"version": "1.10"}, "newer"), ({"epoch": 1}, "newer")]
)
def test_what_the_release_has_in_the_same_or_a_newer_version_is_superseded(
    packages: Packages, rpms: Rpms, root: Path, theirs: dict[str, str], word: str
) -> None:
    release_has(root, rpms.make("sngrep", **theirs))  # type: ignore[arg-type]
    carry(packages, rpms.make("sngrep", "1.7"))
    [choice] = decide(packages, root)
    assert choice.state is State.SUPERSEDED
    assert not choice.decision.carried
    assert word in choice.why and "sngrep-" in choice.why
    packages.examine([choice], root)
    assert packages.install([choice], root, listening()[0]) == "0 installed"


def test_what_a_package_of_the_release_obsoletes_is_superseded(packages: Packages, rpms: Rpms, root: Path) -> None:
    release_has(root, rpms.make("newname", obsoletes=["oldname < 2"]))
    carry(packages, rpms.make("oldname", "1.5"))
    [choice] = decide(packages, root)
    assert (choice.state, choice.why) == (
        State.SUPERSEDED,
        "superseded: newname-1-1.noarch of the release obsoletes it",
    )


def test_a_read_only_image_can_be_asked_and_tried(packages: Packages, rpms: Rpms, root: Path, tmp_path: Path) -> None:
    release_has(root, rpms.make("sngrep", "1.7"))
    for left in (root / "var/lib/rpm").glob("*-*"):  # what sqlite keeps beside a database that is open for writing
        left.unlink()
    image, place = tmp_path / "image", tmp_path / "mounted, here:there"
    place.mkdir()
    shell("mkfs.ext4", "-q", "-d", root, image, "16M")
    shell("mount", "-o", "ro,loop", image, place)
    try:
        carry(packages, rpms.make("sngrep", "1.7"), rpms.make("tool"), rpms.make("big", files={"/opt/b": "x" * 10**7}))
        choices = decide(packages, place)
        assert [choice.state for choice in choices] == [State.SUPERSEDED, State.CARRIED, State.CARRIED]
        packages.examine(choices, place)
        assert module.size_of(choices) == 10**7
        carry(packages, rpms.make("broken", requires=["nothing"]))
        assert "needs nothing" in conflict(packages, place)
    finally:
        shell("umount", place)


# -- what blocks


def test_a_missing_dependency_is_named_with_the_ways_out(packages: Packages, rpms: Rpms, root: Path) -> None:
    release_has(root, rpms.make("base", "1.4"))
    carry(packages, rpms.make("fine"), rpms.make("broken", requires=["base >= 2", "libnot.so.1()(64bit)"]))
    said = conflict(packages, root)
    assert "package broken-1-1.noarch does not fit the release" in said
    assert "broken-1-1.noarch needs base >= 2, which nothing provides; the release has base = 1.4-1" in said
    assert "needs libnot.so.1()(64bit), which nothing provides" in said
    assert "--without broken" in said and "--without fine" not in said and "updater rpm expire broken" in said
    left = decide(packages, root, "broken")
    assert [choice.state for choice in left] == [State.CARRIED, State.LEFT_OUT]
    packages.examine(left, root)


def test_conflicts_name_both_sides(packages: Packages, rpms: Rpms, root: Path) -> None:
    release_has(root, rpms.make("theirs", "3"), rpms.make("strict", conflicts=["rude"]))
    carry(packages, rpms.make("picky", conflicts=["theirs < 5"]), rpms.make("rude"))
    said = conflict(packages, root)
    assert "picky-1-1.noarch does not go together with theirs < 5 (theirs-3-1.noarch of the release)" in said
    assert "strict-1-1.noarch of the release does not go together with rude (rude-1-1.noarch)" in said
    assert "2 carried packages do not fit the release" in said


def test_files_that_are_in_two_packages_are_named(packages: Packages, rpms: Rpms, root: Path) -> None:
    release_has(root, rpms.make("theirs", files={"/opt/theirs": "1"}))
    carry(packages, rpms.make("one", files={"/opt/theirs": "2", "/opt/both": "1"}))
    carry(packages, rpms.make("two", files={"/opt/both": "2"}))
    said = conflict(packages, root)
    assert "one-1-1.noarch has the file /opt/theirs, which is also in theirs-1-1.noarch of the release" in said
    assert "/opt/both" in said and "which is carried too" in said


def test_a_file_that_the_release_has_outside_of_its_packages_is_not_overwritten(
    packages: Packages, rpms: Rpms, root: Path
) -> None:
    (root / "usr/bin/vendor").write_text("theirs")
    (root / "etc/tool.conf").write_text("theirs")
    carry(packages, rpms.make("tool", files={"/usr/bin/vendor": "mine"}, config={"/etc/tool.conf": "mine"}))
    said = conflict(packages, root)
    assert "tool-1-1.noarch would overwrite /usr/bin/vendor, which the release has outside of its packages" in said
    assert "tool.conf" not in said, "rpm saves configuration files by itself"


def test_a_package_that_would_remove_one_of_the_release_blocks(packages: Packages, rpms: Rpms, root: Path) -> None:
    release_has(root, rpms.make("theirs", "3"))
    carry(packages, rpms.make("greedy", obsoletes=["theirs"]), rpms.make("friend", requires=["greedy"]))
    assert decide(packages, root)[0].state is State.CONFLICTING
    said = conflict(packages, root)
    assert "package greedy-1-1.noarch does not fit" in said
    assert "obsoletes theirs-3-1.noarch of the release, which would be removed" in said


def test_an_update_that_breaks_a_package_of_the_release_blocks(packages: Packages, rpms: Rpms, root: Path) -> None:
    release_has(root, rpms.make("lib", "1"), rpms.make("user", requires=["lib = 1"]))
    carry(packages, rpms.make("lib", "2"))
    said = conflict(packages, root)
    assert "user-1-1.noarch of the release needs lib = 1, which would go" in said
    assert "--without lib " in said


def test_a_release_without_a_database_says_what_is_missing(packages: Packages, rpms: Rpms, plain_root: Path) -> None:
    carry(packages, rpms.make("tool"))
    said = conflict(packages, plain_root)
    assert "has no RPM database" in said and "tool-1-1.noarch" in said and "updater rpm platform" in said


def test_a_key_that_was_taken_away_no_longer_counts(registry: object, rpms: Rpms, root: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    rpms.export("mallory", keys / "mallory.asc")
    packages = Packages(registry, keys)  # type: ignore[arg-type]
    carry(packages, rpms.make("tool", signed="mallory"))
    (keys / "mallory.asc").unlink()
    rpms.export("acme", keys / "acme.asc")
    with pytest.raises(SignatureInvalid) as caught:
        packages.examine(decide(packages, root), root)
    assert "not among the trusted ones" in caught.value.what[0]


def test_a_damaged_copy_is_found(packages: Packages, rpms: Rpms, root: Path) -> None:
    carry(packages, rpms.make("tool"))
    [package] = packages.all()
    path = next(Path(packages._registry.blobs).iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(NotReady, match="tool-1-1"):
        packages.install([Choice(package=package, state=State.CARRIED, why="")], root, listening()[0])
    assert installed(root) == set()


@pytest.mark.parametrize("where", ["packages:transaction", "packages:installed"])
def test_a_transaction_that_was_cut_short_is_known_as_such(
    packages: Packages, rpms: Rpms, root: Path, where: str
) -> None:
    carry(packages, rpms.make("tool"))
    choices = decide(packages, root)

    def cut(name: str) -> None:
        if name == where:
            raise KeyboardInterrupt

    faults.arm(cut)
    try:
        with pytest.raises(KeyboardInterrupt):
            packages.install(choices, root, listening()[0])
    finally:
        faults.arm(None)
    assert not packages.is_installed(choices, root)
    with pytest.raises(NotReady, match="was cut short"):
        packages.install(choices, root, listening()[0])


# -- scriptlets


@pytest.mark.parametrize(
    ("section", "text", "told"),
    [
        ("pre", "echo to out; echo to err >&2; exit 3", "%pre of bad-1-1.noarch failed: exit status 3"),
        ("post", "echo to out; echo to err >&2; exit 4", "%post of bad-1-1.noarch failed: exit status 4"),
        ("post -p <lua>", "print('to out') print('to err') error('no')", "%post of bad-1-1.noarch failed: 1: no"),
        ("pretrans -p <lua>", "print('to out') print('to err') error('no')", "%pretrans of bad-1-1.noarch failed"),
        ("posttrans", "echo to out; echo to err >&2; kill -9 $$", "%posttrans of bad-1-1.noarch failed: signal 9"),
    ],
)
def test_a_failing_scriptlet_is_named_with_what_it_said(
    packages: Packages, rpms: Rpms, root: Path, section: str, text: str, told: str
) -> None:
    carry(packages, rpms.make("bad", requires=["good"], scriptlets={section: text}), rpms.make("good"))
    choices = decide(packages, root)
    packages.examine(choices, root)
    with pytest.raises(ModificationConflict) as caught:
        packages.install(choices, root, listening()[0])
    error = caught.value
    assert error.message == "installing bad-1-1.noarch failed"
    assert error.what[0].startswith(told), error.what
    if "lua" not in section:  # what those print, rpm holds back until its end
        assert "    | to out" in error.what and "    | to err" in error.what
    assert "written anew" in error.state
    assert "--without bad-1-1.noarch" in error.next[0]


def test_scriptlets_are_confined_to_the_root(packages: Packages, rpms: Rpms, root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        script = """
        read -r uptime rest </proc/uptime && echo proc >/tmp/seen
        echo gone >/dev/null && [ -c /dev/null ] && echo dev >>/tmp/seen
        [ "$$" -lt 100 ] && echo alone >>/tmp/seen
        while read -r name rest; do echo "$name" >>/tmp/interfaces; done </proc/net/dev
        echo 1 >/proc/sys/kernel/sysrq || echo readonly >>/tmp/seen
        [ -e /work ] || [ -e /root ] || echo root >>/tmp/seen
        """
        carry(packages, rpms.make("curious", scriptlets={"post": script}))
        install(packages, root)
    assert (root / "tmp/seen").read_text().split() == ["proc", "dev", "alone", "readonly", "root"]
    assert {name for name in (root / "tmp/interfaces").read_text().split() if name.endswith(":")} <= {"lo:", "sit0:"}
    assert [*(root / "proc").iterdir(), *(root / "dev").iterdir()] == [], "nothing stays mounted"


def test_a_root_whose_proc_leads_elsewhere_is_not_mounted_upon(packages: Packages, rpms: Rpms, root: Path) -> None:
    (root / "proc").rmdir()
    (root / "proc").symlink_to("/proc")
    carry(packages, rpms.make("quiet", scriptlets={"post": "[ -e /proc/uptime ] || echo none >/tmp/seen"}))
    install(packages, root)
    assert (root / "tmp/seen").exists()
