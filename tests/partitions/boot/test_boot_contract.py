"""Both backends keep one contract: the same tests, and the same random life of a node, with power cuts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import systemd_boot_model
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core import faults
from core.errors import BootEnvironment, ConfigError, UpdaterError, WrongState
from core.image import BootFiles
from partitions.boot import model, state
from partitions.boot.backend import open_backend
from partitions.boot.contract import BootBackend, BootLayout, SlotPlace
from partitions.boot.grub_environment import SECTOR, GrubEnvironment, parse, render
from partitions.boot.state import BAD, GOOD, SLOTS, BootState, Slot, SlotBoot, SlotState, fresh, other

LAYOUT = BootLayout(
    a=SlotPlace(root="PARTUUID=aaaa", partition=2), b=SlotPlace(root="PARTUUID=bbbb", partition=3), cmdline="quiet"
)
KINDS = ["grub", "systemd-boot"]


class PowerCut(BaseException):
    """The process is gone from one moment to the next."""


class Node:
    """A node in a directory: an ESP, two slots as trees, and a boot loader model."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.home = Path(tempfile.mkdtemp())
        self.esp = self.home / "esp"
        self.release: dict[Slot, int | None] = {"a": 1, "b": None}  # None: not a complete system
        for slot in SLOTS:
            (self.root(slot) / "boot").mkdir(parents=True)
        self.put(1, "a")
        self.backend.install(LAYOUT, fresh("a"), {"a": self.files(1)}, {"a": self.root("a")})

    @property
    def backend(self) -> BootBackend:
        """As a program that has just started opens it."""
        return open_backend(self.kind, self.esp, layout=LAYOUT, plain_filesystem=False)

    def root(self, slot: Slot) -> Path:
        return self.home / f"slot-{slot}"

    def files(self, release: int) -> BootFiles:
        return BootFiles(
            kernel=f"/boot/vmlinuz-{release}", initrd=f"/boot/initrd-{release}", cmdline=f"release={release}"
        )

    def put(self, release: int, slot: Slot) -> None:
        for old in (self.root(slot) / "boot").iterdir():
            old.unlink()
        (self.root(slot) / f"boot/vmlinuz-{release}").write_text(f"kernel {release}")
        (self.root(slot) / f"boot/initrd-{release}").write_text(f"initrd {release}")

    def boot(self, can_save: bool = True) -> tuple[Slot | None, bool]:
        """Start it once: which slot, and whether that was counted."""
        if self.kind == "systemd-boot":
            return systemd_boot_model.boot(self.esp / "loader/entries") or (None, False)
        block = GrubEnvironment(self.esp / "updater/grubenv")
        outcome = model.boot(block.load(), can_save)
        if outcome.environment is not None:
            block.path.write_bytes(render(outcome.environment))
        return outcome.slot, outcome.counted

    def entry_is_of(self, slot: Slot) -> int | None:
        """The release that the boot entry of the slot starts."""
        for release in range(1, 60):
            if self.backend.prepared(slot, self.files(release)):
                return release
        return None

    def close(self) -> None:
        shutil.rmtree(self.home)


@pytest.fixture(params=KINDS)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    node = Node(request.param)
    try:
        yield node
    finally:
        node.close()


def stage(node: Node, slot: Slot, release: int) -> None:
    node.backend.write(state.mark_bad(node.backend.read(), slot))
    node.put(release, slot)
    node.backend.prepare(slot, node.files(release), node.root(slot))


def test_a_new_node_boots_its_slot(node: Node) -> None:
    assert node.backend.read() == fresh("a")
    assert node.backend.check() == []
    assert node.boot() == ("a", False)


def test_installing_again_changes_no_state(node: Node) -> None:
    stage(node, "b", 2)
    node.backend.write(state.flip(node.backend.read(), "b", 3))
    before = node.backend.read()
    assert node.backend.install(LAYOUT, fresh("a"), {"a": node.files(1)}, {"a": node.root("a")}) == []
    assert node.backend.read() == before


def test_each_transition_is_read_back(node: Node) -> None:
    stage(node, "b", 2)
    at = node.backend.read()
    for change in (
        lambda at: state.flip(at, "b", 3),
        lambda at: state.confirm(at, "b"),
        lambda at: state.roll_back(at, "a"),
        lambda at: state.flip(at, "b", 2),
        lambda at: state.roll_back(at, "a"),
        lambda at: at,
    ):
        at = change(at)
        node.backend.write(at)
        assert node.backend.read() == at
        assert node.backend.check() == []
        assert (state.next_boot(at), False) == (at.primary, False)


def test_the_tries_run_out_and_the_old_slot_settles_it(node: Node) -> None:
    stage(node, "b", 2)
    node.backend.write(state.flip(node.backend.read(), "b", 2))
    assert [node.boot() for _ in range(4)] == [("b", True), ("b", True), ("a", False), ("a", False)]
    at = node.backend.read()
    assert at == BootState(primary="b", a=GOOD, b=SlotBoot(state=SlotState.TRYING, tries=0))
    node.backend.write(state.settle_fallback(at, "a"))
    assert node.backend.read() == fresh("a")


