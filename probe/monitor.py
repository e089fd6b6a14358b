"""`OllamaGPUMonitor`: the readings of GPUs and models as a Python library.

    from probe.monitor import OllamaGPUMonitor

    with OllamaGPUMonitor(default_memory_unit="GB") as monitor:
        print(monitor.format_status())

GPUs are read by `nvml.py` and `amd.py`, models by `ollama.py`: as the probe reads them.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from probe import runners
from probe.devices import read_all
from probe.gpu_reading import GpuDevice, GpuFault, GpuReading
from probe.monitored import (
    ALERTS,
    GpuStatus,
    ModelUsage,
    OllamaProcess,
    Unit,
    bits,
    convert,
    gpu_lines,
    gpu_status,
    place,
    process,
    process_lines,
    thresholds,
)
from probe.observation import LoadedModel, Runner
from probe.ollama import Server
from probe.ollama_clients import (
    TIMEOUT_SECONDS,
    ReadError,
    ask_async,
    default_url,
    rows_of,
    url_of,
    without_loop,
)

STOP_SECONDS = 2.0
"""How long a background refresh that is under way is waited for."""

T = TypeVar("T")


class OllamaGPUMonitor:
    """Loaded models and GPUs, cached for a while, and refreshed in the background where wanted.

    Its methods may be called from any thread. A list that it returns is the caller's own. What
    cannot be read is left empty, logged, and named in `errors`.

    Args:
        ollama_client: an `ollama.Client` or `ollama.AsyncClient`; without one, the server that
            `OLLAMA_HOST` names.
        default_memory_unit: of GPU memory, one of "b", "B", "KB", "MB", "GB", "TB"; steps of 1024.
        cache_duration: for how many seconds a reading is good; 0 reads each time.
        enable_background_refresh: read in a thread of its own, which ends with `close`, at the
            end of a `with`, or when nobody holds the monitor any more.
        background_refresh_interval: how often, in seconds.
        retry_attempts: how often a failed reading is tried in all.
        retry_delay: seconds between two tries.
        alert_thresholds: those that differ from the defaults, by the keys of `ALERTS`; None
            turns one off. And `vram_ratio`: less of a model in VRAM is an alert (1.0).

    Raises:
        ValueError: for a unit or threshold that there is not, or a number out of bounds.
    """

    def __init__(
        self,
        ollama_client: Any = None,
        default_memory_unit: Unit = "MB",
        cache_duration: float = 5,
        enable_background_refresh: bool = False,
        background_refresh_interval: float = 10,
        retry_attempts: int = 3,
        retry_delay: float = 1.0,
        *,
        alert_thresholds: Mapping[str, float | None] | None = None,
    ) -> None:
        bits(default_memory_unit, "default_memory_unit")
        for name, value, least in (
            ("cache_duration", cache_duration, 0.0),
            ("background_refresh_interval", background_refresh_interval, 0.01),
            ("retry_attempts", retry_attempts, 1),
            ("retry_delay", retry_delay, 0.0),
        ):
            if not value >= least:
                raise ValueError(f"{name}={value!r}: must be a number, at least {least:g}")
        self.ollama_client = ollama_client
        self.default_memory_unit: Unit = default_memory_unit
        self.cache_duration = cache_duration
        self.retry_attempts, self.retry_delay = retry_attempts, retry_delay
        self.errors: dict[str, str] = {}
        self.logger = logging.getLogger(__name__)
        self._thresholds = thresholds(alert_thresholds or {})
        self._gpus = _Cache[GpuReading]()
        self._models = _Cache[tuple[LoadedModel, ...]]()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._stop.set)
        if enable_background_refresh:
            arguments = (weakref.ref(self), self._stop, background_refresh_interval)
            self._thread = threading.Thread(
                target=_refresh, args=arguments, name="ollama-gpu-monitor", daemon=True
            )
            self._thread.start()

    def __enter__(self) -> OllamaGPUMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> OllamaGPUMonitor:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End the background refresh; everything else goes on working. May be called again."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_SECONDS)

    _stop_background_refresh = close  # the name that the world knows it by

    def get_gpu_status(
        self, unit: Unit | None = None, force_refresh: bool = False
    ) -> list[GpuStatus]:
        """Every GPU, its memory in `unit`; raises `ValueError` for a unit that there is not."""
        unit = unit or self.default_memory_unit
        bits(unit, "unit")
        return [gpu_status(one, place, unit) for place, one in enumerate(self._all(force_refresh))]

    def get_ollama_processes(self, force_refresh: bool = False) -> list[OllamaProcess]:
        """Every loaded model, as `ollama ps` shows it."""
        return list(map(process, self._loaded(force_refresh)))

    def get_model_gpu_usage(self, force_refresh: bool = False) -> list[ModelUsage]:
        """Every loaded model, and the GPU that holds it."""
        return self._usage(self._loaded(force_refresh), force_refresh)

    def format_status(self, include_gpu: bool = True, include_timestamp: bool = True) -> str:
        """Models and GPUs as text."""
        return self._text(self._loaded(), include_gpu, include_timestamp)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; `timestamp` is in seconds of the wall clock."""
        return self._everything(self._loaded())

    def to_json(self, indent: int | None = 2) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def check_alerts(self) -> list[dict[str, Any]]:
        """What exceeds its threshold now: `type`, `gpu_id` or `model_name`, value, threshold."""
        alerts: list[dict[str, Any]] = []
        for gpu in self.get_gpu_status():
            for key, (kind, _) in ALERTS.items():
                value, most = gpu[key], self._thresholds[key]  # type: ignore[literal-required]
                if value is not None and most is not None and value > most:
                    one = {"type": kind, "gpu_id": gpu["gpu_id"], "value": value, "threshold": most}
                    alerts.append(one)
        least = self._thresholds["vram_ratio"]
        for model in self.get_ollama_processes():
            share = model["vram_ratio"]
            if least is not None and share < least:
                of = {"type": "model_not_in_vram", "model_name": model["name"]}
                alerts.append({**of, "value": share, "threshold": least})
        return alerts

    async def async_get_gpu_status(
        self, unit: Unit | None = None, force_refresh: bool = False
    ) -> list[GpuStatus]:
        """`get_gpu_status`, without holding up the event loop."""
        return await asyncio.to_thread(self.get_gpu_status, unit, force_refresh)

    async def async_get_ollama_processes(self, force_refresh: bool = False) -> list[OllamaProcess]:
        """`get_ollama_processes`, without holding up the event loop."""
        return list(map(process, await self._async_loaded(force_refresh)))

    async def async_get_model_gpu_usage(self, force_refresh: bool = False) -> list[ModelUsage]:
        """`get_model_gpu_usage`, without holding up the event loop."""
        models = await self._async_loaded(force_refresh)
        return await asyncio.to_thread(self._usage, models, force_refresh)

    async def async_format_status(
        self, include_gpu: bool = True, include_timestamp: bool = True
    ) -> str:
        """`format_status`, without holding up the event loop."""
        models = await self._async_loaded()
        return await asyncio.to_thread(self._text, models, include_gpu, include_timestamp)

    async def async_to_dict(self) -> dict[str, Any]:
        """`to_dict`, without holding up the event loop."""
        return await asyncio.to_thread(self._everything, await self._async_loaded())

    async def async_to_json(self, indent: int | None = 2) -> str:
        """`to_json`, without holding up the event loop."""
        return json.dumps(await self.async_to_dict(), indent=indent)

    @staticmethod
    def convert_byte_unit(value: float | None, src_unit: Unit, target_unit: Unit) -> float:
        """Convert between "b" (bits), "B", "KB", "MB", "GB" and "TB", in steps of 1024.

        Raises:
            ValueError: for a unit that there is not, or a value that is no number.
        """
        return convert(value, src_unit, target_unit)

    # -- reading

    def _all(self, force: bool = False) -> tuple[GpuDevice, ...]:
        return self._cached("gpu", self._gpus, force, self._read_gpus, GpuReading()).devices

    def _loaded(self, force: bool = False) -> tuple[LoadedModel, ...]:
        return self._cached("ollama", self._models, force, self._read_models, ())

    def _cached(
        self, what: str, cache: _Cache[T], force: bool, read: Callable[[], T], empty: T
    ) -> T:
        with cache.lock:  # whoever comes while it is being read, waits for that
            if (known := cache.get(0 if force else self.cache_duration)) is not None:
                return known
            for tries_left in range(self.retry_attempts - 1, -1, -1):
                try:
                    self._well(what)
                    return cache.put(read())
                except ReadError as error:
                    self._failed(what, error)
                    if tries_left:
                        self._pause()
            return cache.put(empty)

    async def _async_loaded(self, force: bool = False) -> tuple[LoadedModel, ...]:
        if not inspect.iscoroutinefunction(getattr(self.ollama_client, "ps", None)):
            return await asyncio.to_thread(self._loaded, force)
        known = self._models.get(0 if force else self.cache_duration)
        if known is not None:
            return known
        for tries_left in range(self.retry_attempts - 1, -1, -1):
            try:
                self._well("ollama")
                return self._models.put(await ask_async(self.ollama_client.ps))
            except ReadError as error:
                self._failed("ollama", error)
                if tries_left:
                    await asyncio.sleep(self.retry_delay)
        return self._models.put(())

    def _read_gpus(self) -> GpuReading:
        reading = read_all({})
        if reading.fault not in (None, GpuFault.LIBRARY_MISSING):  # no driver: no GPU, no fault
            raise ReadError(reading.error)
        return reading

    def _read_models(self) -> tuple[LoadedModel, ...]:
        client = self.ollama_client
        try:
            if client is None:
                return _apart(lambda: Server(default_url()).loaded(TIMEOUT_SECONDS))
            if inspect.iscoroutinefunction(client.ps):
                client = without_loop(client)  # it belongs to an event loop, and here is none
            return rows_of(client.ps())
        except Exception as error:  # each client has errors of its own
            raise ReadError(f"{error or type(error).__name__}") from None

    def _well(self, what: str) -> None:
        self.errors.pop(what, None)

    def _failed(self, what: str, error: Exception) -> None:
        self.errors[what] = str(error)
        # Not the error itself: with its traceback a log that is kept would keep this monitor.
        self.logger.warning("%s cannot be read: %s", what, self.errors[what])

    def _pause(self) -> None:
        if threading.current_thread() is self._thread:
            self._stop.wait(self.retry_delay)  # a refresh that is to end waits no longer
        else:
            time.sleep(self.retry_delay)

    # -- telling

    def _usage(self, models: Sequence[LoadedModel], force: bool = False) -> list[ModelUsage]:
        gpus = self._all(force)
        status = [gpu_status(g, n, self.default_memory_unit) for n, g in enumerate(gpus)]
        serving = dict(self._serving(models))
        found: list[ModelUsage] = []
        for model in models:
            runner = serving.get(model.key)
            number, exact = place(model, runner, gpus)
            shown = process(model)
            found.append(
                {
                    "model_name": shown["name"],
                    "model_id": shown["id"],
                    "size": shown["size"],
                    "processor": shown["processor"],
                    "until": shown["until"],
                    "gpu_info": None if number is None else status[number],
                    "gpu_match_quality": None if number is None else "exact" if exact else "low",
                    "pid": runner.pid if runner else None,
                }
            )
        return found

    def _serving(self, models: Sequence[LoadedModel]) -> Iterator[tuple[str, Runner]]:
        if models:
            server = Server(url_of(self.ollama_client))
            yield from runners.match(
                models,
                runners.find(),
                lambda name: _apart(lambda: server.blob(name, TIMEOUT_SECONDS)),
            )

    def _text(self, models: Sequence[LoadedModel], with_gpu: bool, with_time: bool) -> str:
        lines = []
        if with_time:
            lines += [f"STATUS AS OF: {time.strftime('%Y-%m-%d %H:%M:%S')}", ""]
        why = self.errors.get("ollama")
        if models or not why:
            lines += process_lines(models)
        else:
            lines.append(f"OLLAMA: {why}")
        if with_gpu:
            nothing = self.errors.get("gpu", "there is no GPU here")
            lines += ["", *gpu_lines(self.get_gpu_status(), nothing)]
        return "\n".join(lines) + "\n"

    def _everything(self, models: Sequence[LoadedModel]) -> dict[str, Any]:
        return {
            "timestamp": time.time(),
            "ollama_processes": list(map(process, models)),
            "gpu_status": self.get_gpu_status(),
            "model_gpu_usage": self._usage(models),
            "errors": dict(self.errors),
        }


class _Cache(Generic[T]):
    """The last reading, and when it was taken."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._kept: tuple[float, T] | None = None

    def get(self, seconds: float) -> T | None:
        """The reading, unless it is older than that."""
        kept = self._kept
        return kept[1] if kept and time.monotonic() - kept[0] < seconds else None

    def put(self, reading: T) -> T:
        self._kept = time.monotonic(), reading
        return reading


def _refresh(owner: weakref.ref[OllamaGPUMonitor], stop: threading.Event, interval: float) -> None:
    """Read everything again and again, for as long as anybody holds the monitor."""
    while not stop.is_set():
        monitor = owner()
        if monitor is None:
            return
        try:
            monitor.get_gpu_status(force_refresh=True)
            monitor.get_ollama_processes(force_refresh=True)
        except Exception:
            monitor.logger.exception("the background refresh failed")
        del monitor
        stop.wait(interval)


def _apart(call: Callable[[], T]) -> T:
    """Call it in a thread of its own.

    In a main thread the deadline of a request is the process's alarm signal, and that is for the
    program that uses this library.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()
