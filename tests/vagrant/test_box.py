"""Base boxes: what is in them, and what Vagrant makes of the Vagrantfile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

from core.run import run
from images.build import BuildSpec, build
from images.keys import generate, load_signer
from updater.node_toml import load_node
from vagrant.box import ext4, guest
from vagrant.box.__main__ import main
from vagrant.box.build import Provider, build_box
from vagrant.box.describe import describe
from vagrant.disk import Layout
from vagrant.tree import File, Link
from zdu.sites import load_sites

ROOT = Path(__file__).parents[2]
LAYOUT = Layout(esp=34, slot=32, data=40)

pytestmark = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("debugfs", "sgdisk", "mcopy", "qemu-img", "grub-mkimage")),
    reason="tools/install-system-packages lab",
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny release, signed; release.pub beside it."""
    where = tmp_path_factory.mktemp("bundle")
    for name in ("boot/vmlinuz-6.1", "boot/initrd.img-6.1", "etc/os-release"):
        path = where / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    generate(where / "release.pem")
    spec = BuildSpec(release="MR95-1", compatible="acme-switch", tree=where / "tree", size=16 << 20, cmdline="loud")
    build(spec, where / "mr95-1.bundle", [load_signer(str(where / "release.pem"))])
    return where / "mr95-1.bundle"


def unpacked(box: Path, into: Path) -> Path:
    with tarfile.open(box) as archive:
        archive.extractall(into)
    return into


def test_a_box_for_libvirt_has_a_disk_with_all_that_a_node_needs(bundle: Path, tmp_path: Path) -> None:
    box = build_box(bundle, bundle.with_name("release.pub"), tmp_path / "node.box", layout=LAYOUT)
    parts = unpacked(box, tmp_path / "parts")
    assert {path.name for path in parts.iterdir()} == {"metadata.json", "Vagrantfile", "box.img"}
    told = json.loads((parts / "metadata.json").read_text())
    assert told == {"provider": "libvirt", "format": "qcow2", "virtual_size": 1}
    disk = tmp_path / "disk"
    run("qemu-img", "convert", "-O", "raw", parts / "box.img", disk)
    places = LAYOUT.partitions()
    table = run("sgdisk", "--print", disk).stdout
    assert all(label in table for label in places)

    def part(label: str) -> Path:
        cut = tmp_path / label
        run("dd", f"if={disk}", f"of={cut}", "bs=1M", f"skip={places[label].start >> 20}",
            f"count={places[label].size >> 20}", "conv=sparse")  # fmt: skip
        return cut

    slot = part("slot-a")
    assert ext4.read(slot, "/boot/vmlinuz-6.1") == b"boot/vmlinuz-6.1\n"
    assert guest.INSECURE_KEY.encode() == ext4.read(slot, "/etc/updater/box/authorized_keys")
    assert ext4.mode(slot, "/etc/updater/box/authorized_keys") == 0o600
    assert ext4.mode(slot, "/etc/updater/box/user") == 0o755
    for unit in ("updater-confirm.service", "box-user.service", "box-network.service"):
        assert ext4.read(slot, f"/etc/systemd/system/{unit}")
    ext4.check(slot)
    node = tmp_path / "node.toml"
    node.write_bytes(ext4.read(slot, "/etc/updater/node.toml") or b"")
    assert load_node(node).compatible == "acme-switch"
    esp = run("mdir", "-b", "-/", "-i", part("esp"), "::/").stdout
    assert "BOOTX64.EFI" in esp and "GRUB.CFG" in esp.upper()
    assert (part("data").read_bytes())[1080:1082] == b"\x53\xef"


def test_what_vagrant_needs_goes_into_every_later_release(bundle: Path) -> None:
    """What is under /etc/updater, and the units, are carried when a release is staged."""
    found = guest.files("acme-switch", "key")
    node = found["/etc/updater/node.toml"]
    assert isinstance(node, File) and isinstance(node.content, str)
    carried = tomllib.loads(node.content)["stage"]["carry"]
    own = {name for name in found if "box" in name}
    assert own and all(any(name == each or name.startswith(f"{each}/") for each in carried) for name in own)


