"""Exit codes are an interface: the table here changes only by growing."""

from __future__ import annotations

from collections.abc import Iterator

from core import errors
from core.errors import Interrupted, UpdaterError

#: What scripts out there rely on.
CODES = {
    "UpdaterError": (1, "error"),
    "ConfigError": (10, "configuration"),
    "NotReady": (11, "node not ready"),
    "NotPermitted": (12, "not permitted"),
    "Busy": (13, "busy"),
    "BundleInvalid": (20, "bundle invalid"),
    "SignatureInvalid": (21, "signature"),
    "Incompatible": (22, "incompatible"),
    "ModificationConflict": (23, "modification conflict"),
    "NoSpace": (24, "no space"),
    "SourceUnreachable": (25, "source unreachable"),
    "Drifted": (26, "undeclared changes"),
    "DeviceFailed": (30, "device"),
    "BootEnvironment": (31, "boot environment"),
    "HookFailed": (32, "hook"),
    "HealthFailed": (33, "health"),
    "WrongState": (34, "wrong state"),
    "RollbackRefused": (35, "rollback refused"),
    "WindowClosed": (36, "window closed"),
    "CommandFailed": (40, "command"),
    "ZduRefused": (50, "rule"),
    "SiteUnreachable": (51, "site unreachable"),
    "GateNotPassed": (52, "gate"),
    "FencedOff": (53, "fenced off"),
    "Interrupted": (130, "interrupted"),
    "Terminated": (143, "terminated"),
    "HungUp": (129, "hung up"),
}


def family(kind: type[UpdaterError]) -> Iterator[type[UpdaterError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from family(child)


def ours() -> dict[str, type[UpdaterError]]:
    return {kind.__name__: kind for kind in family(UpdaterError) if kind.__module__ == errors.__name__}


def test_codes_and_words_are_what_they_always_were() -> None:
    found = {name: (kind.exit_code, kind.kind) for name, kind in ours().items()}
    assert {name: found.get(name) for name in CODES} == CODES


def test_no_code_and_no_word_means_two_things() -> None:
    kinds = list(ours().values())
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
    assert len({kind.kind for kind in kinds}) == len(kinds)


def test_codes_keep_clear_of_those_that_mean_something_to_a_shell() -> None:
    for kind in ours().values():
        if not issubclass(kind, Interrupted):
            assert kind.exit_code not in (0, 2) and kind.exit_code < 64, kind


def test_one_line_or_several_come_out_the_same() -> None:
    one = UpdaterError("it broke", what="here", state="as before", next="mend it")
    assert (one.what, one.next, str(one)) == (("here",), ("mend it",), "it broke")
    assert UpdaterError("it broke", what=iter(["a", "b"])).what == ("a", "b")
    assert one.as_json() == {
        "kind": "error",
        "exit_code": 1,
        "message": "it broke",
        "what": ["here"],
        "state": "as before",
        "next": ["mend it"],
    }
