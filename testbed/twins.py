"""The image of the twin of today's Ollama (testbed/twin), with our probe in it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from testbed.command import docker_cli
from testbed.containers import ROOT


def build() -> str:
    """Build it, unless all of it is in the build cache; returns its id.

    It carries the label of this run, and is removed with it.
    """
    done = subprocess.run(
        [sys.executable, "-m", "scripts.images", "twin"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.fail(f"no twin of today's Ollama: {done.stderr}")
    bases = json.loads(done.stdout.splitlines()[-1])
    arguments = [word for name, tag in bases.items() for word in ("--build-arg", f"{name}={tag}")]
    file = ("--file", str(ROOT / "Dockerfile.ollama"))
    return docker_cli("build", "--quiet", *file, *arguments, str(ROOT)).strip()
