"""AMD's GPUs from a tree like the kernel's, with the files that its documentation names."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.amd import devices
from probe.devices import read_all
from probe.gpu_reading import GpuDevice

FILES = {
    "card0/device/vendor": "0x8086",  # the processor's own graphics
    "card0/device/device": "0x3e92",
    "card1/device/vendor": "0x1002",
    "card1/device/device": "0x744c",
    "card1/device/unique_id": "6bc7ed4b3b7b7d3a",
    "card1/device/mem_info_vram_total": "25753026560",
    "card1/device/mem_info_vram_used": "9663676416",
    "card1/device/gpu_busy_percent": "98",
    "card1/device/hwmon/hwmon4/temp1_input": "61000",
    "card1/device/hwmon/hwmon4/power1_average": "243000000",
    "card1/device/hwmon/hwmon4/power1_cap": "327000000",
    "card1-DP-1/device/vendor": "0x1002",  # a connector of it
    "card1-DP-1/device/mem_info_vram_total": "25753026560",
    "card10/device/vendor": "0x1002",
    "card10/device/device": "0x73df",
    "card10/device/product_name": "AMD Radeon RX 6700 XT",
    "card10/device/mem_info_vram_total": "12868124672",
    "card10/device/hwmon/hwmon5/power1_input": "7000000",
    "card2/device/vendor": "0x1002",
    "card2/device/device": "0x744c",
    "card2/device/unique_id": "1",
    "card2/device/mem_info_vram_total": "25753026560",
}


@pytest.fixture
def sysfs(tmp_path: Path) -> str:
    for name, text in FILES.items():
        file = tmp_path / "class/drm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return str(tmp_path)


def test_every_amd_card_is_read_in_order_and_what_it_does_not_give_is_none(sysfs: str) -> None:
    first, second, third = devices(sysfs)
    assert first == GpuDevice(
        uuid="GPU-6bc7ed4b3b7b7d3a",
        name="AMD 0x744c",
        memory_total_bytes=25753026560,
        memory_used_bytes=9663676416,
        utilization_percent=98,
        index=0,
        temperature_celsius=61.0,
        power_draw_watts=243.0,
        power_limit_watts=327.0,
    )
    assert (second.uuid, second.memory_used_bytes, second.temperature_celsius) == (
        *("GPU-1", None),
        None,
    )
    assert (third.index, third.name, third.power_draw_watts) == (2, "AMD Radeon RX 6700 XT", 7.0)


def test_a_machine_without_nvidias_driver_has_its_amd_gpus_and_no_fault(sysfs: str) -> None:
    reading = read_all({}, sysfs)
    assert (len(reading.devices), reading.fault, reading.error) == (3, None, "")


def test_a_machine_without_any_gpu_has_none(tmp_path: Path) -> None:
    assert devices(str(tmp_path)) == ()
