"""Adding packages: who signed them, what is kept of them, what is refused; reading them in both ways."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from core.errors import CommandFailed, ConfigError, NotPermitted, SignatureInvalid, SourceUnreachable
from core.release import Release
from core.run import ENVIRONMENT
from patches import packages_platform, packages_repository
from patches.carried import by_kind
from patches.lifetime import Lifetime
from patches.packages import Packages
from patches.packages_keys import keyring
from patches.packages_rpm import BindingReader, CommandReader, database_of
from patches.packages_solve import State, choose
from patches.registry import Kind, Registry
from tests.patches.rpmlab import (
    Rpms,
    carry,
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

MR96 = Release.parse("MR96-1")
DIST_PACKAGES = Path("/usr/lib/python3/dist-packages")


def names(packages: Packages) -> list[str]:
    return [package.name for package in packages.all()]


# -- what is kept


def test_a_package_is_kept_with_who_when_why_and_by_whom_signed(
    packages: Packages, registry: Registry, rpms: Rpms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "anna")
    path = rpms.make("tool", "2.0", epoch=1, provides=["virtual = 3"], obsoletes=["old < 2"], scriptlets={"pre": ":"})
    [added] = packages.add([path], lifetime=Lifetime(until="MR100"), reason="ticket 4711")
    assert added.new and added.signer.endswith("acme <acme@example.org>")
    [package] = packages.all()
    assert package.name == "tool-1:2.0-1.noarch"
    assert package.header.scriptlets == ("prein",)
    assert package.header.obsoletes == ("old < 2",)
    assert "virtual = 3" in package.header.provides
    entry = package.entry
    assert (entry.added_by, entry.reason, entry.lifetime.until) == ("anna", "ticket 4711", "MR100")
    assert registry.blob(entry).read_bytes() == path.read_bytes()


def test_a_directory_is_added_whole_and_again_without_effect(packages: Packages, rpms: Rpms, tmp_path: Path) -> None:
    for name in ("one", "two"):
        path = rpms.make(name)
        (tmp_path / f"{name} [x]*.rpm").write_bytes(path.read_bytes())  # rpm itself would see a pattern there
    assert [each.new for each in packages.add([tmp_path])] == [True, True]
    assert [each.new for each in packages.add([tmp_path])] == [False, False]
    assert names(packages) == ["one-1-1.noarch", "two-1-1.noarch"]


def test_a_file_that_is_named_twice_is_added_once(packages: Packages, rpms: Rpms, tmp_path: Path) -> None:
    (tmp_path / "one.rpm").write_bytes(rpms.make("one").read_bytes())
    assert [each.new for each in packages.add([tmp_path, tmp_path / "one.rpm"])] == [True, False]
    assert names(packages) == ["one-1-1.noarch"]


def test_what_is_left_out_is_meant_by_the_names_that_every_command_takes(
    packages: Packages, registry: Registry, rpms: Rpms
) -> None:
    for name, version in (("probe", "2.1"), ("probe", "2.2"), ("tool", "1"), ("tool-extras", "1")):
        carry(packages, rpms.make(name, version))
    for word in ("probe", "tool", "tool-1-1", "tool-extras-1-1.noarch"):
        assert by_kind(registry, [word])[Kind.PACKAGE] == [word]
        left = {each.package.name for each in choose(packages.all(), MR96, [], [word]) if each.state is State.LEFT_OUT}
        assert left == {package.name for package in packages.named(word)}
    with pytest.raises(ConfigError, match="nothing that is carried is called tool-e"):
        by_kind(registry, ["tool-e"])  # a beginning would be taken for a name, and then leave nothing out


def test_the_same_version_with_other_bytes_needs_replace(packages: Packages, rpms: Rpms) -> None:
    carry(packages, rpms.make("tool", files={"/opt/a": "1"}))
    other = rpms.make("tool", files={"/opt/a": "2"})
    with pytest.raises(ConfigError, match="carried already, with other content"):
        packages.add([other])
    [added] = packages.add([other], replace=True)
    assert added.new
    assert len(names(packages)) == 1


def test_versions_with_lifetimes_of_their_own_lie_side_by_side(packages: Packages, rpms: Rpms) -> None:
    carry(packages, rpms.make("tool", "1"), until="MR97")
    carry(packages, rpms.make("tool", "2"), since="MR97")
    carry(packages, rpms.make("tool", "3"), since="MR98")

    def became(release: str) -> list[State]:
        return [choice.state for choice in choose(packages.all(), Release.parse(release), [])]

    assert became("MR96-9") == [State.CARRIED, State.EXPIRED, State.EXPIRED]
    assert became("MR97-0") == [State.EXPIRED, State.CARRIED, State.EXPIRED]
    assert became("MR98-1") == [State.EXPIRED, State.SUPERSEDED, State.CARRIED]


def test_one_carried_package_obsoletes_another(packages: Packages, rpms: Rpms) -> None:
    carry(packages, rpms.make("old", "1"), rpms.make("new", obsoletes=["old < 2"]))
    first, second = choose(packages.all(), MR96, [])
    assert (first.state, second.state) == (State.SUPERSEDED, State.CARRIED)
    assert "new-1-1.noarch" in first.why


def test_packages_are_meant_by_name_or_version(packages: Packages, rpms: Rpms) -> None:
    carry(packages, rpms.make("tool", "1"), rpms.make("tool", "2"), rpms.make("tool-extra"))
    assert [each.name for each in packages.expire("tool-2-1", "MR99")] == ["tool-2-1.noarch"]
    assert [each.name for each in packages.remove("tool")] == ["tool-1-1.noarch", "tool-2-1.noarch"]
    assert names(packages) == ["tool-extra-1-1.noarch"]
    with pytest.raises(ConfigError, match="no carried package is called tool"):
        packages.remove("tool")


# -- what is refused


def test_unsigned_wrongly_signed_and_damaged_packages_are_refused_all_at_once(
    packages: Packages, rpms: Rpms, tmp_path: Path
) -> None:
    good = rpms.make("good")
    unsigned, foreign = rpms.make("unsigned", signed=""), rpms.make("foreign", signed="mallory")
    raw = bytearray(good.read_bytes())
    raw[-3] ^= 1
    damaged = tmp_path / "damaged.rpm"
    damaged.write_bytes(raw)
    with pytest.raises(SignatureInvalid) as caught:
        packages.add([good, unsigned, foreign, damaged])
    assert caught.value.message == "3 packages are not signed by a trusted key"
    said = dict(line.split(": ", 1) for line in caught.value.what)
    assert said["unsigned-1-1.noarch.rpm"] == "not signed"
    assert "not among the trusted ones" in said["foreign-1-1.noarch.rpm"]
    assert "damaged" in said["damaged.rpm"]
    assert names(packages) == []


@pytest.mark.parametrize("cut", [0, 3, 96, 500, 3000])
def test_a_package_that_is_cut_short_is_refused(packages: Packages, rpms: Rpms, tmp_path: Path, cut: int) -> None:
    (tmp_path / "cut.rpm").write_bytes(rpms.make("tool").read_bytes()[:cut])
    with pytest.raises((SignatureInvalid, ConfigError)):
        packages.add([tmp_path / "cut.rpm"])
    assert names(packages) == []


def test_a_list_of_urls_is_no_package(packages: Packages, tmp_path: Path) -> None:
    (tmp_path / "list.rpm").write_text("http://127.0.0.1:9/evil.rpm\n")
    with pytest.raises(ConfigError, match="is not an RPM package"):
        packages.add([tmp_path / "list.rpm"])
    with pytest.raises(CommandFailed, match="is not an RPM package"):
        CommandReader().headers([tmp_path / "list.rpm"])


def test_without_keys_nothing_can_be_added(registry: Registry, rpms: Rpms, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no key to check packages with"):
        Packages(registry, tmp_path / "none").add([rpms.make("tool")])
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/x.asc").write_text("no key")
    with pytest.raises(ConfigError, match=r"x\.asc is no key"):
        Packages(registry, tmp_path / "keys").add([rpms.make("tool")])


def test_the_machines_own_keys_do_not_count(rpms: Rpms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(ENVIRONMENT, "HOME", str(tmp_path))
    rpms.export("mallory", tmp_path / "mallory.asc")
    shell("rpmkeys", "--import", tmp_path / "mallory.asc")
    foreign = rpms.make("foreign", signed="mallory")
    with keyring(rpms.keys) as ring:
        assert [each.good for each in ring.check([foreign, rpms.make("tool")])] == [False, True]


# -- reading


def binding() -> Any:
    """The system's binding, as it comes with python3-rpm; skips where it is not there or for another Python."""
    sys.path.append(str(DIST_PACKAGES))
    try:
        return import_module("rpm")
    except ImportError as error:
        pytest.skip(f"no rpm binding: {error}")
    finally:
        sys.path.remove(str(DIST_PACKAGES))
        for name in [name for name in sys.modules if name.split(".")[0] in ("rpm", "_rpm")]:
            del sys.modules[name]


