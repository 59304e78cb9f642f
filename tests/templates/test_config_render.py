"""Rendering: what templates see, what hostile ones may not do, and putting files in place and back."""

from __future__ import annotations

import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core import faults
from core.errors import CommandFailed, ConfigError, ModificationConflict, UpdaterError, WrongState
from templates import manifest
from templates.history import History
from templates.manifest import Shipped
from templates.masking import Mask
from templates.place import Action, Outcome, place, undo
from templates.render import Limits, render
from templates.store import Author, Store
from templates.tree import GLOBAL, Instance, Tree
from templates.units import UnitResult
from tests.templates.configlab import NODE, at, is_root, put, rendered, root_with, sandbox, section, tree
from updater import configuring
from updater.node_toml import load_node

SECRET = "s3cret-value"
QUICK = Limits(seconds=0.3, seconds_all=2.0, output=1 << 20, memory=256 << 20)


def take_back(root: Path, data: Path) -> Outcome:
    """As `render --undo` does it, where no unit runs."""
    history = History(data)
    outcome = undo(root, history, Mask([]))
    history.undone(outcome.record)
    return outcome


def test_what_a_template_sees(tmp_path: Path) -> None:
    text = (
        "{{ app.port }} {{ node.name }} {{ instance.application }} {{ release }}"
        "{% for each in instances %} {{ each.name }}={{ each.app.port }}{% endfor %}"
        "{% for each in environments %} {{ each.name }}:{{ each.app.port }}{% endfor %}\n"
    )
    values = Tree(
        values={
            GLOBAL: {"app.port": 14},
            at("instance:n2"): {"app.port": 3},
            at("environment:acme"): {"app.port": 10},
        },
        instances={name: Instance(application="billing", server=name) for name in ("n1", "n2")},
    )
    made = rendered(section(tmp_path, {"a.j2": text}), values)["/etc/a"]
    assert made.content is not None
    body = made.content.decode()
    assert body.splitlines()[-1] == "14 n1 billing MR96-1 n1=14 n2=3 acme:10"
    assert body.startswith("# Written by updater from the template a.j2")
    assert made.used == ("app.port",)
    assert not made.sensitive


def test_the_header_does_not_change_with_the_configuration(tmp_path: Path) -> None:
    shipped = section(tmp_path, {"a.j2": "{{ app.name }}\n"})
    one, other = (rendered(shipped, tree(app_port=port))["/etc/a"].content for port in (1, 2))
    assert one == other


def test_a_file_for_each_instance_of_an_application(tmp_path: Path) -> None:
    files = (
        '[[files]]\ntemplate = "a.j2"\ntarget = "/etc/app/{instance}.conf"\napplication = "billing"\n'
        'restart = ["billing@{instance}.service"]\n'
        '[[files]]\ntemplate = "a.j2"\ntarget = "/etc/off"\nwhen = "not app.on"\n'
    )
    shipped = section(tmp_path, {"a.j2": "{{ app.port }}\n"}, files)
    values = Tree(
        values={at("instance:second"): {"app.port": 5}},
        instances={
            "n1": Instance(application="billing", server="n1"),
            "second": Instance(application="billing", server="n1"),
            "web": Instance(application="web", server="n1"),
            "n2": Instance(application="billing", server="n2"),
        },
    )
    made = rendered(shipped, values)
    assert set(made) == {"/etc/app/n1.conf", "/etc/app/second.conf", "/etc/off"}
    assert made["/etc/app/second.conf"].restart == ("billing@second.service",)
    assert made["/etc/off"].content is None
    unknown = rendered(shipped, Tree())  # a server that nobody has entered yet has the role of its node.toml
    assert "/etc/app/n1.conf" in unknown


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{ app.prot }}", "has no attribute 'prot'"),
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{% if %}", "line 1"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes too long"),
        (
            "{% for a in range(999) %}{% for b in range(9999) %}xxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
            "writes more than",
        ),
        ("{{ 'x' * 10000000000 }}", "memory"),
        ("{{ 'x' * 5000000 }}", "writes more than"),
        ("{% for a in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 7 ** (7 ** 10) }}", "takes too long"),
        ("{% include '/etc/passwd' %}", "/etc/passwd"),
        ("{% include '../../../../etc/passwd' %}", "etc/passwd"),
        ("{% import 'os' as os %}", "os"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ app._values }}", "unsafe"),
        ("{{ app.__init__.__globals__ }}", "unsafe"),
        ("{{ self.__init__.__globals__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ lipsum.__globals__ }}", "unsafe"),
        ("{{ '{0.__class__}'.format(app) }}", "unsafe"),
        ("{{ node.update({'name': 'x'}) }}", "unsafe"),
        ("{{ instances.append(1) }}", "unsafe"),
        ("{% set a = [] %}{% for i in range(9) %}{{ a.append(a) }}{% endfor %}", "unsafe"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{% include 'a.j2' %}", "recursion"),
        ("{{ open('/etc/passwd') }}", "'open' is undefined"),
        ("{{ [0][app.password] }}", "••••"),
        ("{{ app.password | int + nothing[app.password] }}", "nothing"),
    ],
)
def test_hostile_templates_are_stopped_and_named(tmp_path: Path, text: str, told: str) -> None:
    shipped = section(tmp_path, {"a.j2": text, "good.j2": "fine\n"})
    began = time.monotonic()
    with pytest.raises(ModificationConflict) as caught:
        rendered(shipped, tree(app_password=SECRET), QUICK)
    assert time.monotonic() - began < 10
    whole = "\n".join(caught.value.what)
    assert "a.j2" in whole
    assert "good.j2" not in whole
    assert told in whole
    assert SECRET not in whole


