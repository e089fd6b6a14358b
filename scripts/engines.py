"""`make test-engines`: the end-to-end tests on an older engine, beside the one that is here.

    python -m scripts.engines COMMAND...

Runs a command with DOCKER_HOST set to Debian 12's own Docker Engine (20.10, API 1.41), which it
takes from Debian's archive without installing it, and starts in a network namespace with the
images of the engine that is here. Needs root on Debian 12.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from scripts import engine, images
from scripts.say import ROOT, FailedError, main, run, say, step, works

PACKAGES = ("docker.io/bookworm", "containerd/bookworm")
IMAGES = ("ollama-autoheal/ollama", "ollama-autoheal/autoheal")
PROGRAMS = ROOT / ".tools" / "engine-20.10"
START_SECONDS = 60


def test_on_older_engine() -> None:
    if os.geteuid() != 0:
        raise FailedError("starting a second engine needs root")
    if not (PROGRAMS / "usr/sbin/dockerd").exists():
        engine.unpack(PACKAGES, PROGRAMS, "Debian 12's Docker Engine")
        # The command line stays the newer one, which has Compose.
        (PROGRAMS / "usr/bin/docker").unlink()
    every = [*IMAGES, *images.ensure().values()]
    with older_engine() as (host, namespace):
        with step("copying the images"):
            save = subprocess.Popen(["docker", "save", *every], stdout=subprocess.PIPE)
            subprocess.run(
                ["docker", "--host", host, "load", "--quiet"],
                stdin=save.stdout,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{namespace}", *sys.argv[1:]],
            env=_environment(DOCKER_HOST=host),
        )
    if done.returncode != 0:
        raise FailedError(f"{' '.join(sys.argv[1:])} ended with {done.returncode}")


@contextmanager
def older_engine() -> Iterator[tuple[str, str]]:
    """The address of the engine, and the network namespace that it is in, while it runs."""
    namespace = f"autoheal-{os.getpid()}"
    # Not in the project: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="autoheal-engine-") as directory:
        host = f"unix://{directory}/docker.sock"
        run(["ip", "netns", "add", namespace])
        run(["ip", "netns", "exec", namespace, "ip", "link", "set", "lo", "up"])
        with open(ROOT / ".logs" / "dockerd-20.10.log", "ab") as log:
            daemon = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{namespace}", "dockerd", "--host", host),
                    *("--pidfile", f"{directory}/pid", "--exec-root", f"{directory}/exec"),
                    *("--data-root", f"{directory}/data"),
                ],
                stdout=log,
                stderr=log,
                env=_environment(),
            )
        try:
            with step("starting the older engine"):
                deadline = time.monotonic() + START_SECONDS
                while not works(["docker", "--host", host, "version"]):
                    if daemon.poll() is not None or time.monotonic() > deadline:
                        raise FailedError("it does not start; see .logs/dockerd-20.10.log")
                    time.sleep(0.3)
            version = ["docker", "--host", host, "version", "--format", "{{.Server.Version}}"]
            say(f"Docker Engine {run(version).strip()}")
            yield host, namespace
        finally:
            daemon.terminate()
            daemon.wait(60)
            works(["umount", f"{directory}/exec/netns/default"])
            run(["ip", "netns", "delete", namespace])


def _environment(**more: str) -> dict[str, str]:
    path = f"{PROGRAMS}/usr/bin:{PROGRAMS}/usr/sbin:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, **more}


if __name__ == "__main__":
    main(test_on_older_engine)
