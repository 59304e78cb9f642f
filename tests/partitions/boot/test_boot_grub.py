"""GRUB's files: the block against grub-editenv, the script against grub-script-check, and doctor's faults."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BootEnvironment
from core.image import BootFiles
from partitions.boot import grub_environment
from partitions.boot.contract import BootLayout, SlotPlace
from partitions.boot.filesystem import mount_faults, mount_of
from partitions.boot.grub import GrubBackend
from partitions.boot.grub_config import SLOT_FILE_SIZE, TARGETS, mkimage_arguments, render_config, render_slot_file
from partitions.boot.grub_environment import GrubEnvironment, parse, render
from partitions.boot.state import broken, flip, fresh, from_variables, mark_bad, variables

LAYOUT = BootLayout(
    a=SlotPlace(root="PARTUUID=aaaa", partition=2), b=SlotPlace(root="PARTUUID=bbbb", grub_device="hd1,gpt1")
)
needs_editenv = pytest.mark.skipif(shutil.which("grub-editenv") is None, reason="no grub-editenv here")
values = st.text(st.characters(min_codepoint=1, max_codepoint=126), max_size=20)
some_variables = st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,10}", fullmatch=True), values, max_size=6)


@pytest.fixture
def backend(tmp_path: Path) -> GrubBackend:
    backend = GrubBackend(tmp_path, plain_filesystem=False)
    backend.install(LAYOUT, fresh("a"), {"a": BootFiles(kernel="/boot/vmlinuz")})
    return backend


def editenv(*words: object) -> str:
    return subprocess.run(["grub-editenv", *map(str, words)], check=True, capture_output=True, text=True).stdout


@given(some_variables)
def test_what_is_rendered_is_parsed_back(found: dict[str, str]) -> None:
    block = render(found)
    assert len(block) == 1024
    assert block[512:] == b"#" * 512
    assert parse(block) == found


@given(st.binary(max_size=1100))
def test_foreign_bytes_are_refused_and_nothing_else_happens(raw: bytes) -> None:
    for block in (raw, raw.ljust(1024, b"#")[:1024], (b"# GRUB Environment Block\n" + raw).ljust(1024, b"#")[:1024]):
        try:
            found = parse(block)
        except ValueError:
            continue
        assert all("=" not in name for name in found)


@given(st.binary(min_size=1, max_size=1), st.integers(0, 1023))
def test_a_changed_byte_makes_no_slot_look_better_than_it_is(byte: bytes, at: int) -> None:
    wanted = flip(fresh("a"), "b", 3)
    block = bytearray(render(variables(wanted)))
    if block[at : at + 1] == byte:
        return
    block[at : at + 1] = byte
    try:
        found = from_variables(parse(bytes(block)))
    except ValueError:
        return
    # Another number of tries, or primary without its state, is all that one byte can make look sound.
    assert found.a == wanted.a and found.b.state == wanted.b.state
    assert found.primary == "b" or broken(found)


@needs_editenv
def test_grub_editenv_reads_what_we_write(tmp_path: Path) -> None:
    environment = GrubEnvironment(tmp_path / "grubenv")
    environment.create({"primary": "a", "odd": "back\\slash and = sign"})
    environment.store({"primary": "b"})
    assert editenv(environment.path, "list").splitlines() == ["primary=b", "odd=back\\slash and = sign"]


@needs_editenv
def test_we_read_what_grub_editenv_writes(tmp_path: Path) -> None:
    path = tmp_path / "grubenv"
    editenv(path, "create")
    editenv(path, "set", *(f"{name}={value}" for name, value in variables(fresh("a")).items()), "other=x\\y")
    assert GrubEnvironment(path).load() == {**variables(fresh("a")), "other": "x\\y"}
    editenv(path, "unset", "other")
    GrubEnvironment(path).store({"a_tries": "0"})
    assert editenv(path, "list").split() == [f"{name}={value}" for name, value in variables(fresh("a")).items()]


def test_variables_of_others_stay(backend: GrubBackend) -> None:
    backend.environment.store({"saved_entry": "x"})
    backend.write(flip(backend.read(), "b", 3))
    assert backend.environment.load()["saved_entry"] == "x"


def test_the_file_keeps_its_blocks(backend: GrubBackend) -> None:
    before = backend.environment.path.stat()
    backend.write(flip(backend.read(), "b", 3))
    after = backend.environment.path.stat()
    assert (before.st_ino, before.st_blocks, before.st_size) == (after.st_ino, after.st_blocks, after.st_size)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "0 bytes long"),
        (b"\0" * 1024, "header"),
        (b"# GRUB Environment Block\n" + b"#" * 400 + b"\nprimary=a\n" + b"#" * 588, None),
        (render({"x": "y" * 400})[:-600] + b"#" * 590 + b"\nlate=1\n" + b"##", "beyond the first 512"),
        (b"# GRUB Environment Block\nprimary=a".ljust(1024, b"\0"), "last line has no end"),
        (render({"primary": "a"}).replace(b"###########", b"\nprimary=b\n", 1), "no variable|twice"),
    ],
)
def test_a_block_that_is_not_sound_is_named_so(tmp_path: Path, raw: bytes, expected: str | None) -> None:
    path = tmp_path / "grubenv"
    path.write_bytes(raw)
    if expected is None:
        assert GrubEnvironment(path).load() == {"primary": "a"}
        return
    with pytest.raises(BootEnvironment) as caught:
        GrubEnvironment(path).load()
    assert re.search(expected, " ".join(caught.value.what))
    assert any("grub-editenv" in line for line in caught.value.next)
    assert path.read_bytes() == raw


def test_too_much_for_one_sector_is_refused_and_nothing_is_written(backend: GrubBackend) -> None:
    before = backend.environment.path.read_bytes()
    with pytest.raises(BootEnvironment, match="cannot hold"):
        backend.environment.store({"big": "x" * 500})
    assert backend.environment.path.read_bytes() == before


def test_a_sparse_environment_is_refused(backend: GrubBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grub_environment, "sparse", lambda path: True)
    with pytest.raises(BootEnvironment, match="sparse"):
        backend.write(flip(backend.read(), "b", 3))
    assert backend.read() == fresh("a")


def test_a_write_that_fails_is_no_reason_to_make_the_environment_anew(
    backend: GrubBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("partitions.boot.grub_environment.overwrite_in_place", fails)
    with pytest.raises(BootEnvironment) as raised:
        backend.write(backend.read())
    assert not any("grub-editenv" in line for line in raised.value.next)
    assert "what it says now" in raised.value.state


def test_nonsense_names_each_fault(backend: GrubBackend) -> None:
    backend.environment.store({"primary": "c", "b_state": "fine"})
    with pytest.raises(BootEnvironment) as caught:
        backend.read()
    assert caught.value.what == ("primary is 'c', not a or b", "b_state is 'fine', not good, trying or bad")
    assert [fault.message for fault in backend.check()] == [caught.value.message]


@pytest.mark.skipif(shutil.which("grub-script-check") is None, reason="no grub-script-check here")
@pytest.mark.parametrize("serial", [None, 115200])
def test_grub_finds_no_fault_in_the_script(tmp_path: Path, serial: int | None) -> None:
    layout = BootLayout(a=LAYOUT.a, b=LAYOUT.b, cmdline="console=ttyS0,115200 quiet", serial=serial)
    (tmp_path / "grub.cfg").write_bytes(render_config(layout))
    (tmp_path / "slot.cfg").write_bytes(render_slot_file(BootFiles(kernel="/vmlinuz", initrd="/initrd", cmdline="x=1")))
    for name in ("grub.cfg", "slot.cfg"):
        subprocess.run(["grub-script-check", tmp_path / name], check=True)
    text = (tmp_path / "grub.cfg").read_text()
    assert ("serial --unit" in text) == (serial is not None)
    assert "$updater_disk,gpt2" in text and "hd1,gpt1" in text


def test_slot_files_have_one_size_and_stay_in_their_blocks(backend: GrubBackend) -> None:
    path = backend.esp / "updater/slot-b.cfg"
    before = path.stat()
    backend.prepare("b", BootFiles(kernel="/boot/vmlinuz-6.1", initrd="/boot/initrd-6.1", cmdline="x=1"))
    after = path.stat()
    assert (before.st_ino, before.st_size) == (after.st_ino, after.st_size) == (before.st_ino, SLOT_FILE_SIZE)
    assert b"/boot/vmlinuz-6.1" in path.read_bytes()


@pytest.mark.parametrize("bad", ["a'b", 'a"b', "$(x)", "a;b", "a\nb", "käse", "a\\b"])
def test_what_a_loader_would_misread_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="characters"):
        BootFiles(kernel="/vmlinuz", cmdline=bad)
    with pytest.raises(ValueError, match="characters"):
        BootLayout(a=LAYOUT.a, b=LAYOUT.b, cmdline=bad)


@pytest.mark.parametrize("path", ["vmlinuz", "/boot/../x", "/boot/a b"])
def test_paths_are_absolute_within_the_slot(path: str) -> None:
    with pytest.raises(ValueError, match="absolute path"):
        BootFiles(kernel=path)


def test_doctor_names_what_is_missing(backend: GrubBackend) -> None:
    assert backend.check() == []
    (backend.esp / "updater/slot-b.cfg").unlink()
    (backend.esp / "updater/slot-a.cfg").write_text("short")
    (backend.esp / "updater/grub.cfg").unlink()
    messages = [fault.message for fault in backend.check()]
    assert [message.rsplit("/", 1)[-1] for message in messages] == [
        "slot-a.cfg is not 4096 bytes long",
        "slot-b.cfg is missing",
        "grub.cfg is missing",
    ]
    assert all(fault.mend for fault in backend.check())


def test_installing_again_renews_the_script_only(backend: GrubBackend) -> None:
    backend.write(flip(mark_bad(backend.read(), "b"), "b", 2))
    changed = BootLayout(a=LAYOUT.a, b=LAYOUT.b, cmdline="other")
    assert [path.name for path in backend.install(changed, fresh("a"), {})] == ["grub.cfg"]
    assert backend.read().b.tries == 2


@pytest.mark.parametrize("target", TARGETS)
def test_every_module_of_the_image_exists(target: str, tmp_path: Path) -> None:
    home = Path("/usr/lib/grub") / target
    if not home.is_dir():
        pytest.skip(f"GRUB for {target} is not installed")
    words = mkimage_arguments(target, output="x", early_config="y")
    modules = words[words.index("-p") + 2 :]
    assert [name for name in modules if not (home / f"{name}.mod").exists()] == []


def info(*lines: str) -> str:
    return "\n".join(f"{20 + n} 1 {line}" for n, line in enumerate(lines))


ROOT = "8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("8:1 / {esp} rw,relatime shared:2 - vfat /dev/sda1 rw,fmask=0077", []),
        ("8:1 / {esp} rw - ext4 /dev/sda1 rw", []),
        ("8:1 / {esp} ro,relatime - vfat /dev/sda1 rw", ["read-only"]),
        ("8:1 / {esp} rw,relatime - vfat /dev/sda1 ro,fmask=0077", ["read-only"]),
        ("0:40 / {esp} rw - btrfs /dev/sda1 rw", ["btrfs"]),
        ("253:0 / {esp} rw - ext4 /dev/mapper/vg-boot rw", ["device mapper"]),
        ("9:0 / {esp} rw - vfat /dev/md0 rw", ["software RAID"]),
        ("8:1 / /elsewhere rw - vfat /dev/sda1 rw", ["no partition is mounted"]),
    ],
)
def test_filesystems_that_grub_cannot_write_to_are_found(tmp_path: Path, line: str, expected: list[str]) -> None:
    sys = tmp_path / "sys"
    for device, marker in (("253:0", "dm"), ("9:0", "md"), ("8:1", "queue")):
        (sys / "dev/block" / device / marker).mkdir(parents=True)
    esp = tmp_path / "efi here"
    esp.mkdir()
    text = info(ROOT, line.format(esp=str(esp).replace(" ", r"\040")))
    faults = mount_faults(esp, text, sys)
    assert [word for fault, word in zip(faults, expected, strict=True) if word not in fault.message] == []
    assert all(fault.mend for fault in faults)


def test_the_last_mount_on_a_point_is_the_one_seen(tmp_path: Path) -> None:
    line = f"8:1 / {tmp_path} rw - {{}} /dev/sda1 rw"
    found = mount_of(tmp_path / "x", info(ROOT, line.format("vfat"), line.format("xfs")))
    assert found is not None and found.fstype == "xfs"


def test_mount_points_may_have_any_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is no UTF-8, anywhere on the machine, keeps nobody from looking."""
    odd = tmp_path / "mountinfo"
    odd.write_bytes(info(ROOT, "8:3 / /srv/m\xe4rz rw - ext4 /dev/sda3 rw").encode("latin-1"))
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **how: read(odd if self.name == "mountinfo" else self, **how))
    found = mount_of(tmp_path)
    assert found is not None and found.point == Path("/")
