"""`updater rehearse node`: an upgrade of one node, as it will be on the night, on a machine that is thrown away."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from core.errors import ConfigError, NotPermitted, NotReady, RehearsalFailed, UpdaterError, WrongState
from images.keys import load_signer
from images.read import Bundle
from updater import exported, rehearsed
from updater.cli.context import print_json, settings
from updater.exported import Exported, carried_hash, kept_hash
from vagrant.qemu import MachineError, accelerator
from vagrant.rehearsal import report as reporting
from vagrant.rehearsal.guest import Guest
from vagrant.rehearsal.installed import Installed, install, trust_of
from vagrant.rehearsal.options import Options
from vagrant.rehearsal.story import StopRehearsal, Story
from zdu.rehearsal import FORMAT, Finding, Fingerprint, Grade, Phase, Record, judge, passed

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

_PROGRAMS: Final = (
    "qemu-system-x86_64",
    "qemu-img",
    "sgdisk",
    "mkfs.ext4",
    "mkfs.vfat",
    "mcopy",
    "grub-mkimage",
    "ssh",
)


@dataclass(kw_only=True)
class Stage:
    """What a rehearsal plays on: the export, both bundles as files here, the machine. `identity`: BLAKE3 of the
    manifest of the bundle to go to; empty where there is none. `signer`: of the record; None where it is not signed.
    """

    export: Exported
    installed: Installed
    guest: Guest
    start: str
    target: str
    identity: str
    signer: Signer | None = None


def tell(text: str) -> None:
    """Progress, to the screen or as JSON lines."""
    if settings.json:
        print_json({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": "note", "text": text})
    else:
        print(text, flush=True)


def rehearse_node(options: Options) -> None:
    """Rehearse, write report and record, say what would fail. Raises RehearsalFailed, and before it begins whatever is
    wrong with its words.
    """
    began = time.monotonic()
    with stage(options) as scene:
        story = Story(
            guest=scene.guest,
            config=scene.installed.config,
            exported=scene.export.manifest,
            bundle=scene.installed.bundle,
            start=scene.start,
            target=scene.target,
            cuts=list(options.cuts),
            accept_no_rollback=options.accept_no_rollback,
            tell=tell,
        )
        wanted = play(story, options)
        finish(
            options,
            scene,
            what="node",
            phases=story.phases,
            findings=[*judge(story.phases, wanted, scene.installed.missing), *story.uncut()],
            cuts=story.happened,
            seconds=time.monotonic() - began,
            plan=story.plan,
        )


def play(story: Story, options: Options) -> list[str]:
    """All phases that are wanted, as far as they go well; returns their names."""
    parts = [("boot", story.boot), ("plan", story.look)]
    if "unhealthy" in options.faults:
        parts += [("unhealthy", story.unhealthy), ("stage again", lambda: story.stage(again=True, name="stage again"))]
    else:
        parts += [("stage", story.stage)]
    parts += [("activate", story.activate)]
    if not options.accept_no_rollback:
        parts += [("prove-rollback", story.prove)] if options.prove else []
        parts += [("rollback", story.roll_back), ("forward", lambda: story.activate("forward"))]
    try:
        for _, part in parts:
            part()
    except StopRehearsal:
        pass  # the phase says why
    return [name for name, _ in parts]


@contextmanager
def stage(options: Options) -> Iterator[Stage]:
    """Put everything in place; all that was made is gone afterwards, unless it is to be kept."""
    _able()
    signer = prepared(options)
    with _directory(options.keep) as work, exported.opened(options.export) as export:
        current = _fetched(options.current, work / "current.bundle")
        following = _fetched(options.bundle, work / "next.bundle") if options.bundle else None
        trust = trust_of(export, work)
        with Bundle.open(str(current), trust) as bundle:
            start = bundle.manifest.release
        target = identity = ""
        if following is not None:
            with Bundle.open(str(following), trust) as bundle:
                target = bundle.manifest.release
                identity = bundle.manifest.identity
        tell(f"{start} is made as it is on {export.manifest.node.name}")
        installed = install(export, current, following, work)
        with Guest(installed.disk, work / "machine", memory=options.memory) as guest:
            yield Stage(
                export=export,
                installed=installed,
                guest=guest,
                start=start,
                target=target,
                identity=identity,
                signer=signer,
            )


def finish(
    options: Options,
    scene: Stage,
    *,
    what: str,
    phases: Sequence[Phase],
    findings: list[Finding],
    seconds: float,
    cuts: Sequence[str] = (),
    plan: object = None,
) -> None:
    """Verdict, record, report. `cuts`: steps during which the power was cut. Raises RehearsalFailed, ConfigError."""
    findings = sorted(findings, key=lambda each: list(Grade).index(each.grade))
    manifest = scene.export.manifest
    record = Record(
        format=FORMAT,
        what=what,
        node=manifest.node.name,
        release=scene.target,
        start=scene.start,
        fingerprint=Fingerprint(
            bundle=scene.identity,
            carried=carried_hash(manifest.carried),
            kept=kept_hash(manifest.kept),
            configuration=manifest.configured,
        ),
        passed=passed(findings),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        machine=f"QEMU, {accelerator().partition(',')[0]}, {scene.guest.cpus} CPUs, {scene.guest.memory} MiB",
        faults=(*options.faults, *(f"power@{step}" for step in cuts)),
        findings=tuple(f"{each.phase}: {each.text}" for each in findings if each.grade is Grade.FAILS),
    )
    if settings.json:
        print_json({"kind": "result", "data": reporting.as_json(record, phases, findings, plan)})
    else:
        for line in reporting.lines(record, phases, findings):
            print(line, flush=True)
    if options.record is not None:
        rehearsed.write(options.record, record, scene.signer)
    if options.report is not None:
        reporting.write(options.report, record, phases, findings, plan)
    if not record.passed:
        raise RehearsalFailed(
            f"{scene.start} → {scene.target} would fail on the night: {findings[0].phase}: {findings[0].text}"[:300],
            what=record.findings[:12],
            state="only the rehearsal's machine was touched, and it is gone"
            if options.keep is None
            else f"only the rehearsal's machine was touched; its disk is in {options.keep}",
            next="mend it, and rehearse again",
        )


def prepared(options: Options) -> Signer | None:
    """Make sure, before the rehearsal, that what it leaves can be written after it; what signs the record, if anything.
    Raises ConfigError.
    """
    report, record = options.report, options.record
    places = [*([report, reporting.as_data(report)] if report else []), *([record] if record else [])]
    if len({path.resolve() for path in places}) < len(places):
        raise ConfigError(
            "the record and the report, with its JSON beside it, would be the same file",
            what=[str(path) for path in places],
            state="nothing was rehearsed",
            next="--report night.html --record mr96-1.json    have names of their own",
        )
    for path in places:
        if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            why = "it is a directory" if path.is_dir() else f"{path.parent} is no directory that can be written to"
            raise ConfigError(f"{path} cannot be written", what=why, state="nothing was rehearsed")
    return load_signer(options.sign) if options.sign else None


def _able() -> None:
    if os.geteuid() != 0:
        raise NotPermitted("a rehearsal needs root", what="it mounts slots to put files in", next="run it with sudo")
    missing = [name for name in _PROGRAMS if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
    if missing:
        raise NotReady(
            "nothing can be rehearsed on this machine",
            what=f"not installed: {', '.join(missing)}",
            state="nothing was changed",
            next="tools/install-system-packages lab",
        )


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    try:
        if keep is not None:
            if keep.exists() and any(keep.iterdir()):
                raise WrongState(f"{keep} is not empty", state="nothing was changed", next="name a new directory")
            keep.mkdir(mode=0o700, parents=True, exist_ok=True)
            yield keep.resolve()
            return
        with tempfile.TemporaryDirectory(prefix="updater-rehearsal-", dir="/var/tmp") as work:
            yield Path(work)
    except MachineError as error:
        raise UpdaterError(
            "the rehearsal's machine did not do as it should",
            what=str(error).splitlines()[:20],
            state="only that machine was touched",
            next="the same with --keep DIR    leaves its disk and its console there",
        ) from error


def _fetched(source: str, target: Path) -> Path:
    """A bundle as a file on this host: where it is, or fetched."""
    if "://" not in source:
        return Path(source).resolve()
    import urllib3

    from core.errors import SourceUnreachable

    try:
        with urllib3.request("GET", source, preload_content=False, timeout=60, retries=3) as answer:
            if answer.status != 200:
                raise SourceUnreachable(f"{source} answers {answer.status}", state="nothing was rehearsed")
            with target.open("xb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
    except urllib3.exceptions.HTTPError as error:
        raise SourceUnreachable(
            f"{source} cannot be fetched", what=str(error), state="nothing was rehearsed"
        ) from error
    return target
