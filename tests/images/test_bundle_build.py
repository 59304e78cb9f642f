"""Building from images, trees and packages, with the real tools."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BundleInvalid, CommandFailed, ConfigError, NoSpace
from core.run import run
from images import keys, payload, sections, trees
from images.build import BuildSpec, build
from images.manifest import MAX_CHUNKS
from images.read import Bundle
from tests.images.bundlelab import NOW, Made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root tree with all that makes trouble: links, modes, odd names, holes, later times."""
    root = tmp_path / "tree"
    for folder in ("boot", "etc/a b", "usr/bin", "proc"):
        (root / folder).mkdir(parents=True)
    for version in ("6.1.0-9-amd64", "6.1.0-50-amd64"):
        (root / f"boot/vmlinuz-{version}").write_bytes(random.Random(version).randbytes(20_000))
        (root / f"boot/initrd.img-{version}").write_bytes(b"initrd")
    (root / 'etc/a b/qu"ote').write_text("x")
    (root / "etc/tool").symlink_to("/usr/bin/tool")
    (root / "usr/bin/tool").write_text("#!/bin/sh\n")
    (root / "usr/bin/tool").chmod(0o4755)
    (root / "usr/bin/twin").hardlink_to(root / "usr/bin/tool")
    with (root / "holes").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(1 << 20)
        file.write(b"middle")
    for path in [root, *root.rglob("*")]:
        os.utime(path, (1_780_000_000, 1_780_000_000), follow_symlinks=False)
    return root


def spec(**what: object) -> BuildSpec:
    return BuildSpec(release="MR95-1", compatible="acme", chunk_size=64 << 10, level=1, **what)  # type: ignore[arg-type]


def image_of(bundle: Bundle, path: Path) -> Path:
    room = memoryview(bytearray(bundle.image.chunk_size))
    with path.open("wb") as file:
        for chunk in range(bundle.image.count):
            file.write(room[: bundle.image.load(chunk, room)])
    return path


def test_tree_is_reproducible_wherever_it_lies(tree: Path, tmp_path: Path, made: Made) -> None:
    """A copy with other times of access and change, built under another name, gives the same bytes."""
    signer = [keys.load_signer(str(made.key))]
    first = build(spec(tree=tree), tmp_path / "one", signer)
    copy = tmp_path / "elsewhere/copy"
    copy.parent.mkdir()
    run("cp", "-a", "--sparse=always", tree, copy)
    for path in [copy, *copy.rglob("*")]:
        os.utime(path, (5, 1_780_000_000), follow_symlinks=False)
    second = build(spec(tree=copy), tmp_path / "elsewhere/two", signer)
    assert first.read_bytes() == second.read_bytes()


def test_tree_makes_a_sound_filesystem(tree: Path, tmp_path: Path, made: Made) -> None:
    path = build(spec(tree=tree, size=48 << 20), tmp_path / "b", [keys.load_signer(str(made.key))])
    with Bundle.open(path, made.trust, now=NOW) as bundle:
        assert bundle.manifest.boot.kernel == "/boot/vmlinuz-6.1.0-50-amd64"
        assert bundle.manifest.boot.initrd == "/boot/initrd.img-6.1.0-50-amd64"
        assert bundle.manifest.created == "2026-05-28T20:26:40Z"
        assert bundle.manifest.image.size == 48 << 20
        assert bundle.manifest.image.filesystem == "ext4"
        image = image_of(bundle, tmp_path / "image")
    run("e2fsck", "-f", "-n", image)
    told = run("debugfs", "-R", "stat /usr/bin/twin", image).stdout
    assert "Mode:  04755" in told
    assert "Links: 2" in told
    assert run("debugfs", "-R", 'cat "/etc/a b/qu""ote"', image).stdout == "x"


def test_many_small_files_fit(tree: Path, tmp_path: Path, made: Made) -> None:
    for number in range(12_000):
        folder = tree / f"etc/{number // 400}"
        folder.mkdir(exist_ok=True)
        (folder / str(number)).touch()
    path = build(spec(tree=tree), tmp_path / "b", [keys.load_signer(str(made.key))])
    assert path.exists()


@pytest.mark.root
def test_full_disk(tmp_path: Path, made: Made) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", small)
    try:
        target = small / "b"
        target.write_text("old")
        with pytest.raises(NoSpace):
            build(made.spec, target, [keys.load_signer(str(made.key))])
        assert [path.name for path in small.iterdir()] == ["b"]
        assert target.read_text() == "old"
    finally:
        run("umount", small)


