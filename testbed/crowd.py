"""Many small containers at once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from testbed.containers import AUTOHEAL, UNHEALTHY_FILE, healthcheck
from testbed.runs import LABELS


def make(
    api: Any,
    label: str,
    *,
    interval_seconds: float = 30,
    command: str = f"rm -f {UNHEALTHY_FILE}; exec sleep 100000",
) -> str:
    """A container that is unhealthy while a file is there; returns its id."""
    container = api.create_container(
        AUTOHEAL,
        ["-c", command],
        entrypoint=["/bin/sh"],
        labels={label: "true", **LABELS},
        host_config=api.create_host_config(network_mode="none"),
        stop_signal="SIGKILL",
        healthcheck=healthcheck(interval=interval_seconds),
    )
    api.start(container)
    return str(container["Id"])


def remove(api: Any, container: str) -> None:
    api.remove_container(container, force=True)


def all_of(api: Any, label: str, **filters: str) -> list[dict[str, Any]]:
    return list(api.containers(all=True, filters={"label": label, **filters}))


def make_unhealthy(api: Any, pool: ThreadPoolExecutor, label: str, containers: list[str]) -> None:
    """Make these unhealthy, and wait until Docker says so of each."""

    def one(container: str) -> None:
        job = api.exec_create(container, ["touch", UNHEALTHY_FILE])
        api.exec_start(job)

    list(pool.map(one, containers))
    while len(all_of(api, label, health="unhealthy")) < len(containers):
        time.sleep(1)
