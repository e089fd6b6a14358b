"""Two hundred labelled containers on one engine, and a hundred of them unhealthy at once.

    python -m bench.many_containers [CONTAINERS]

First autoheal's memory and CPU while nothing happens; then the time from its start until half
of the containers, all unhealthy, are restarted, with and without its limits; beside it the time
in which the engine itself restarts as many, all asked for at once.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker

from testbed.autoheal import WATCHING, Autoheal
from testbed.crowd import all_of, make, make_unhealthy, remove

IDLE_SECONDS = 60
UNLIMITED = {"AUTOHEAL_MAX_AT_ONCE": "1000", "AUTOHEAL_MAX_PER_MINUTE": "10000"}


def main(count: int = 200) -> None:
    api: Any = docker.from_env(max_pool_size=count, timeout=600).api
    label = f"bench-{uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(8) as pool:
        try:
            ids = list(pool.map(lambda n: make(api, label), range(count)))
            while len(all_of(api, label, health="healthy")) < count:
                time.sleep(1)
            memory, cpu = idle(label)
            print(f"idle, {count} containers: {memory:.0f} MiB, {cpu:.2f} % of a core")
            broken = ids[: count // 2]
            rows = []
            for what, more in (("no limits", UNLIMITED), ("default limits", {})):
                make_unhealthy(api, pool, label, broken)
                rows.append((f"autoheal, {what}", *heal_all(api, label, broken, more)))
            began = time.monotonic()
            with ThreadPoolExecutor(len(broken)) as crowd:
                list(crowd.map(lambda one: api.restart(one, timeout=0), broken))
            engine = time.monotonic() - began
        finally:
            list(pool.map(lambda row: remove(api, row["Id"]), all_of(api, label)))
    print(f"{len(broken)} unhealthy at once: the engine alone restarts as many in {engine:.1f} s")
    for what, first, last in rows:
        ratio = last / engine
        print(f"{what:28} first kill after {first:4.2f} s, all after {last:5.1f} s ({ratio:.2f}x)")


def autoheal(label: str, directory: str, **more: str) -> Autoheal:
    settings = {"AUTOHEAL_CONTAINER_LABEL": label, "AUTOHEAL_STATE_DIR": directory}
    return Autoheal({**settings, "AUTOHEAL_BACKOFF": "0", **more})


def idle(label: str) -> tuple[float, float]:
    """MiB resident, and per cent of a core."""
    with tempfile.TemporaryDirectory() as directory:
        return _idle(autoheal(label, directory))


def _idle(healer: Autoheal) -> tuple[float, float]:
    healer.wait_line(WATCHING)
    time.sleep(5)
    before = cpu_seconds(healer.process.pid)
    time.sleep(IDLE_SECONDS)
    spent = cpu_seconds(healer.process.pid) - before
    status = Path(f"/proc/{healer.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    healer.stop()
    return int(line.split()[1]) / 1024, 100 * spent / IDLE_SECONDS


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def heal_all(api: Any, label: str, broken: list[str], more: dict[str, str]) -> tuple[float, float]:
    """Seconds from the start of autoheal until the first was killed, and all were restarted."""
    with tempfile.TemporaryDirectory() as directory:  # it knows of nothing that was before
        return _heal_all(api, label, directory, broken, more)


def _heal_all(
    api: Any, label: str, directory: str, broken: list[str], more: dict[str, str]
) -> tuple[float, float]:
    stream = api.events(decode=True, filters={"event": ["kill", "restart"], "label": label})
    times: dict[str, list[float]] = {"kill": [], "restart": []}
    began = time.time()
    healer = autoheal(label, directory, **more)
    for event in stream:
        times[event["Action"]].append(event["timeNano"] / 1e9 - began)
        if len(times["restart"]) == len(broken):
            break
    stream.close()
    healer.stop()
    return times["kill"][0], times["restart"][-1]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
