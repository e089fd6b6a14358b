"""Gathers what the page shows, and only while somebody looks."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from autoheal import __version__, commands
from autoheal.board import Board, Row
from autoheal.engine import Engine, EngineError, HangError, Usage
from autoheal.ledger import EVERYBODY, Ledger
from autoheal.settings import Settings
from probe.devices import read_all
from probe.gpu_reading import GpuFault, GpuReading
from probe.processes import all_visible, containers_of, pid_inside

IDLE_SECONDS = 30.0
"""Nothing is gathered when nobody has looked for this long."""

INTERVAL_SECONDS = 2.0

PROBE_SECONDS = 5.0
"""How often a container's probe is asked for its models and GPUs."""

HANG_SECONDS = 600.0
"""A probe that did not end is not asked again for so long."""

HISTORY_SECONDS = 3600.0
POINT_SECONDS = 5.0
"""How far back the history goes, and how far its points are apart."""

INCIDENTS = 30
"""So many incidents are shown."""

FIRST_SECONDS = 2.0
"""So long the first complete snapshot waits for the probes."""

FIRST_SPAN_SECONDS = 0.3
"""The span of the first measurement of CPU time."""

A_SECOND = 50
"""So many containers a second are asked what they use: of 200, each every 4 s."""

AT_ONCE = 8
"""So many containers are asked at once."""

_NEVER = float("-inf")

_STATUS = ("ollama-probe", "status", "--format", "json")

Data = dict[str, Any]

_log = logging.getLogger("autoheal")


@dataclass(frozen=True)
class Snapshot:
    """All that was gathered at one moment; in plain data, times in seconds of the wall clock.

    Attributes:
        at: when.
        problem: why the engine could not be asked; None when it could.
        host: of the machine.
        gpus: every GPU that autoheal or a probe sees.
        containers: every container, watched or not.
        models: every loaded model that a probe sees.
        incidents: the last ones, newest first.
        paused_until: until when everything is left alone; None when it is not.
        complete: whether what takes longer is in it: what containers use, what probes say.
    """

    at: float
    problem: str | None = None
    host: Data = field(default_factory=dict)
    gpus: Sequence[Data] = ()
    containers: Sequence[Data] = ()
    models: Sequence[Data] = ()
    incidents: Sequence[Data] = ()
    paused_until: float | None = None
    complete: bool = True

    def as_dict(self) -> Data:
        """For the page."""
        return {"version": __version__, **asdict(self)}


