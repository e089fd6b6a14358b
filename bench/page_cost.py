"""The page with many containers: how soon it is there, and what watching it costs.

    python -m bench.page_cost [CONTAINERS]

Beside it stands `docker stats`, which streams the same numbers of the same containers. CPU is that
of both ends: the program's, and the Docker engine's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker

from bench.many_containers import autoheal, cpu_seconds
from testbed.browser import chromium
from testbed.crowd import all_of, make, remove
from testbed.network import free_port

WATCH_SECONDS = 20


def main(count: int = 200) -> None:
    api: Any = docker.from_env(max_pool_size=count, timeout=600).api
    label = f"bench-{uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(8) as pool, tempfile.TemporaryDirectory() as directory:
        try:
            list(pool.map(lambda n: make(api, label, interval_seconds=3600), range(count)))
            measure(count, label, directory)
        finally:
            list(pool.map(lambda row: remove(api, row["Id"]), all_of(api, label)))


def measure(count: int, label: str, directory: str) -> None:
    web = f"127.0.0.1:{free_port()}"
    healer = autoheal(label, directory, AUTOHEAL_WEB=web)
    healer.wait_healthy()
    engine = int(Path("/var/run/docker.pid").read_text())
    mine = [healer.process.pid, engine]
    unseen = share(mine, lambda: time.sleep(WATCH_SECONDS))
    with chromium() as browser:
        page = browser.new_page()
        began = time.monotonic()
        page.goto(f"http://{web}/")
        page.wait_for_function(
            f"() => document.querySelectorAll('#container-table tbody tr').length >= {count}"
        )
        rows = time.monotonic() - began
        paint = page.evaluate(
            "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
        )
        time.sleep(5)
        watched = share(mine, lambda: time.sleep(WATCH_SECONDS))
        size = page.evaluate("JSON.stringify(performance.memory?.usedJSHeapSize ?? 0)")
    healer.stop()
    stats = subprocess.Popen(["docker", "stats"], stdout=subprocess.DEVNULL)
    time.sleep(5)
    yardstick = share([stats.pid, engine], lambda: time.sleep(WATCH_SECONDS))
    stats.terminate()
    stats.wait()
    print(f"{count} containers: first paint after {paint:.2f} s, all rows after {rows:.2f} s")
    print(f"the page's own memory in the browser: {int(size) >> 20} MiB")
    for what, cost in (
        ("nobody looks", unseen),
        ("the page is watched", watched),
        ("docker stats, for comparison", yardstick),
    ):
        print(f"{what:30} {cost:6.1%} of a core  ({cost / yardstick:.2f}x)")


def share(processes: list[int], wait: Callable[[], None]) -> float:
    """CPU time that the processes use meanwhile, per second."""
    before, began = sum(map(cpu_seconds, processes)), time.monotonic()
    wait()
    return (sum(map(cpu_seconds, processes)) - before) / (time.monotonic() - began)


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("reading the engine's CPU time needs root")
    main(*map(int, sys.argv[1:]))
