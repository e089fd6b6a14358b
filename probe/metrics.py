"""GPUs, models and the probe's own verdicts as Prometheus metrics, by its client library.

The names `node_gpu_*` are those of the well-known textfile script for NVIDIA's GPUs, so that its
dashboards and rules go on working.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.exposition import generate_latest, write_to_textfile
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry

from probe import runners
from probe.devices import read_all
from probe.exposition import Families, counter, gauge
from probe.gpu_reading import GpuDevice, GpuFault, GpuReading
from probe.nvml_details import THROTTLE_REASONS
from probe.observation import LoadedModel
from probe.ollama import ApiError, Server
from probe.processes import all_visible, containers_of
from probe.report import Reason, Verdict

TIMEOUT_SECONDS = 3.0
"""How long the server may take for its list of models."""

FRESH_SECONDS = 1.0
"""A crowd that asks within this time gets the same reading."""

NO_FAULTS = (None, GpuFault.LIBRARY_MISSING)

_MEASURES = {
    "memory_total_bytes": "Total GPU memory in bytes",
    "memory_used_bytes": "Used GPU memory in bytes",
    "utilization_percent": "GPU core utilization in percent",
    "temperature_celsius": "GPU temperature in Celsius",
    "power_draw_watts": "Current GPU power draw in Watts",
    "power_limit_watts": "Max GPU power limit in Watts",
}
"""Fields of `GpuDevice`, which are called the same as metrics."""


@dataclass
class Checks:
    """What the checks of `ollama-probe serve` have found so far.

    Attributes:
        verdict: the last one; None before the first.
        at: when that was, in seconds of the wall clock.
        counts: how many ended with which reason.
    """

    verdict: Verdict | None = None
    at: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    def note(self, verdict: Verdict) -> None:
        """One more check has ended."""
        self.counts[verdict.reason] += 1
        self.verdict, self.at = verdict, time.time()


class Metrics:
    """All metrics of one server and its machine; safe to use from several threads.

    Args:
        host: the server's URL.
        checks: what its checks have found; None where nobody makes any.
    """

    def __init__(self, host: str, checks: Checks | None = None) -> None:
        self._host, self._checks = host, checks
        self._lock = threading.Lock()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Families(self._families))
        self._page, self._made = b"", float("-inf")

    def page(self) -> bytes:
        """The metrics as Prometheus reads them, at most `FRESH_SECONDS` old."""
        with self._lock:
            if time.monotonic() - self._made > FRESH_SECONDS:
                self._page, self._made = generate_latest(self._registry), time.monotonic()
            return self._page

    def write(self, path: str) -> None:
        """Write them for node_exporter's textfile collector: all of them or nothing.

        Raises:
            OSError: when the file cannot be written.
        """
        write_to_textfile(path, self._registry)

    def _families(self) -> Iterator[Metric]:
        server = Server(self._host)
        models, error = _models(server)
        reading = read_all({})
        held = all_visible() and any(device.processes for device in reading.devices)
        yield from _of_gpus(reading, _serving(server, models) if held else {})
        yield from _of_server(models, error)
        if self._checks is not None:
            yield from _of_checks(self._checks)


def _of_gpus(reading: GpuReading, serving: Mapping[int, str]) -> Iterator[Metric]:
    """`serving`: which model a process serves, by its id."""
    gpus = [({"gpu": _number(one, place)}, one) for place, one in enumerate(reading.devices)]

    yield from gauge(
        "node_gpu_info",
        "The GPU's make, its UUID and its driver's version",
        (
            ({**label, "uuid": one.uuid, "name": one.name, "driver": reading.driver or ""}, 1)
            for label, one in gpus
        ),
    )
    yield from gauge(
        "node_gpu_fault",
        "1 where the GPUs cannot be read, and in which way; without a driver there are none",
        [({"fault": str(reading.fault or "none")}, float(reading.fault not in NO_FAULTS))],
    )
    for name, text in _MEASURES.items():
        yield from gauge(f"node_gpu_{name}", text, ((at, getattr(one, name)) for at, one in gpus))
    yield from counter(
        "node_gpu_ecc_errors",
        "Memory errors that could not be corrected since the driver was loaded",
        ((label, one.ecc_errors) for label, one in gpus),
    )
    yield from gauge(
        "node_gpu_throttled",
        "1 where the GPU runs slower than it could, for this reason",
        (
            ({**label, "reason": reason}, float(reason in one.throttle_reasons))
            for label, one in gpus
            if one.throttle_reasons is not None
            for reason in THROTTLE_REASONS.values()
        ),
    )
    ours = all_visible()
    yield from gauge(
        "node_gpu_process_memory_bytes",
        "GPU memory that a process holds; its container and model where the host's processes can "
        "be seen",
        (
            (
                {
                    **label,
                    "pid": str(process.pid),
                    "process": process.name or "",
                    "container": "".join(containers_of(process.pid)[-1:])[:12] if ours else "",
                    "model": serving.get(process.pid, ""),
                },
                process.memory_bytes,
            )
            for label, one in gpus
            for process in one.processes or ()
        ),
    )


def _of_server(models: tuple[LoadedModel, ...], error: str | None) -> Iterator[Metric]:
    yield from gauge("ollama_up", "1 where the Ollama server answers", [({}, float(error is None))])
    if error is None:
        yield from gauge("ollama_models_loaded", "Models in memory", [({}, len(models))])
    now = time.monotonic()
    clock = time.time() - now
    named = [({"model": model.name}, model) for model in models]
    yield from gauge(
        "ollama_model_memory_bytes",
        "Memory that a loaded model takes, as the server says",
        ((label, model.size_bytes) for label, model in named),
    )
    yield from gauge(
        "ollama_model_vram_bytes",
        "How much of that is in VRAM, as the server says",
        ((label, model.size_vram_bytes) for label, model in named),
    )
    yield from gauge(
        "ollama_model_expiry_timestamp_seconds",
        "When a model is to be unloaded; not there for one that stays",
        (
            (label, model.expires_at + clock)
            for label, model in named
            if model.expires_in(now) is not None
        ),
    )


def _of_checks(checks: Checks) -> Iterator[Metric]:
    yield from counter(
        "ollama_probe_checks",
        "Checks made, by their reason",
        (({"reason": reason}, checks.counts[reason]) for reason in Reason),
    )
    verdict = checks.verdict
    if verdict is None:
        return
    yield from gauge(
        "ollama_probe_healthy", "1 where the last check was healthy", [({}, verdict.healthy)]
    )
    yield from gauge(
        "ollama_probe_reason",
        "1 for the last check's reason, 0 for the others",
        (({"reason": reason}, float(reason is verdict.reason)) for reason in Reason),
    )
    yield from gauge(
        "ollama_probe_last_check_timestamp_seconds", "When the last check ended", [({}, checks.at)]
    )
    for name, text in (
        ("first_token_seconds", "How long the last check's first token took"),
        ("tokens_per_second", "How fast the tokens after it came"),
    ):
        value = verdict.readings.get(name)
        if isinstance(value, float | int):
            yield from gauge(f"ollama_probe_{name}", text, [({}, value)])


def _models(server: Server) -> tuple[tuple[LoadedModel, ...], str | None]:
    try:
        return server.loaded(TIMEOUT_SECONDS), None
    except ApiError as error:
        return (), str(error)


def _serving(server: Server, models: Sequence[LoadedModel]) -> dict[int, str]:
    """Which model a process serves, by its id."""
    names, found = {model.key: model.name for model in models}, runners.find()
    serving: dict[int, str] = {}
    for key, one in runners.match(models, found, lambda name: server.blob(name, TIMEOUT_SECONDS)):
        # On a host several containers may serve the same weights, and each such process does.
        same = (other for other in found if other.command.weights == one.command.weights != "")
        serving |= {runner.pid: names[key] for runner in (one, *same)}
    return serving


def _number(device: GpuDevice, place: int) -> str:
    return str(place if device.index is None else device.index)
