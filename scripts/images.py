"""The base images: pulled, or where no image registry answers, stand-ins for them.

python -m scripts.images twin     the twin of today's Ollama, for the tests; prints its base images
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from scripts import apt, preflight
from scripts.say import ROOT, FailedError, main, run, say, step, works

OLLAMA = "ollama/ollama:0.34.2"
PYTHON = "python:3.11-slim-bookworm"

STANDIN_DEBIAN = "ollama-autoheal/standin-debian:bookworm"
STANDIN_PYTHON = "ollama-autoheal/standin-python:bookworm"
STANDIN_OLLAMA = "ollama-autoheal/standin-ollama:0.9.3"
TWIN = "ollama-autoheal/standin-twin"
TWIN_SOURCE = ROOT / "testbed/twin"

PULL_SECONDS = 1800

_OFFICIAL = {"OLLAMA_IMAGE": OLLAMA, "PYTHON_IMAGE": PYTHON}
_STANDINS = {"OLLAMA_IMAGE": STANDIN_OLLAMA, "PYTHON_IMAGE": STANDIN_PYTHON}

# What a registry that cannot be reached is called, and not one that refuses.
_UNREACHABLE = re.compile(
    "no such host|connection refused|i/o timeout|unreachable|deadline exceeded|did not end within"
    "|proxyconnect|TLS handshake|server misbehaving|no route to host|EOF"
)


def ensure() -> dict[str, str]:
    """Make the base images available.

    Returns:
        The variables by which compose.yaml and the Dockerfiles name them.

    Raises:
        FailedError: one cannot be pulled, and nothing can stand in for it.
    """
    found = {name: os.environ.get(name) or image for name, image in _OFFICIAL.items()}
    replaced = []
    for name, image in found.items():
        chosen = image != _OFFICIAL[name]
        if is_here(image) or (not chosen and is_here(_STANDINS[name])):
            replaced += [] if is_here(image) else [name]
            continue
        try:
            hint = "a few GB" if name == "OLLAMA_IMAGE" else "up to 1 min"
            with step(f"pulling {image}", hint):
                run(["docker", "pull", "--quiet", image], log="images", timeout=PULL_SECONDS)
        except FailedError as error:
            if chosen:
                raise FailedError(f"{error}\nCheck {name}={image}, or unset it.") from None
            if not _UNREACHABLE.search(str(error)):
                raise
            replaced.append(name)
    if replaced:
        say(
            "  No image registry answers. Using stand-ins for the official base images: a minimal\n"
            "  Debian with Python, and a real Ollama 0.9.3 from PyPI (CPU only). To pull the "
            "official ones\n  later, run `make clean`, then `make up`."
        )
        if not all(is_here(_STANDINS[name]) for name in replaced):
            _build_standins()
    return {name: _STANDINS[name] if name in replaced else found[name] for name in found}


def ensure_twin() -> dict[str, str]:
    """Make the twin of today's Ollama available; its tag names the source that it is built from.

    Returns:
        The variables by which Dockerfile.ollama names it and the image that the probe is built in.

    Raises:
        FailedError: it cannot be built here.
    """
    if os.uname().machine != "x86_64":
        raise FailedError("The twin of today's Ollama exists for x86-64 only.")
    here = [image for image in (PYTHON, STANDIN_PYTHON) if is_here(image)]
    python = os.environ.get("PYTHON_IMAGE") or (here or [ensure()["PYTHON_IMAGE"]])[0]
    source = hashlib.sha256(python.encode())
    for file in sorted(TWIN_SOURCE.iterdir()):
        if file.is_file():
            source.update(file.name.encode() + file.read_bytes())
    tag = f"{TWIN}:{source.hexdigest()[:12]}"
    if not is_here(tag):
        with step(f"building {tag}", "up to 2 min"):
            run(
                [
                    *("docker", "build", "--progress", "plain", "--tag", tag),
                    *preflight.proxy_build_arguments(os.environ),
                    *("--build-arg", f"PYTHON_IMAGE={python}", str(TWIN_SOURCE)),
                ],
                log="images",
            )
    return {"OLLAMA_IMAGE": tag, "PYTHON_IMAGE": python}


def is_here(image: str) -> bool:
    """Whether the engine has an image."""
    return works(["docker", "image", "inspect", image])


def _build_standins() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise FailedError(
            "Stand-ins can be built by root on Debian or Ubuntu only. Elsewhere, load the base "
            "images (docker load) and name them: make up OLLAMA_IMAGE=... PYTHON_IMAGE=..."
        )
    if os.uname().machine != "x86_64":
        raise FailedError(
            "The stand-in for Ollama's image exists for x86-64 only. Load the base images "
            "(docker load) and name them: make up OLLAMA_IMAGE=... PYTHON_IMAGE=..."
        )
    if not is_here(STANDIN_DEBIAN):
        _import_debian()
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", directory)
        for target, tag in (("python", STANDIN_PYTHON), ("ollama", STANDIN_OLLAMA)):
            with step(f"building {tag}", "up to 2 min"):
                run(
                    [
                        *("docker", "build", "--progress", "plain"),
                        *preflight.proxy_build_arguments(os.environ),
                        *("--target", target, "--tag", tag),
                        *("--build-arg", f"BASE={STANDIN_DEBIAN}"),
                        *("--build-context", f"ca={directory}"),
                        str(ROOT / "scripts/standin"),
                    ],
                    log="images",
                )


def _import_debian() -> None:
    if shutil.which("mmdebstrap") is None:
        apt.update()
        apt.install(
            ["mmdebstrap", "ca-certificates", "debian-archive-keyring"], "tools for the stand-ins"
        )
    what = f"building {STANDIN_DEBIAN}"
    with step(what, "up to 1 min"), tempfile.TemporaryDirectory() as directory:
        tar = Path(directory) / "debian.tar"
        dropped = ("doc", "man", "locale", "info")
        run(
            ["mmdebstrap", "--quiet", "--variant=apt"]
            + [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in dropped]
            + ["bookworm", str(tar), apt.archive()],
            log="images",
        )
        run(["docker", "import", str(tar), STANDIN_DEBIAN], log="images")


def _twin() -> None:
    if sys.argv[1:] != ["twin"]:
        raise FailedError(f"{' '.join(sys.argv[1:])!r}: must be `twin`")
    say(json.dumps(ensure_twin()))


if __name__ == "__main__":
    main(_twin)
