"""What `OllamaGPUMonitor` makes of readings, and what it refuses; without a server or a GPU."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from probe.gpu_reading import GpuDevice, GpuFault, GpuProcess, GpuReading
from probe.monitor import OllamaGPUMonitor
from probe.observation import CommandLine, Dialect, LoadedModel, Runner

GIB = 1 << 30
HOT = GpuDevice("GPU-1", "card", 24 * GIB, 23 * GIB, 50, 0, 90.0, 300.0, 350.0)
COOL = GpuDevice("GPU-2", "card", 24 * GIB, 1 * GIB, 5, 1, 40.0, 50.0, 350.0)


def model(name: str, size: int, in_vram: int, left: float = 300) -> LoadedModel:
    return LoadedModel(
        name, size, in_vram, time.monotonic() + left, digest=f"0123456789abcdef{name}"
    )


def monitored(
    monkeypatch: pytest.MonkeyPatch,
    gpus: tuple[GpuDevice, ...],
    models: tuple[LoadedModel, ...],
    found: tuple[Runner, ...] = (),
    **options: Any,
) -> OllamaGPUMonitor:
    """A monitor whose readings are given, in the place of a machine with such GPUs."""
    monkeypatch.setattr("probe.monitor.read_all", lambda env: GpuReading(gpus))
    monkeypatch.setattr("probe.ollama.Server.loaded", lambda server, timeout: models)
    monkeypatch.setattr("probe.ollama.Server.blob", lambda server, name, timeout: f"sha256-{name}")
    monkeypatch.setattr("probe.runners.find", lambda: found)
    return OllamaGPUMonitor(**options)


@pytest.mark.parametrize(
    ("value", "source", "target", "result"),
    [
        (1, "GB", "MB", 1024),
        (1, "B", "b", 8),
        (16, "b", "B", 2),
        (1536, "MB", "GB", 1.5),
        (1, "TB", "B", 1 << 40),
        (None, "GB", "MB", 0),
        ("2", "KB", "B", 2048),
    ],
)
def test_bytes_are_converted(value: Any, source: Any, target: Any, result: float) -> None:
    assert OllamaGPUMonitor.convert_byte_unit(value, source, target) == result


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1, "XB", "MB"), "src_unit='XB': must be one of b, B, KB, MB, GB, TB"),
        ((1, "MB", "XB"), "target_unit='XB': must be one of b, B, KB, MB, GB, TB"),
        (("many", "MB", "GB"), "value 'many': must be a number"),
    ],
)
def test_what_cannot_be_converted_is_refused(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match="^" + words):
        OllamaGPUMonitor.convert_byte_unit(*arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"default_memory_unit": "MiB"}, "default_memory_unit='MiB'"),
        ({"cache_duration": -1}, "cache_duration=-1: must be a number, at least 0"),
        ({"retry_attempts": 0}, "retry_attempts=0: must be a number, at least 1"),
        ({"background_refresh_interval": 0}, "background_refresh_interval=0"),
        ({"alert_thresholds": {"heat": 1}}, "alert_thresholds..heat..: must be one of used_mem"),
    ],
)
def test_a_bad_argument_is_refused_by_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="^" + words):
        OllamaGPUMonitor(**options)


def test_alerts_name_what_is_too_much_and_thresholds_can_be_chosen_or_turned_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = (HOT, COOL), (model("whole", 100, 100), model("half", 100, 50))
    alerts = monitored(monkeypatch, *world).check_alerts()
    assert [(one["type"], one.get("gpu_id", one.get("model_name"))) for one in alerts] == [
        ("high_memory_usage", 0),
        ("high_temperature", 0),
        ("model_not_in_vram", "half"),
    ]
    assert (alerts[1]["value"], alerts[1]["threshold"]) == (90.0, 85.0)
    chosen = {"used_memory_ratio": None, "temperature": 95, "power_ratio": 0.5, "vram_ratio": 0.4}
    alerts = monitored(monkeypatch, *world, alert_thresholds=chosen).check_alerts()
    assert [one["type"] for one in alerts] == ["high_power"]


def test_a_model_is_on_the_gpu_whose_memory_its_own_process_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = GpuDevice("GPU-1", "card", 24 * GIB, 20 * GIB, processes=(GpuProcess(7, 20 * GIB),))
    second = GpuDevice("GPU-2", "card", 24 * GIB, 9 * GIB, processes=(GpuProcess(8, 9 * GIB),))
    models = model("a", 100, 100), model("b", 100, 100), model("c", 100, 0)
    found = tuple(
        Runner(pid, 1, CommandLine(Dialect.LLAMA_SERVER, weights=f"/blobs/sha256-{name}"))
        for pid, name in ((8, "a"), (7, "b"))
    )
    monitor = monitored(monkeypatch, (first, second), models, found)
    usage = monitor.get_model_gpu_usage()
    assert [u["gpu_info"] and u["gpu_info"]["gpu_uuid"] for u in usage] == ["GPU-2", "GPU-1", None]
    assert [u["gpu_match_quality"] for u in usage] == ["exact", "exact", None]
    assert [u["pid"] for u in usage] == [8, 7, None]


def test_where_no_process_shows_a_single_gpu_is_certain_and_one_of_several_a_guess(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = (model("a", 100, 100),)
    for gpus, quality in (((HOT,), "exact"), ((COOL, HOT), "low")):
        [usage] = monitored(monkeypatch, gpus, models).get_model_gpu_usage()
        assert usage["gpu_info"] is not None
        assert usage["gpu_info"]["gpu_uuid"] == "GPU-1"
        assert usage["gpu_match_quality"] == quality


@pytest.mark.parametrize(
    ("size", "in_vram", "left", "shown"),
    [
        (6_654_289_920, 6_654_289_920, 250, ("6.7 GB", "100% GPU", "4 minutes from now")),
        (6_654_289_920, 0, 45.2, ("6.7 GB", "100% CPU", "45 seconds from now")),
        (100, 52, 1e10, ("100 B", "48%/52% CPU/GPU", "Forever")),
        (100, 100, -1, ("100 B", "100% GPU", "Stopping...")),
        (512_000, 512_000, 7000, ("512 KB", "100% GPU", "2 hours from now")),
    ],
)
def test_a_model_reads_as_in_ollama_ps(
    monkeypatch: pytest.MonkeyPatch, size: int, in_vram: int, left: float, shown: tuple[str, ...]
) -> None:
    monitor = monitored(monkeypatch, (), (model("a", size, in_vram, left),))
    [row] = monitor.get_ollama_processes()
    assert (row["size"], row["processor"], row["until"]) == shown


def test_a_driver_that_fails_is_tried_again_and_then_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = GpuReading(fault=GpuFault.UNKNOWN, error="NVML: Unknown Error")
    readings = iter([broken, GpuReading((COOL,)), broken, broken])
    monkeypatch.setattr("probe.monitor.read_all", lambda env: next(readings))
    monkeypatch.setattr("probe.ollama.Server.loaded", lambda server, timeout: ())
    monitor = OllamaGPUMonitor(retry_attempts=2, retry_delay=0)
    assert len(monitor.get_gpu_status()) == 1
    assert monitor.errors == {}
    assert monitor.get_gpu_status(force_refresh=True) == []
    assert monitor.errors == {"gpu": "NVML: Unknown Error"}
    assert "GPU STATUS: NVML: Unknown Error" in monitor.format_status()


def test_the_alarm_of_the_program_that_uses_it_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    before = signal.getsignal(signal.SIGALRM), signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        assert OllamaGPUMonitor(retry_attempts=1).get_ollama_processes() == []
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
        assert signal.getsignal(signal.SIGALRM) == before[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before[1])
