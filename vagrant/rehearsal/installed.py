"""The disk of a rehearsal: the release that runs on the node now, with all that its export carries.

The release is staged by the program's own `stage`, in a sandbox on this host, so the operator's packages, patches,
files and configuration go in as they would on the node. The slot, and the agent's data, become a disk that boots.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from core.errors import ConfigError, UpdaterError
from core.files import inside
from core.journal import Journal
from core.release import Release
from core.report import Report
from images.keys import Trust, load_trust
from images.read import Bundle
from partitions import mounts
from partitions.boot.state import BAD, GOOD, BootState
from patches import patch
from patches.carried import choose_patches
from patches.drift import save, snapshot
from patches.hunks import Fit
from patches.lifetime import Lifetime
from patches.registry import Kind, Registry
from templates import exchange
from templates.manifest import builtin
from templates.manifest import load as load_shipped
from templates.options import Value
from templates.store import Author, Store
from templates.tree import Place, Tree
from updater import pristine, sandbox, upgrade
from updater import verify as verifying
from updater.bundle_root import bundle_root
from updater.exported import Exported, File, Manifest
from updater.node import Node, open_node
from updater.node_toml import NodeConfig, load_node
from vagrant.disk import MIB, Layout, make_disk
from vagrant.loader import esp_files
from vagrant.qemu import QUICK_KERNEL
from vagrant.rehearsal.rewritten import ACCESS, dumped, rewritten, toml_of
from vagrant.tree import test_keys

#: On the data partition of the machine: the bundle to go to.
NEXT: Final = "rehearsal/next.bundle"

#: And the list of its files, where the bundle brings none: made here, it takes a fraction of the time.
LIST: Final = "rehearsal/next.list"

#: Beyond what is put there: for scratch files and journals, in MiB.
_ROOM: Final = 512

#: What the sandbox keeps for itself.
_SANDBOX_ONLY: Final = ("sandbox-machine.json", "lock", "scratch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A disk that boots the current release in slot b. `config`: node.toml as it is on the machine. `bundle`: path of
    the next bundle there. `missing`: what of the node is not in the rehearsal, in words.
    """

    disk: Path
    config: NodeConfig
    bundle: str
    missing: tuple[str, ...]


def _not_applied(node: Node, current: Path, missing: list[str]) -> tuple[str, ...]:
    """Patches that do not apply to the current release: so they are not in the slot that runs, and wait for the next
    one. Noted in `missing`."""
    if not (node.config.data / "carried.sqlite").exists():
        return ()
    with (
        upgrade.open_bundle(node, str(current)) as bundle,
        Registry.of(node.config.data) as registry,
        bundle_root(bundle, node.config.data / "scratch") as root,
    ):
        release = bundle.manifest.release
        reports = patch.check(choose_patches(registry, Release.parse(release)).patches, root)
    names = tuple(report.name for report in reports if report.fit is Fit.CONFLICTS)
    missing += [f"patch {name} is not in {release}, to which it does not apply" for name in names]
    return names


def trust_of(export: Exported, work: Path) -> Trust:
    """The release keys of the node; kept as files in `work`."""
    paths = _key_files(export, work)
    threshold = int(toml_of(export).get("trust", {}).get("threshold", 1))
    return load_trust(paths, threshold)


