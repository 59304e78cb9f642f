"""Telling people how a run goes: a command, a webhook, an e-mail. It never holds a run up and never fails one.

What is told is what stands on the screen: releases, sites, servers, steps. No password, no key, no account.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from core.errors import UpdaterError
from core.run import run as start_program
from zdu.limits import NotifyConfig, NotifyEvent, NotifyKind
from zdu.records import now

#: What may wait to be told; beyond that the oldest is dropped, and that is recorded.
_WAITING: Final = 200

_ATTEMPTS: Final = 3


class Notifier:
    """Tells in the background, in order. `context`: goes with each message (run, installation, releases). `record` is
    called with a line for what could not be told.
    """

    def __init__(
        self, configs: Sequence[NotifyConfig], context: dict[str, str], record: Callable[[str], None] = lambda _: None
    ) -> None:
        self._configs = configs
        self._context = context
        self._record = record
        self._waiting: queue.Queue[tuple[NotifyEvent, dict[str, Any]] | None] = queue.Queue(maxsize=_WAITING)
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        self._deaf: set[NotifyConfig] = set()

    def tell(self, event: NotifyEvent, text: str, **data: Any) -> None:
        """Have those told who want to know of this event. Returns at once."""
        if not any(_wants(config, event) for config in self._configs):
            return
        message = {"at": now(), "event": str(event), **self._context, "text": text} | {
            key: value for key, value in data.items() if value
        }
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="zdu-notify", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait((event, message))
        except queue.Full:
            self._recorded(f"nobody was told: too many messages wait; {text}")

    def close(self, wait: float = 15.0) -> None:
        """Tell what is left, for so many seconds at most."""
        with self._guard:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        until = time.monotonic() + wait
        try:
            self._waiting.put(None, timeout=wait)
        except queue.Full:
            return
        thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            event, message = item
            for config in self._configs:
                if _wants(config, event):
                    self._tell_one(config, message)

    def _tell_one(self, config: NotifyConfig, message: dict[str, Any]) -> None:
        """Try several times; one who did not hear the last message is asked once, so that the others do not wait."""
        trouble = ""
        for attempt in range(1 if config in self._deaf else _ATTEMPTS):
            if attempt:
                time.sleep(0.5 * 2**attempt)
            try:
                _SEND[config.kind](config, message)
                self._deaf.discard(config)
                return
            except UpdaterError as error:
                trouble = error.message
            except Exception as error:  # whatever it is: a run does not end because nobody could be told
                trouble = type(error).__name__ if config.kind is NotifyKind.WEBHOOK else f"{error}"
        self._deaf.add(config)
        self._recorded(f"{_name(config)} was not told of {message['event']}: {' '.join(trouble.split())[:200]}")

    def _recorded(self, text: str) -> None:
        with suppress(UpdaterError):  # nobody is left to be told
            self._record(text)


def _wants(config: NotifyConfig, event: NotifyEvent) -> bool:
    return not config.events or event in config.events


def _name(config: NotifyConfig) -> str:
    """Who is told, without what may be secret: a webhook's path and query often are."""
    from urllib.parse import urlsplit

    match config.kind:
        case NotifyKind.COMMAND:
            return f"command {config.command[0]}"
        case NotifyKind.WEBHOOK:
            return f"webhook at {urlsplit(config.url).hostname}"
        case _:
            return f"e-mail to {', '.join(config.to)}"


def _command(config: NotifyConfig, message: dict[str, Any]) -> None:
    start_program(*config.command, input=json.dumps(message) + "\n", timeout=config.timeout)


def _webhook(config: NotifyConfig, message: dict[str, Any]) -> None:
    import urllib3

    answer = urllib3.PoolManager().request(
        "POST",
        config.url,
        body=json.dumps(message).encode(),
        headers={"Content-Type": "application/json"},
        timeout=config.timeout,
        retries=False,
        redirect=False,
    )
    if not 200 <= answer.status < 300:
        raise UpdaterError(f"it answered {answer.status}")


def _email(config: NotifyConfig, message: dict[str, Any]) -> None:
    import smtplib
    from email.message import EmailMessage

    letter = EmailMessage()
    text = " ".join(str(message["text"]).split())
    letter["Subject"] = f"[{message.get('installation', 'updater')}] {text}"[:200]
    letter["From"] = config.sender
    letter["To"] = ", ".join(config.to)
    letter.set_content("\n".join(f"{key}: {value}" for key, value in message.items()) + "\n")
    host, _, port = config.smtp.rpartition(":")
    with smtplib.SMTP(host or port, int(port) if host else 25, timeout=config.timeout) as server:
        server.send_message(letter)


_SEND: Final = {NotifyKind.COMMAND: _command, NotifyKind.WEBHOOK: _webhook, NotifyKind.EMAIL: _email}