def test_the_kernel_ends_what_nothing_else_stops(tmp_path: Path) -> None:
    shipped = section(tmp_path, {"a.j2": "fine", "b.j2": "{{ 7 ** (7 ** 10) }}"})
    with pytest.raises(ModificationConflict) as caught:
        rendered(shipped, tree(), Limits(seconds=1000.0, seconds_all=3.0))
    assert caught.value.what == ("b.j2: overran its limits of time or memory and was ended",)


def test_all_faults_at_once(tmp_path: Path) -> None:
    shipped = section(tmp_path, {"a.j2": "{{ x }}", "b.j2": "\n\n{{ app.y }}", "c.j2": "{{ app.port }}"})
    with pytest.raises(ModificationConflict, match="2 templates") as caught:
        rendered(shipped, tree())
    assert caught.value.what[1].startswith("b.j2, line 3")


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ('target = "etc/x"', "absolute"),
        ('target = "/etc/../../x"', "without '..'"),
        ('target = "/etc/x"\nmode = "4755"', "without setuid"),
        ('target = "/etc/x"\nowner = "ro ot"', "no name"),
        ('target = "/etc/x"\nrestart = ["a b.service"]', "is no unit"),
        ('target = "/etc/{home}"', "{home} is not known"),
        ('target = "/etc/x"\nsurprise = 1', "unknown key"),
        ('target = "/etc/x"\nvalidate = {command = ["true"]}', "{file} among them"),
        ('target = "/etc/x"\nvalidate = {command = ["true", "{file}"], directories = ["/etc"]}', "below /run"),
        ('target = "/etc/x"\napplication = "a"', "needs {instance}"),
    ],
)
def test_bad_manifests(tmp_path: Path, file: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        section(tmp_path, {"a.j2": ""}, f'[[files]]\ntemplate = "a.j2"\n{file}\n')
    assert told in "\n".join(caught.value.what)


def test_what_comes_with_the_program_renders() -> None:
    shipped = manifest.load(manifest.builtin())
    values = {
        "resolver.servers": ["10.0.0.53"],
        "time.servers": ["10.0.0.9"],
        "sudo.administrators": ["%wheel"],
        "network.interface": "eth0",
        "database.host": "db",
        "database.password": SECRET,
        "sip.destinations": ["10.0.0.1:5060", "10.0.0.2:5060"],
        "sip.drained": ["10.0.0.2:5060"],
        "boot.cmdline": "quiet",
        "agent.configuration_host": "cfg",
    }
    made = {each.target: each for each in render(shipped, Tree(values={GLOBAL: values}), NODE)}
    assert all(each.content for each in made.values())
    assert b"\n1 sip:10.0.0.2:5060 4 0\n" in (made["/etc/kamailio/dispatcher.list"].content or b"")
    assert {each.target for each in made.values() if each.sensitive} == {"/etc/mysql/conf.d/50-updater.cnf"}
    assert made["/etc/hostname"].content == b"n1\n"


# -- in place


def test_written_once_and_given_back(tmp_path: Path) -> None:
    shipped = section(tmp_path / "s", {"a.j2": "port {{ app.port }}\n", "b.j2": "same\n"})
    root, data = tmp_path / "root", tmp_path / "data"
    (root / "etc").mkdir(parents=True)
    (root / "etc/a").write_text("what was there\n")
    (root / "etc/a").chmod(0o644)
    dry = put(shipped, tree(), root, data, dry_run=True)
    assert {each.action for each in dry.files} == {Action.WOULD_WRITE}
    assert not data.exists()
    assert "-what was there" in dry.files[0].diff
    first = put(shipped, tree(), root, data)
    assert {each.action for each in first.files} == {Action.WRITTEN}
    assert {each.action for each in put(shipped, tree(), root, data).files} == {Action.UNCHANGED}
    second = put(shipped, tree(app_port=23), root, data)
    assert [(each.target, each.action) for each in second.changed] == [("/etc/a", Action.WRITTEN)]
    assert stat.S_IMODE((root / "etc/a").stat().st_mode) == 0o600
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in data.iterdir())
    take_back(root, data)
    assert "port 22" in (root / "etc/a").read_text()
    take_back(root, data)
    assert (root / "etc/a").read_text() == "what was there\n"
    assert stat.S_IMODE((root / "etc/a").stat().st_mode) == 0o644
    assert not (root / "etc/b").exists()
    with pytest.raises(WrongState):
        take_back(root, data)