def test_preparing_is_idempotent_and_touches_bad_slots_only(node: Node) -> None:
    stage(node, "b", 2)
    node.backend.prepare("b", node.files(2), node.root("b"))
    node.backend.write(state.flip(node.backend.read(), "b", 3))
    node.backend.prepare("b", node.files(2), node.root("b"))
    assert node.backend.prepared("b", node.files(2), node.root("b"))
    node.put(3, "b")
    with pytest.raises(WrongState, match="trying"):
        node.backend.prepare("b", node.files(3), node.root("b"))
    assert node.entry_is_of("b") == 2


def test_a_slot_without_its_kernel_is_not_prepared(node: Node) -> None:
    with pytest.raises(BootEnvironment, match="no kernel"):
        node.backend.prepare("b", node.files(2), node.root("b"))


@pytest.mark.parametrize("at", [BootState(primary="a", a=BAD, b=BAD), BootState(primary="b", a=GOOD, b=BAD)])
def test_a_state_that_breaks_the_rules_is_not_written(node: Node, at: BootState) -> None:
    with pytest.raises(ValueError, match="no boot state to write"):
        node.backend.write(at)
    assert node.backend.read() == fresh("a")


def test_a_missing_record_is_an_error_that_says_how_to_mend_it(node: Node) -> None:
    shutil.rmtree(node.esp)
    with pytest.raises(BootEnvironment) as caught:
        node.backend.read()
    assert caught.value.next
    assert any("boot environment" in fault.message or "directory" in fault.message for fault in node.backend.check())


def test_an_unknown_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lilo"):
        open_backend("lilo", tmp_path)


class Life(RuleBasedStateMachine):
    """Upgrades, hangs, rollbacks and cuts, in any order. What must hold is in the invariants."""

    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.node = Node(self.kind)
        self.booted: Slot | None = "a"  # None: the power is off
        self.latest = 1
        self.staged = False

    def teardown(self) -> None:
        faults.arm(None)
        self.node.close()

    def effect(self, cut: int | None, change: Callable[[], None]) -> bool:
        """Do something on the node; the power fails at its `cut`-th point (None: it does not). True: it was done."""
        passed = 0

        def at_point(_: str) -> None:
            nonlocal passed
            passed += 1
            if passed - 1 == cut:
                raise PowerCut

        faults.arm(at_point)
        try:
            change()
        except PowerCut:
            self.booted = None
        finally:
            faults.arm(None)
        return self.booted is not None

    def write(self, wanted: BootState, cut: int | None) -> bool:
        before = self.node.backend.read()
        done = self.effect(cut, lambda: self.node.backend.write(wanted))
        assert self.node.backend.read() in ((wanted,) if done else (before, wanted))
        return done

    cuts = st.one_of(st.none(), st.integers(0, 6))

    @precondition(lambda self: self.booted is not None)
    @rule(cut_mark=cuts, cut_entry=cuts, dies_writing=st.booleans())
    def stage(self, cut_mark: int | None, cut_entry: int | None, dies_writing: bool) -> None:
        assert self.booted is not None
        target = other(self.booted)
        try:
            wanted = state.mark_bad(self.node.backend.read(), target)
        except WrongState:
            return
        self.staged = False
        if not self.write(wanted, cut_mark):
            return
        self.node.release[target] = None
        if dies_writing:
            self.booted = None
            return
        self.latest += 1
        self.node.put(self.latest, target)
        files = self.node.files(self.latest)
        if self.effect(cut_entry, lambda: self.node.backend.prepare(target, files, self.node.root(target))):
            self.node.release[target] = self.latest
            self.staged = True

    @precondition(lambda self: self.booted is not None and self.staged)
    @rule(tries=st.integers(1, 3), cut=cuts)
    def activate(self, tries: int, cut: int | None) -> None:
        assert self.booted is not None
        at, target = self.node.backend.read(), other(self.booted)
        if state.is_good(at, self.booted) and self.node.release[target] is not None:
            self.staged = not self.write(state.flip(at, target, tries), cut)

    @precondition(lambda self: self.booted is not None)
    @rule(cut=cuts)
    def confirm(self, cut: int | None) -> None:
        assert self.booted is not None
        at = self.node.backend.read()
        if at.primary == self.booted and at[self.booted].state is SlotState.TRYING:
            self.write(state.confirm(at, self.booted), cut)

    @precondition(lambda self: self.booted is not None)
    @rule(cut=cuts)
    def roll_back(self, cut: int | None) -> None:
        assert self.booted is not None
        at = self.node.backend.read()
        if state.is_good(at, other(self.booted)):
            self.write(state.roll_back(at, other(self.booted)), cut)

    @precondition(lambda self: self.booted is None)
    @rule(can_save=st.booleans())
    def start(self, can_save: bool) -> None:
        before = self.node.backend.read()
        slot, counted = self.node.boot(can_save)
        self.booted = slot
        after = self.node.backend.read()
        assert slot is not None, "a node with a good slot never stops at the menu"
        assert self.node.release[slot] is not None, "half a system was started"
        assert self.node.entry_is_of(slot) == self.node.release[slot], "the entry is of another release"
        if state.is_good(before, before.primary):
            assert slot == before.primary, "a confirmed slot fell back by itself"
        if counted:
            assert after[slot].tries == before[slot].tries - 1
        else:
            assert state.is_good(before, slot) and after == before

    @precondition(lambda self: self.booted is not None)
    @rule(cut=cuts)
    def settle(self, cut: int | None) -> None:
        assert self.booted is not None
        at = self.node.backend.read()
        if state.fell_back(at, self.booted):
            self.write(state.settle_fallback(at, self.booted), cut)

    @precondition(lambda self: self.booted is not None)
    @rule()
    def hang_or_power_off(self) -> None:
        self.booted = None

    @invariant()
    def the_record_keeps_its_rules(self) -> None:
        at = self.node.backend.read()
        assert not state.broken(at)
        chosen = state.next_boot(at)
        assert chosen is not None and self.node.release[chosen] is not None