def install(export: Exported, current: Path, following: Path | None, work: Path) -> Installed:
    """Make the disk in `work`, a directory. `current`, `following`: bundles. Needs root.

    Raises ConfigError where the export does not fit the bundle, and whatever `stage` raises.
    """
    manifest, trust = export.manifest, trust_of(export, work)
    if not manifest.base.data_mount:
        raise ConfigError(
            f"{manifest.node.name} is a sandbox: there is no machine to be rehearsed",
            state="nothing was rehearsed",
            next="make the export on a real node",
        )
    with Bundle.open(str(current), trust) as bundle:
        release, boot = bundle.manifest.release, bundle.manifest.boot
        if manifest.node.release and manifest.node.release != release:
            raise ConfigError(
                f"the node runs {manifest.node.release}, and {current.name} is {release}",
                state="nothing was rehearsed",
                next=f"give --current the bundle of {manifest.node.release}",
            )
    missing = list(manifest.left_out)
    config = recreate(export, work, trust, missing)
    layout = _layout(manifest, config, following)
    with open_node(config) as node:
        node.journal.set_slot("a", {})
        try:
            without = _not_applied(node, current, missing)
            upgrade.stage(node, str(current), Report(), upgrade.Wishes(without=without))
        except UpdaterError as error:
            error.message = f"{release} cannot be made as it is on the node: {error.message}"
            error.args = (error.message,)
            raise
        with upgrade.open_bundle(node, str(current)) as bundle:
            verifying.take(node, "b", bundle)
    toml = rewritten(toml_of(export), export, missing)
    slot = work / "sandbox/slots/b.img"
    own = work / "node.toml"
    own.write_text(dumped(toml))
    data = _data(export, config, work, following)
    with mounts.mounted(slot, read_only=False) as root:
        _put_all(export, manifest.files, root)
        for path, blob in manifest.keys.items():
            _put(root, path, export.read(blob))
        _put(root, manifest.node.config, own.read_bytes())
        _let_in(root)
        for each in manifest.databases.values():
            if each.blob and not _on_data(manifest, each.path):
                _put(root, each.path, export.read(each.blob), mode=0o600)
    empty = work / "empty"
    empty.touch()
    cmdline = " ".join(part for part in (QUICK_KERNEL, str(toml.get("boot", {}).get("cmdline", ""))) if part)
    esp = esp_files(layout, cmdline=cmdline, state=BootState(primary="b", a=BAD, b=GOOD), boot={"b": boot})
    disk = make_disk(work / "disk", slot_a=empty, slot_b=slot, esp=esp, data_tree=data, layout=layout)
    for scratch in (slot, data):
        shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()
    return Installed(
        disk=disk,
        config=load_node(own),
        bundle=f"{manifest.base.data_mount}/{NEXT}",
        missing=tuple(missing),
    )


# -- the sandbox in which the current release is staged