def test_units_of_changed_files_only(tmp_path: Path) -> None:
    files = "".join(
        f'[[files]]\ntemplate = "{name}.j2"\ntarget = "/etc/{name}"\nrestart = ["{unit}"]\nreload = ["both.service"]\n'
        for name, unit in (("a", "a.service"), ("b", "b.service"), ("c", "both.service"))
    )
    shipped = section(
        tmp_path / "s", {"a.j2": "{{ app.port }}", "b.j2": "{{ app.name }}", "c.j2": "{{ app.on }}"}, files
    )
    root = tmp_path / "root"
    root.mkdir()
    put(shipped, tree(), root, tmp_path / "data")
    only_a = put(shipped, tree(app_port=5), root, tmp_path / "data")
    assert (only_a.restart, only_a.reload) == (("a.service",), ("both.service",))
    with_c = put(shipped, tree(app_port=6, app_on=False), root, tmp_path / "data")
    assert (with_c.restart, with_c.reload) == (("a.service", "both.service"), ())
    assert put(shipped, tree(app_port=6, app_on=False), root, tmp_path / "data").restart == ()


def test_a_file_that_is_no_longer_wanted_goes_unless_it_was_changed_by_hand(tmp_path: Path) -> None:
    files = "".join(
        f'[[files]]\ntemplate = "a.j2"\ntarget = "/etc/{name}"\nwhen = "app.on"\n' for name in ("ours", "edited")
    )
    shipped = section(tmp_path / "s", {"a.j2": "x\n"}, files)
    root = tmp_path / "root"
    root.mkdir()
    put(shipped, tree(), root, tmp_path / "data")
    (root / "etc/edited").write_text("by hand\n")
    done = put(shipped, tree(app_on=False), root, tmp_path / "data")
    assert {each.target: each.action for each in done.files} == {"/etc/ours": "removed", "/etc/edited": "left"}
    assert (root / "etc/edited").read_text() == "by hand\n"
    take_back(root, tmp_path / "data")
    assert (root / "etc/ours").exists()


def test_an_edit_by_hand_is_told_and_saved(tmp_path: Path) -> None:
    shipped = section(tmp_path / "s", {"a.j2": "x\n"})
    root = tmp_path / "root"
    root.mkdir()
    put(shipped, tree(), root, tmp_path / "data")
    (root / "etc/a").write_text("by hand\n")
    done = put(shipped, tree(), root, tmp_path / "data")
    assert "was changed by hand" in done.files[0].notes[0]
    take_back(root, tmp_path / "data")
    assert (root / "etc/a").read_text() == "by hand\n"
    (root / "etc/a").write_text("once more\n")
    put(shipped, tree(), root, tmp_path / "data")
    (root / "etc/a").write_text("and again\n")
    assert take_back(root, tmp_path / "data").files[0].action is Action.LEFT
    assert (root / "etc/a").read_text() == "and again\n"


