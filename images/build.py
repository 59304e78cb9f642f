"""Building a bundle: a filesystem image, a directory tree or RPM packages in, one signed file out. Same input, same
bytes.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from core.errors import ConfigError, NoSpace, UpdaterError
from core.files import fsync_dir
from core.image import BootFiles
from core.report import Report
from images import keys, payload, rpms, sections, trees
from images.manifest import MAX_SECTION, Blob, ImageInfo, Manifest, parse, stamp
from images.read import MAGIC

if TYPE_CHECKING:
    from securesystemslib.signer import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSpec:
    """What to build. Exactly one input: `image` (file with a filesystem), `tree` (directory of a root filesystem), or
    `packages` (names, installed from `repositories`: URLs or directories with RPMs).

    `size`: bytes of the image made from a tree (None: what it needs and some room). `kernel`, `initrd`: paths inside
    the image (None: the newest found in the tree; an `image` needs `kernel`). `created`: None takes SOURCE_DATE_EPOCH,
    else the newest time of modification in the input. `sections`: name → directory (becomes a tar) or file. `level`:
    of zstd.
    """

    release: str
    compatible: str
    image: Path | None = None
    tree: Path | None = None
    packages: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    filesystem: str = "ext4"
    size: int | None = None
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str = ""
    architecture: str = field(default_factory=platform.machine)
    lts: bool = False
    created: datetime | None = None
    expires: datetime | None = None
    required_free: int = 0
    installable_over: tuple[str, ...] = ()
    minimum_agent: str = "0"
    changelog: str = ""
    policy: dict[str, Any] | None = None
    sections: dict[str, Path] = field(default_factory=dict)
    chunk_size: int = payload.CHUNK
    level: int = payload.LEVEL


def build(spec: BuildSpec, output: Path, signers: Sequence[Signer], report: Report | None = None) -> Path:
    """Build the bundle at `output` (replaced only when all is done) and return its path.

    Needs room for the image beside `output` while it works. Raises ConfigError when the spec does not hold together,
    CommandFailed, NoSpace.
    """
    report = report or Report()
    _check(spec, signers)
    try:
        with ExitStack() as stack:
            work = Path(stack.enter_context(TemporaryDirectory(prefix=".bundle-", dir=output.absolute().parent)))
            ready = _prepare(spec, work, report)
            _write(spec, ready, work, signers, report)
            (work / "bundle").replace(output)
        fsync_dir(output.absolute().parent)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpace("no room to build the bundle", what=str(error), state=f"{output} is as it was") from error
        raise UpdaterError("the bundle cannot be built", what=str(error), state=f"{output} is as it was") from error
    return output


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """The input as an image file."""

    image: Path
    filesystem: str
    boot: BootFiles
    created: datetime
    sections: dict[str, bytes]


def _check(spec: BuildSpec, signers: Sequence[Signer]) -> None:
    """Whatever can be told at once, before minutes of work."""
    faults = []
    if sum((spec.image is not None, spec.tree is not None, bool(spec.packages))) != 1:
        faults.append("give exactly one of: image, tree, packages")
    if spec.packages and not spec.repositories:
        faults.append("packages: need at least one repository")
    if spec.image is not None and spec.kernel is None:
        faults.append("kernel: its path inside the image has to be given with an image")
    if spec.size is not None and spec.size % 4096:
        faults.append(f"size: {spec.size} is not a multiple of 4096")
    if not 1 <= spec.level <= 22:
        faults.append(f"level: {spec.level} is not within 1 and 22")
    for name, path in (("image", spec.image), ("tree", spec.tree), *spec.sections.items()):
        if path is not None and not path.exists():
            faults.append(f"{name}: {path} does not exist")
    if not signers:
        faults.append("no signing key is given")
    dummy = Blob(size=0, digest="0" * 64)
    trial = dict.fromkeys(spec.sections, dummy)
    try:  # the manifest's own checks, on everything that is known already
        boot = BootFiles(kernel=spec.kernel or "/vmlinuz", initrd=spec.initrd, cmdline=spec.cmdline)
        image = ImageInfo(
            size=spec.size or 4096, chunk_size=spec.chunk_size, content="0" * 64, filesystem=spec.filesystem
        )
        _manifest(spec, image, dummy, trial, boot, spec.created or datetime.now(UTC))
    except ValueError as error:
        faults.append(str(error))
    if faults:
        raise ConfigError("the bundle cannot be built from this", what=faults)


def _prepare(spec: BuildSpec, work: Path, report: Report) -> _Ready:
    """Turn whatever the input is into an image file."""
    extra: dict[str, bytes] = {}
    if spec.image is not None and spec.kernel is not None:
        image = spec.image
        filesystem = trees.detect(image)
        boot = BootFiles(kernel=spec.kernel, initrd=spec.initrd, cmdline=spec.cmdline)
        created = _created(spec, int(image.stat().st_mtime))
    else:
        tree = spec.tree
        if tree is None:
            tree = work / "root"
            with report.phase("packages", f"install {', '.join(spec.packages)} into a new root"):
                extra["packages"], newest = rpms.install(tree, spec.packages, spec.repositories, spec.architecture)
        else:
            newest = trees.newest(tree)
        boot = trees.boot_files(tree, kernel=spec.kernel, initrd=spec.initrd, cmdline=spec.cmdline)
        created = _created(spec, newest)
        filesystem = spec.filesystem
        image = work / "image"
        at = int(created.timestamp())
        with report.phase("image", f"make the {filesystem} image"):
            trees.make_image(tree, image, filesystem=filesystem, size=spec.size, label=spec.release, at=at)
    packed = {name: sections.pack(path, int(created.timestamp())) for name, path in spec.sections.items()}
    for name, data in packed.items():
        if len(data) > MAX_SECTION:
            raise ConfigError(f"section {name} is too large", what=f"{len(data)} bytes; at most {MAX_SECTION}")
    return _Ready(image=image, filesystem=filesystem, boot=boot, created=created, sections=extra | packed)


def _created(spec: BuildSpec, newest: int) -> datetime:
    """When the bundle counts as made: never "now", or no two builds would be alike."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if spec.created is not None:
        return spec.created
    return datetime.fromtimestamp(int(epoch) if epoch.isdigit() else newest, UTC)


