"""Docker's command line; what it makes carries the label of this run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any

from testbed.runs import LABEL_OPTIONS

MAKING = (
    *(("run",), ("create",), ("build",), ("network", "create"), ("volume", "create")),
    ("service", "create"),
)


def docker_cli(*words: str, env: Mapping[str, str] | None = None, stdin: str = "") -> str:
    """Run `docker ...`, which must succeed; returns what it prints.

    Args:
        words: its arguments.
        env: what is different in its environment, such as DOCKER_HOST.
        stdin: its input.
    """
    for command in MAKING:
        if words[: len(command)] == command:
            words = (*command, *LABEL_OPTIONS, *words[len(command) :])
    done = subprocess.run(
        ["docker", *words],
        env={**os.environ, **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def inspect(name: str) -> dict[str, Any]:
    """The inspection of a container."""
    return dict(json.loads(docker_cli("inspect", name))[0])


def remove_by_name(*names: str) -> None:
    """Remove all whose name begins with one of these, and the volumes that they have."""
    filters = [word for name in names for word in ("--filter", f"name={name}")]
    volumes = docker_cli("volume", "ls", "--quiet", *filters).split()
    containers = docker_cli("ps", "--all", "--quiet", *filters).split()
    if containers:
        # an anonymous one has been named since, and does not go with its container
        form = "{{range .Mounts}}{{.Name}} {{end}}"
        volumes += docker_cli("inspect", "--format", form, *containers).split()
        docker_cli("rm", "--force", "--volumes", *containers)
    networks = docker_cli("network", "ls", "--quiet", *filters).split()
    if networks:
        docker_cli("network", "rm", *networks)
    if volumes:
        docker_cli("volume", "rm", "--force", *sorted(set(volumes)))