@pytest.mark.root
def test_both_ways_of_reading_give_the_same(rpms: Rpms, root: Path) -> None:
    rich = rpms.make(
        "rich",
        "1.2~rc1",
        epoch=7,
        requires=["/bin/sh", "a >= 1"],
        provides=["p = 3-1"],
        conflicts=["c < 2"],
        obsoletes=["o"],
        files={"/opt/my file": "x", "/opt/b": ""},
        config={"/etc/rich.conf": "y"},
        scriptlets={"pre": ":", "post -p <lua>": "print()", "postun": ":"},
    )
    release_has(root, rpms.make("theirs", files={"/opt/t": "1"}, provides=["q"]))
    paths = [rich, rpms.make("poor", signed="")]
    database = database_of(root)
    assert database is not None
    command, bound = CommandReader(), BindingReader(binding())
    assert command.headers(paths) == bound.headers(paths)
    assert command.installed(database) == bound.installed(database)
    [header, poor] = command.headers(paths)
    assert header.nevra == "rich-7:1.2~rc1-1.noarch"
    assert header.scriptlets == ("prein", "postin", "postun")
    assert set(header.files) - set(header.overwriting) == {"/etc/rich.conf"}
    assert "EdDSA" in header.signature and poor.signature == ""
    assert {"/bin/sh", "a >= 1"} <= set(header.requires)