def recreate(export: Exported, work: Path, trust: Trust, missing: list[str]) -> Path:
    """A sandbox in `work` that carries what the node carries; returns its node.toml. What of it cannot be as it is on
    the node is added to `missing`, in words.
    """
    manifest, home = export.manifest, work / "sandbox"
    config = sandbox.create(
        home,
        slot_size=-(-manifest.base.slot // MIB) * MIB,
        keys=_key_files(export, work),
        release=manifest.node.release or "MR0-0",
        compatible=manifest.node.compatible,
    )
    who = {"name": manifest.node.name, "site": manifest.node.site, "role": manifest.node.role}
    if policy := toml_of(export).get("policy"):
        who["policy"] = policy
    text = config.read_text().replace('name = "sandbox"\n', dumped(who))
    config.write_text(text.replace("threshold = 1", f"threshold = {trust.threshold}"))
    rpm_keys = PurePosixPath(manifest.node.config).parent / "rpm-keys"
    for each in manifest.files:
        if PurePosixPath(each.path).parent == rpm_keys and each.kind == "file" and not each.left_out:
            _put(home, f"/rpm-keys/{PurePosixPath(each.path).name}", export.read(each.digest))
    (home / "root").mkdir(exist_ok=True)
    _put_all(export, manifest.kept, home / "root")
    _carry(export, home / "data")
    _configure(export, home / "data", missing)
    return config


def _carry(export: Exported, data: Path) -> None:
    """What the operator carries, as it is on the node."""
    manifest = export.manifest
    if not manifest.carried:
        return
    with Registry.of(data) as registry:
        for each in manifest.carried:
            registry.add(
                Kind(each.kind),
                each.name,
                lifetime=Lifetime(since=each.since, until=each.until, superseded_by=each.superseded_by),
                reason=each.reason,
                facts=each.facts,
                content=export.read(each.blob) if each.blob else None,
            )
        shipped = ((path, {"shipped": registry.keep(export.read(blob))}) for path, blob in manifest.shipped.items())
        registry.set_outcomes("a", Kind.FILE, [(path, "kept", facts) for path, facts in shipped])


def _configure(export: Exported, data: Path, missing: list[str]) -> None:
    """The configuration; secrets, which stayed on the node, get values that nobody uses."""
    if not export.manifest.configuration:
        return
    text = export.read(export.manifest.configuration).decode()
    tree, version, secrets = exchange.read(text, name="the configuration")
    options = load_shipped(builtin()).schema.options
    values: dict[Place, dict[str, Value]] = {place: dict(own) for place, own in tree.values.items()}
    for each in secrets:
        place, _, option = each.rpartition(": ")
        least = options[option].min or 0 if option in options else 0
        values.setdefault(Place.parse(place), {})[option] = "rehearsed".ljust(least, "-")
        missing.append(f"the value of {option}: a made-up one takes its place")
    with Store.open(data / "configuration.sqlite") as store:
        store.receive(version, Tree(values=values, instances=tree.instances), Author(who="rehearsal"))


# -- the data partition


def _data(export: Exported, config: Path, work: Path, following: Path | None) -> Path:
    """The agent's data, the databases, and the next bundle, as a tree."""
    manifest, tree = export.manifest, work / "data"
    home = load_node(config).data
    own = tree / _below(manifest, str(toml_of(export)["data"]))
    for name in _SANDBOX_ONLY:
        path = home / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    own.parent.mkdir(parents=True, exist_ok=True)
    home.rename(own)
    with Journal.open(own / "journal.sqlite") as journal:
        if manifest.data_release:
            journal.set_fact("data-release", manifest.data_release)
    for each in manifest.databases.values():
        if each.blob and _on_data(manifest, each.path):
            _put(tree, f"/{_below(manifest, each.path)}", export.read(each.blob), mode=0o600)
    if following is not None:
        target = tree / NEXT
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(following, target)
        with Bundle.open(str(following), trust_of(export, work)) as bundle:
            if pristine.SECTION not in bundle.manifest.sections:
                with bundle_root(bundle, work / "scratch") as root:
                    save(snapshot(root), tree / LIST)
    return tree


def _on_data(manifest: Manifest, path: str) -> bool:
    return PurePosixPath(path).is_relative_to(manifest.base.data_mount) and manifest.base.data_mount != "/"


def _below(manifest: Manifest, path: str) -> PurePosixPath:
    if not _on_data(manifest, path):
        raise ConfigError(
            f"{path} does not lie on a data partition of its own",
            what=f"the node has {manifest.base.data_mount} mounted there",
            state="nothing was rehearsed",
        )
    return PurePosixPath(path).relative_to(manifest.base.data_mount)


def _layout(manifest: Manifest, config: Path, following: Path | None) -> Layout:
    """Slots as large as the node's; data as large as needed."""
    slot = -(-manifest.base.slot // MIB)
    home = load_node(config).data
    put = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    put += following.stat().st_size if following else 0
    return Layout(slot=slot, data=max(1024, 2 * put // MIB + slot + _ROOM))


# -- files


def _key_files(export: Exported, work: Path) -> list[Path]:
    home = work / "keys"
    home.mkdir(exist_ok=True)
    found = []
    for path, blob in export.manifest.keys.items():
        target = home / PurePosixPath(path).name
        target.write_bytes(export.read(blob))
        found.append(target)
    return found


def _put_all(export: Exported, files: Iterable[File], root: Path) -> None:
    """Files, directories and symlinks with their owners; what was left out of the export is left out here."""
    for each in files:
        path = inside(root, str(PurePosixPath(each.path).parent)) / PurePosixPath(each.path).name
        path.parent.mkdir(parents=True, exist_ok=True)
        if each.kind == "directory":
            path.mkdir(exist_ok=True)
        elif each.left_out:
            continue
        else:
            path.unlink(missing_ok=True)
            if each.kind == "symlink":
                path.symlink_to(each.target)
            else:
                path.write_bytes(export.read(each.digest))
        shutil.chown(path, each.uid, each.gid) if each.kind != "symlink" else None
        if each.kind != "symlink":
            path.chmod(each.mode)


def _put(root: Path, name: str, data: bytes, *, mode: int = 0o644) -> None:
    path = inside(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def _let_in(root: Path) -> None:
    """The keys of this host, in place of the node's."""
    keys = test_keys()
    for path, content, mode in zip(
        ACCESS, (keys.public, keys.host_private, keys.host_public), (0o600, 0o600, 0o644), strict=True
    ):
        _put(root, path, content.encode(), mode=mode)
    inside(root, "/root/.ssh").chmod(0o700)
