"""The writer on real loop devices and files: what it writes, what it keeps, and how it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from core import faults
from core.errors import BundleInvalid, DeviceFailed, NoSpace, NotReady
from partitions.disks import users_of
from partitions.write import matches_image, read_back, seal, spans, write_image
from tests.partitions.fakes import CHUNK, FakeImage, Heard, filler, pattern

MIB = 1 << 20


def dirty(path: Path, size: int) -> Path:
    """A file full of what was there before."""
    path.write_bytes(b"\xff" * size)
    return path


# -- what is written ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["file", pytest.param("loop", marks=pytest.mark.root)])
def slot(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A slot of 24 MiB, full of old bytes: a plain file, and a loop device."""
    file = dirty(tmp_path / "slot.img", 24 * MIB)
    if request.param == "file":
        return file
    return Path(request.getfixturevalue("loop")(file=file))


@pytest.mark.parametrize(
    "data",
    [
        pattern("ab.c...d"),
        pattern("ab", tail=4096),
        pattern("ab.", tail=5),
        pattern("..", tail=512 * 3),
        pattern("") + filler("x", 700),
        pattern("...."),
        pattern("ab") + bytes(1234),
        b"",
    ],
    ids=["holes", "tail-page", "tail-odd", "tail-sectors", "short", "only-holes", "hole-tail-odd", "empty"],
)
def test_image_is_there_and_nothing_else_changed(slot: Path, heard: Heard, data: bytes) -> None:
    image = FakeImage(data)
    done = write_image(image, slot, report=heard.report)
    on_device = slot.read_bytes()
    assert on_device[: len(data)] == data
    assert set(on_device[-(-len(data) // 4096) * 4096 :]) == {0xFF}
    assert len(on_device) == 24 * MIB
    assert done.bytes_written + done.holes == len(data)
    assert done.holes == sum(len(image.plain(c)) for c in range(image.count) if image.is_zero(c))
    assert matches_image(image, slot)
    assert read_back(image, slot, report=heard.report) > 0
    assert not users_of(slot)


def test_progress_never_goes_back_and_ends_whole(slot: Path, heard: Heard) -> None:
    image = FakeImage(pattern("abc..defghijklm"))
    write_image(image, slot, report=heard.report, step="write slot b")
    seen = [event.data["done"] for event in heard.progress]
    assert seen == sorted(seen)
    assert heard.progress[-1].data["done"] == heard.progress[-1].data["total"] == 13 * CHUNK
    assert {event.step for event in heard.progress} == {"write slot b"}


def test_holes_take_no_room_in_a_file(tmp_path: Path, heard: Heard) -> None:
    file = dirty(tmp_path / "slot.img", 16 * MIB)
    write_image(FakeImage(pattern("a..............b")), file, report=heard.report)
    assert file.stat().st_blocks * 512 < 4 * MIB


@pytest.mark.root
def test_tmpfs_file_works(small_tmpfs: Callable[[int], Path], heard: Heard) -> None:
    file = dirty(small_tmpfs(32 * MIB) / "slot.img", 8 * MIB)
    image = FakeImage(pattern("a..b", tail=77))
    write_image(image, file, report=heard.report)
    assert matches_image(image, file)


@given(
    holes=st.lists(st.booleans(), max_size=40),
    tail=st.integers(0, 4095),
    longest=st.integers(1, 12).map(lambda chunks: chunks * 4096),
)
def test_spans_cover_the_image_once(holes: list[bool], tail: int, longest: int) -> None:
    data = b"".join(bytes(4096) if hole else b"x" * 4096 for hole in holes) + b"y" * tail
    image = FakeImage(data, chunk_size=4096)
    found = list(spans(image, longest))
    assert b"".join(bytes(s.length) if s.zero else data[s.offset : s.offset + s.length] for s in found) == data
    assert [s.offset for s in found] == [sum(s.length for s in found[:i]) for i in range(len(found))]
    assert all(s.length <= longest if s.zero else s.length <= 4096 for s in found)
    assert all(s.chunk * 4096 == s.offset for s in found)


# -- proofs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 3 * MIB + 17, 5 * MIB, 8 * MIB + 99], ids=["first", "data", "hole", "tail"])
def test_read_back_finds_one_flipped_bit(slot: Path, heard: Heard, at: int) -> None:
    image = FakeImage(pattern("abcd..ef", tail=100))
    write_image(image, slot, report=heard.report)
    good = seal(slot, image.size)
    with slot.open("r+b") as device:
        device.seek(at)
        byte = device.read(1)
        device.seek(at)
        device.write(bytes([byte[0] ^ 0x10]))
        device.flush()
        os.fsync(device.fileno())
    with pytest.raises(DeviceFailed) as failure:
        read_back(image, slot, report=heard.report)
    assert f"bytes {at // CHUNK * CHUNK} to" in failure.value.what[0]
    assert not matches_image(image, slot)
    assert seal(slot, image.size) != good


def test_read_back_names_the_first_of_several(tmp_path: Path, heard: Heard) -> None:
    image = FakeImage(pattern("abcdefghijklmnop"))
    file = dirty(tmp_path / "slot.img", 16 * MIB)
    write_image(image, file, report=heard.report)
    with file.open("r+b") as out:
        for chunk in (5, 6, 7, 12):
            out.seek(chunk * CHUNK + 1)
            out.write(b"\0\0\0")
    for _ in range(5):
        with pytest.raises(DeviceFailed, match=str(file)) as failure:
            read_back(image, file, report=heard.report, threads=8)
        assert f"bytes {5 * CHUNK} to" in failure.value.what[0]


def test_seal_is_the_content_identity(tmp_path: Path) -> None:
    data = pattern("ab.c", tail=10)
    file = tmp_path / "slot.img"
    file.write_bytes(data + b"more")
    image = FakeImage(data)
    digests = b"".join(image.digest(chunk) for chunk in range(image.count))
    assert seal(file, len(data)) == blake3(len(data).to_bytes(8, "big") + digests).hexdigest()


def test_seal_leaves_out_whole_chunks_that_are_free(tmp_path: Path) -> None:
    file = tmp_path / "slot.img"
    file.write_bytes(bytes(range(256)) * (8 * MIB // 256))
    free = [range(1 * MIB + 7, 3 * MIB + 7), range(5 * MIB, 6 * MIB)]  # of these the third and the sixth MiB
    sealed = seal(file, 8 * MIB, free=free)
    for chunk in range(8):
        with file.open("r+b") as out:
            out.seek(chunk * MIB + 100)
            before = out.read(1)
            out.seek(chunk * MIB + 100)
            out.write(b"?")
            out.flush()
            assert (seal(file, 8 * MIB, free=free) == sealed) == (chunk in (2, 5)), chunk
            out.seek(chunk * MIB + 100)
            out.write(before)


def test_seal_of_more_than_there_is(tmp_path: Path) -> None:
    file = tmp_path / "slot.img"
    file.write_bytes(bytes(MIB))
    with pytest.raises(DeviceFailed):
        seal(file, 2 * MIB)


# -- going on after a cut -------------------------------------------------------------------------------------------


def killed_at(point: str, times: int, work: Callable[[], object]) -> None:
    """Run `work` in a forked child that kills itself (-9) when it passes `point` for the `times`-th time."""
    child = os.fork()
    if child == 0:
        left = [times]
        lock = threading.Lock()

        def die(name: str) -> None:
            with lock:
                left[0] -= name == point
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            faults.arm(die)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize(
    ("point", "times"), [("write:chunk", 1), ("write:chunk", 9), ("write:before-flush", 1), ("write:flushed", 1)]
)
def test_kill_and_resume_keeps_what_is_there(slot: Path, heard: Heard, point: str, times: int) -> None:
    image = FakeImage(pattern("abcdef..ghijklmno", tail=300))
    killed_at(point, times, lambda: write_image(image, slot, report=heard.report))
    done = write_image(image, slot, report=heard.report, keep_verified=True)
    assert matches_image(image, slot)
    assert done.kept >= (times - 3) * CHUNK  # the two spans of holes, and the short tail, may be among those counted
    assert done.kept + done.bytes_written + done.holes == image.size
    assert len(image.loaded) == -(-done.bytes_written // CHUNK)


def test_resume_asks_the_device_not_a_journal(slot: Path, heard: Heard) -> None:
    image = FakeImage(pattern("abc.ef"))
    write_image(image, slot, report=heard.report)
    with slot.open("r+b") as device:
        device.seek(2 * CHUNK + 4000)
        device.write(b"changed")
        device.seek(3 * CHUNK + 4000)
        device.write(b"changed")
    image.loaded.clear()
    done = write_image(image, slot, report=heard.report, keep_verified=True)
    assert image.loaded == [2]
    assert done.bytes_written == CHUNK and done.kept == 4 * CHUNK
    assert matches_image(image, slot)


# -- how it stops ---------------------------------------------------------------------------------------------------


def test_error_of_the_image_stops_all_at_once(slot: Path, heard: Heard) -> None:
    def trap(chunk: int) -> None:
        if chunk == 3:
            raise BundleInvalid("chunk 3 is damaged")

    image = FakeImage(pattern("abcdefghijklmnopqrst"), trap=trap)
    before = threading.active_count()
    with pytest.raises(BundleInvalid, match="chunk 3"):
        write_image(image, slot, report=heard.report, threads=2)
    assert len(image.loaded) < 10
    assert threading.active_count() == before
    assert not users_of(slot)


def test_hostile_image_that_gives_too_little(tmp_path: Path, heard: Heard) -> None:
    class Short(FakeImage):
        def load(self, chunk: int, out: memoryview) -> int:
            return super().load(chunk, out) - 1

    with pytest.raises(BundleInvalid, match="inconsistent"):
        write_image(Short(pattern("ab")), dirty(tmp_path / "slot", 2 * MIB), report=heard.report)


def test_error_interrupts_those_who_wait_for_the_limit(tmp_path: Path, heard: Heard) -> None:
    def trap(chunk: int) -> None:
        if chunk == 2:
            time.sleep(0.05)
            raise BundleInvalid("damaged")

    image = FakeImage(pattern("abcdef"), trap=trap)
    begun = time.monotonic()
    with pytest.raises(BundleInvalid):
        write_image(image, dirty(tmp_path / "slot", 8 * MIB), report=heard.report, rate_limit=20_000, threads=3)
    assert time.monotonic() - begun < 5


def test_keyboard_interrupt_stops_soon(tmp_path: Path, heard: Heard) -> None:
    image = FakeImage(pattern("abcdefghijklmnopqrst"))
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        write_image(image, dirty(tmp_path / "slot", 20 * MIB), report=heard.report, rate_limit=MIB)
    assert time.monotonic() - begun < 3
    assert len(image.loaded) < 10


# -- bad devices ----------------------------------------------------------------------------------------------------


def test_device_too_small(slot: Path, heard: Heard) -> None:
    before = slot.read_bytes()
    image = FakeImage(pattern("a" * 24, tail=1))
    with pytest.raises(NoSpace, match="larger") as failure:
        write_image(image, slot, report=heard.report)
    assert failure.value.state == "nothing was written to it"
    assert image.loaded == [] and slot.read_bytes() == before


def test_device_that_does_not_exist(tmp_path: Path, heard: Heard) -> None:
    with pytest.raises(DeviceFailed, match="cannot open"):
        write_image(FakeImage(pattern("a")), tmp_path / "nothing", report=heard.report)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.root
def test_mounted_slot_is_refused(loop: Callable[..., Path], tmp_path: Path, heard: Heard) -> None:
    device = loop(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(device)], check=True)
    point = tmp_path / "mnt"
    point.mkdir()
    subprocess.run(["mount", str(device), str(point)], check=True)
    try:
        image = FakeImage(pattern("ab"))
        with pytest.raises(NotReady, match="in use") as failure:
            write_image(image, device, report=heard.report)
        assert f"mounted at {point}" in failure.value.what
        assert image.loaded == []
        backing = tmp_path / "loop0.img"
        with pytest.raises(NotReady, match="in use"):
            write_image(image, backing, report=heard.report)
    finally:
        subprocess.run(["umount", str(point)], check=True)


@pytest.mark.root
def test_kernel_refuses_what_we_cannot_see(loop: Callable[..., Path], heard: Heard) -> None:
    """A mount in another mount namespace is not in our mountinfo; exclusive opening still finds it."""
    device = loop(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(device)], check=True)
    script = f"mount {device} /mnt && echo up && read line"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "up\n"
        try:
            assert users_of(device) == []
            with pytest.raises(NotReady, match="in use") as failure:
                write_image(FakeImage(pattern("ab")), device, report=heard.report)
            assert "exclusive" in failure.value.what[0]
        finally:
            other.stdin.write("\n")
            other.stdin.close()


@pytest.mark.root
def test_write_error_of_the_device(loop: Callable[..., Path], small_tmpfs: Callable[[int], Path], heard: Heard) -> None:
    """A sparse file on a tmpfs with room for half of it: the device promises more than it can take."""
    backing = small_tmpfs(8 * MIB) / "slot.img"
    with backing.open("wb") as file:
        file.truncate(16 * MIB)
    device = loop(file=backing, direct=False)
    with pytest.raises((DeviceFailed, NoSpace)) as failure:
        write_image(FakeImage(pattern("abcdefghijklmnop")), device, report=heard.report)
    assert str(device) in failure.value.message
    assert "must not be booted" in failure.value.state
    assert not users_of(device)


@pytest.mark.root
def test_file_on_a_full_filesystem(small_tmpfs: Callable[[int], Path], heard: Heard) -> None:
    file = small_tmpfs(8 * MIB) / "slot.img"
    with file.open("wb") as out:
        out.truncate(16 * MIB)
    with pytest.raises(NoSpace, match="no room left") as failure:
        write_image(FakeImage(pattern("abcdefghijklmnop")), file, report=heard.report)
    assert "at byte" in failure.value.what[0]


@pytest.mark.root
def test_device_vanishes_in_mid_write(loop: Callable[..., Path], tmp_path: Path, heard: Heard) -> None:
    device = loop(16 * MIB)

    def trap(chunk: int) -> None:
        if chunk == 8:
            os.truncate(tmp_path / "loop0.img", 4096)
            subprocess.run(["losetup", "--set-capacity", str(device)], check=True)

    with pytest.raises(DeviceFailed) as failure:
        write_image(FakeImage(pattern("abcdefghijklmnop"), trap=trap), device, report=heard.report, threads=2)
    assert str(device) in failure.value.message and "at byte" in failure.value.what[0]
    assert "the device vanished or shrank" in failure.value.what


@pytest.mark.root
def test_read_error_names_the_offset(loop: Callable[..., Path], tmp_path: Path, heard: Heard) -> None:
    device = loop(16 * MIB)
    image = FakeImage(pattern("abcdefghijklmnop"))
    write_image(image, device, report=heard.report)
    os.truncate(tmp_path / "loop0.img", 6 * MIB)  # the loop device still claims 16 MiB, and cannot deliver them
    with pytest.raises(DeviceFailed, match=f"failed to read at byte {6 * MIB}"):
        read_back(image, device, report=heard.report)
    done = write_image(image, device, report=heard.report, keep_verified=True)
    assert (done.kept, done.bytes_written) == (6 * MIB, 10 * MIB)
    assert matches_image(image, device)


# -- pace and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 4])
def test_rate_limit_is_kept(tmp_path: Path, heard: Heard, threads: int) -> None:
    image = FakeImage(pattern("abcdefgh........"))
    limit = 16 * MIB
    done = write_image(
        image, dirty(tmp_path / "slot", 16 * MIB), report=heard.report, rate_limit=limit, threads=threads
    )
    fair = 8 * MIB / limit  # holes are free
    assert 0.8 * fair <= done.seconds <= 3 * fair


MEASURE = """
import sys
from pathlib import Path
from core.report import Report
from partitions.write import read_back, write_image

class Endless:
    chunk_size = 1 << 20
    def __init__(self, count): self.count, self.size = count, count << 20
    def is_zero(self, chunk): return False
    def digest(self, chunk): return DIGEST
    def load(self, chunk, out): out[:] = PLAIN; return len(out)

from blake3 import blake3
PLAIN = b"x" * (1 << 20)
DIGEST = blake3(PLAIN).digest()
image = Endless(int(sys.argv[2]))
write_image(image, Path(sys.argv[1]), report=Report(), threads=4)
read_back(image, Path(sys.argv[1]), report=Report(), threads=4)
# Not ru_maxrss: that one remembers the process that forked us.
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])
"""


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    peaks = []
    for chunks in (48, 192):
        file = tmp_path / "slot.img"
        file.write_bytes(b"")
        os.truncate(file, chunks << 20)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(file), str(chunks)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] * 1.1 + 2
    assert max(peaks) < 80


def test_workers_step_back_and_the_caller_does_not(tmp_path: Path, heard: Heard) -> None:
    nice: list[int] = []
    image = FakeImage(pattern("abcd"), trap=lambda chunk: nice.append(os.getpriority(os.PRIO_PROCESS, 0)))
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    write_image(image, dirty(tmp_path / "slot", 4 * MIB), report=heard.report)
    assert all(value >= 10 for value in nice)
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine
