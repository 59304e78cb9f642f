"""What a value of an option must be, and how it is read from a command line and shown. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

#: What stands in place of a secret wherever people or logs can see it.
MASK = "••••"

#: Longest text of one value; a whole certificate chain fits.
LONGEST = 65536
_LARGEST = 1 << 63

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")

Value = bool | int | str | list[Any]


class Type(StrEnum):
    """The kinds of options."""

    BOOL = "bool"
    INT = "int"
    STRING = "string"
    ENUM = "enum"
    ADDRESS = "address"
    LIST = "list"
    SECRET = "secret"


class Form(StrEnum):
    """What an address may look like."""

    IP = "ip"  # 10.0.0.1, 2001:db8::1
    HOST = "host"  # sip-01.example.net
    NETWORK = "network"  # 10.0.0.0/24
    INTERFACE = "interface"  # 10.0.0.5/24, an address with the length of its network's prefix
    ENDPOINT = "endpoint"  # an IP or a host with a port: 10.0.0.1:5060, [2001:db8::1]:5060


class Level(StrEnum):
    """Where a value may be set, the highest first; a lower one wins."""

    GLOBAL = "global"
    APPLICATION = "application"
    INSTANCE = "instance"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option as a release declares it.

    `min`, `max`: of an int its range, of a string or secret its length, of a list its number of items. `pattern`: what
    a string, a secret, or each item of a list of strings must match as a whole. `choices`: of an enum, or of each item
    of a list of enums. `forms`: of an address, or of each item of a list of addresses. `items`: what a list holds.
    `renamed_from`: names that the option had in earlier releases. `levels`: where it may be set (empty: anywhere).
    """

    type: Type
    help: str
    default: Any = None
    min: int | None = None
    max: int | None = None
    pattern: str | None = None
    choices: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()
    items: Type = Type.STRING
    multiline: bool = False
    required: bool = False
    renamed_from: tuple[str, ...] = ()
    levels: tuple[Level, ...] = ()

    def __post_init__(self) -> None:
        for key, wrong in _misfits(self):
            raise ValueError(f"{key}: {wrong}")
        if self.default is not None and (fault := self.fault(self.default)):
            raise ValueError(f"default: {fault}")

    @property
    def is_secret(self) -> bool:
        """Whether its values must never be seen."""
        return self.type is Type.SECRET or (self.type is Type.LIST and self.items is Type.SECRET)

    def may_be_set_at(self, level: Level) -> bool:
        """Whether the release lets it be set there."""
        return not self.levels or level in self.levels

    def fault(self, value: Any) -> str:
        """What is wrong with a value; empty when it will do. A secret's value is never in the answer."""
        if self.type is not Type.LIST:
            return self._fault(self.type, value, self.min, self.max)
        if not isinstance(value, list):
            return f"expected a list, found {_named(value)}"
        if fault := _out_of_range(len(value), self.min, self.max, "items"):
            return fault
        faults = ((number, self._fault(self.items, item, None, None)) for number, item in enumerate(value))
        return next((f"[{number}]: {fault}" for number, fault in faults if fault), "")

    def _fault(self, kind: Type, value: Any, least: int | None, most: int | None) -> str:
        match kind:
            case Type.BOOL:
                return "" if isinstance(value, bool) else f"expected true or false, found {_named(value)}"
            case Type.INT:
                if isinstance(value, bool) or not isinstance(value, int):
                    return f"expected a whole number, found {_named(value)}"
                return _out_of_range(value, least, most) or ("" if abs(value) < _LARGEST else "does not fit in 64 bits")
            case Type.SECRET if not isinstance(value, str):
                return "expected text"
        if not isinstance(value, str):
            return f"expected text, found {_named(value)}"
        fault = _unprintable(value, self.multiline) or _out_of_range(len(value), least, most, "characters")
        if fault or len(value) > LONGEST:
            return fault or f"longer than {LONGEST} characters"
        told = "" if kind is Type.SECRET else f"{value[:80]!r} "
        if kind is Type.ENUM:
            return "" if value in self.choices else f"{told}is none of {', '.join(self.choices)}"
        if kind is Type.ADDRESS:
            forms = self.forms or (Form.IP, Form.HOST)
            return "" if any(_has_form(value, form) for form in forms) else f"{told}is no {' or '.join(forms)}"
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            return f"{told}does not match {self.pattern}"
        return ""

    def parse(self, text: str) -> Value:
        """Read a value as it is typed on a command line; lists as JSON or with commas. Raises ValueError."""
        value: Any = text
        match self.type:
            case Type.BOOL:
                value = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(text)
                if value is None:
                    raise ValueError("expected true or false")
            case Type.INT:
                value = _int(text)
            case Type.LIST if text.lstrip().startswith("["):
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise ValueError("expected a list, as JSON or with commas between the items") from error
            case Type.LIST:
                parts = [part.strip() for part in text.split(",")] if text.strip() else []
                value = [_int(part) for part in parts] if self.items is Type.INT else parts
        if fault := self.fault(value):
            raise ValueError(fault)
        checked: Value = value
        return checked

    def shown(self, value: Any) -> str:
        """The value as people see it: on one line, a secret hidden."""
        if value is None:
            return "–"
        if self.is_secret:
            return MASK
        return value if isinstance(value, str) and value.isprintable() and value else json.dumps(value)


