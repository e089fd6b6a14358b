"""The JSON that container-monitor documented, for programs that were written for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from autoheal.web.collector import Snapshot

_GIB = 1 << 30


def documented(snapshot: Snapshot) -> dict[str, Any]:
    """Host and running containers in that shape; what is not known is 0 there."""
    host = snapshot.host
    moment = time.localtime(snapshot.at)
    totals = {gpu["index"]: gpu["memory_total_bytes"] for gpu in snapshot.gpus}
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S", moment),
        "hostname": host.get("name", ""),
        "ip": host.get("ip", ""),
        "note": host.get("note", ""),
        "host-stats": {
            "cpu-perc": host.get("cpu_percent", 0.0),
            "mem": _memory(host.get("memory_used_bytes"), host.get("memory_total_bytes")),
            "gpu": [_gpu(gpu) for gpu in snapshot.gpus],
        },
        "container-stats": {
            one["id"]: {
                "name": one["container"],
                "cpu-perc": one.get("cpu_percent") or 0.0,
                "mem": _memory(one.get("memory_used_bytes"), one.get("memory_limit_bytes")),
                "gpu-proc": [
                    {
                        "gpu-idx": process["gpu"],
                        "mem-perc-used": _percent(
                            process["memory_bytes"], totals.get(process["gpu"])
                        ),
                        "pid": process["pid"],
                        "sm-util": process["utilization_percent"] or 0,
                    }
                    for process in one.get("gpu_processes", ())
                ],
            }
            for one in snapshot.containers
            if one["state"] == "running"
        },
    }


def _gpu(gpu: Mapping[str, Any]) -> dict[str, Any]:
    used, total = gpu["memory_used_bytes"], gpu["memory_total_bytes"]
    return {
        "id": gpu["index"],
        "model": gpu["name"],
        "mem-perc-used": _percent(used, total),
        "mem-used/total": _sizes(used, total),
        "util-perc": gpu["utilization_percent"] or 0,
    }


def _memory(used: int | None, total: int | None) -> dict[str, Any]:
    return {"perc-used": _percent(used, total), "used/total": _sizes(used, total)}


def _percent(used: int | None, total: int | None) -> float:
    return round(100 * (used or 0) / total, 1) if total else 0.0


def _sizes(used: int | None, total: int | None) -> str:
    return f"{(used or 0) / _GIB:.1f}G / {(total or 0) / _GIB:.1f}G"
