"""A machine that has nothing but a minimal Debian with `make` and Python, and no Docker Engine.

It is a privileged container, so an engine that is installed in it runs beside the one outside and
shares nothing with it: no package lists, images, volumes, networks or virtual environments. Needs
root and Debian's mmdebstrap.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import docker
from docker.models.containers import Container

ROOT = Path(__file__).resolve().parents[1]

Suite = Literal["bookworm", "trixie"]

CLONE = "/srv/ollama-autoheal"
"""Where the project is on it."""

OWN_AUTHORITIES = Path("/usr/local/share/ca-certificates")
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True)
class Done:
    """What a command came to: its exit code, and standard output and error together."""

    code: int
    output: str


class FreshMachine:
    """One such machine, with a copy of this working tree."""

    def __init__(self, container: Container) -> None:
        self.container = container

    def run(self, command: str, *, user: str = "root", **env: str) -> Done:
        """Run a shell command in the project's directory."""
        variables = (f"--env={name}={value}" for name, value in env.items())
        done = subprocess.run(
            [
                *("docker", "exec", "--user", user, "--workdir", CLONE, *variables),
                *(str(self.container.id), "/bin/sh", "-c", command),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        return Done(done.returncode, done.stdout)


@contextmanager
def fresh_machine(
    engine: docker.DockerClient, suite: Suite, archive: str, labels: dict[str, str]
) -> Iterator[FreshMachine]:
    """Such a machine, gone at the end with all that was made on it.

    Args:
        engine: it becomes a container there.
        suite: Debian 12 or 13.
        archive: address of Debian's package archive.
        labels: of its image and its container.
    """
    tag = f"ollama-autoheal-testbed/fresh-{suite}:{os.getpid()}"
    _make_image(tag, suite, archive, labels)
    try:
        container = engine.containers.run(
            tag,
            ["sleep", "infinity"],
            detach=True,
            init=True,  # adopts what is left running by commands that end
            privileged=True,
            labels=labels,
            # An engine's data cannot lie on an overlay file system.
            volumes=["/var/lib/docker", "/var/lib/containerd"],
            # This machine's way to the package registries, which may need its own authorities.
            environment={k: v for k, v in os.environ.items() if k.startswith("PIP_CERT")},
        )
        try:
            container.put_archive("/", _tree(CLONE))
            yield FreshMachine(container)
        finally:
            container.remove(force=True, v=True)
    finally:
        engine.images.remove(tag, force=True)


def _make_image(tag: str, suite: Suite, archive: str, labels: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        tar = Path(directory) / "debian.tar"
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--variant=apt", "--include=make,python3"),
                *(f"--customize-hook={hook}" for hook in _authorities()),
                *(suite, str(tar), archive),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        changes = [f"--change=LABEL {name}={value}" for name, value in labels.items()]
        subprocess.run(
            ["docker", "import", *changes, str(tar), tag], check=True, stdout=subprocess.DEVNULL
        )


def _authorities() -> Iterator[str]:
    """Hooks that hand on the certificate authorities which this machine's operator has added."""
    if any(OWN_AUTHORITIES.glob("*.crt")):
        yield f'mkdir -p "$1{OWN_AUTHORITIES}" "$1{AUTHORITIES.parent}"'
        yield f'cp {OWN_AUTHORITIES}/*.crt "$1{OWN_AUTHORITIES}/"'
        yield f'cp {AUTHORITIES} "$1{AUTHORITIES}"'


def _tree(target: str) -> bytes:
    """The working tree without what is made in it, as a clone or a downloaded archive has it."""
    made = {".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().split())}

    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        return None if made.intersection(member.name.split("/")) else member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(ROOT, target.strip("/"), filter=kept)
    return buffer.getvalue()
