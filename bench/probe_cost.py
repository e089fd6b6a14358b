"""What one warm check costs, beside the usual ones, on the same server in the same run.

    python -m bench.probe_cost [RUNS [IMAGE]]

CPU and peak memory are those of the process itself, median and maximum over the runs; the runs
of the different checks take turns. Starting a process in a container costs on top of that
whatever the engine needs, the same for each.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import docker

from testbed import models
from testbed.containers import OLLAMA, SECOND
from testbed.nvml import Nvml
from testbed.ollama import Ollama
from testbed.runs import LABELS

# In a small process of its own: a child starts with its parent's peak memory.
MEASURE = """
import json, os, sys, time
command, environment = json.loads(sys.argv[1]), json.loads(sys.argv[2])
began = time.monotonic()
null = os.open(os.devnull, os.O_RDWR)
pid = os.posix_spawnp(command[0], command, environment,
    file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)])
_, status, usage = os.wait4(pid, 0)
wall = time.monotonic() - began
print(json.dumps([usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss, status]))
"""


def main(text: str = "40", image: str = OLLAMA) -> None:
    runs = int(text)
    client = docker.from_env()
    gpu = tempfile.TemporaryDirectory()
    container = client.containers.run(
        image,
        detach=True,
        labels=LABELS,
        volumes=Nvml(Path(gpu.name)).volume,
        healthcheck={"test": ["CMD", "true"], "interval": 3600 * SECOND},
    )
    try:
        server = Ollama(container)
        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            models.write(Path(file.name), 2, 128)
            subprocess.run(["docker", "cp", file.name, f"{container.id}:/bench.gguf"], check=True)
        container.exec_run(
            ["/bin/sh", "-c", "echo FROM /bench.gguf > /m && ollama create tiny -f /m"]
        )
        server.generate("tiny")
        container.reload()
        inside = ["nsenter", "--target", str(container.attrs["State"]["Pid"]), "--net", "--pid"]
        check = [*inside, "--mount", "/usr/local/bin/ollama-probe", "check"]
        checks = {
            "curl /api/ps": ([*inside, "curl", "-sf", "http://127.0.0.1:11434/api/ps"], {}),
            "ollama ps": ([*inside, "--mount", "/bin/ollama", "ps"], {}),
            "ollama-probe check": (check, {"PROBE_GPU": "off"}),
            "with a simulated GPU": (check, {}),
        }
        environment = dict(e.split("=", 1) for e in container.attrs["Config"]["Env"])
        environment |= {"HOME": "/root"}
        results: dict[str, list[list[float]]] = {name: [] for name in checks}
        for turn in range(runs + 2):
            for name, (command, settings) in checks.items():
                done = subprocess.run(
                    [
                        sys.executable,
                        "-IS",
                        "-c",
                        MEASURE,
                        json.dumps(command),
                        json.dumps({**environment, **settings}),
                    ],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                *figures, status = json.loads(done.stdout)
                assert status == 0, (name, status)
                if turn >= 2:
                    results[name].append(figures)
    finally:
        container.remove(force=True, v=True)
        gpu.cleanup()
    yardstick = statistics.median(r[0] for r in results["ollama ps"])
    print(f"{'':20} {'CPU':>8} {'of ollama ps':>13} {'wall':>8} {'peak memory':>12}")
    for name, rows in results.items():
        cpu, wall = (statistics.median(row[i] for row in rows) for i in (0, 1))
        memory = max(row[2] for row in rows) / 1024
        print(
            f"{name:20} {cpu * 1000:5.0f} ms {cpu / yardstick:12.1f}x {wall * 1000:5.0f} ms "
            f"{memory:8.0f} MiB"
        )
    print(f"\nthe layer it adds: {_layer(client, image) / 1e6:.1f} MB")


def _layer(client: docker.DockerClient, image: str) -> int:
    """Bytes of the largest layer that our image adds."""
    return max(int(row["Size"]) for row in client.images.get(image).history()[:3])


if __name__ == "__main__":
    main(*sys.argv[1:])