class TornLife(Life):
    """As above, on GRUB, where a write of the block may also leave any mixture of its sectors."""

    kind = "grub"

    def write(self, wanted: BootState, cut: int | None) -> bool:
        if cut not in (2, 3, 4, 5):
            return super().write(wanted, cut)
        block = GrubEnvironment(self.node.esp / "updater/grubenv")
        old = block.path.read_bytes()
        new = render({**parse(old), **state.variables(wanted)})
        kept = [old if cut & 1 else new, old if cut & 2 else new]
        block.path.write_bytes(kept[0][:SECTOR] + kept[1][SECTOR:])
        self.booted = None
        assert self.node.backend.read() in (state.from_variables(parse(old)), wanted)
        return False


class SystemdLife(Life):
    """As above, on systemd-boot (which cannot refuse to boot what it cannot count, so saving always works here)."""

    kind = "systemd-boot"


_SETTINGS = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestLifeOnGrub = TornLife.TestCase
TestLifeOnGrub.settings = _SETTINGS
TestLifeOnSystemdBoot = SystemdLife.TestCase
TestLifeOnSystemdBoot.settings = _SETTINGS


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_of_every_transition_leaves_the_old_or_the_new_state(kind: str) -> None:
    """Not by chance: each point of each transition."""
    trying = SlotBoot(state=SlotState.TRYING, tries=2)
    starts: list[tuple[BootState, Callable[[BootState], BootState]]] = [
        (fresh("a"), lambda at: state.flip(at, "b", 3)),
        (BootState(primary="a", a=GOOD, b=GOOD), lambda at: state.flip(at, "b", 3)),
        (BootState(primary="a", a=GOOD, b=GOOD), lambda at: state.mark_bad(at, "b")),
        (BootState(primary="b", a=GOOD, b=GOOD), lambda at: state.mark_bad(at, "b")),
        (BootState(primary="b", a=GOOD, b=GOOD), lambda at: state.roll_back(at, "a")),
        (BootState(primary="b", a=GOOD, b=trying), lambda at: state.confirm(at, "b")),
        (BootState(primary="b", a=GOOD, b=trying), lambda at: state.roll_back(at, "a")),
        (BootState(primary="b", a=GOOD, b=trying), lambda at: state.flip(at, "b", 3)),
    ]
    tried = 0
    for start, change in starts:
        for cut in range(10):
            node = Node(kind)
            try:
                stage(node, "b", 2)
                reach(node, start)
                wanted = change(start)
                points = 0

                def at_point(_: str, cut: int = cut) -> None:
                    nonlocal points
                    points += 1
                    if points - 1 == cut:
                        raise PowerCut

                faults.arm(at_point)
                try:
                    node.backend.write(wanted)
                    assert node.backend.read() == wanted
                except PowerCut:
                    tried += 1
                    assert node.backend.read() in (start, wanted)
                finally:
                    faults.arm(None)
                # Whatever the cut left behind, the loader agrees with the record, and writing goes on from there.
                at = node.backend.read()
                assert node.boot()[0] == state.next_boot(at)
                node.backend.write(change(node.backend.read()) if at == start and at != wanted else wanted)
            except WrongState:
                pass
            finally:
                node.close()
            if points <= cut:
                break
    assert tried >= 2 * len(starts)


def reach(node: Node, wanted: BootState) -> None:
    """Bring the node to a state by the transitions that lead there."""
    if wanted == fresh("a"):
        return
    at = state.flip(node.backend.read(), "b", max(wanted.b.tries, 1))
    node.backend.write(at)
    if wanted.b == GOOD:
        node.backend.write(at := state.confirm(at, "b"))
        if wanted.primary == "a":
            node.backend.write(state.roll_back(at, "a"))
    assert node.backend.read() == wanted


def test_a_full_esp_changes_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(node, "b", 2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    module = "partitions.boot.grub_environment.overwrite_in_place"
    monkeypatch.setattr(module if node.kind == "grub" else "partitions.boot.systemd_boot.write_atomic", full)
    with pytest.raises(UpdaterError, match="cannot be written"):
        node.backend.write(state.flip(node.backend.read(), "b", 3))
    assert node.backend.read() == fresh("a")
