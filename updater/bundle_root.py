"""The root of a bundle, to look at before anything is staged: its image as a sparse file, mounted read-only."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import NoSpace
from core.report import Report
from images.read import Bundle
from partitions import mounts, write
from updater.staging import size

#: Left free on the data partition whatever we put there.
_SPARE = 64 << 20


@contextmanager
def bundle_root(bundle: Bundle, work: Path, report: Report | None = None) -> Iterator[Path]:
    """The mounted, read-only root of the bundle while in the context; its image is a file in `work` (made where it is
    missing) meanwhile, and is gone afterwards. Files that a killed process left there are removed first.

    Every byte is verified against the signed hashes as it is read. Raises NoSpace, BundleInvalid, SourceUnreachable,
    DeviceFailed, NotPermitted.
    """
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(work)
    image = bundle.image
    needed = sum(span.length for span in write.spans(image) if not span.zero)
    free = os.statvfs(work)
    room = free.f_bavail * free.f_frsize - _SPARE
    if room < needed:
        raise NoSpace(
            f"no room to look into {bundle.manifest.release} before it is staged",
            what=f"its image needs {size(needed)} in {work}, {size(max(room, 0))} are free",
            state="nothing was changed",
            next=f"free space on the data partition: du -xh {work.parent} | sort -h | tail",
        )
    fd, name = tempfile.mkstemp(prefix=f"{os.getpid()}-", suffix=".root", dir=work)
    file = Path(name)
    try:
        os.ftruncate(fd, image.size)
        os.close(fd)
        write.write_image(image, file, report=report or Report(), step="open")
        with mounts.mounted(file, read_only=True) as root:
            yield root
    finally:
        file.unlink(missing_ok=True)


def _sweep(work: Path) -> None:
    for left in work.glob("*-*.root"):
        owner = left.name.partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            left.unlink(missing_ok=True)