# -- releases that are not made of RPM packages


@pytest.mark.root
def test_the_platform_package_provides_programs_and_libraries(plain_root: Path, root: Path) -> None:
    provided = packages_platform.provides_of(plain_root)
    assert {"/bin/sh", "/usr/bin/sh", "libc.so.6()(64bit)", "libc.so.6(GLIBC_2.34)(64bit)"} <= set(provided)
    database = database_of(root)
    assert database is not None and database.path == "/var/lib/rpm"
    [platform] = CommandReader().installed(database)
    assert set(provided) <= {each.split(" ")[0] for each in platform.provides}


@pytest.mark.root
def test_a_database_behind_a_symlink_is_looked_for_inside_the_root(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (root / "var/lib/rpm").rename(outside)
    (root / "var/lib/rpm").symlink_to(outside)
    assert database_of(root) is None
    (root / "usr/lib/sysimage").mkdir()
    outside.rename(root / "usr/lib/sysimage/rpm")
    (root / "var/lib/rpm").unlink()
    (root / "var/lib/rpm").symlink_to("../../../../../../usr/lib/sysimage/rpm")
    found = database_of(root)
    assert found is not None and found.path == "/usr/lib/sysimage/rpm"


# -- repositories


@pytest.fixture
def repository(rpms: Rpms, tmp_path: Path) -> Path:
    place = tmp_path / "repository"
    place.mkdir()
    for path in (rpms.make("tool", "1.9"), rpms.make("tool", "1.10"), rpms.make("other", epoch=1)):
        (place / path.name).write_bytes(path.read_bytes())
    shell("createrepo_c", "--quiet", place)
    return place


def test_named_packages_are_taken_in_their_newest_version(repository: Path, packages: Packages, tmp_path: Path) -> None:
    taken = packages_repository.take(str(repository), ["tool", "other"], tmp_path)
    assert [path.name for path in taken] == ["tool-1.10-1.noarch.rpm", "other-1-1.noarch.rpm"]
    packages.add(taken)
    assert names(packages) == ["tool-1.10-1.noarch", "other-1:1-1.noarch"]
    [old] = packages_repository.take(repository.as_uri(), ["tool-1.9-1"], tmp_path)
    assert old.name == "tool-1.9-1.noarch.rpm"
    with pytest.raises(ConfigError, match="no package tol"):
        packages_repository.take(str(repository), ["tol"], tmp_path)


def test_a_repository_that_is_none_or_lies_is_an_error(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachable):
        packages_repository.offers(str(tmp_path / "nowhere"))
    (repository / "tool-1.10-1.noarch.rpm").write_bytes(b"other")
    with pytest.raises(SourceUnreachable, match="is not what the repository's index says"):
        packages_repository.take(str(repository), ["tool"], tmp_path)
    index = repository / "repodata/repomd.xml"
    index.write_text(index.read_text().replace('location href="repodata/', 'location href="../repodata/'))
    with pytest.raises(SourceUnreachable, match="leads out of it"):
        packages_repository.offers(str(repository))
    index.write_text("<broken")
    with pytest.raises(SourceUnreachable, match="cannot be read"):
        packages_repository.offers(str(repository))


@pytest.mark.root
def test_only_root_tries_and_installs(
    packages: Packages, rpms: Rpms, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry(packages, rpms.make("tool"))
    choices = packages.decide(MR96, root)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotPermitted, match="only root can"):
        packages.examine(choices, root)
