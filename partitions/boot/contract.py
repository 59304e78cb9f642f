"""The contract of a boot loader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from core.errors import BootEnvironment, WrongState
from core.files import inside
from core.image import BootFiles, check_words
from partitions.boot.state import BAD, BootState, Slot

#: Directory on the ESP that belongs to us, with either loader.
DIRECTORY = "updater"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPlace:
    """Where a loader finds a slot. `root`: what the kernel gets as `root=`, such as ``PARTUUID=…``. `partition`: its
    number in the GPT of the ESP's disk; or `grub_device`, a GRUB name such as ``hd1,gpt2`` (elsewhere than that disk).
    """

    root: str
    partition: int | None = None
    grub_device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootLayout:
    """What the loader's files are made of, besides the state. `cmdline`: kernel arguments of the node. `timeout`:
    seconds for which the menu shows before the choice is booted (0: none). `serial`: speed of serial line
    `serial_unit`, on which the menu shows too; None: screen only.
    """

    a: SlotPlace
    b: SlotPlace
    cmdline: str = ""
    timeout: int = 3
    serial: int | None = 115200
    serial_unit: int = 0

    def __post_init__(self) -> None:
        for text in (self.cmdline, self.a.root, self.b.root, self.a.grub_device, self.b.grub_device):
            check_words(text)

    def __getitem__(self, slot: Slot) -> SlotPlace:
        return self.a if slot == "a" else self.b


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something about the boot loader that wants mending: what is wrong, and how to mend it."""

    message: str
    mend: str = ""
    what: tuple[str, ...] = field(default=())


class BootBackend(Protocol):
    """What a boot loader must be able to do. All of it is safe to repeat after dying half-way."""

    kind: str

    def read(self) -> BootState:
        """The state as the loader will see it at the next start. Raises BootEnvironment, with how to mend it."""

    def write(self, state: BootState) -> None:
        """Make this the state, durably: after a power cut either the old one or the new one holds, nothing else.

        Raises BootEnvironment; ValueError on a state that breaks the rules (`state.broken`).
        """

    def prepare(self, slot: Slot, files: BootFiles, root: Path | None = None) -> None:
        """Make the boot entry of a *bad* slot, for the system mounted at `root`. It is booted only after a flip.

        Raises WrongState when the slot is not bad and not prepared like this already; BootEnvironment; NoSpace.
        """

    def prepared(self, slot: Slot, files: BootFiles, root: Path | None = None) -> bool:
        """Is the boot entry of the slot exactly what `prepare` would make?"""

    def check(self) -> list[Fault]:
        """Faults for `updater doctor`: state readable and sensible, on a plain filesystem, writable, room enough."""

    def files(self, layout: BootLayout, state: BootState, boot: Mapping[Slot, BootFiles]) -> dict[str, bytes]:
        """What a new node's ESP must hold, by path relative to it: for those who build disks without mounting them."""

    def install(
        self,
        layout: BootLayout,
        state: BootState,
        boot: Mapping[Slot, BootFiles],
        roots: Mapping[Slot, Path] | None = None,
    ) -> list[Path]:
        """Write the loader's configuration anew, the node's kernel arguments included, and what else of `files` is not
        there yet (an existing state stays). `roots`: where the systems of slots are mounted (systemd-boot copies their
        kernels). The loader itself is not installed here. Returns what was written. Raises BootEnvironment, NoSpace.
        """


def require_bad(state: BootState, slot: Slot) -> None:
    """Raises WrongState unless the slot is bad: an entry that could be booted is never changed."""
    if state[slot] != BAD:
        raise WrongState(
            f"cannot change the boot entry of slot {slot} while it is {state[slot].state}",
            state="the boot entry is as it was",
        )


def require_files(root: Path, files: BootFiles) -> None:
    """Raises BootEnvironment unless kernel and initrd are files in the system mounted at `root`."""
    missing = [p for p in (files.kernel, files.initrd) if p is not None and not inside(root, p).is_file()]
    if missing:
        raise BootEnvironment(
            "the slot holds no kernel or initrd where the boot entry expects them",
            what=[f"{path} is no file in the slot" for path in missing],
            state="the slot is not bootable, and is marked so",
        )