def test_nothing_leaves_the_root(tmp_path: Path) -> None:
    shipped = section(tmp_path / "s", {"a.j2": "x\n", "b.j2": "y\n"})
    outside, root = tmp_path / "outside", tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    outside.mkdir()
    (outside / "b").write_text("not ours\n")
    (root / "etc/b").symlink_to(outside / "b")
    done = put(shipped, tree(), root, tmp_path / "data")
    assert (outside / "b").read_text() == "not ours\n"
    assert "symbolic link" in done.files[1].notes[0]
    take_back(root, tmp_path / "data")
    assert (root / "etc/b").readlink() == outside / "b"
    for target in ("/etc", "../../outside", str(outside)):
        hostile = tmp_path / f"root-{len(target)}"
        hostile.mkdir()
        (hostile / "etc").symlink_to(target)
        if target == "/etc":
            with pytest.raises(UpdaterError, match="cannot be followed"):
                put(shipped, tree(), hostile, tmp_path / f"d{len(target)}")
        else:
            put(shipped, tree(), hostile, tmp_path / f"d{len(target)}")
    assert sorted(path.name for path in outside.iterdir()) == ["b"]


def test_a_directory_or_an_unknown_owner_in_the_way(tmp_path: Path) -> None:
    files = (
        '[[files]]\ntemplate = "a.j2"\ntarget = "/etc/a"\n'
        '[[files]]\ntemplate = "a.j2"\ntarget = "/etc/b"\nowner = "nobody-knows"\n'
        '[[files]]\ntemplate = "secret.j2"\ntarget = "/etc/c"\n'
    )
    shipped = section(tmp_path / "s", {"a.j2": "x\n", "secret.j2": "{{ app.password }}"}, files)
    (tmp_path / "root/etc/a").mkdir(parents=True)
    with pytest.raises(ModificationConflict) as caught:
        put(shipped, tree(app_password=SECRET), tmp_path / "root", tmp_path / "data")
    assert caught.value.what == (
        "/etc/a: there is a directory in its place",
        "/etc/b: there is no user nobody-knows in that root",
        "/etc/c: holds a secret, and its mode 0644 lets everybody read it",
    )
    assert list((tmp_path / "root/etc").iterdir()) == [tmp_path / "root/etc/a"]


def test_secrets_are_in_no_diff(tmp_path: Path) -> None:
    shipped = section(tmp_path / "s", {"a.j2": "user x\npassword {{ app.password | json }}\n"})
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/a").write_text("password older-secret\n")
    (root / "etc/a").chmod(0o600)
    first = put(shipped, tree(app_password=SECRET), root, tmp_path / "data")
    second = put(shipped, tree(app_password="other-s3cret"), root, tmp_path / "data")
    back = take_back(root, tmp_path / "data")
    told = "".join(each.diff for outcome in (first, back) for each in outcome.files)
    assert "••••" in told
    for secret in (SECRET, "older-secret", "other-s3cret"):
        assert secret not in told
    assert SECRET not in "".join(each.diff for each in second.files)


def test_taking_back_names_the_units_until_they_have_taken_notice(tmp_path: Path) -> None:
    shipped = section(
        tmp_path / "s",
        {"a.j2": "{{ app.port }}\n"},
        files='[[files]]\ntemplate = "a.j2"\ntarget = "/etc/a"\nrestart = ["a.service"]\n',
    )
    root, history = tmp_path / "root", History(tmp_path / "data")
    (root / "etc").mkdir(parents=True)
    put(shipped, tree(app_port=1), root, tmp_path / "data")
    put(shipped, tree(app_port=2), root, tmp_path / "data")
    for _ in range(2):  # the process died before it restarted anything
        assert undo(root, history, Mask([])).restart == ("a.service",)
        assert (root / "etc/a").read_text().endswith("\n1\n")
    assert take_back(root, tmp_path / "data").restart == ("a.service",)
    assert undo(root, history, Mask([]), dry_run=True).files[0].action is Action.WOULD_REMOVE  # the one before