class Collector:
    """Gathers in threads of its own, while there are watchers or for a while after a look.

    Args:
        engine: where the containers are.
        ledger: what was done to them.
        settings: of autoheal.
        in_container: whether autoheal runs in a container.
    """

    def __init__(
        self, engine: Engine, ledger: Ledger, settings: Settings, *, in_container: bool
    ) -> None:
        self._engine, self._ledger, self._settings = engine, ledger, settings
        self._in_container = in_container
        self._board = Board(engine, ledger, settings)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="usage")
        self._probe_pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="probe")
        self._lock = threading.Lock()
        self._watchers: set[Callable[[], None]] = set()
        self._looked = _NEVER
        self._wanted, self._poke = threading.Event(), threading.Event()
        self._gathered = threading.Condition()
        self._snapshot: Snapshot | None = None
        self._usage: dict[str, tuple[float, Usage]] = {}
        self._shares: dict[str, Data] = {}
        self._used_at = _NEVER
        self._probes: dict[str, Data] = {}
        self._asked: dict[str, float] = {}
        self._identity: Data | None = None
        self._points: deque[Data] = deque(maxlen=round(HISTORY_SECONDS / POINT_SECONDS))
        threading.Thread(target=self._run, name="collector", daemon=True).start()

    def changed(self) -> None:
        """Something has happened: look at once, if anybody watches."""
        self._poke.set()

    def look(self, seconds: float = 10.0) -> Snapshot:
        """What there is to see now, gathered anew where that is older than a few seconds."""
        with self._gathered:
            self._touch()
            oldest = time.time() - 2 * INTERVAL_SECONDS
            self._gathered.wait_for(
                lambda: (one := self._snapshot) is not None and one.complete and one.at > oldest,
                seconds,
            )
            return self._snapshot or Snapshot(time.time(), "nothing has been gathered yet")

    @contextmanager
    def watched(self, wake: Callable[[], None]) -> Iterator[None]:
        """Gather for as long as this lasts; `wake` is called, in another thread, at each news."""
        with self._lock:
            self._watchers.add(wake)
        self._touch()
        try:
            yield
        finally:
            with self._lock:
                self._watchers.discard(wake)
            self._looked = time.monotonic()

    @property
    def latest(self) -> Snapshot | None:
        """What was gathered last; None where nothing was."""
        return self._snapshot

    def history(self) -> Sequence[Data]:
        """The last hour, as far as somebody looked: a point every few seconds, oldest first."""
        return tuple(self._points)

    def _touch(self) -> None:
        self._looked = time.monotonic()
        self._wanted.set()

    def _is_wanted(self) -> bool:
        return bool(self._watchers) or time.monotonic() - self._looked < IDLE_SECONDS

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            while self._is_wanted():
                self._poke.clear()
                try:
                    self._gather()
                except Exception:
                    _log.exception("the page: a fault of autoheal's own")
                self._poke.wait(INTERVAL_SECONDS)
            self._usage.clear()
            self._used_at = _NEVER

    # -- one round

    def _gather(self) -> None:
        now, before = time.time(), self._snapshot or Snapshot(0.0)
        try:
            rows = self._board.rows(everyone=True)
            identity = self._identity = self._identity or self._who()
        except EngineError as error:
            self._publish(Snapshot(now, str(error), before.host, before.gpus, before.containers))
            return
        running = [row for row in rows if row.seen.state == "running"]
        asked = self._ask_probes(running)
        if self._used_at == _NEVER:
            # What is seen at once need not wait for what takes longer.
            psutil.cpu_percent()
            self._put_together(now, rows, identity, {}, complete=False)
            self._use_all(running)
            wait(asked, FIRST_SECONDS)
            time.sleep(FIRST_SPAN_SECONDS)  # a share of time needs a span of time
        if time.monotonic() - self._used_at > len(running) / A_SECOND:
            self._shares, self._used_at = self._use_all(running), time.monotonic()
        self._put_together(time.time(), rows, identity, self._shares, complete=True)

    def _put_together(
        self,
        now: float,
        rows: Sequence[Row],
        who: Data,
        usage: Mapping[str, Data],
        *,
        complete: bool,
    ) -> None:
        own = read_all({})
        names = {row.seen.id: row.seen.name for row in rows}
        probes = dict(self._probes)  # others answer meanwhile
        gpus = list(_gpus(own, names, probes))
        models = [
            {"container": names[container], **model}
            for container, said in probes.items()
            if container in names
            for model in said.get("models", ())
        ]
        processes = [
            {"gpu": gpu["index"], **process} for gpu in gpus for process in gpu["processes"]
        ]
        memory = psutil.virtual_memory()
        host = {
            **who,
            "cpus": psutil.cpu_count(),
            "cpu_percent": psutil.cpu_percent() if complete else None,
            "memory_used_bytes": memory.total - memory.available,
            "memory_total_bytes": memory.total,
            "gpu_fault": None if gpus or own.fault is GpuFault.LIBRARY_MISSING else own.error,
            "load_score": round(len(models) / len(gpus), 2) if gpus else None,
        }
        containers = [
            {
                **row.as_dict(now),
                "watched": row.rules.watched,
                **usage.get(row.seen.id, _NO_USAGE),
                "gpu_processes": [p for p in processes if p["container"] == row.seen.name],
            }
            for row in rows
        ]
        incidents = commands.history(self._ledger.history(None, INCIDENTS))
        paused = self._ledger.pauses(now).get(EVERYBODY)
        self._publish(
            Snapshot(now, None, host, gpus, containers, models, incidents, paused, complete)
        )
        if complete:
            self._note(now, host, gpus)

    def _publish(self, snapshot: Snapshot) -> None:
        with self._gathered:
            self._snapshot = snapshot
            self._gathered.notify_all()
        with self._lock:
            watchers = list(self._watchers)
        for wake in watchers:
            wake()

    def _note(self, now: float, host: Data, gpus: Sequence[Data]) -> None:
        if self._points and now - self._points[-1]["at"] < POINT_SECONDS:
            return
        self._points.append(
            {
                "at": round(now, 1),
                "cpu": host["cpu_percent"],
                "memory": _share(host["memory_used_bytes"], host["memory_total_bytes"]),
                "gpus": {
                    gpu["uuid"]: [
                        _share(gpu["memory_used_bytes"], gpu["memory_total_bytes"]),
                        *(gpu["utilization_percent"], gpu["temperature_celsius"]),
                        gpu["power_draw_watts"],
                    ]
                    for gpu in gpus
                },
            }
        )

    def _who(self) -> Data:
        """What the machine is called, and where it is."""
        info = self._engine.info()
        swarm = info.get("Swarm") or {}
        ip = self._settings.host_ip or swarm.get("NodeAddr") or ""
        return {
            "name": info.get("Name") or "",
            "ip": ip or ("" if self._in_container else _own_address()),
            "note": self._settings.note,
            "engine": info.get("Version") or "",
        }

    def _use_all(self, running: Sequence[Row]) -> dict[str, Data]:
        """What each container uses now; one call for each, that the engine answers at once."""
        ids = [row.seen.id for row in running]
        before, self._usage = self._usage, {}
        shown = {}
        for container, found in zip(ids, self._pool.map(self._use, ids), strict=True):
            if found is None:
                continue
            self._usage[container] = found
            at, usage = found
            earlier = before.get(container)
            cpu = None
            if earlier and at > earlier[0] and usage.cpu_seconds >= earlier[1].cpu_seconds:
                cpu = 100 * (usage.cpu_seconds - earlier[1].cpu_seconds) / (at - earlier[0])
            shown[container] = {
                "cpu_percent": None if cpu is None else round(cpu, 1),
                "memory_used_bytes": usage.memory_bytes,
                "memory_limit_bytes": usage.memory_limit_bytes,
            }
        return shown

    def _use(self, container: str) -> tuple[float, Usage] | None:
        try:
            return time.monotonic(), self._engine.usage(container)
        except EngineError:
            return None

    # -- probes

    def _ask_probes(self, running: Sequence[Row]) -> list[Future[None]]:
        """Ask each container's probe for its models and GPUs; its answer comes when it comes."""
        begun = []
        ours = {row.seen.id: row.seen for row in running if row.verdict is not None}
        for known in (self._probes, self._asked):
            for gone in known.keys() - ours.keys():
                known.pop(gone, None)  # its answer may have failed meanwhile
        for container, seen in ours.items():
            mark = self._asked.get(container, _NEVER)
            if time.monotonic() - mark < PROBE_SECONDS:
                continue
            self._asked[container] = float("inf")  # until it has answered
            begun.append(self._probe_pool.submit(self._ask_probe, container, seen.name))
        return begun

    def _ask_probe(self, container: str, name: str) -> None:
        pause = 0.0
        try:
            _, output = self._engine.run_in(container, _STATUS)
            said = json.loads(output[output.index("{") :])
            known = self._probes.get(container)
            self._probes[container] = said
            if known is None or known.get("models") != said.get("models"):
                self._poke.set()
        except (EngineError, ValueError) as error:
            _log.debug("%s: its probe does not tell: %s", name, error)
            self._probes.pop(container, None)
            if isinstance(error, HangError):  # it is still there, and another would join it
                pause = HANG_SECONDS
        finally:
            self._asked[container] = time.monotonic() + pause


