"""Write Grafana's dashboard: python -m scripts.dashboard

Grafana's own format takes 40 lines to say one query; here a panel is a few.
"""

from __future__ import annotations

import json
from typing import Any

from scripts.say import ROOT

FILE = ROOT / "deploy/grafana/dashboards/ollama.json"

Panel = dict[str, Any]

SOURCE = {"type": "prometheus", "uid": "prometheus"}
ON_NODE = '{node=~"$node"}'
GREEN, YELLOW, ORANGE, RED = "green", "yellow", "orange", "red"


def panel(
    title: str,
    queries: dict[str, str],
    *,
    unit: str = "short",
    kind: str = "timeseries",
    width: int = 12,
    steps: tuple[tuple[str, float | None], ...] = ((GREEN, None),),
    limit: str = "",
    most: float | None = None,
    text: str = "",
) -> Panel:
    """One panel.

    Args:
        title: its title.
        queries: by what each line is called.
        unit: Grafana's name of it.
        kind: Grafana's name of the kind of panel.
        width: of 24.
        steps: colours, and the value from which each holds.
        limit: the line that is a limit: red and dashed.
        most: the end of the scale.
        text: what it shows, for whoever asks.
    """
    lines = {"fillOpacity": 25, "lineWidth": 1, "showPoints": "never"}
    if kind == "timeseries" and len(steps) > 1:
        lines["thresholdsStyle"] = {"mode": "dashed"}
    dashed = [
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}},
        {"id": "custom.fillOpacity", "value": 0},
        {"id": "color", "value": {"mode": "fixed", "fixedColor": RED}},
    ]
    is_limit = {"matcher": {"id": "byRegexp", "options": f"{limit}.*"}, "properties": dashed}
    return {
        "title": title,
        "description": text,
        "type": kind,
        "datasource": SOURCE,
        "gridPos": {"w": width, "h": 8},
        "targets": [
            {
                "refId": chr(65 + place),
                "expr": query,
                "legendFormat": name,
                "datasource": SOURCE,
                "instant": kind in ("stat", "gauge", "bargauge"),
            }
            for place, (name, query) in enumerate(queries.items())
        ],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                **({} if most is None else {"max": most}),
                "custom": lines if kind == "timeseries" else {},
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"color": colour, "value": value} for colour, value in steps],
                },
            },
            "overrides": [is_limit] if limit else [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}}
        if kind == "timeseries"
        else {},
    }


NODES = [
    panel(
        "CPU",
        {
            "{{node}}": "100 * (1 - avg by (node) "
            '(rate(node_cpu_seconds_total{mode="idle", node=~"$node"}[$__rate_interval])))'
        },
        unit="percent",
        most=100,
    ),
    panel(
        "RAM in use",
        {
            "in use {{node}}": f"node_memory_MemTotal_bytes{ON_NODE} "
            f"- node_memory_MemAvailable_bytes{ON_NODE}",
            "total {{node}}": f"node_memory_MemTotal_bytes{ON_NODE}",
        },
        unit="bytes",
        limit="total",
    ),
    panel(
        "VRAM in use",
        {
            "in use {{node}} GPU {{gpu}}": f"node_gpu_memory_used_bytes{ON_NODE}",
            "total {{node}} GPU {{gpu}}": f"node_gpu_memory_total_bytes{ON_NODE}",
        },
        unit="bytes",
        limit="total",
    ),
    panel(
        "GPU utilisation",
        {"{{node}} GPU {{gpu}}": f"node_gpu_utilization_percent{ON_NODE}"},
        unit="percent",
        most=100,
        steps=((GREEN, None), (YELLOW, 70), (RED, 90)),
    ),
    panel(
        "GPU temperature",
        {"{{node}} GPU {{gpu}}": f"node_gpu_temperature_celsius{ON_NODE}"},
        unit="celsius",
        steps=((GREEN, None), (YELLOW, 70), (ORANGE, 80), (RED, 85)),
    ),
    panel(
        "GPU power",
        {
            "draw {{node}} GPU {{gpu}}": f"node_gpu_power_draw_watts{ON_NODE}",
            "limit {{node}} GPU {{gpu}}": f"node_gpu_power_limit_watts{ON_NODE}",
        },
        unit="watt",
        limit="limit",
    ),
    panel(
        "Disk in use",
        {
            "{{node}} {{mountpoint}}": "100 * (1 - node_filesystem_avail_bytes"
            '{node=~"$node", fstype!~"tmpfs|overlay|squashfs|ramfs"} '
            '/ node_filesystem_size_bytes{node=~"$node", fstype!~"tmpfs|overlay|squashfs|ramfs"})'
        },
        unit="percent",
        kind="gauge",
        most=100,
        steps=((GREEN, None), (YELLOW, 70), (RED, 85)),
    ),
    panel(
        "Network",
        {
            "in {{node}}": "sum by (node) (rate(node_network_receive_bytes_total"
            '{node=~"$node", device!="lo"}[$__rate_interval]))',
            "out {{node}}": "sum by (node) (rate(node_network_transmit_bytes_total"
            '{node=~"$node", device!="lo"}[$__rate_interval]))',
        },
        unit="Bps",
    ),
]

