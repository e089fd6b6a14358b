"""What autoheal costs while nothing happens, beside a poller that lists every 5 seconds.

python -m bench.autoheal_idle [SECONDS]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from testbed.autoheal import WATCHING, Autoheal

POLLER = """
import docker, time
api = docker.from_env().api
while True:
    api.containers(filters={"health": "unhealthy", "label": "bench-idle=true"})
    time.sleep(5)
"""


def main(seconds: int = 60) -> None:
    with tempfile.TemporaryDirectory() as directory:
        healer = Autoheal(
            {"AUTOHEAL_CONTAINER_LABEL": "bench-idle", "AUTOHEAL_STATE_DIR": directory}
        )
        poller = subprocess.Popen([sys.executable, "-c", POLLER])
        try:
            healer.wait_line(WATCHING)
            time.sleep(5)  # both have started, and neither is measured while it does
            pids = {"autoheal": healer.process.pid, "5 s poller": poller.pid}
            before = {who: _cpu(pid) for who, pid in pids.items()}
            time.sleep(seconds)
            print(f"{'':12} {'resident':>9} {f'CPU in {seconds} s':>13} {'of a core':>10}")
            for who, pid in pids.items():
                used = _cpu(pid) - before[who]
                print(
                    f"{who:12} {_resident(pid):5.0f} MiB {used * 1000:10.0f} ms "
                    f"{used / seconds:9.2%}"
                )
        finally:
            poller.kill()
            healer.process.kill()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> float:
    [line] = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in x]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
