"""Wires watch, decide and heal together; owns the threads and the shutdown."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import FrameType

from autoheal import heartbeat
from autoheal.attempts import Attempts, Done, Turn
from autoheal.board import Board
from autoheal.decide import Decision, Verb, after_sighting, decide, outcome, why_not
from autoheal.engine import Engine, EngineError, GoneError
from autoheal.incident import Action, Attempt, Health, Incident, News, Sighting, seconds_of
from autoheal.ledger import Ledger, Request
from autoheal.limits import Limits
from autoheal.metrics import Metrics
from autoheal.notify import Message, Notifier
from autoheal.policy import Policy
from autoheal.settings import Settings
from autoheal.turns import Ended, Waiting, broken_until, turns
from autoheal.watch import Gone, Watch
from probe.report import parse

SHUTDOWN_SECONDS = 0.7
"""How long heals and messages under way are waited for; a successor finishes what is left."""

LOOK_AT_LEDGER_SECONDS = 1.0
"""How often the ledger is read for what people asked for by command."""

DEGRADED_SECONDS = 60.0
"""An engine that has not answered for so long is told of."""

PRUNE_SECONDS = 3600.0

_log = logging.getLogger("autoheal")


class Supervisor:
    """Watches one engine and heals, until it is told to stop.

    One thread decides, so no two decisions about a container can cross; each heal runs in a
    thread of its own, so a container that is slow to stop delays no other.

    Args:
        settings: of the process.
        env: its environment.
        listener: a socket to serve the status page on; None for no page.
    """

    def __init__(
        self, settings: Settings, env: Mapping[str, str], listener: socket.socket | None = None
    ) -> None:
        self._settings, self._listener = settings, listener
        self._engine = Engine(settings, env)
        self.engine_url = self._engine.url
        self.own_id = own_container_id()
        self._watch = Watch(self._engine, settings.label_filter, settings.interval, self._unsettled)
        self._limits = Limits(self._engine, settings, self._watch.look)
        self._incidents: dict[str, Incident] = {}
        self._turns: dict[str, Turn] = {}
        self._begun: deque[float] = deque(maxlen=settings.max_per_minute)
        self._ended: deque[Ended] = deque(maxlen=16)
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._later: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self._told_degraded: set[str] = set()
        self._services: set[str] = set()
        self._starts: dict[str, float] = {}
        self._last_error = ""
        self.metrics = Metrics()
        self._changed: Callable[[], None] = lambda: None
        self._stopping = False
        self._ready_at = 0.0

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._notifier = Notifier(self._settings)
        self._ledger = self._open_ledger()
        self._attempts = Attempts(
            self._engine, self._ledger, self.own_id, self._ended_one, self._degraded
        )
        self._ready_at = time.time() + self._settings.start_period
        if self._settings.start_period:
            _log.info("healing starts in %g s", self._settings.start_period)
        self._attempts.finish_what_was_begun()
        self.metrics.show(Board(self._engine, self._ledger, self._settings).rows, self._watch)
        if self._listener is not None:
            self._show_page(self._listener)
        self._watch.start()
        self._limits.start()
        beat = ledger_look = prune = 0.0
        contact: float | None = None
        while not self._stopping:
            now = time.monotonic()
            if now >= beat or (contact is None and self._watch.contact is not None):
                contact = self._watch.contact
                heartbeat.beat(self._settings, contact)
                beat = now + heartbeat.SECONDS
            if now >= ledger_look:
                self._look_at_ledger()
                ledger_look = now + LOOK_AT_LEDGER_SECONDS
            if now >= prune:
                self._ledger.prune(self._settings.history_days)
                prune = now + PRUNE_SECONDS
            try:
                seen = self._watch.sightings.get(timeout=self._patience())
            except queue.Empty:
                seen = None
            self._take_results()
            if isinstance(seen, Gone):
                self._forget(seen.id)
            elif seen is not None:
                self._consider(seen)
            self._take_turns()
            if seen is not None:
                self._changed()
            self._look_again()
            self._tell_if_degraded()
        self._finish()

    def _show_page(self, listener: socket.socket) -> None:
        from autoheal.web.app import application
        from autoheal.web.collector import Collector
        from autoheal.web.server import serve

        settings = self._settings
        collector = Collector(
            self._engine, self._ledger, settings, in_container=self.own_id is not None
        )
        self._changed = collector.changed
        problem = partial(heartbeat.problem, settings)
        site = application(
            collector, self._ledger, settings, self.metrics, problem, self._why_not_ready
        )
        serve(listener, site)
        host, port = listener.getsockname()[:2]
        _log.info("the status page is at http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def _why_not_ready(self) -> str | None:
        away = "the Docker engine does not answer" if self._watch.lost_since else None
        return heartbeat.problem(self._settings) or away

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._watch.stop()

    def _open_ledger(self) -> Ledger:
        ledger = Ledger(self._settings.ledger_path, self._settings.state_dir)
        ledger.when_it_fails(lambda problem: self._degraded("ledger", problem))
        if self._settings.ledger_path != self._settings.ledger:
            _log.info(
                "the ledger is in memory (%s): give AUTOHEAL_LEDGER a file on a volume, and what "
                "was under way outlives this container",
                ledger.path,
            )
        self._incidents = {one.subject: one for one in ledger.open_incidents()}
        return ledger

    def _unsettled(self) -> list[str]:
        """Containers to look at without a reason: their incidents are open."""
        return [one.container for one in list(self._incidents.values()) if one.container]

    def _patience(self) -> float:
        next_look = min(self._later.values(), default=float("inf"))
        return max(min(next_look - time.time(), LOOK_AT_LEDGER_SECONDS), 0.01)

    # -- deciding

    def _consider(self, sighting: Sighting) -> None:
        now = time.time()
        subject = sighting.subject
        if self._attempts.is_busy(subject, sighting.name):
            return
        if sighting.is_swarm_task and sighting.state != "running":
            return  # Swarm replaces it; it says nothing about its successor
        sighting = replace(sighting, complaint=self._limits.complaint(sighting.id))
        rules = self._settings.policy(sighting.labels)
        incident = self._incidents.get(subject)
        self._note_start(sighting, incident, now)
        if incident is not None and (how := outcome(incident, sighting, rules, now)):
            self._close(incident, how)
            incident = None
        if incident is None and not _is_of_interest(sighting):
            return
        base = incident or self._new_incident(sighting, rules, now)
        paused = self._ledger.paused_until(subject, now)
        itself = sighting.id == self.own_id
        decision = decide(sighting, base, rules, now, itself=itself, paused_until=paused)
        if incident is None and decision.verb is Verb.IGNORE:
            return
        after = after_sighting(base, sighting, now)
        if not base.id:
            verdict = parse(sighting.line)
            self.metrics.opened(subject, verdict.reason if verdict else None)
        if after is not base or not base.id:
            after = self._ledger.save(after)
        self._incidents[subject] = after
        for problem in rules.problems:
            self._say_once(sighting, problem)
        if after.healthy_since is not None and base.healthy_since is None:
            self._well_again(sighting, after, rules, now)
        self._follow(sighting, rules, decision, now)

    def _new_incident(self, sighting: Sighting, rules: Policy, now: float) -> Incident:
        spent = self._ledger.spent(sighting.subject, now - rules.window)
        why = sighting.complaint or " ".join(sighting.line.split())
        return Incident(sighting.subject, sighting.id, now, why, spent=spent)

    def _follow(self, sighting: Sighting, rules: Policy, decision: Decision, now: float) -> None:
        """Do what was decided."""
        subject, verb = sighting.subject, decision.verb
        verdict = parse(sighting.line)
        attempts = len(self._incidents[subject].attempts)
        found = f"{verdict.reason} {verdict.remedy}" if verdict else ""
        key = f"{verb} {found} {attempts}"
        if verb is not Verb.ACT:
            self._turns.pop(subject, None)
        if verb is Verb.IGNORE:
            since = self._incidents[subject].healthy_since
            self._later.pop(subject, None)
            if since is not None:
                self._later[subject] = since + rules.settle
        elif verb is Verb.TELL:
            self._say_once(sighting, f"unhealthy, left alone: {decision.why}", key)
        elif verb is Verb.ASK:
            if self._say_once(sighting, f"unhealthy, left alone: {decision.why}", key):
                self._tell(News.OPERATOR, sighting.name, decision.why, rules)
        elif verb is Verb.GIVE_UP:
            self._give_up(sighting, rules, decision.why)
        elif verb is Verb.WAIT or now < self._ready_at:
            self._later[subject] = max(decision.until, self._ready_at)
            words = decision.why if decision.paused else decision.cause
            paused = " paused" if decision.paused else ""
            self._say_once(sighting, f"unhealthy, waiting: {words}", key + paused)
        elif subject not in self._turns:
            waiting = Waiting(subject, attempts, now)
            self._turns[subject] = Turn(waiting, sighting, rules, decision)

    def _give_up(self, sighting: Sighting, rules: Policy, why: str) -> None:
        incident = replace(self._incidents[sighting.subject], given_up=True)
        self._incidents[sighting.subject] = self._ledger.save(incident)
        self._later.pop(sighting.subject, None)
        self.metrics.gave_up(sighting.subject)
        text = f"given up, needs an operator: {why}"
        _log.error("%s: %s", sighting.name, text)
        self._tell(News.GIVEN_UP, sighting.name, text, rules)

    def _well_again(
        self, sighting: Sighting, incident: Incident, rules: Policy, now: float
    ) -> None:
        attempts = [one for one in incident.attempts if not one.refused]
        if not attempts:
            _log.info("%s is healthy again; nothing was done", sighting.name)
            return
        last = attempts[-1]
        self.metrics.healed(last.action, now - incident.opened)
        took = f"{now - last.at:.1f} s after the {last.action.noun}"
        _log.info("%s is healthy again, %s", sighting.name, took)
        done = _PAST[last.action] + (" in" if last.action is Action.RUNNER else "")
        if not incident.given_up and last.error is None:
            self._tell(
                News.HEALED,
                sighting.name,
                # docker-autoheal's words first, which people's receivers may look for
                f"Container {sighting.name} ({sighting.id[:12]}) found to be unhealthy. "
                f"Successfully {done} the container! It is healthy again, {took}. "
                f"It was: {incident.why}",
                rules,
            )

    def _close(self, incident: Incident, how: str) -> None:
        self._ledger.close(incident, how)
        self._incidents.pop(incident.subject, None)
        self._later.pop(incident.subject, None)
        self._turns.pop(incident.subject, None)
        if incident.attempts:
            self._attempts.give_lease_back(incident.subject)
        _log.info("%s: the incident is over (%s)", incident.subject, how)

    def _forget(self, container: str) -> None:
        """A container was removed, perhaps by us."""
        self._starts.pop(container, None)
        for incident in list(self._incidents.values()):
            if incident.container != container or self._attempts.is_busy(incident.subject):
                continue
            recent = time.time() - incident.opened < self._settings.defaults.window
            if incident.subject in self._services and recent:
                continue  # Swarm replaces its tasks; the incident is the service's
            self._close(incident, "removed")

    def _note_start(self, sighting: Sighting, incident: Incident | None, now: float) -> None:
        """Remember how long it took from a start until it was healthy, for `autoheal doctor`."""
        if sighting.is_swarm_task:
            self._services.add(sighting.subject)
        if sighting.health is not Health.HEALTHY or sighting.state != "running":
            return
        started = seconds_of(sighting.started_at)
        first = incident is None or (
            incident.healthy_since is None
            and bool(incident.attempts)
            and incident.attempts[-1].at <= started
        )
        if first and self._starts.get(sighting.id) != started:
            self._starts[sighting.id] = started
            self._ledger.note_start(sighting.subject, now - started)

    def _say_once(self, sighting: Sighting, text: str, key: str = "") -> bool:
        """Log a line unless this incident has had it; returns whether it was new.

        `key` stands for the line where its words change from check to check.
        """
        incident = self._incidents[sighting.subject]
        if (key or text) in incident.told:
            return False
        _log.warning("%s: %s", sighting.name, text)
        told = replace(incident, told=incident.told | {key or text})
        self._incidents[sighting.subject] = self._ledger.save(told)
        return True

    # -- healing

    def _take_turns(self) -> None:
        now = time.time()
        broken = broken_until(self._ended)
        if broken is not None and now < broken:
            if self._turns:
                self._degraded(
                    "heals",
                    "the last heals of several containers all failed; the next follows in "
                    f"{broken - now:.0f} s. The last one: {self._last_error}",
                )
            return
        self._told_degraded.discard("heals")
        chosen = turns(
            (turn.waiting for turn in self._turns.values()),
            self._attempts.count,
            list(self._begun),
            at_once=self._settings.max_at_once,
            per_minute=self._settings.max_per_minute,
            now=now,
        )
        for subject in chosen.now:
            turn = self._turns.pop(subject)
            self._later.pop(subject, None)
            self._begun.append(now)
            self._attempts.begin(turn, self._incidents[subject])
            self._changed()

    def _ended_one(self, done: Done) -> None:
        """Called in the attempt's own thread."""
        self._done.put(done)
        self._watch.sightings.put(None)
        self._changed()

    def _take_results(self) -> None:
        while True:
            try:
                done = self._done.get_nowait()
            except queue.Empty:
                return
            self._attempts.is_over(done.subject)
            incident = self._incidents.get(done.subject)
            if done.attempt is None:
                self._no_attempt(done)
            elif incident is not None:
                self._attempted(done, done.attempt, incident)
            if done.request is not None:
                error = done.attempt.error if done.attempt else done.why_not
                self._ledger.answer(done.request, error or "done")

    def _no_attempt(self, done: Done) -> None:
        if done.subject in self._incidents and done.sighting is not None:
            self._say_once(done.sighting, f"not healed: {done.why_not}")
        if done.again is not None:
            self._later[done.subject] = done.again

    def _attempted(self, done: Done, attempt: Attempt, incident: Incident) -> None:
        attempts = (*(a for a in incident.attempts if a.at != attempt.at), attempt)
        incident = replace(
            incident,
            attempts=attempts,
            container=done.container or incident.container,
            healthy_since=None,
        )
        self._incidents[done.subject] = self._ledger.save(incident)
        failed = attempt.error is not None
        self.metrics.attempted(done.subject, attempt.action, failed)
        self._ended.append(Ended(done.subject, time.time(), failed))
        sighting = done.sighting
        labels = sighting.labels if sighting else {}
        rules = self._settings.policy(labels)
        if failed:
            self._last_error = f"{done.subject}: {attempt.error}"
            text = f"the {attempt.action.noun} failed: {attempt.error}"
            _log.error("%s: %s", done.subject, text)
            self._tell(News.FAILED, done.subject, text, rules)
        else:
            took = (attempt.ended or attempt.at) - attempt.at
            past = "nothing had to be ended" if attempt.refused else _PAST[attempt.action]
            _log.info("%s: %s in %.1f s (attempt %d)", done.subject, past, took, len(attempts))
            if sighting is not None and attempt.action not in (Action.STOP, Action.RUNNER):
                self._notifier.restarted(
                    sighting.name, done.container, sighting.state, rules.stop_timeout
                )
        self._later[done.subject] = time.time()

    def _look_again(self) -> None:
        now = time.time()
        for subject in [s for s, at in self._later.items() if at <= now]:
            del self._later[subject]
            incident = self._incidents.get(subject)
            if incident is not None and subject not in self._turns:
                self._watch.look_soon(incident.container)

    # -- people

    def _look_at_ledger(self) -> None:
        """Whether somebody paused or resumed, or asked for a heal."""
        pauses = self._ledger.pauses(time.time())
        if pauses != self._pauses:
            self._pauses = pauses
            now = time.time()
            self._later |= dict.fromkeys(self._incidents, now)
            for subject in [s for s in self._turns if self._turns[s].request is None]:
                if self._ledger.paused_until(subject, now) is not None:
                    del self._turns[subject]
        for request in self._ledger.requests():
            if not any(turn.request == request.id for turn in self._turns.values()):
                self._answer(request)

    def _answer(self, request: Request) -> None:
        """Take a person's request for a heal; the turn answers it."""
        if self._attempts.is_busy(request.subject):
            return  # after what is under way
        try:
            sighting = self._engine.look(request.subject)
        except GoneError:
            self._ledger.answer(request.id, f"no such container: {request.subject}")
            return
        except EngineError as error:
            self._ledger.answer(request.id, str(error))
            return
        rules = self._settings.policy(sighting.labels)
        action = request.action or Action.RESTART
        subject = sighting.subject
        itself = sighting.id == self.own_id and action is not Action.RESTART
        reason = "it is autoheal itself" if itself else why_not(action, sighting)
        if reason is not None:
            answer = f"{action} cannot be done to {sighting.name}: {reason}"
            self._ledger.answer(request.id, answer)
            return
        now = time.time()
        if subject not in self._incidents:
            incident = Incident(subject, sighting.id, now, "requested by an operator")
            self._incidents[subject] = self._ledger.save(incident)
        elif self._incidents[subject].given_up:
            again = replace(self._incidents[subject], given_up=False)
            self._incidents[subject] = self._ledger.save(again)
        attempts = self._incidents[subject].attempts
        rung = attempts[-1].rung if attempts else -1
        decision = Decision(Verb.ACT, "requested by an operator", action=action, rung=rung)
        self._turns[subject] = Turn(Waiting(subject, 0, now), sighting, rules, decision, request.id)

    def _tell(self, news: News, name: str, text: str, rules: Policy) -> None:
        if news in rules.notify:
            self._notifier.tell(Message(news, name, text))

    def _tell_if_degraded(self) -> None:
        lost = self._watch.lost_since
        if lost is None:
            self._told_degraded.discard("engine")
        elif time.monotonic() - lost > DEGRADED_SECONDS:
            self._degraded(
                "engine", f"the Docker engine has not answered for {DEGRADED_SECONDS:g} s"
            )

    def _degraded(self, what: str, text: str) -> None:
        if what not in self._told_degraded:
            self._told_degraded.add(what)
            _log.error("autoheal is degraded: %s", text)
            self._tell(News.DEGRADED, "", text, self._settings.defaults)

    def _finish(self) -> None:
        end = time.monotonic() + SHUTDOWN_SECONDS
        left = self._attempts.join(end)
        self._take_results()
        for subject in left:
            _log.info("%s: its heal is under way; it is finished at the next start", subject)
        self._notifier.finish(end - time.monotonic())
        _log.info("stopped")
        logging.shutdown()
        os._exit(0)  # threads that wait for the engine are not waited for


_PAST = {
    Action.RUNNER: "ended the stuck runner",
    Action.RESTART: "restarted",
    Action.RECREATE: "recreated",
    Action.REDEPLOY: "redeployed",
    Action.STOP: "stopped",
}


def _is_of_interest(sighting: Sighting) -> bool:
    """Whether a container without an incident may need one."""
    return sighting.health is Health.UNHEALTHY or bool(sighting.complaint)


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
