"""Wires watch, decide and heal together; owns the threads and the shutdown."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from types import FrameType

from autoheal import heal, heartbeat
from autoheal.decide import Attempt, Incident, Sighting, Verb, after_sighting, decide
from autoheal.engine import Engine
from autoheal.notify import Notifier
from autoheal.settings import Policy, Settings, policy
from autoheal.watch import Watch

SHUTDOWN_SECONDS = 0.7
"""How long a restart under way may still be waited for; the engine finishes it without us."""

_log = logging.getLogger("autoheal")


class Supervisor:
    """Watches one engine and heals, until it is told to stop.

    One thread decides, so no two decisions about a container can cross; each heal runs in a
    thread of its own, so a container that is slow to stop delays no other.
    """

    def __init__(self, settings: Settings, env: Mapping[str, str]) -> None:
        self._settings = settings
        self._engine = Engine(settings, env)
        label = "" if settings.container_label == "all" else f"{settings.container_label}=true"
        self._watch = Watch(self._engine, label, settings.interval)
        self._notifier = Notifier(settings)
        self.engine_url = self._engine.url
        self._own_id = own_container_id()
        self._incidents: dict[str, Incident] = {}
        self._healing: dict[str, threading.Thread] = {}
        self._done: queue.SimpleQueue[tuple[Sighting, Attempt]] = queue.SimpleQueue()
        self._later: dict[str, float] = {}
        self._stopping = False
        self._ready_at = 0.0

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._ready_at = time.monotonic() + self._settings.start_period
        if self._settings.start_period:
            _log.info("healing starts in %g s", self._settings.start_period)
        self._watch.start()
        while not self._stopping:
            now = time.monotonic()
            heartbeat.beat(self._settings, self._watch.contact)
            try:
                sighting = self._watch.sightings.get(timeout=self._patience(now))
            except queue.Empty:
                sighting = None
            self._take_results()
            if sighting is not None:
                self._consider(sighting)
            self._look_again()
        self._finish()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._watch.stop()

    def _patience(self, now: float) -> float:
        next_look = min(self._later.values(), default=now + heartbeat.SECONDS)
        return max(min(next_look - now, heartbeat.SECONDS), 0.01)

    def _consider(self, sighting: Sighting) -> None:
        now = time.monotonic()
        before = self._incidents.get(sighting.id, Incident())
        incident = after_sighting(before, sighting, now)
        self._incidents[sighting.id] = incident
        if sighting.id in self._healing:
            return
        rules = policy(sighting.labels, self._settings)
        decision = decide(sighting, incident, rules, self._own_id, now)
        for problem in rules.problems if rules.watched else ():
            self._say_once(sighting, problem)
        if decision.verb is Verb.IGNORE:
            self._later.pop(sighting.id, None)
            if before.attempts and before.healthy_since is None and incident.healthy_since:
                took = now - before.attempts[-1].at
                _log.info("%s is healthy again, %.1f s after the restart", sighting.name, took)
        elif decision.verb is Verb.TELL:
            self._say_once(sighting, f"unhealthy, left alone: {decision.why}")
        elif decision.verb is Verb.WAIT or now < self._ready_at:
            self._later[sighting.id] = max(decision.until, self._ready_at)
            self._say_once(sighting, f"unhealthy, waiting: {decision.why.partition(';')[0]}")
        else:
            self._restart(sighting, rules, decision.why)

    def _say_once(self, sighting: Sighting, text: str) -> None:
        incident = self._incidents[sighting.id]
        if text not in incident.told:
            _log.warning("%s: %s", sighting.name, text)
            self._incidents[sighting.id] = replace(incident, told=incident.told | {text})

    def _restart(self, sighting: Sighting, rules: Policy, why: str) -> None:
        _log.warning("%s (%s) is unhealthy: %s", sighting.name, sighting.id[:12], why)
        _log.info("%s: restarting, with %d s to stop", sighting.name, rules.stop_timeout)

        def work() -> None:
            self._done.put((sighting, heal.restart(self._engine, sighting, rules.stop_timeout)))
            self._watch.sightings.put(None)

        self._later.pop(sighting.id, None)
        thread = threading.Thread(target=work, name=f"heal-{sighting.name}", daemon=True)
        self._healing[sighting.id] = thread
        thread.start()

    def _take_results(self) -> None:
        while True:
            try:
                sighting, attempt = self._done.get_nowait()
            except queue.Empty:
                return
            del self._healing[sighting.id]
            incident = self._incidents[sighting.id]
            attempts = (*incident.attempts, attempt)
            self._incidents[sighting.id] = Incident(attempts, None, incident.told)
            if attempt.error is None:
                took = time.monotonic() - attempt.at
                _log.info(
                    "%s: restarted in %.1f s (attempt %d)", sighting.name, took, len(attempts)
                )
            else:
                _log.error("%s: the restart failed: %s", sighting.name, attempt.error)
                self._later[sighting.id] = time.monotonic()
            rules = policy(sighting.labels, self._settings)
            self._notifier.restarted(sighting, rules.stop_timeout, attempt.error)

    def _look_again(self) -> None:
        now = time.monotonic()
        for container in [c for c, at in self._later.items() if at <= now]:
            del self._later[container]
            self._watch.look_soon(container)

    def _finish(self) -> None:
        end = time.monotonic() + SHUTDOWN_SECONDS
        for thread in self._healing.values():
            thread.join(max(end - time.monotonic(), 0))
        self._take_results()
        for container in self._healing:
            _log.info("%s: its restart is under way; the engine finishes it", container[:12])
        _log.info("stopped")
        logging.shutdown()
        os._exit(0)  # threads that wait for the engine are not waited for


def own_container_id(mountinfo: str = "/proc/self/mountinfo") -> str | None:
    """The id of the container that this process runs in; None outside of one.

    Docker mounts a container's hostname file from a directory that bears its id.
    """
    try:
        with open(mountinfo, encoding="utf-8") as file:
            for line in file:
                _, found, after = line.split(" ")[3].partition("/containers/")
                if found and line.split(" ")[4] == "/etc/hostname":
                    return after.partition("/")[0]
    except OSError:
        pass
    return None
