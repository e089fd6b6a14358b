"""The Compose project of `make up`: one on an engine, and of one clone of this repository."""

from __future__ import annotations

import os
from pathlib import Path

from scripts.say import ROOT, FailedError, run

PROJECT = "ollama-autoheal"
SERVICES = ("ollama", "autoheal")
IMAGES = tuple(f"{PROJECT}/{service}" for service in SERVICES)


def command(*files: str) -> list[str]:
    """The beginning of a command of Compose's for this project, and for no other."""
    given = [word for name in ("compose.yaml", *files) for word in ("--file", str(ROOT / name))]
    project = ["--project-name", PROJECT, "--project-directory", str(ROOT)]
    return ["docker", "compose", *project, *given]


def environment() -> dict[str, str]:
    """This process's, without what would make Compose take another project or other files."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COMPOSE_")}


def check_clone() -> None:
    """Raise `FailedError` where the project on this engine is another clone's, which is there."""
    form = '{{.Label "com.docker.compose.project.working_dir"}}'
    ours = ["--filter", f"label=com.docker.compose.project={PROJECT}"]
    numbered = ["--filter", "label=com.docker.compose.container-number"]
    listed = run(["docker", "ps", "--all", *ours, *numbered, "--format", form])
    for directory in {Path(line) for line in listed.splitlines() if line} - {ROOT}:
        if (directory / "compose.yaml").exists():
            raise FailedError(
                f"The services of `make up` on this engine belong to {directory}. Use them there, "
                f"or remove them first: make -C {directory} down"
            )
