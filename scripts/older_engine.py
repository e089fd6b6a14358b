"""`make test-engines`: the end-to-end tests on an older engine, beside the one that is here.

    python -m scripts.older_engine COMMAND...

Runs a command with DOCKER_HOST set to Debian 12's own Docker Engine (20.10, API 1.41), which it
takes from Debian's archive without installing it, and starts in a network namespace with the
images of the engine that is here. Needs root on Debian 12.
"""

from __future__ import annotations

import os
import subprocess
import sys

from scripts import apt, images
from scripts.compose import IMAGES
from scripts.say import ROOT, FailedError, main, say, step
from testbed.engines import private_engine

PACKAGES = ("docker.io/bookworm", "containerd/bookworm")
PROGRAMS = ROOT / ".tools" / "engine-20.10"


def test_on_older_engine() -> None:
    if os.geteuid() != 0:
        raise FailedError("This starts a second Docker Engine, which needs root.")
    if not (PROGRAMS / "usr/sbin/dockerd").exists():
        apt.update()
        apt.unpack(PACKAGES, PROGRAMS, "Debian 12's Docker Engine")
        # The command line stays the newer one, which has Compose.
        (PROGRAMS / "usr/bin/docker").unlink()
    every = [*IMAGES, *images.ensure().values()]
    path = f"{PROGRAMS}/usr/bin:{PROGRAMS}/usr/sbin:{os.environ['PATH']}"
    with private_engine({"PATH": path}) as older:
        with step("starting the older engine"):
            client = older.start()
        say(f"Docker Engine {client.version()['Version']}")
        with step("copying the images"):
            older.load(every)
        done = subprocess.run(
            [*older.inside, *sys.argv[1:]],
            env={**older.env, "DOCKER_HOST": older.socket},
        )
    if done.returncode != 0:
        raise FailedError(f"{' '.join(sys.argv[1:])} ended with {done.returncode}")


if __name__ == "__main__":
    main(test_on_older_engine)