def test_a_box_for_virtualbox_has_a_description_and_a_streamed_disk(bundle: Path, tmp_path: Path) -> None:
    box = build_box(
        bundle, bundle.with_name("release.pub"), tmp_path / "node.box", provider=Provider.VIRTUALBOX, layout=LAYOUT
    )
    parts = unpacked(box, tmp_path / "parts")
    told = xml.fromstring((parts / "box.ovf").read_text())
    space = "{http://schemas.dmtf.org/ovf/envelope/1}"
    (file,) = told.iter(f"{space}File")
    (disk,) = told.iter(f"{space}Disk")
    image = parts / file.attrib[f"{space}href"]
    assert int(disk.attrib[f"{space}capacity"]) == LAYOUT.size
    assert json.loads((parts / "metadata.json").read_text()) == {"provider": "virtualbox"}
    info = json.loads(run("qemu-img", "info", "--output=json", image).stdout)
    assert info["format"] == "vmdk" and info["virtual-size"] == LAYOUT.size
    assert info["format-specific"]["data"]["create-type"] == "streamOptimized"


def test_a_bundle_that_somebody_else_signed_makes_no_box(bundle: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other.pem")
    words = [str(bundle), "--key", str(tmp_path / "other.pub"), "--output", str(tmp_path / "node.box")]
    done = subprocess.run(
        [sys.executable, "-m", "vagrant.box", *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode != 0 and "error:" in done.stderr
    assert not (tmp_path / "node.box").exists()


@pytest.mark.parametrize("words", [("--output", "n.box", "--node", "/nonexistent"), ("--output", "/nonexistent/n.box")])
def test_files_that_are_not_there_are_told_in_one_line(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([str(bundle), "--key", str(bundle.with_name("release.pub")), *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "/nonexistent" in said and said.count("\n") == 1


def test_files_replace_what_is_in_an_image(tmp_path: Path) -> None:
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/old").write_text("old, and longer than what comes\n")
    image = tmp_path / "image"
    with image.open("xb") as file:
        file.truncate(8 << 20)
    run("mkfs.ext4", "-q", "-F", "-d", tmp_path / "tree", image)
    ext4.put(
        image, {"/etc/old": File(content="new\n", mode=0o640), "/a/b/c": File(content=b"\0\1"), "/l": Link(target="a")}
    )
    assert ext4.read(image, "/etc/old") == b"new\n" and ext4.mode(image, "/etc/old") == 0o640
    assert ext4.read(image, "/a/b/c") == b"\0\1"
    ext4.check(image)
    with pytest.raises(ValueError, match="no path"):
        ext4.put(image, {"/with space": File(content="")})


SITES = """
name = "acme"
[controller]
database = { engine = "sqlite", path = "/var/lib/updater/zdu.sqlite" }
[[sites]]
name = "A"
kind = "main"
calls = { kind = "command", command = ["/bin/calls"] }
maintenance = { command = ["/bin/maintenance"] }
servers = [
  { name = "db-a", roles = ["db-primary"], host = "10.1.0.11" },
  { name = "sip-a", roles = ["sip", "billing"], host = "sip-a.example.net" },
]
[dispatchers]
servers = [{ name = "d1", roles = ["dispatcher"], host = "10.1.0.21" }]
[[dispatchers.programs]]
kind = "command"
command = ["/bin/dispatch"]
targets = [{ site = "A", destinations = ["sip:10.1.0.12"] }]
[[dispatchers.vips]]
address = "10.1.0.20"
"""


def test_the_sites_file_says_which_machines_there_are(tmp_path: Path) -> None:
    (tmp_path / "sites.toml").write_text(SITES)
    told = describe(load_sites(tmp_path / "sites.toml"))
    assert [(m["name"], m["site"], m["address"]) for m in told["machines"]] == [
        ("db-a", "A", "10.1.0.11"), ("sip-a", "A", ""), ("d1", "", "10.1.0.21"),
    ]  # fmt: skip
    assert all(256 <= machine["memory"] <= 1024 for machine in told["machines"])


@pytest.mark.skipif(not shutil.which("vagrant"), reason="Vagrant is not installed")
def test_vagrant_takes_the_vagrantfile_and_names_its_machines(tmp_path: Path) -> None:
    (tmp_path / "sites.toml").write_text(SITES)
    surroundings = os.environ | {
        "SITES": str(tmp_path / "sites.toml"), "PYTHON": sys.executable, "VAGRANT_CWD": str(ROOT / "vagrant"),
        "VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
        "VAGRANT_CHECKPOINT_DISABLE": "1",
    }  # fmt: skip

    def vagrant(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        argv = ["vagrant", *words]
        return subprocess.run(argv, capture_output=True, text=True, env=surroundings | more, timeout=180, check=False)

    said = vagrant("validate", "--ignore-provider")
    assert said.returncode == 0, said.stdout + said.stderr
    said = vagrant("validate", "--ignore-provider", SITES=str(tmp_path / "nowhere.toml"))
    assert said.returncode != 0 and "nowhere.toml" in said.stderr
