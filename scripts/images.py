"""The base images: pulled, or where no image registry answers, stand-ins for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from scripts import engine
from scripts.say import ROOT, FailedError, run, say, step, works

OLLAMA = "ollama/ollama:latest"
PYTHON = "python:3.11-slim-bookworm"

STANDIN_DEBIAN = "ollama-autoheal/standin-debian:bookworm"
STANDIN_PYTHON = "ollama-autoheal/standin-python:bookworm"
STANDIN_OLLAMA = "ollama-autoheal/standin-ollama:0.9.3"

PULL_SECONDS = 1800


def ensure() -> dict[str, str]:
    """Make the base images available.

    Returns:
        The variables that compose.yaml and the Dockerfiles name them by.
    """
    wanted = {
        "OLLAMA_IMAGE": os.environ.get("OLLAMA_IMAGE") or OLLAMA,
        "PYTHON_IMAGE": os.environ.get("PYTHON_IMAGE") or PYTHON,
    }
    if all(_here(image) for image in wanted.values()):
        return wanted
    if all(_here(image) for image in (STANDIN_PYTHON, STANDIN_OLLAMA)):
        _say_standins()
        return {"OLLAMA_IMAGE": STANDIN_OLLAMA, "PYTHON_IMAGE": STANDIN_PYTHON}
    try:
        for image in wanted.values():
            if not _here(image):
                _pull(image)
        return wanted
    except FailedError as error:
        say(f"  {str(error).splitlines()[-1].strip()}")
    _say_standins()
    _build_standins()
    return {"OLLAMA_IMAGE": STANDIN_OLLAMA, "PYTHON_IMAGE": STANDIN_PYTHON}


def _say_standins() -> None:
    say(
        "No image registry answers here. In the place of the official base images stand: a "
        "minimal Debian with Python, and a real Ollama 0.9.3 from PyPI's wheels (CPU only). "
        "`make clean` takes them away, should a registry answer later."
    )


def _here(image: str) -> bool:
    return works(["docker", "image", "inspect", image])


def _pull(image: str) -> None:
    with step(f"pulling {image}"):
        done = subprocess.run(
            ["timeout", str(PULL_SECONDS), "docker", "pull", "--quiet", image],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise FailedError(f"{image}: {(done.stderr.strip() or 'no answer').splitlines()[-1]}")


def _build_standins() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise FailedError(
            "Stand-ins are assembled as root on Debian or Ubuntu only. Elsewhere load the base "
            "images by hand and name them in OLLAMA_IMAGE and PYTHON_IMAGE."
        )
    if os.uname().machine != "x86_64":
        raise FailedError("The stand-in for Ollama's image exists for x86-64 only.")
    if not _here(STANDIN_DEBIAN):
        _import_debian()
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", directory)
        for target, tag in (("python", STANDIN_PYTHON), ("ollama", STANDIN_OLLAMA)):
            with step(f"assembling {tag}"):
                run(
                    [
                        *("docker", "build", "--progress", "plain"),
                        *("--target", target, "--tag", tag),
                        *("--build-arg", f"BASE={STANDIN_DEBIAN}"),
                        *("--build-context", f"ca={directory}"),
                        str(ROOT / "scripts/standin"),
                    ],
                    log="images",
                )


def _import_debian() -> None:
    if shutil.which("mmdebstrap") is None:
        engine.apt_update()
        engine.apt_install(["mmdebstrap", "ca-certificates", "debian-archive-keyring"], "tools")
    with step(f"assembling {STANDIN_DEBIAN}"), tempfile.TemporaryDirectory() as directory:
        tar = Path(directory) / "debian.tar"
        dropped = ("doc", "man", "locale", "info")
        run(
            ["mmdebstrap", "--quiet", "--variant=apt"]
            + [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in dropped]
            + ["bookworm", str(tar), engine.archive()],
            log="images",
        )
        run(["docker", "import", str(tar), STANDIN_DEBIAN], log="images")
