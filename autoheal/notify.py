"""Tells people: a webhook, an Apprise server, a script. Off the healing path."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable

import requests

from autoheal.decide import Sighting
from autoheal.settings import Settings

TIMEOUT_SECONDS = 10.0

_log = logging.getLogger("autoheal")


class Notifier:
    """Sends what `settings` names. A receiver that is slow or dead delays nothing."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def restarted(self, sighting: Sighting, stop_timeout: int, error: str | None) -> None:
        """Tell that a container was restarted, or could not be; returns at once."""
        s = self._settings
        outcome = (
            "Failed to restart the container!" if error else "Successfully restarted the container!"
        )
        text = f"Container {sighting.name} ({sighting.id[:12]}) found to be unhealthy. {outcome}"
        if s.webhook_url:
            _in_background(_post, "the webhook", s.webhook_url, {s.webhook_json_key: text})
        if s.apprise_url:
            _in_background(_post, "Apprise", s.apprise_url, {"title": "Autoheal", "body": text})
        if s.post_restart_script and error is None:
            # The arguments of docker-autoheal, whose names begin with a slash.
            words = [f"/{sighting.name}", sighting.id[:12], sighting.state, str(stop_timeout)]
            _in_background(_run, s.post_restart_script, *words)


def _in_background(work: Callable[..., None], *args: object) -> None:
    threading.Thread(target=work, args=args, daemon=True).start()


def _post(what: str, url: str, body: dict[str, str]) -> None:
    try:
        requests.post(url, json=body, timeout=TIMEOUT_SECONDS).raise_for_status()
    except requests.HTTPError as error:
        _log.error("%s answered HTTP %s", what, error.response.status_code)
    except requests.RequestException as error:
        _log.error("%s could not be reached: %s", what, type(error).__name__)  # no URL: a secret


def _run(script: str, *args: str) -> None:
    try:
        done = subprocess.run([script, *args], check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        _log.error("POST_RESTART_SCRIPT=%s could not be run: %s", script, error.strerror)
        return
    if done.returncode != 0:
        _log.error("POST_RESTART_SCRIPT=%s ended with %d", script, done.returncode)
