"""GRUB as the boot loader, on UEFI and BIOS alike: its environment block holds the state, a generated grub.cfg obeys
it (`model` says how), and one small file per slot names the kernel there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core import faults
from core.errors import BootEnvironment
from core.files import overwrite_in_place, write_atomic
from core.image import BootFiles
from partitions.boot.contract import BootLayout, Fault, require_bad, require_files
from partitions.boot.filesystem import mount_faults, sparse
from partitions.boot.grub_config import CONFIG, ENVIRONMENT, SLOT_FILE_SIZE, render_config, render_slot_file, slot_file
from partitions.boot.grub_environment import GrubEnvironment, mend, render
from partitions.boot.state import SLOTS, BootState, Slot, broken, from_variables, require_sound, variables


class GrubBackend:
    """See `backend.BootBackend`. `esp`: where the boot partition is mounted."""

    kind = "grub"

    def __init__(self, esp: Path, *, plain_filesystem: bool = True) -> None:
        self.esp = esp
        self.environment = GrubEnvironment(esp / ENVIRONMENT)
        self._plain_filesystem = plain_filesystem

    def read(self) -> BootState:
        """The state, strictly: what GRUB would not understand is an error here too. Raises BootEnvironment."""
        try:
            return from_variables(self.environment.load())
        except ValueError as error:
            raise BootEnvironment(
                f"the boot environment {self.environment.path} makes no sense",
                what=str(error).split("; "),
                state="the boot loader starts nothing by itself: its menu waits for a person",
                next=mend(self.environment.path)[1:],
            ) from error

    def write(self, state: BootState) -> None:
        """Write the five variables, in one sector; other ones stay. Raises BootEnvironment, ValueError."""
        require_sound(state)
        self.environment.store(variables(state))

    def prepare(self, slot: Slot, files: BootFiles, root: Path | None = None) -> None:
        """Write the slot's file, in its own blocks. Raises WrongState, BootEnvironment."""
        if root is not None:
            require_files(root, files)
        if self.prepared(slot, files):
            return
        require_bad(self.read(), slot)
        path = self.esp / slot_file(slot)
        faults.point("boot-entry:before")
        try:
            overwrite_in_place(path, render_slot_file(files))
        except (OSError, ValueError) as error:
            raise BootEnvironment(
                f"cannot write the boot entry of slot {slot}",
                what=[str(path), str(error)],
                state=f"slot {slot} is bad and will not be booted",
                next=["updater doctor", "updater init --install    makes the file anew where it is missing"],
            ) from error
        faults.point("boot-entry:after")

    def prepared(self, slot: Slot, files: BootFiles, root: Path | None = None) -> bool:
        """Does the slot's file say exactly this? The kernel itself lies in the slot and needs no copy."""
        try:
            return (self.esp / slot_file(slot)).read_bytes() == render_slot_file(files)
        except OSError:
            return False

    def check(self) -> list[Fault]:
        """Faults for `updater doctor`."""
        found = mount_faults(self.esp) if self._plain_filesystem else []
        try:
            found += [Fault(message=line, mend="updater status") for line in broken(self.read())]
        except BootEnvironment as error:
            return [*found, Fault(message=error.message, mend="; then ".join(error.next), what=error.what)]
        install = "updater init --install"
        for name, size in ((ENVIRONMENT, None), *((slot_file(slot), SLOT_FILE_SIZE) for slot in SLOTS)):
            path = self.esp / name
            if not path.exists():
                found.append(Fault(message=f"{path} is missing", mend=install))
            elif size is not None and path.stat().st_size != size:
                found.append(Fault(message=f"{path} is not {size} bytes long", mend=f"rm {path}; {install}"))
            elif sparse(path):
                found.append(
                    Fault(
                        message=f"{path} has holes", mend=f"cp --sparse=never {path} {path}.new; mv {path}.new {path}"
                    )
                )
        if not self.environment.writable():
            found.append(
                Fault(message=f"{self.environment.path} is not writable", mend="run as root, on a partition mounted rw")
            )
        if not (self.esp / CONFIG).exists():
            found.append(Fault(message=f"{self.esp / CONFIG} is missing", mend=install))
        return found

    def files(self, layout: BootLayout, state: BootState, boot: Mapping[Slot, BootFiles]) -> dict[str, bytes]:
        """grub.cfg, the environment, and the file of each slot, by path relative to the ESP."""
        return {
            CONFIG: render_config(layout),
            **{slot_file(slot): render_slot_file(boot.get(slot)) for slot in SLOTS},
            ENVIRONMENT: render(variables(state)),
        }

    def install(
        self,
        layout: BootLayout,
        state: BootState,
        boot: Mapping[Slot, BootFiles],
        roots: Mapping[Slot, Path] | None = None,
    ) -> list[Path]:
        """Write grub.cfg where it differs, and what is missing of the rest. Raises BootEnvironment."""
        written = []
        try:
            (self.esp / CONFIG).parent.mkdir(parents=True, exist_ok=True)
            for name, content in self.files(layout, state, boot).items():
                path = self.esp / name
                if path.exists() and (name != CONFIG or path.read_bytes() == content):
                    continue
                write_atomic(path, content)
                written.append(path)
        except OSError as error:
            raise BootEnvironment(
                "cannot install the boot configuration", what=str(error), next="updater doctor"
            ) from error
        return written