def test_dying_between_two_files_and_going_on_or_back(tmp_path: Path) -> None:
    shipped = section(tmp_path / "s", {f"f{n}.j2": "{{ app.port }}\n" for n in range(4)})
    root = tmp_path / "root"
    root.mkdir()
    put(shipped, tree(app_port=1), root, tmp_path / "data")

    class Cut(BaseException):
        pass

    def cut(name: str) -> None:
        if name == "render:file":
            raise Cut

    faults.arm(cut)
    try:
        with pytest.raises(Cut):
            put(shipped, tree(app_port=2), root, tmp_path / "data")
    finally:
        faults.arm(None)
    take_back(root, tmp_path / "data")
    assert all((root / f"etc/f{n}").read_text().endswith("\n1\n") for n in range(4))
    put(shipped, tree(app_port=2), root, tmp_path / "data")
    assert all((root / f"etc/f{n}").read_text().endswith("\n2\n") for n in range(4))


class Cut(BaseException):
    """The process dies here."""


def cut_at(point: str, shipped: Shipped, values: Tree, root: Path, data: Path) -> None:
    """Render, and die at the point."""

    def cut(name: str) -> None:
        if name == point:
            raise Cut

    faults.arm(cut)
    try:
        with pytest.raises(Cut):
            put(shipped, values, root, data)
    finally:
        faults.arm(None)


def test_a_rendering_that_was_cut_short_is_taken_up(tmp_path: Path) -> None:
    files = (
        '[[files]]\ntemplate = "a.j2"\ntarget = "/etc/gone"\nwhen = "app.on"\n'
        '[[files]]\ntemplate = "a.j2"\ntarget = "/etc/systemd/system/a.service"\nrestart = ["a.service"]\n'
        '[[files]]\ntemplate = "b.j2"\ntarget = "/etc/b"\nreload = ["b.service"]\n'
    )
    shipped = section(tmp_path / "s", {"a.j2": "{{ app.port }}\n", "b.j2": "{{ app.name }}\n"}, files)
    root, data = tmp_path / "root", tmp_path / "data"
    (root / "etc").mkdir(parents=True)
    (root / "etc/b").write_text("the release's\n")
    put(shipped, tree(), root, data)
    cut_at("render:recorded", shipped, tree(app_port=2, app_on=False), root, data)
    # the files are as they were: that is known, and the next one may want others yet
    cut_at("render:recorded", shipped, tree(app_port=3, app_on=False, app_name="y"), root, data)
    done = put(shipped, tree(app_port=3, app_on=False, app_name="y"), root, data)
    assert not (root / "etc/gone").exists()
    assert [note for each in done.files for note in each.notes] == []
    assert (done.restart, done.reload, done.units_changed) == (("a.service",), ("b.service",), True)
    assert put(shipped, tree(app_port=3, app_on=False, app_name="y"), root, data).restart == ()


def test_units_that_were_not_told_are_told_by_the_next_rendering(tmp_path: Path) -> None:
    files = '[[files]]\ntemplate = "a.j2"\ntarget = "/etc/a"\nrestart = ["a.service"]\n'
    shipped = section(tmp_path / "s", {"a.j2": "{{ app.port }}\n"}, files)
    root, data = tmp_path / "root", History(tmp_path / "data")
    root.mkdir()
    place(render(shipped, tree(), NODE), root, data, Mask([]))  # and nobody came to restart anything
    again = place(render(shipped, tree(), NODE), root, data, Mask([]))
    assert again.changed == () and again.restart == ("a.service",)
    data.finish()
    assert place(render(shipped, tree(), NODE), root, data, Mask([])).restart == ()


