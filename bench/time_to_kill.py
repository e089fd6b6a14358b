"""From Docker's `unhealthy` event to the kill, beside a poller that looks every 5 seconds.

    python -m bench.time_to_kill [RUNS]

Both times are the engine's own, of the two events. Each run breaks two containers alike, one
for autoheal and one for the poller.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
import uuid
from typing import Any

import docker

from testbed.autoheal import WATCHING, Autoheal
from testbed.containers import AUTOHEAL, Workload, healthcheck, idle_command
from testbed.runs import LABELS

POLL_SECONDS = 5


def main(runs: int = 20) -> None:
    client = docker.from_env()
    labels = {who: f"bench-{uuid.uuid4().hex[:8]}" for who in ("autoheal", "5 s poller")}
    workloads = {who: _workload(client, label) for who, label in labels.items()}
    stop = threading.Event()
    poller = threading.Thread(target=_poll, args=(labels["5 s poller"], stop), daemon=True)
    with tempfile.TemporaryDirectory() as directory:
        healer = Autoheal(
            {"AUTOHEAL_CONTAINER_LABEL": labels["autoheal"], "AUTOHEAL_STATE_DIR": directory}
        )
        try:
            healer.wait_line(WATCHING)
            for workload in workloads.values():
                workload.wait_health("healthy")
            poller.start()
            times: dict[str, list[float]] = {who: [] for who in workloads}
            for _ in range(runs):
                _run(client, workloads, times)
                # autoheal would wait between attempts at one container: each run has new ones.
                for who, workload in workloads.items():
                    workload.container.remove(force=True)
                    workloads[who] = _workload(client, labels[who])
                    workloads[who].wait_health("healthy")
        finally:
            stop.set()
            healer.process.kill()
            for workload in workloads.values():
                workload.container.remove(force=True)
    yardstick = statistics.median(times["5 s poller"])
    print(f"{'':12} {'median':>9} {'99 %':>9} {'longest':>9} {'of the poller':>14}")
    for who, seconds in times.items():
        median = statistics.median(seconds)
        most = statistics.quantiles(seconds, n=100, method="inclusive")[98]
        print(
            f"{who:12} {median * 1000:6.0f} ms {most * 1000:6.0f} ms {max(seconds) * 1000:6.0f} ms "
            f"{median / yardstick:13.3f}x"
        )


def _workload(client: docker.DockerClient, label: str) -> Workload:
    container = client.containers.run(
        AUTOHEAL,
        [idle_command()],
        entrypoint=["/bin/sh", "-c"],
        detach=True,
        labels={label: "true", **LABELS},
        healthcheck=healthcheck(),
    )
    return Workload(container)


def _run(
    client: docker.DockerClient, workloads: dict[str, Workload], times: dict[str, list[float]]
) -> None:
    began = int(time.time())
    names = {workload.container.id: who for who, workload in workloads.items()}
    unhealthy: dict[str, float] = {}
    waiting = set(workloads)
    events = client.events(
        decode=True, since=began, until=began + 60, filters={"container": list(names)}
    )
    for workload in workloads.values():
        workload.make_unhealthy()
    for event in events:
        who, moment = names[event["Actor"]["ID"]], event["timeNano"] / 1e9
        if event["Action"] == "health_status: unhealthy":
            unhealthy[who] = moment
        elif event["Action"] == "kill" and who in waiting:
            times[who].append(moment - unhealthy[who])
            waiting.remove(who)
        if not waiting:
            break
    events.close()


def _poll(label: str, stop: threading.Event) -> None:
    """What pollers do: list the unhealthy ones, restart them, sleep."""
    api: Any = docker.from_env().api
    while not stop.wait(POLL_SECONDS):
        for row in api.containers(filters={"health": "unhealthy", "label": f"{label}=true"}):
            api.restart(row["Id"])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
