"""What autoheal has seen and done as Prometheus metrics, by its client library."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from autoheal.board import Row
from autoheal.engine import EngineError
from autoheal.incident import Action, Health
from autoheal.watch import Watch
from probe.exposition import Families, counter, gauge
from probe.report import Reason

_BUCKETS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)

_UNKNOWN = "other"
"""The reason of containers whose HEALTHCHECK is not our probe, or a newer one."""

_READINGS = (
    ("vram_percent", "model_vram_percent", "How much of its first model is in VRAM, in percent"),
    ("models_loaded", "models_loaded", "Models in its memory"),
    ("models_bytes", "models_memory_bytes", "Memory that its models take"),
    ("models_vram_bytes", "models_vram_bytes", "How much of that is in VRAM"),
    ("first_token_seconds", "first_token_seconds", "How long its probe's last token took"),
    ("tokens_per_second", "tokens_per_second", "How fast its probe's last tokens came"),
    ("gpu_memory_used_bytes", "gpu_memory_used_bytes", "GPU memory in use, as it sees it"),
    ("gpu_memory_total_bytes", "gpu_memory_total_bytes", "GPU memory that it sees"),
)
"""Readings in a verdict's line, by what each is called as a metric."""


class Metrics:
    """Counts what happens, and shows how everything stands when it is asked, in any thread.

    What happened has the container's name as `container`, or its Swarm service's; how things
    stand has the container's.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self._lock = threading.Lock()
        self._incidents = Counter(
            "autoheal_incidents",
            "Incidents that were opened, by the reason",
            ["container", "reason"],
            registry=registry,
        )
        self._attempts = Counter(
            "autoheal_attempts",
            "Attempts at healing, by action and outcome (done or failed)",
            ["container", "action", "outcome"],
            registry=registry,
        )
        self._given_up = Counter(
            "autoheal_given_up", "Incidents that were given up", ["container"], registry=registry
        )
        self._healing = Histogram(
            "autoheal_time_to_heal_seconds",
            "From the first unhealthy check that was seen to the first healthy one, where autoheal "
            "had acted",
            ["action"],
            buckets=_BUCKETS,
            registry=registry,
        )

    def opened(self, container: str, reason: str | None) -> None:
        """An incident was opened; its reason, where our probe gave one.

        A word that is no reason of ours is not counted by itself: a container could print any
        number of them, and each would be a time series for as long as autoheal runs.
        """
        known = isinstance(reason, Reason)
        self._incidents.labels(container, reason if known else _UNKNOWN).inc()

    def attempted(self, container: str, action: Action, failed: bool) -> None:
        """An attempt is over."""
        self._attempts.labels(container, action, "failed" if failed else "done").inc()

    def gave_up(self, container: str) -> None:
        """An incident was given up."""
        self._given_up.labels(container).inc()

    def healed(self, action: Action, seconds: float) -> None:
        """A container is healthy again, so long after the incident was opened."""
        self._healing.labels(action).observe(seconds)

    def show(self, rows: Callable[[], Sequence[Row]], watch: Watch) -> None:
        """Show containers and the watch over them too.

        Args:
            rows: every watched container; may raise `EngineError`.
            watch: the watch.
        """
        self._registry.register(Families(partial(_standing, rows, watch)))

    def page(self) -> bytes:
        """All of them as Prometheus reads them."""
        with self._lock:
            return generate_latest(self._registry)


def _standing(rows: Callable[[], Sequence[Row]], watch: Watch) -> Iterator[Metric]:
    up, found = 1.0, list[Row]()
    try:
        found += rows()
    except EngineError:
        up = 0.0
    yield from gauge("autoheal_engine_up", "1 where the Docker engine answers", [({}, up)])
    since = watch.listening_since
    yield from gauge(
        "autoheal_event_stream_age_seconds",
        "For how long the Docker engine has told of events without a break; not there while it "
        "does not",
        [({}, None if since is None else time.monotonic() - since)],
    )
    yield from counter("autoheal_events", "Docker events that were seen", [({}, watch.events)])
    yield from _of(found)


def _of(rows: Sequence[Row]) -> Iterator[Metric]:
    now = time.time()
    named = [({"container": row.seen.name}, row) for row in rows]
    yield from gauge(
        "autoheal_container_healthy",
        "1 where Docker calls the container healthy, 0 where it does not; not there without a "
        "HEALTHCHECK",
        (
            (label, float(row.seen.health is Health.HEALTHY and row.seen.state == "running"))
            for label, row in named
            if row.seen.health is not Health.NONE
        ),
    )
    yield from gauge(
        "autoheal_container_reason",
        "1 for the reason that its probe gave last",
        (({**label, "reason": row.verdict.reason}, 1) for label, row in named if row.verdict),
    )
    yield from gauge(
        "autoheal_incident_open",
        "1 while the container has an incident",
        ((label, float(bool(row.incident.opened))) for label, row in named),
    )
    yield from gauge(
        "autoheal_incident_given_up",
        "1 while its incident is given up, and it needs an operator",
        ((label, float(row.incident.given_up)) for label, row in named),
    )
    yield from gauge(
        "autoheal_attempts_left",
        "Attempts that its budget still has",
        ((label, row.attempts_left(now)) for label, row in named),
    )
    yield from gauge(
        "autoheal_paused",
        "1 while it is left alone because somebody said so",
        ((label, float(row.paused_until is not None)) for label, row in named),
    )
    for reading, name, text in _READINGS:
        yield from gauge(
            f"autoheal_{name}",
            f"{text}, as its probe said last",
            (
                (label, value)
                for label, row in named
                if row.verdict
                and isinstance(value := row.verdict.readings.get(reading), float | int)
            ),
        )