def test_units_are_told_again_where_telling_them_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []

    def act(outcome: Outcome) -> list[UnitResult]:
        told.append(outcome.reload)
        if len(told) == 1:
            raise CommandFailed("systemctl daemon-reload failed")
        return [UnitResult(unit="ssh.service", verb="reload", fault="timed out" if len(told) == 2 else "")]

    monkeypatch.setattr(configuring, "act", act)
    config = load_node(sandbox(tmp_path))
    where = replace(configuring.running_place(config), running=True)
    with Store.open(configuring.store_path(config)) as store:
        store.apply(store.clone(None, Author(who="me")).version, Author(who="me"))
        with pytest.raises(CommandFailed):
            configuring.render_into(config, where, store, release="MR95-1")
        assert configuring.render_into(config, where, store, release="MR95-1").faults
        for _ in range(2):
            assert not configuring.render_into(config, where, store, release="MR95-1").faults
    assert told[0] == told[1] == told[2] != () and told[3] == ()


def test_a_file_of_the_release_that_was_not_replaced_yet_is_not_taken_for_ours(tmp_path: Path) -> None:
    files = '[[files]]\ntemplate = "a.j2"\ntarget = "/etc/a"\nwhen = "app.on"\n'
    shipped = section(tmp_path / "s", {"a.j2": "x\n"}, files)
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/a").write_text("the release's\n")
    cut_at("render:recorded", shipped, tree(), root, tmp_path / "data")
    assert put(shipped, tree(), root, tmp_path / "data", dry_run=True).files[0].notes == ()
    assert put(shipped, tree(app_on=False), root, tmp_path / "data").files[0].action is Action.LEFT
    assert (root / "etc/a").read_text() == "the release's\n"


# -- real validators


@pytest.mark.root
@pytest.mark.skipif(not is_root(), reason="needs root: mounts and chroot")
def test_real_validators_say_no_before_anything_is_written(tmp_path: Path) -> None:
    files = (
        '[[files]]\ntemplate = "sudoers.j2"\ntarget = "/etc/sudoers.d/50-x"\nmode = "0440"\n'
        '[files.validate]\ncommand = ["visudo", "-c", "-f", "{file}"]\n'
        '[[files]]\ntemplate = "sshd.j2"\ntarget = "/etc/ssh/sshd_config.d/50-x.conf"\nmode = "0600"\n'
        '[files.validate]\ncommand = ["sshd", "-t", "-f", "{file}"]\ndirectories = ["/run/sshd"]\n'
        'needs = ["/etc/ssh/ssh_host_*_key"]\n'
        '[[files]]\ntemplate = "other.j2"\ntarget = "/etc/other"\n'
        '[files.validate]\ncommand = ["no-such-tool", "{file}"]\n'
    )
    texts = {
        "sudoers.j2": "{{ app.name }} ALL=(ALL) ALL\n",
        "sshd.j2": "Port {{ app.port }}\n{{ 'Nonsense yes' if app.name == 'Nonsense' else '' }}\n",
        "other.j2": "x\n",
    }
    shipped = section(tmp_path / "s", texts, files)
    with root_with(tmp_path, "visudo", "sshd") as root:
        first = put(shipped, tree(app_name="admin"), root, tmp_path / "data")
        notes = {each.target: each.notes for each in first.files}
        assert notes["/etc/sudoers.d/50-x"] == ()
        assert notes["/etc/ssh/sshd_config.d/50-x.conf"] == ("not validated: sshd needs /etc/ssh/ssh_host_*_key",)
        assert notes["/etc/other"] == ("not validated: no-such-tool is not installed",)
        (root / "etc/ssh").mkdir(exist_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "etc/ssh/ssh_host_ed25519_key")],
            check=True,
        )
        before = (root / "etc/sudoers.d/50-x").read_text()
        with pytest.raises(ModificationConflict) as caught:
            put(shipped, tree(app_name="not a ( sudoers line"), root, tmp_path / "data")
        assert "/etc/sudoers.d/50-x" in caught.value.what[0]
        assert "syntax error" in caught.value.what[0]
        with pytest.raises(ModificationConflict) as caught:
            put(shipped, tree(app_name="Nonsense"), root, tmp_path / "data", dry_run=True)
        assert "Bad configuration option: Nonsense" in caught.value.what[0]
        assert (root / "etc/sudoers.d/50-x").read_text() == before
        second = put(shipped, tree(app_name="admin", app_port=2222), root, tmp_path / "data")
        assert [each.notes for each in second.changed] == [()]
        assert list((root / "run").iterdir()) == []
