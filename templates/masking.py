"""Secrets are shown nowhere: not in diffs, errors or logs. Pure."""

from __future__ import annotations

import base64
import difflib
import json
import re
import shlex
from collections.abc import Iterable
from urllib.parse import quote

from templates.options import MASK


class Mask:
    """Hides the given secrets in any text, also quoted or encoded as configuration files hold them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def __call__(self, text: str) -> str:
        """The text without the secrets."""
        return self._pattern.sub(MASK, text) if self._pattern else text


def _forms(secret: str) -> set[str]:
    raw = secret.encode()
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], shlex.quote(secret)}
    forms |= {quote(secret, safe=""), base64.b64encode(raw).decode(), raw.hex()}
    return forms | {line for line in secret.splitlines() if len(line) > 3}  # of one with several lines, each


def diff(old: bytes | None, new: bytes | None, name: str, mask: Mask, *, hidden: str) -> str:
    """A unified diff for people. Lines that begin with one of `hidden` ("-", "+") are hidden as a whole: in a file with
    secrets they may hold one that nobody knows any more.
    """
    before, after = _lines(old), _lines(new)
    if before is None or after is None:
        return f"{name}: not text, {len(old or b'')} bytes before, {len(new or b'')} now\n"
    labels = (f"{name}{'' if old is not None else ' (not there)'}", f"{name}{'' if new is not None else ' (removed)'}")
    lines = []
    for number, line in enumerate(difflib.unified_diff(before, after, *labels, lineterm="")):
        whole = number > 1 and line[:1] in hidden and line[:1]
        lines.append(f"{whole}{MASK}" if whole else _plain(mask(line)))
    return "".join(f"{line}\n" for line in lines)


def _lines(raw: bytes | None) -> list[str] | None:
    try:
        text = (raw or b"").decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text.splitlines()


def _plain(line: str) -> str:
    """Nothing in a file may steer the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\t" else repr(letter)[1:-1] for letter in line)
