"""Tells people: webhook, Apprise, script. Off the healing path; a dead receiver delays nobody."""

from __future__ import annotations

import logging
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests

from autoheal.incident import News
from autoheal.settings import Settings
from probe.knobs import SettingError

TIMEOUT_SECONDS = 10.0
SCRIPT_SECONDS = 600.0

RETRIES_SECONDS = (1.0, 5.0, 25.0)
"""Waits before a receiver that failed is tried again."""

MOST_WAITING = 1000
"""Messages for a receiver beyond these are lost, and that is logged."""

_log = logging.getLogger("autoheal")


@dataclass(frozen=True)
class Message:
    """What is told.

    Attributes:
        news: of which kind it is.
        name: of the container; empty where it is about autoheal itself.
        text: in words, for people.
    """

    news: News
    name: str
    text: str

    @property
    def title(self) -> str:
        about = f": {self.name}" if self.name else ""
        return f"autoheal: {self.news.replace('_', ' ')}{about}"


class ReceiverError(Exception):
    """A message did not arrive; the text names no address, which may be a secret."""


class Notifier:
    """Sends to whom `settings` names; each receiver has a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._receivers: list[_Receiver] = []
        s = settings
        if s.webhook_url:
            url, key = s.webhook_url, s.webhook_json_key
            self._add("the webhook", lambda message: _post(url, {key: message.text}))
        if s.apprise_url:
            server = s.apprise_url
            self._add(
                "the Apprise server",
                lambda m: _post(server, {"title": m.title, "body": m.text}),
            )
        for number, address in enumerate(s.notify_urls, 1):
            self._add(f"receiver {number} of AUTOHEAL_NOTIFY_URLS", _apprise(address, number))
        if s.notify_script:
            script = s.notify_script
            self._add(script, lambda m: _run([script, m.news, m.name, m.text]))
        if s.post_restart_script:
            self._restarts = _Receiver("POST_RESTART_SCRIPT", _run)

    def tell(self, message: Message) -> None:
        """Tell everybody; returns at once."""
        for receiver in self._receivers:
            receiver.put(message)

    def restarted(self, name: str, container: str, state: str, stop_timeout: int) -> None:
        """Run POST_RESTART_SCRIPT with docker-autoheal's arguments, whose names have a slash."""
        if self._settings.post_restart_script:
            script = self._settings.post_restart_script
            words = [script, f"/{name}", container[:12], state, str(stop_timeout)]
            self._restarts.put(words)

    def finish(self, seconds: float) -> None:
        """Wait at most so long until all is sent."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(r.is_busy() for r in self._receivers):
            time.sleep(0.02)

    def _add(self, name: str, send: Callable[[Message], None]) -> None:
        self._receivers.append(_Receiver(name, send))


class _Receiver:
    """Sends what is put into it, one after the other, in a thread of its own."""

    def __init__(self, name: str, send: Callable[[Any], None]) -> None:
        self._name, self._send = name, send
        self._waiting: queue.Queue[Any] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, what: Any) -> None:
        try:
            self._waiting.put_nowait(what)
        except queue.Full:
            _log.error("%s: too many messages wait for it; one is lost", self._name)

    def is_busy(self) -> bool:
        return self._waiting.unfinished_tasks > 0

    def _run(self) -> None:
        while True:
            what = self._waiting.get()
            for wait in (*RETRIES_SECONDS, None):
                try:
                    self._send(what)
                    break
                except ReceiverError as error:
                    if wait is None:
                        _log.error("%s: %s; the message is lost", self._name, error)
                        break
                    _log.warning("%s: %s; again in %g s", self._name, error, wait)
                    time.sleep(wait)
            self._waiting.task_done()


def _post(url: str, body: dict[str, str]) -> None:
    try:
        requests.post(url, json=body, timeout=TIMEOUT_SECONDS).raise_for_status()
    except requests.HTTPError as error:
        raise ReceiverError(f"it answered HTTP {error.response.status_code}") from None
    except requests.RequestException as error:
        raise ReceiverError(f"it could not be reached ({type(error).__name__})") from None


def _apprise(address: str, number: int) -> Callable[[Message], None]:
    """One of Apprise's services; raises `SettingError` for one that it does not know."""
    import apprise

    logging.getLogger("apprise").disabled = True  # it logs addresses
    service = apprise.Apprise()
    if not service.add(address):
        scheme = address.partition("://")[0]
        raise SettingError(
            f"AUTOHEAL_NOTIFY_URLS=(hidden): address {number} ({scheme}://...) must be one that "
            "Apprise knows: https://appriseit.com/services/"
        )

    def send(message: Message) -> None:
        if not service.notify(title=message.title, body=message.text):
            raise ReceiverError("Apprise could not deliver the message")

    return send


def _run(words: list[str]) -> None:
    script = words[0]
    try:
        done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, timeout=SCRIPT_SECONDS)
    except subprocess.TimeoutExpired:
        _log.error("%s took longer than %g s", script, SCRIPT_SECONDS)
    except OSError as error:
        _log.error("%s could not be run: %s", script, error.strerror)
    else:
        if done.returncode != 0:
            _log.error("%s ended with %d", script, done.returncode)
