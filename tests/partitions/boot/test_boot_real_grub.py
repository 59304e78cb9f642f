"""The real GRUB, started in QEMU, does what `partitions.boot.model` says."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from loader_machine import LAYOUT, OVMF, esp_read, make_disk, run, stub_kernel

from core.image import BootFiles
from partitions.boot.grub import GrubBackend
from partitions.boot.grub_config import CONFIG, ENVIRONMENT, render_config
from partitions.boot.grub_environment import parse, render
from partitions.boot.model import boot
from partitions.boot.state import BAD, GOOD, BootState, SlotBoot, SlotState, fresh, variables

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here"),
    pytest.mark.skipif(shutil.which("grub-mkimage") is None, reason="no grub-mkimage here"),
]

ESP = "{}@@1048576"
FILES = BootFiles(kernel="/boot/vmlinuz", cmdline="isolcpus=1 module_blacklist=* dns=[::1]")


def environments() -> list[dict[str, str] | None]:
    """Every combination that the script tells apart, sound ones and nonsense. None: a file that is no environment."""
    found: list[dict[str, str] | None] = [None] * 4
    states, strange = ("good", "trying", "bad"), ("GOOD", "", None)
    digits, many = ("0", "1", "3"), ("2", "4", "5", "6", "7", "8", "9", "10", "-1", "x", "", "!", None)
    for primary, spare in ("ab", "ba"):
        pairs = [(one, two, "3") for one in states for two in states if one != "trying"]
        pairs += [("trying", two, tries) for two in states for tries in digits]
        pairs += [("trying", "good", tries) for tries in many]
        pairs += [(one, "good", "3") for one in strange] + [("good", two, "3") for two in strange]
        for state, spare_state, tries in pairs:
            each = {"primary": primary, f"{primary}_state": state, f"{primary}_tries": tries}
            each |= {f"{spare}_state": spare_state, f"{spare}_tries": "2"}
            found.append({name: value for name, value in each.items() if value is not None})
    nonsense = ("", "!", "(", "-n", "-o", "=", "a b", "$b_state", "a;reboot", "*", '"')
    found += [{**variables(fresh("a")), "primary": word} for word in nonsense]
    found.append({**variables(fresh("a")), "root": "nowhere", "prefix": "nowhere", "timeout": "99", "updater_ok": ""})
    return found


def broken_blocks() -> list[bytes]:
    """What a torn or foreign file may look like."""
    sound = render(variables(fresh("a")))
    return [b"", b"\0" * 1024, b"#" * 1024, b"# GRUB Environment" + sound[20:]]


@pytest.mark.parametrize("can_save", [True, False])
def test_each_environment_is_answered_as_the_model_says(tmp_path: Path, can_save: bool) -> None:
    cases = list(zip(environments(), [*broken_blocks(), *map(_block, environments()[4:])], strict=True))
    if not can_save:
        cases = [(case, block) for case, block in cases if case is not None and boot(case).counted]
    script = render_config(LAYOUT).decode().replace(ENVIRONMENT, "cases/$case")
    script = script[script.index("# The partition") :]
    names = [f"{number:03d}" for number in range(len(cases))]
    # One start of the machine answers many: our script is run for each, up to where the menu would show. (Not all in
    # one, because GRUB gets slower with each file that it has run.)
    chunks = [names[at : at + 30] for at in range(0, len(names), 30)]
    esp = {f"cases/{name}": block for name, (_, block) in zip(names, cases, strict=True)}
    esp |= {f"drivers/{number}": _driver(chunk) for number, chunk in enumerate(chunks)}
    disk = tmp_path / "disk.img"
    make_disk(disk, "i386-pc", {**esp, CONFIG: _driver(chunks[0]), "updater/script.cfg": script.encode()}, {})

    answers: dict[str, str] = {}
    for number in range(len(chunks)):
        (tmp_path / "driver").write_bytes(esp[f"drivers/{number}"])
        subprocess.run(["mcopy", "-o", "-i", ESP.format(disk), tmp_path / "driver", f"::{CONFIG}"], check=True)
        heard = run(disk, "i386-pc", lambda text: "all done" in text, read_only=not can_save)
        answers |= dict(re.findall(r"case (\d+): (\[.*\])", heard))

    subprocess.run(["mcopy", "-s", "-i", ESP.format(disk), "::cases", tmp_path / "after"], check=True)
    wrong = []
    for name, (case, block) in zip(names, cases, strict=True):
        expected = boot(case, can_save)
        left = "" if expected.left is None else expected.left
        wait = "[-1] [slot-a]" if expected.slot is None else f"[0] [slot-{expected.slot}]"
        if answers.get(name) != f"[{expected.slot or ''}] [{left}] {wait}":
            wrong.append(f"{case}: the model says {expected}, GRUB says {answers.get(name)}")
        after = (tmp_path / "after" / name).read_bytes()
        if (after != block) if case is None else (parse(after) != expected.environment):
            wrong.append(f"{case}: the model leaves {expected.environment}, GRUB leaves {after[:200]!r}")
    assert not wrong, "\n".join(wrong)


def _block(case: dict[str, str] | None) -> bytes:
    assert case is not None
    return render(case)


def _driver(names: list[str]) -> bytes:
    """A grub.cfg that runs our script for each case and says what it chose."""
    lines = ["serial", "terminal_output serial"]
    for name in names:
        lines.append(f"set case={name}\nsource /updater/script.cfg")
        lines.append('echo "case $case: [$updater_choice] [$updater_left] [$timeout] [$default]"')
    return "\n".join([*lines, 'echo "all done"', "sleep 100", ""]).encode()


def esp_for(state: BootState) -> dict[str, bytes]:
    return GrubBackend(Path("unused")).files(LAYOUT, state, {"a": FILES, "b": FILES})


def trying_b(tries: int) -> BootState:
    return BootState(primary="b", a=GOOD, b=SlotBoot(state=SlotState.TRYING, tries=tries))


def booted(heard: str) -> list[str]:
    """What each started kernel found on its command line, about us."""
    lines = re.findall(r"BOOT_IMAGE=\S+ (.*)", heard)
    return [" ".join(re.findall(r"updater\.\S+", line)) for line in lines]


@pytest.mark.parametrize(
    ("target", "tries"),
    [
        ("i386-pc", 3),
        pytest.param("x86_64-efi", 1, marks=pytest.mark.skipif(not OVMF.exists(), reason="no OVMF here")),
    ],
)
def test_a_slot_that_never_confirms_gives_way_after_its_tries(tmp_path: Path, target: str, tries: int) -> None:
    at, disk = trying_b(tries), tmp_path / "disk.img"
    make_disk(disk, target, esp_for(at), {"a": stub_kernel(), "b": stub_kernel()})
    heard = run(disk, target, lambda text: "updater.slot=a\n" in text.replace("\r", ""))
    counted = [f"updater.slot=b updater.trying={left}" for left in reversed(range(tries))]
    assert booted(heard) == [*counted, "updater.slot=a"]
    assert "root=PARTUUID=bbbb panic=30 console=ttyS0,115200 quiet isolcpus=1 module_blacklist=* dns=[::1]" in heard
    assert parse(esp_read(disk, ENVIRONMENT)) == {**variables(at), "b_tries": "0"}


def test_a_trying_slot_without_a_kernel_uses_up_its_tries(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    make_disk(disk, "i386-pc", esp_for(trying_b(1)), {"a": stub_kernel(), "b": None})
    heard = run(disk, "i386-pc", lambda text: "updater.slot=a" in text)
    assert heard.count("updater: slot b cannot be started") == 1
    assert booted(heard) == ["updater.slot=a"]


def test_a_confirmed_slot_without_a_kernel_waits_for_a_person(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    make_disk(disk, "i386-pc", esp_for(BootState(primary="a", a=GOOD, b=GOOD)), {"a": None, "b": stub_kernel()})
    # A key (or ten seconds) later the menu shows both slots, and stays.
    heard = run(disk, "i386-pc", lambda text: "slot a cannot be started" in text and "slot b  good" in text)
    assert booted(heard) == []
    assert heard.count("cannot be started") == 1


def test_nonsense_shows_the_menu_with_both_slots(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    files: Mapping[str, bytes] = {
        **esp_for(BootState(primary="a", a=GOOD, b=BAD)),
        ENVIRONMENT: random.Random(1).randbytes(1024),
    }
    make_disk(disk, "i386-pc", files, {"a": stub_kernel(), "b": stub_kernel()})
    heard = run(disk, "i386-pc", lambda text: "slot a " in text and "slot b " in text)
    assert booted(heard) == []
    assert "choose one in the menu" in heard