def test_source_date_epoch(tree: Path, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1770000000")
    path = build(spec(tree=tree), tmp_path / "b", [keys.load_signer(str(made.key))])
    with Bundle.inspect(path) as bundle:
        assert bundle.manifest.created == "2026-02-02T02:40:00Z"


def test_kernel_given_but_missing(tree: Path, tmp_path: Path, made: Made) -> None:
    signer = [keys.load_signer(str(made.key))]
    with pytest.raises(ConfigError, match="lacks"):
        build(spec(tree=tree, kernel="/boot/none"), tmp_path / "b", signer)
    shutil.rmtree(tree / "boot")
    with pytest.raises(ConfigError, match="no kernel"):
        build(spec(tree=tree), tmp_path / "b", signer)
    assert not (tmp_path / "b").exists()


def test_a_kernel_whose_name_no_boot_entry_can_hold(tree: Path) -> None:
    (tree / "boot/vmlinuz-6.1.0-99 (old)").write_bytes(b"kernel")
    with pytest.raises(ConfigError, match="boot entry") as caught:
        trees.boot_files(tree, kernel=None, initrd=None, cmdline="")
    assert "99 (old)" in caught.value.what[0]


def test_tree_too_large_for_its_image_leaves_the_old_bundle(tree: Path, tmp_path: Path, made: Made) -> None:
    target = tmp_path / "b"
    target.write_text("old")
    (tree / "large").write_bytes(bytes(range(256)) * (8 << 12))
    with pytest.raises(CommandFailed):
        build(spec(tree=tree, size=8 << 20), target, [keys.load_signer(str(made.key))])
    assert target.read_text() == "old"
    assert not list(tmp_path.glob(".bundle-*"))


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_raw_images_of_other_filesystems(tmp_path: Path, made: Made, kind: str) -> None:
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.truncate(320 << 20)
    run(f"mkfs.{kind}", "-f", "-q", raw)
    what = dataclasses.replace(spec(image=raw, kernel="/vmlinuz"), chunk_size=1 << 20)
    path = build(what, tmp_path / "b", [keys.load_signer(str(made.key))])
    with Bundle.open(path, made.trust, now=datetime.now(UTC)) as bundle:
        assert bundle.manifest.image.filesystem == kind
        assert image_of(bundle, tmp_path / "again").read_bytes() == raw.read_bytes()


def test_not_an_image(tmp_path: Path, made: Made) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(b"hello" * 1000)
    with pytest.raises(ConfigError, match="not a filesystem image"):
        build(spec(image=raw, kernel="/k"), tmp_path / "b", [keys.load_signer(str(made.key))])


def test_an_image_too_large_for_the_format_is_refused_before_the_work(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    shutil.copy(made.bundle.with_name("image"), raw)
    os.truncate(raw, 4096 * MAX_CHUNKS + 4096)
    monkeypatch.setattr(payload, "compress", None)
    what = dataclasses.replace(spec(image=raw, kernel="/vmlinuz"), chunk_size=4096)
    with pytest.raises(ConfigError) as caught:
        build(what, tmp_path / "b", [keys.load_signer(str(made.key))])
    assert "chunks" in caught.value.what[0]


def test_two_signatures(made: Made, tmp_path: Path) -> None:
    other, public = keys.generate(tmp_path / "second.pem")
    signers = [keys.load_signer(str(key)) for key in (made.key, other)]
    path = build(made.spec, tmp_path / "b", signers)
    release = made.key.with_suffix(".pub")
    with Bundle.open(path, keys.load_trust([release, public], 2), now=NOW) as bundle:
        assert bundle.signers == ("release", "second")


def test_sections_from_directories(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    (folder / "deep").mkdir(parents=True)
    (folder / "0961-add.sql").write_text("ALTER TABLE x;")
    (folder / "deep/x").write_text("y")
    changed = dataclasses.replace(made.spec, sections={"migrations": folder})
    path = build(changed, tmp_path / "b", [keys.load_signer(str(made.key))])
    with Bundle.open(path, made.trust, now=NOW) as bundle:
        data = bundle.section("migrations")
        with pytest.raises(KeyError):
            bundle.section("templates")
    os.utime(folder / "deep/x", (1, 1))
    assert sections.pack(folder, int(datetime.fromisoformat(bundle.manifest.created).timestamp())) == data
    target = tmp_path / "out"
    target.mkdir()
    sections.unpack(data, target)
    assert (target / "deep/x").read_text() == "y"


@given(st.binary(max_size=2000))
def test_any_section_unpacks_or_is_refused(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as target:
        try:
            sections.unpack(data, Path(target))
        except BundleInvalid:
            pass


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../evil", b"0"), ("/evil", b"0"), ("a/../../evil", b"0"), ("a", b"2"), ("a", b"1"), ("a", b"3"), ("a", b"6")],
)
def test_section_that_climbs_out(tmp_path: Path, name: str, kind: bytes) -> None:
    import io
    import tarfile

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    (tmp_path / "in").mkdir()
    with pytest.raises(BundleInvalid):
        sections.unpack(raw.getvalue(), tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())
    assert not (tmp_path / "evil").exists()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 80_000), st.binary(min_size=1, max_size=3000)), max_size=4),
    st.integers(1, 160),
    st.integers(1, 4),
)
def test_chunks_of_sparse_files(writes: list[tuple[int, bytes]], sectors: int, threads: int) -> None:
    """Whatever holes a file has: its chunks together are its bytes, and the number of threads does not show."""
    import tempfile

    with tempfile.TemporaryFile() as file:
        for at, data in writes:
            os.pwrite(file.fileno(), data, at)
        size = sectors * 512
        os.ftruncate(file.fileno(), size)
        whole = os.pread(file.fileno(), size, 0)
        plain = list(payload.plain_chunks(file.fileno(), size, 4096))
    assert b"".join(bytes(each) if isinstance(each, int) else each for each in plain) == whole
    packed = list(payload.compress(plain, chunk_size=4096, level=1, threads=threads))
    assert packed == list(
        payload.compress([whole[at : at + 4096] for at in range(0, size, 4096)], chunk_size=4096, level=1, threads=1)
    )
    index = payload.Index(b"".join(entry for entry, _ in packed), size, 4096)
    stored = b"".join(data for _, data in packed)
    out = bytearray(4096)
    for chunk in range(index.count):
        width = index.length(chunk)
        at, length, _ = index.stored(chunk)
        if index.is_zero(chunk):
            assert not any(whole[chunk * 4096 :][:width])
            continue
        payload.decompress(stored[at : at + length], memoryview(out), width)
        assert out[:width] == whole[chunk * 4096 :][:width]


