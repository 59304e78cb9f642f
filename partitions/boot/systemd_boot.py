"""systemd-boot as the boot loader: its entries on the ESP are the state.

An entry ``loader/entries/updater-<generation>-<slot>[+LEFT[-DONE]].conf`` exists for each slot that may be booted; the
suffix counts a trying slot, and systemd-boot itself renames it. Entries are tried from the highest generation down,
those without tries left last: so the highest generation is the primary slot, and a bad slot has no entry.

Each change of `state` is decided by one rename or one removal. Kernel and initrd lie on the ESP too, and are
copied there while the slot is bad. One thing GRUB does better: where the firmware cannot write to the ESP,
systemd-boot boots a trying slot uncounted.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from core import faults
from core.errors import BootEnvironment, ConfigError, NoSpace
from core.files import fsync_dir, inside, write_atomic
from core.image import BootFiles
from partitions.boot.contract import DIRECTORY, BootLayout, Fault, require_bad, require_files
from partitions.boot.filesystem import mount_faults
from partitions.boot.loader_texts import (
    SETTINGS,
    copies,
    entry_text,
    loader_text,
    release_arguments,
    settings,
    with_arguments,
)  # fmt: skip
from partitions.boot.state import BAD, GOOD, SLOTS, BootState, Slot, SlotBoot, SlotState, broken, other, require_sound

ENTRIES = "loader/entries"
LOADER = "loader/loader.conf"
_NAME = re.compile(r"updater-(\d+)-([ab])(?:\+(\d+)(?:-\d+)?)?\.conf\Z")
#: Set when somebody presses `d` in the menu; it goes before our order.
_FORCED = Path("/sys/firmware/efi/efivars/LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
_SPARE = 1 << 20  # bytes to leave free on the ESP, for entries


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A loader entry of ours, as its name tells it. `left`: tries, None where they are not counted."""

    name: str
    generation: int
    slot: Slot
    left: int | None

    @property
    def record(self) -> SlotBoot:
        """What the entry says about its slot. Raises ValueError on too many tries."""
        return GOOD if self.left is None else SlotBoot(state=SlotState.TRYING, tries=self.left)


def entries_in(names: list[str]) -> dict[Slot, list[Entry]]:
    """Our entries among the file names, by slot, the one that counts first. A slot has a second one only after a cut
    between a rename and the removal of what it replaced: of equal generations the counted one counts, and fewest tries.
    """
    found: dict[Slot, list[Entry]] = {"a": [], "b": []}
    for name in names:
        if match := _NAME.match(name):
            slot: Slot = "a" if match[2] == "a" else "b"
            left = None if match[3] is None else int(match[3])
            found[slot].append(Entry(name=name, generation=int(match[1]), slot=slot, left=left))
    for each in found.values():
        each.sort(key=lambda entry: (-entry.generation, entry.left is None, entry.left or 0))
    return found