MODELS = [
    panel(
        "Models in memory",
        {
            "{{model}}": f"ollama_model_memory_bytes{ON_NODE}",
            "in VRAM {{model}}": f"ollama_model_vram_bytes{ON_NODE}",
        },
        unit="bytes",
    ),
    panel(
        "Speed of the probes' tokens",
        {"{{container}}": "autoheal_tokens_per_second"},
        unit="short",
        text="Tokens per second in the last check that asked for more than one.",
    ),
]

HEALING = [
    panel(
        "Containers",
        {"{{container}}": "autoheal_container_healthy"},
        kind="stat",
        steps=((RED, None), (GREEN, 1)),
        text="1: healthy.",
    ),
    panel(
        "Attempts left",
        {"{{container}}": "autoheal_attempts_left"},
        kind="bargauge",
        steps=((RED, None), (YELLOW, 2), (GREEN, 5)),
    ),
    panel(
        "Reasons",
        {"{{container}} {{reason}}": "autoheal_container_reason"},
        text="What each probe said last.",
    ),
    panel(
        "Attempts",
        {"{{action}} {{outcome}}": "sum by (action, outcome) (autoheal_attempts_total)"},
        text="Since autoheal was started.",
    ),
    panel(
        "Time to heal",
        {
            "half of all": "histogram_quantile(0.5, "
            "sum by (le) (autoheal_time_to_heal_seconds_bucket))",
            "95 of 100": "histogram_quantile(0.95, "
            "sum by (le) (autoheal_time_to_heal_seconds_bucket))",
        },
        unit="s",
        text="From the first unhealthy check to the first healthy one.",
    ),
    panel(
        "Event stream",
        {"unbroken for": "autoheal_event_stream_age_seconds"},
        unit="s",
        text="A break means that the Docker engine was away.",
    ),
]


def dashboard() -> dict[str, Any]:
    """All of it, as Grafana reads it."""
    panels: list[Panel] = []
    y = 0
    for title, group in (("Machines", NODES), ("Models", MODELS), ("Healing", HEALING)):
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        for place, one in enumerate(group):
            grid = {**one["gridPos"], "x": 12 * (place % 2), "y": y + 8 * (place // 2)}
            panels.append({**one, "gridPos": grid})
        y += 8 * ((len(group) + 1) // 2)
    return {
        "uid": "ollama-autoheal",
        "title": "Ollama: machines, models and healing",
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "node",
                    "label": "Machine",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": "label_values(up, node)",
                    "multi": True,
                    "includeAll": True,
                    "refresh": 2,
                }
            ]
        },
        "panels": [{"id": number, **one} for number, one in enumerate(panels, 1)],
    }


def written() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())
