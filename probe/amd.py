"""Read AMD GPUs from the kernel's sysfs, without AMD's tools and libraries."""

from __future__ import annotations

import glob
import os
import re

from probe.gpu_reading import GpuDevice

_VENDOR = "0x1002"


def devices(sysfs: str = "/sys") -> tuple[GpuDevice, ...]:
    """Return every GPU of the kernel's `amdgpu` driver, in the order of the cards; never raises.

    What a card does not give is None. Processes are not listed: the kernel accounts memory by
    open file.

    Args:
        sysfs: where sysfs is mounted.
    """
    found: list[GpuDevice] = []
    cards = {  # without their connectors, such as card0-DP-1
        int(match[1]): path
        for path in glob.glob(f"{sysfs}/class/drm/card[0-9]*/device")
        if (match := re.search(r"/card(\d+)/device$", path))
    }
    for _, card in sorted(cards.items()):
        total = _number(f"{card}/mem_info_vram_total")
        if _text(f"{card}/vendor") == _VENDOR and total:
            found.append(_device(card, total, len(found)))
    return tuple(found)


def _device(card: str, total: int, index: int) -> GpuDevice:
    address = os.path.basename(os.path.realpath(card))
    sensors = next(iter(sorted(glob.glob(f"{card}/hwmon/hwmon*"))), "")
    millidegrees = _number(f"{sensors}/temp1_input")
    # Newer cards give the current draw, older ones only an average.
    drawn = _number(f"{sensors}/power1_average")
    microwatts = _number(f"{sensors}/power1_input") if drawn is None else drawn
    cap = _number(f"{sensors}/power1_cap")
    identity = _text(f"{card}/unique_id") or address
    return GpuDevice(
        uuid=f"GPU-{identity}",
        name=_text(f"{card}/product_name") or f"AMD {_text(f'{card}/device')}",
        memory_total_bytes=total,
        memory_used_bytes=_number(f"{card}/mem_info_vram_used"),
        utilization_percent=_number(f"{card}/gpu_busy_percent"),
        index=index,
        temperature_celsius=None if millidegrees is None else millidegrees / 1000,
        power_draw_watts=None if microwatts is None else microwatts / 1_000_000,
        power_limit_watts=None if cap is None else cap / 1_000_000,
    )


def _number(path: str) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:  # absent, or the card is suspended
        return ""