class SystemdBootBackend:
    """See `backend.BootBackend`. `esp`: where the ESP is mounted. `layout` is needed to prepare a slot."""

    kind = "systemd-boot"

    def __init__(self, esp: Path, *, layout: BootLayout | None = None, plain_filesystem: bool = True) -> None:
        self.esp = esp
        self._layout = layout
        self._plain_filesystem = plain_filesystem
        self._directory = esp / ENTRIES

    def read(self) -> BootState:
        """The state that the names of the entries tell. Raises BootEnvironment."""
        found = self._entries()
        heads = [each[0] for each in found.values() if each]
        if not heads:
            raise self._error("holds no entry of ours", "no slot would be booted")
        primary = max(heads, key=lambda entry: (entry.generation, entry.slot)).slot
        try:
            records = {slot: found[slot][0].record if found[slot] else BAD for slot in SLOTS}
        except ValueError as error:
            raise self._error("makes no sense", str(error)) from error
        return BootState(primary=primary, a=records["a"], b=records["b"])

    def write(self, state: BootState) -> None:
        """Rename, make or remove entries. Raises BootEnvironment; ValueError on a state that breaks the rules."""
        require_sound(state)
        with self._writing("the loader entries cannot be written"):
            found = self._entries()
            for stale in self._directory.glob(".updater-*.tmp"):
                stale.unlink()
            # What an earlier cut left behind goes first: it must not come back to life when its successor goes.
            self._remove([entry for each in found.values() for entry in each[1:]])
            heads = {slot: each[0] if each else None for slot, each in found.items()}
            # The primary slot comes last: until then the loader's first choice is the old one.
            for slot in (other(state.primary), state.primary):
                heads[slot] = self._write_slot(state, slot, heads)

    def prepare(self, slot: Slot, files: BootFiles, root: Path | None = None) -> None:
        """Copy kernel and initrd of the system at `root` to the ESP. Raises WrongState, BootEnvironment, NoSpace."""
        if self.prepared(slot, files, root):
            return
        if root is None:
            raise ValueError("systemd-boot needs the slot mounted, to copy its kernel")
        require_bad(self.read(), slot)
        self._copy(slot, files, root)

    def prepared(self, slot: Slot, files: BootFiles, root: Path | None = None) -> bool:
        """Are the entry's text and (where `root` is given) the copies of kernel and initrd what they should be?"""
        home = self._home(slot)
        try:
            if (home / "entry").read_text() != self._entry_text(slot, files):
                return False
            return root is None or all(_same(inside(root, path), home / name) for name, path in copies(files))
        except OSError:
            return False

    def check(self) -> list[Fault]:
        """Faults for `updater doctor`."""
        found = mount_faults(self.esp) if self._plain_filesystem else []
        try:
            state = self.read()
        except BootEnvironment as error:
            return [*found, Fault(message=error.message, mend=error.next[-1], what=error.what)]
        found += [Fault(message=line, mend="updater status") for line in broken(state)]
        for slot in SLOTS:
            if state[slot] != BAD and not (self._home(slot) / "linux").is_file():
                mend = "updater init --install, while it runs; or stage the slot again"
                found.append(Fault(message=f"{self._home(slot) / 'linux'} is missing", mend=mend))
        said = settings(_text_of(self.esp / LOADER) or "")
        if wrong := [f"{key} {value}" for key, value in SETTINGS.items() if said.get(key) != value]:
            message = f"{self.esp / LOADER} does not say: {', '.join(wrong)}"
            found.append(Fault(message=message, mend="updater init --install"))
        if not os.access(self._directory, os.W_OK):
            found.append(Fault(message=f"{self._directory} is not writable", mend="run as root; mount it rw"))
        if _FORCED.exists():
            found.append(
                Fault(message="a default entry is set in the firmware's variables", mend="bootctl set-default ''")
            )
        free = _free(self.esp)
        need = max((_size(self._home(slot)) for slot in SLOTS), default=0)
        if free + min(_size(self._home(slot)) for slot in SLOTS) < need + _SPARE:
            found.append(Fault(message=f"{self.esp} has no room for a second kernel", mend="remove what is not needed"))
        return found

    def files(self, layout: BootLayout, state: BootState, boot: Mapping[Slot, BootFiles]) -> dict[str, bytes]:
        """loader.conf and the entries, by path relative to the ESP. Kernel and initrd belong beside each slot's
        ``updater/<slot>/entry``, as ``linux`` and ``initrd``.
        """
        require_sound(state)
        content = {LOADER: loader_text(layout, "")}
        for generation, slot in enumerate((other(state.primary), state.primary), start=1):
            if slot not in boot:
                continue
            text = entry_text(layout, slot, boot[slot])
            content[f"{DIRECTORY}/{slot}/entry"] = text
            if state[slot] != BAD:
                content[f"{ENTRIES}/{_name(generation, slot, state[slot])}"] = f"version {generation}\n{text}"
        return {path: text.encode("ascii") for path, text in content.items()}

    def install(
        self,
        layout: BootLayout,
        state: BootState,
        boot: Mapping[Slot, BootFiles],
        roots: Mapping[Slot, Path] | None = None,
    ) -> list[Path]:
        """Copy the kernels of the slots in `roots` where they are not there; then write loader.conf, and the entries:
        all on a node without any, else those that have other arguments of the node.
        """
        self._layout = layout
        with self._writing("the boot configuration cannot be installed"):
            self._directory.mkdir(parents=True, exist_ok=True)
            found = self._entries()
            new = not any(found.values())
            for slot, root in (roots or {}).items():
                if not (self.prepared(slot, boot[slot], root) if new else self._bootable(slot)):
                    known = release_arguments(_text_of(self._home(slot) / "entry") or "", slot)
                    self._copy(slot, boot[slot] if known is None else replace(boot[slot], cmdline=known), root)
            wanted = self.files(layout, state, boot) if new else dict(self._renewed(layout, found))
            if new:
                self._require_kernels(state, boot)
            wanted[LOADER] = loader_text(layout, _text_of(self.esp / LOADER) or "").encode()
            changed = {self.esp / name: content for name, content in wanted.items()}
            written = [path for path, content in changed.items() if not path.exists() or path.read_bytes() != content]
            for path in written:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, changed[path])
        return written

    def _bootable(self, slot: Slot) -> bool:
        """Is there what an entry of the slot starts? The text of the entry comes last when kernels are copied."""
        return all((self._home(slot) / name).is_file() for name in ("entry", "linux"))

    def _require_kernels(self, state: BootState, boot: Mapping[Slot, BootFiles]) -> None:
        """Raises BootEnvironment where an entry would start a kernel that is not there."""
        missing = [slot for slot in boot if state[slot] != BAD and not (self._home(slot) / "linux").is_file()]
        if missing:
            raise BootEnvironment(
                f"the ESP holds no kernel for slot {missing[0]}",
                what=[f"{self._home(slot) / 'linux'} is missing" for slot in missing],
                state="no boot entry was made",
                next="updater init --install    copies the kernel of the system that runs",
            )

    def _renewed(self, layout: BootLayout, found: Mapping[Slot, list[Entry]]) -> Iterator[tuple[str, bytes]]:
        """The entries as they should be, by path relative to the ESP: names, files and the release's arguments stay."""
        for slot in SLOTS:
            text = _text_of(self._home(slot) / "entry")
            if text is None:
                continue
            text = with_arguments(text, layout, slot)
            yield f"{DIRECTORY}/{slot}/entry", text.encode()
            for entry in found[slot]:
                yield f"{ENTRIES}/{entry.name}", f"version {entry.generation}\n{text}".encode()

    def _write_slot(self, state: BootState, slot: Slot, heads: Mapping[Slot, Entry | None]) -> Entry | None:
        """Make the slot's entry say what the state says, by one rename or removal. Returns the entry it then has."""
        wanted, head, rival = state[slot], heads[slot], heads[other(slot)]
        if wanted == BAD:
            self._remove([head] if head else [])
            return None
        last = slot == state.primary
        if head is not None and not (last and rival is not None and rival.generation >= head.generation):
            if head.record != wanted:
                name = _name(head.generation, slot, wanted)
                faults.point("boot-environment:before")
                (self._directory / head.name).rename(self._directory / name)
                fsync_dir(self._directory)
                faults.point("boot-environment:after")
                return entries_in([name])[slot][0]
            return head
        generation = max((entry.generation for entry in (head, rival) if entry), default=0) + 1
        text = (self._home(slot) / "entry").read_text()
        name = _name(generation, slot, wanted)
        faults.point("boot-environment:before")
        write_atomic(self._directory / name, f"version {generation}\n{text}")
        faults.point("boot-environment:after")
        self._remove([head] if head else [])
        return entries_in([name])[slot][0]

    def _remove(self, entries: list[Entry]) -> None:
        for entry in entries:
            faults.point("boot-environment:before")
            (self._directory / entry.name).unlink()
            fsync_dir(self._directory)
            faults.point("boot-environment:after")

    def _copy(self, slot: Slot, files: BootFiles, root: Path) -> None:
        """Replace what the ESP holds for the slot; the text of the entry comes last, and says that all is there."""
        import shutil

        require_files(root, files)
        home = self._home(slot)
        need = sum(inside(root, path).stat().st_size for _, path in copies(files)) + _SPARE
        with self._writing(f"the kernel of slot {slot} cannot be copied to the ESP"):
            home.mkdir(parents=True, exist_ok=True)
            free = _free(self.esp) + _size(home)
            if free < need:
                raise NoSpace(
                    f"{self.esp} has no room for the kernel of slot {slot}",
                    what=f"{need >> 20} MiB are needed and {free >> 20} MiB free",
                    state=f"slot {slot} is bad and will not be booted",
                    next="updater doctor",
                )
            for name in ("entry", "linux", "initrd"):  # first, since the ESP may hold each only once
                (home / name).unlink(missing_ok=True)
            for name, path in copies(files):
                faults.point(f"boot-entry:{name}")
                with inside(root, path).open("rb") as source, (home / name).open("xb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                    target.flush()
                    os.fsync(target.fileno())
            faults.point("boot-entry:before")
            write_atomic(home / "entry", self._entry_text(slot, files))
            fsync_dir(home.parent)
            faults.point("boot-entry:after")

    def _entries(self) -> dict[Slot, list[Entry]]:
        try:
            return entries_in([path.name for path in self._directory.iterdir()])
        except OSError as error:
            raise self._error("cannot be read", str(error)) from error

    def _entry_text(self, slot: Slot, files: BootFiles) -> str:
        if self._layout is None:
            raise ConfigError("systemd-boot needs to know the slots' root= to make a boot entry")
        return entry_text(self._layout, slot, files)

    def _home(self, slot: Slot) -> Path:
        return self.esp / DIRECTORY / slot

    @contextmanager
    def _writing(self, message: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = NoSpace if error.errno == errno.ENOSPC else BootEnvironment
            raise kind(
                message, what=str(error), state="`updater status` shows which slot boots next", next="updater doctor"
            ) from error

    def _error(self, message: str, what: str) -> BootEnvironment:
        return BootEnvironment(
            f"the loader's directory {self._directory} {message}",
            what=what,
            next=["is the ESP mounted?", "updater init --install    makes entries where there are none"],
        )


def _text_of(path: Path) -> str | None:
    """What the file says, None where there is none. Raises OSError."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _name(generation: int, slot: Slot, record: SlotBoot) -> str:
    count = f"+{record.tries}" if record.state is SlotState.TRYING else ""
    return f"updater-{generation:06d}-{slot}{count}.conf"


def _same(one: Path, two: Path) -> bool:
    import filecmp

    return filecmp.cmp(one, two, shallow=False)


def _free(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*")) if directory.is_dir() else 0