def test_newest_kernel_is_by_number(tree: Path) -> None:
    found = trees.boot_files(tree, kernel=None, initrd=None, cmdline="quiet")
    assert found.kernel.endswith("-50-amd64")


needs_rpm = pytest.mark.skipif(
    not all(map(shutil.which, ("rpmbuild", "createrepo_c", "dnf"))),
    reason="rpmbuild, createrepo_c and dnf are not here",
)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one package that holds a kernel, and one that nobody asks for."""
    home = tmp_path_factory.mktemp("rpm")
    for name, files in (("acme-base", "/boot/vmlinuz-6.1"), ("acme-extra", "/opt/extra")):
        (home / "spec").write_text(
            f"Name: {name}\nVersion: 1.2\nRelease: 3\nSummary: x\nLicense: x\nBuildArch: noarch\n%description\nx\n"
            f"%install\nmkdir -p %{{buildroot}}{Path(files).parent}\necho {name} > %{{buildroot}}{files}\n"
            f"%files\n{files}\n"
        )
        run("rpmbuild", "-bb", "--define", f"_topdir {home}/top", "--define", f"_rpmdir {home}/repo", home / "spec")
    run("createrepo_c", "-q", home / "repo")
    return home / "repo"


@needs_rpm
@pytest.mark.root
def test_packages(repository: Path, tmp_path: Path, made: Made) -> None:
    what = spec(packages=("acme-base",), repositories=(str(repository),))
    signer = [keys.load_signer(str(made.key))]
    path = build(what, tmp_path / "b", signer)
    with Bundle.open(path, made.trust, now=datetime.now(UTC)) as bundle:
        assert bundle.manifest.boot.kernel == "/boot/vmlinuz-6.1"
        packages = json.loads(bundle.section("packages"))
        assert packages == ["acme-base-1.2-3.noarch"]
        image = image_of(bundle, tmp_path / "image")
    assert run("debugfs", "-R", "cat /boot/vmlinuz-6.1", image).stdout == "acme-base\n"
    names = {line.split("/")[5] for line in run("debugfs", "-R", "ls -p /", image).stdout.splitlines() if line}
    assert names == {".", "..", "boot", "etc", "lost+found", "root", "var"}  # nothing of the place where it was built
    again = build(what, tmp_path / "c", signer)
    assert again.read_bytes() == path.read_bytes()


@needs_rpm
@pytest.mark.root
def test_package_that_is_nowhere(repository: Path, tmp_path: Path, made: Made) -> None:
    with pytest.raises(CommandFailed) as caught:
        build(
            spec(packages=("acme-none",), repositories=(str(repository),)),
            tmp_path / "b",
            [keys.load_signer(str(made.key))],
        )
    assert "acme-none" in "\n".join(caught.value.what)
