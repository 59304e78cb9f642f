"""The border where files and JSON come in: plain data becomes frozen dataclasses, or an error names every bad key."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from core.errors import ConfigError

T = TypeVar("T")

_UNTOUCHED = "nothing was changed"

#: What a ``__post_init__`` says of one of its keys: ``key: what is wrong``.
_OWN = re.compile(r"([A-Za-z_][\w.]*): (.+)", re.DOTALL)


class SchemaError(ValueError):
    """`faults`: one line per fault, each with the path to the key, such as ``slots.a.device: expected str``."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def structure(data: Any, shape: type[T]) -> T:
    """Make a `shape` (a dataclass of dataclasses) of plain data. Unknown keys are faults, and nothing is converted
    quietly (the text "5" is no int).

    A dataclass may check itself in ``__post_init__`` by raising ValueError, or SchemaError for several faults. Raises
    SchemaError with all faults.
    """
    import cattrs

    try:
        made: T = _converter().structure(data, shape)
    except (cattrs.BaseValidationError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SchemaError([_one_line(fault) for fault in _faults(error)]) from error
    return made


def load_toml(path: Path, shape: type[T], *, what: str) -> T:
    """Read a TOML file of the operator's. Raises ConfigError that lists every fault by its path in the file."""
    import tomllib

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{what} {path} does not exist", state=_UNTOUCHED, next="updater init    writes a first one"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{what} {path} cannot be read", what=str(error), state=_UNTOUCHED, next=f"ls -l {path}"
        ) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{what} {path} is not TOML", what=str(error), state=_UNTOUCHED, next=f"edit {path}"
        ) from error
    try:
        return structure(data, shape)
    except SchemaError as error:
        raise ConfigError(
            f"{what} {path} has {len(error.faults)} fault{'s' * (len(error.faults) != 1)}",
            what=error.faults,
            state=_UNTOUCHED,
            next=f"edit {path}",
        ) from error


@cache
def _converter() -> Any:
    import cattrs

    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=False)

    def strict(wanted: type) -> Any:
        def hook(value: Any, shape: Any) -> Any:
            if isinstance(shape, type) and shape is not wanted:  # an enumeration of strings
                return shape(value)
            if type(value) is not wanted and not (wanted is float and type(value) is int):
                raise TypeError(f"expected {wanted.__name__}, found {type(value).__name__} {value!r}"[:200])
            return value

        return hook

    for wanted in (str, int, float, bool):
        converter.register_structure_hook(wanted, strict(wanted))
    converter.register_structure_hook(Path, lambda value, _: Path(strict(str)(value, str)))
    converter.register_structure_hook_func(
        lambda t: getattr(t, "__origin__", None) is tuple and t.__args__[-1:] == (Ellipsis,),
        lambda value, t: tuple(converter.structure(_as_list(value), list[t.__args__[0]])),  # type: ignore[name-defined]
    )
    return converter


def _as_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, found {type(value).__name__}")
    return value


def _faults(error: BaseException, path: str = "") -> list[str]:
    """Flatten cattrs' tree of exceptions to lines, depth first."""
    import cattrs

    if isinstance(error, SchemaError):  # a dataclass that found several faults in itself
        return [_join(path, fault) for fault in error.faults]
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return [f"{_join(path, key)}: unknown key" for key in sorted(error.extra_fields)]
    if isinstance(error, cattrs.BaseValidationError):
        lines: list[str] = []
        for child in error.exceptions:
            notes = getattr(child, "__notes__", [])
            lines += _faults(child, _join(path, _place(notes)))
        return lines
    if isinstance(error, KeyError):
        return [f"{path or error.args[0]}: missing"]
    if isinstance(error, AttributeError) or "is not iterable" in str(
        error
    ):  # how cattrs finds out that it was not given a table
        return [f"{path or 'the whole file'}: expected a table"]
    where = path or "the whole file"
    own = _OWN.match(str(error)) if isinstance(error, ValueError) else None  # a dataclass that checked itself
    return [f"{_join(path, own[1])}: {own[2]}" if own else f"{where}: {error}"]


def _one_line(fault: str) -> str:
    """Keys and values are the author's own: no newline and no escape sequence of them reaches a screen."""
    plain = fault.replace("not in literal typing.Literal", "is none of ")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in plain)


def _place(notes: list[Any]) -> str:
    for note in notes:
        name = getattr(note, "name", None)
        if name is not None:
            return str(name)
        index = getattr(note, "index", None)
        if index is not None:
            return f"[{index}]" if isinstance(index, int) else str(index)
    return ""


def _join(path: str, part: str) -> str:
    if not path or not part:
        return path or part
    return path + part if part.startswith("[") else f"{path}.{part}"
