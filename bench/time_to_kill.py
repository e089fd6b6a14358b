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

from tests.e2e.conftest import AUTOHEAL, MILLISECOND, SECOND, Autoheal, Patient, fall_sick

POLL_SECONDS = 5


def main(runs: int = 20) -> None:
    client = docker.from_env()
    labels = {who: f"bench-{uuid.uuid4().hex[:8]}" for who in ("autoheal", "5 s poller")}
    patients = {who: _patient(client, label) for who, label in labels.items()}
    stop = threading.Event()
    poller = threading.Thread(target=_poll, args=(labels["5 s poller"], stop), daemon=True)
    with tempfile.TemporaryDirectory() as directory:
        healer = Autoheal(
            {"AUTOHEAL_CONTAINER_LABEL": labels["autoheal"], "AUTOHEAL_STATE_DIR": directory}
        )
        try:
            healer.wait_line("watching the Docker engine")
            for patient in patients.values():
                patient.wait_health("healthy")
            poller.start()
            times: dict[str, list[float]] = {who: [] for who in patients}
            for _ in range(runs):
                _run(client, patients, times)
                # autoheal would wait between attempts at one container: each run has new ones.
                for who, patient in patients.items():
                    patient.container.remove(force=True)
                    patients[who] = _patient(client, labels[who])
                    patients[who].wait_health("healthy")
        finally:
            stop.set()
            healer.process.kill()
            for patient in patients.values():
                patient.container.remove(force=True)
    yardstick = statistics.median(times["5 s poller"])
    print(f"{'':12} {'median':>9} {'99 %':>9} {'longest':>9} {'of the poller':>14}")
    for who, seconds in times.items():
        median = statistics.median(seconds)
        most = statistics.quantiles(seconds, n=100, method="inclusive")[98]
        print(
            f"{who:12} {median * 1000:6.0f} ms {most * 1000:6.0f} ms {max(seconds) * 1000:6.0f} ms "
            f"{median / yardstick:13.3f}x"
        )


def _patient(client: docker.DockerClient, label: str) -> Patient:
    command = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"
    container = client.containers.run(
        AUTOHEAL,
        [command],
        entrypoint=["/bin/sh", "-c"],
        detach=True,
        labels={label: "true"},
        healthcheck={
            "test": ["CMD-SHELL", "test ! -e /sick"],
            "interval": SECOND // 4,
            "start_period": MILLISECOND,
            "retries": 1,
        },
    )
    return Patient(container)


def _run(
    client: docker.DockerClient, patients: dict[str, Patient], times: dict[str, list[float]]
) -> None:
    began = int(time.time())
    names = {patient.container.id: who for who, patient in patients.items()}
    sick: dict[str, float] = {}
    waiting = set(patients)
    events = client.events(
        decode=True, since=began, until=began + 60, filters={"container": list(names)}
    )
    for patient in patients.values():
        fall_sick(patient)
    for event in events:
        who, moment = names[event["Actor"]["ID"]], event["timeNano"] / 1e9
        if event["Action"] == "health_status: unhealthy":
            sick[who] = moment
        elif event["Action"] == "kill" and who in waiting:
            times[who].append(moment - sick[who])
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