def _misfits(option: Option) -> list[tuple[str, str]]:
    """What the declaration says that makes no sense: key and fault."""
    holds = option.items if option.type is Type.LIST else option.type
    wrong: list[tuple[str, str]] = []

    def forbid(given: bool, key: str, why: str) -> None:
        if given:
            wrong.append((key, why))

    forbid(holds is Type.LIST and option.type is Type.LIST, "items", "a list of lists is not possible")
    forbid(holds is Type.ENUM and not option.choices, "choices", "an enum needs some")
    forbid(holds is not Type.ENUM and bool(option.choices), "choices", "only an enum has choices")
    forbid(holds is not Type.ADDRESS and bool(option.forms), "forms", "only an address has forms")
    texts = (Type.STRING, Type.SECRET)
    forbid(holds not in texts and option.pattern is not None, "pattern", "only a string or a secret has a pattern")
    forbid(holds not in texts and option.multiline, "multiline", "only a string or a secret can have several lines")
    ranged = (Type.INT, Type.STRING, Type.SECRET, Type.LIST)
    limits = (option.min, option.max)
    forbid(option.type not in ranged and limits != (None, None), "min", f"a {option.type} has no range")
    forbid(None not in limits and option.min > option.max, "min", "is more than max")  # type: ignore[operator]
    forbid(option.is_secret and option.default is not None, "default", "a secret must not be shipped with a release")
    forbid(option.required and option.default is not None, "required", "an option with a default is never missing")
    forbid(not option.help.strip(), "help", "is empty")
    if option.pattern is not None:
        try:
            re.compile(option.pattern)
        except (re.error, RecursionError, OverflowError) as error:
            wrong.append(("pattern", f"is no regular expression: {error}"))
    return wrong


def _int(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text.strip()):
        raise ValueError("expected a whole number")
    return int(text)


def _named(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number with a fraction", str: "text", list: "a list"}
    return names.get(type(value), f"a {type(value).__name__}")


def _unprintable(text: str, multiline: bool) -> str:
    """A newline in a value could add a line of its own to a file, say to sudoers: only where it is declared."""
    allowed = "\n\t" if multiline else ""
    bad = next((letter for letter in text if not letter.isprintable() and letter not in allowed), None)
    return "" if bad is None else f"holds a character that is not allowed here ({bad!a})"


def _out_of_range(value: int, least: int | None, most: int | None, unit: str = "") -> str:
    if (least is None or value >= least) and (most is None or value <= most):
        return ""
    if least is not None and most is not None:
        wanted = f"from {least} to {most}"
    else:
        wanted = f"at least {least}" if least is not None else f"at most {most}"
    return f"must be {wanted} {unit}".rstrip() + ("" if unit else f", not {value}")


def _has_form(text: str, form: Form) -> bool:
    try:
        match form:
            case Form.IP:
                ipaddress.ip_address(text)
                return "%" not in text
            case Form.NETWORK:
                ipaddress.ip_network(text)
                return "/" in text
            case Form.INTERFACE:
                ipaddress.ip_interface(text)
                return "/" in text
            case Form.HOST:
                labels = text.removesuffix(".").split(".")
                return len(text) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
            case Form.ENDPOINT:
                host, _, port = text.rpartition(":")
                plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
                bracketed = plain != host
                good = _has_form(plain, Form.IP) if bracketed or ":" not in plain else False
                number = port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536
                return number and (good or (not bracketed and _has_form(plain, Form.HOST)))
    except ValueError:
        return False