def _write(spec: BuildSpec, ready: _Ready, work: Path, signers: Sequence[Signer], report: Report) -> None:
    """Compress into a file of its own (the index comes before the chunks, and is known only after them), then put the
    bundle together as `work`/bundle.
    """
    size = ready.image.stat().st_size
    try:
        info = ImageInfo(size=size, chunk_size=spec.chunk_size, content="0" * 64, filesystem=ready.filesystem)
    except ValueError as error:
        raise ConfigError("the image cannot go into a bundle", what=str(error)) from error
    index = bytearray()
    with ready.image.open("rb") as plain, (work / "chunks").open("w+b") as chunks:
        with report.phase("compress", f"compress {size} bytes") as said:
            pieces = payload.plain_chunks(plain.fileno(), size, spec.chunk_size)
            for entry, stored in payload.compress(pieces, chunk_size=spec.chunk_size, level=spec.level):
                index += entry
                chunks.write(stored)
                done = len(index) // payload.ENTRY.size * spec.chunk_size
                report.progress("compress", min(done, size), size)
            said["stored"] = chunks.tell()
        content = payload.Index(bytes(index), size, spec.chunk_size).content
        info = replace(info, content=content)
        blobs = {name: _blob(data) for name, data in ready.sections.items()}
        manifest = _manifest(spec, info, _blob(index), blobs, ready.boot, ready.created).to_bytes()
        parse(manifest)  # what we write, we can read
        envelope = keys.sign(manifest, signers)
        with (work / "bundle").open("wb") as bundle:
            bundle.write(MAGIC + len(envelope).to_bytes(4, "big") + envelope + index)
            for _, data in sorted(ready.sections.items()):
                bundle.write(data)
            chunks.seek(0)
            shutil.copyfileobj(chunks, bundle, 1 << 20)
            bundle.flush()
            os.fsync(bundle.fileno())


def _manifest(
    spec: BuildSpec, info: ImageInfo, index: Blob, blobs: dict[str, Blob], boot: BootFiles, created: datetime
) -> Manifest:
    return Manifest(
        release=spec.release,
        lts=spec.lts,
        compatible=spec.compatible,
        architecture=spec.architecture,
        created=stamp(created),
        expires=stamp(spec.expires) if spec.expires else None,
        image=info,
        index=index,
        sections=blobs,
        required_free=spec.required_free,
        installable_over=spec.installable_over,
        minimum_agent=spec.minimum_agent,
        changelog=spec.changelog,
        boot=boot,
        policy=spec.policy,
    )


def _blob(data: bytes | bytearray) -> Blob:
    return Blob(size=len(data), digest=blake3(data).hexdigest())