_NOBODY: Data = {"container": None, "model": None}

_NO_USAGE: Data = {
    "cpu_percent": None,
    "memory_used_bytes": None,
    "memory_limit_bytes": None,
}


def _gpus(own: GpuReading, names: Mapping[str, str], probes: Mapping[str, Data]) -> Iterator[Data]:
    """Every GPU once: as autoheal sees it, or else as the probes do."""
    told = set()
    visible = all_visible()
    for device in own.devices:
        told.add(device.uuid)
        gpu = asdict(device)
        gpu["processes"] = [
            {**process, **(_holder(process["pid"], names, probes) if visible else _NOBODY)}
            for process in gpu["processes"] or ()
        ]
        yield {**gpu, "seen_by": "autoheal"}
    for container, said in probes.items():
        for gpu in said.get("gpus", ()):
            if container in names and gpu["uuid"] not in told:
                told.add(gpu["uuid"])
                # A probe's process ids are the host's, and mean nothing in its container.
                held = [{**p, "name": p.get("name"), **_NOBODY} for p in gpu.get("processes") or ()]
                yield {**gpu, "processes": held, "seen_by": names[container]}


def _holder(pid: int, names: Mapping[str, str], probes: Mapping[str, Data]) -> Data:
    """Whose a process is: of which container, and for which of its models."""
    container = next((one for one in containers_of(pid) if one in names), None)
    if container is None:
        return _NOBODY
    inside, models = pid_inside(pid), probes.get(container, {}).get("models", ())
    served = (m["name"] for m in models if inside is not None and m.get("pid") == inside)
    return {"container": names[container], "model": next(served, None)}


def _share(used: int | None, total: int | None) -> float | None:
    return round(100 * used / total, 1) if used is not None and total else None


def _own_address() -> str:
    """The address by which this machine reaches others; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.connect(("192.0.2.1", 9))
            return str(one.getsockname()[0])
    except OSError:
        return ""
