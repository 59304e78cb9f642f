"""A sandbox on a disk that fails: it says what is wrong with a stable exit code, loses nothing, goes on with the
release that it runs, and finishes its work when the fault is gone. (The same in a machine: tests/vm/test_outages.py.)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core.errors import UpdaterError
from core.run import run
from tests.updater import lab as nodes
from updater.doctor import examine_node
from updater.node import open_node
from updater.status import status_of
from vagrant.outages.faults import FaultyVolume

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, so it needs root"),
    pytest.mark.skipif(not shutil.which("qemu-storage-daemon"), reason="qemu-storage-daemon is missing"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no FUSE"),
]


@pytest.fixture
def volume() -> Iterator[FaultyVolume]:
    """A filesystem whose disk can fail."""
    with tempfile.TemporaryDirectory(prefix="faulty-volume-") as work, FaultyVolume(Path(work)) as made:
        yield made


@pytest.fixture
def lab(tmp_path: Path) -> nodes.Lab:
    """Bundles and keys."""
    return nodes.Lab.create(tmp_path)


@pytest.fixture
def config(volume: FaultyVolume, lab: nodes.Lab) -> Path:
    """A sandbox on that filesystem, which runs MR95-1; its slot b has blocks of its own."""
    made = lab.sandbox(volume.root / "node")
    (volume.root / "node/slots/b.img").write_bytes(os.urandom(nodes.IMAGE))
    os.sync()
    return made


def refused(code: int, config: Path, verb: str, *arguments: Any, **options: Any) -> UpdaterError:
    """The verb ends with this exit code, and says what is wrong and what to do."""
    with pytest.raises(UpdaterError) as raised:
        nodes.do(config, verb, *arguments, **options)
    error = raised.value
    assert error.exit_code == code, error
    assert error.next, error  # the command line says how the node stands where the error does not
    return error


def finished(config: Path) -> dict[str, Any]:
    """Activation works, so nothing was lost; how the node stands after it."""
    assert nodes.do(config, "activate") == "done"
    seen = nodes.look(config)
    assert (seen["booted"], seen["slots"]) == ("b", {"a": "MR95-1 good", "b": "MR96-1 good"})
    return seen


def test_a_slot_that_cannot_be_written(volume: FaultyVolume, config: Path, lab: nodes.Lab) -> None:
    slot = volume.root / "node/slots/b.img"
    with volume.failing("write", file=slot):
        error = refused(30, config, "stage", lab.bundle("MR96-1"))
        assert "b.img" in error.message
        seen = nodes.look(config)
        assert (seen["open run"], seen["next boot"], seen["slots"]["b"]) == ("stage", "a", "MR96-1 bad")
    assert nodes.do(config, "resume") == "done"
    finished(config)


def test_a_boot_environment_that_cannot_be_read_or_written(volume: FaultyVolume, config: Path, lab: nodes.Lab) -> None:
    environment = volume.root / "node/esp/updater/grubenv"
    nodes.do(config, "stage", lab.bundle("MR96-1"))
    with volume.failing("read", file=environment):
        _forget_what_was_read()
        assert "cannot be read" in refused(31, config, "activate").message
    with volume.failing("write", file=environment):
        error = refused(31, config, "activate")
        assert "cannot be written" in error.message
    _forget_what_was_read()
    seen = nodes.look(config)
    assert (seen["booted"], seen["next boot"], seen["open run"]) == ("a", "a", "activate")
    assert nodes.do(config, "resume") == "done"
    assert nodes.look(config)["booted"] == "b"


@contextmanager
def mounted_read_only(directory: Path) -> Iterator[None]:
    """As ext4 leaves a filesystem after an error."""
    run("mount", "--bind", directory, directory)
    try:
        run("mount", "-o", "remount,bind,ro", directory)
        yield
    finally:
        run("umount", directory)


def test_an_esp_that_is_mounted_read_only(volume: FaultyVolume, config: Path, lab: nodes.Lab) -> None:
    nodes.do(config, "stage", lab.bundle("MR96-1"))
    with mounted_read_only(volume.root / "node/esp"):
        assert "not writable" in refused(31, config, "activate").message
        assert nodes.look(config)["open run"] is None
        assert _indicator(config) == ("CRITICAL", "esp")
    assert _indicator(config) == ("OK", "")
    finished(config)


def test_a_data_partition_that_is_mounted_read_only(volume: FaultyVolume, config: Path, lab: nodes.Lab) -> None:
    nodes.do(config, "stage", lab.bundle("MR96-1"))
    with mounted_read_only(volume.root / "node/data"):
        error = refused(11, config, "activate")
        assert any("Read-only" in line for line in error.what)
        assert any(line.startswith("mount -o remount,rw") for line in error.next)
        assert _indicator(config) == ("CRITICAL", "data")
        (found,) = [each for each in examine_node(config) if each.name == "data directory"]
        assert "mounted read-only" in found.found and found.mend
    finished(config)


def _indicator(config: Path) -> tuple[str, str]:
    """What monitoring is told, and the directory that its only problem is about."""
    with open_node(config) as node:
        status = status_of(node)
    return status.indicator, " ".join(Path(problem.split()[0]).name for problem in status.problems)


def test_a_full_data_partition(volume: FaultyVolume, config: Path, lab: nodes.Lab) -> None:
    nodes.do(config, "stage", lab.bundle("MR96-1"))
    full = volume.root / "full"
    for size in (1 << 16, 1 << 12):
        with pytest.raises(OSError, match="No space"), full.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(size))
                os.fsync(file.fileno())
    refused(24, config, "activate")
    refused(24, config, "stage", lab.bundle("MR96-1"), again=True)
    assert nodes.look(config)["next boot"] == "a"
    full.unlink()
    finished(config)


def test_a_disk_that_cannot_flush(volume: FaultyVolume, config: Path, lab: nodes.Lab) -> None:
    nodes.do(config, "stage", lab.bundle("MR96-1"))
    with volume.failing("flush"):
        error = refused(11, config, "activate")
        assert "journal" in error.message
    # the filesystem may have given up by then; that ends with a mount, as it would with a boot
    assert nodes.look(config)["next boot"] == "a"


def _forget_what_was_read() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
