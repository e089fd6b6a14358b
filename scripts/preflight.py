"""What would stop `make up` half way: ports in use, a full disk, no forwarding, a proxy."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from scripts.say import FailedError, run, say

NEEDED_BYTES = 2_000_000_000
"""Free space below which nothing is begun: the images that are built here take about half of it."""

PROXY_DOCS = "https://docs.docker.com/engine/daemon/proxy/"

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def check_ports(ports: Mapping[str, int], ours: Mapping[str, bool]) -> None:
    """Raise `FailedError` where another program has a port.

    Args:
        ports: by the name of the variable that sets it.
        ours: whether a service of `make up` has that port already.
    """
    for name, port in ports.items():
        if ours.get(name) or _is_free(port):
            continue
        other = next(p for p in range(port + 1, 65_536) if p not in ports.values() and _is_free(p))
        raise FailedError(
            f"Port {port} of this machine is in use by {_holder(port)}. Stop that, or choose "
            f"another port: make up {name}={other}"
        )


def check_engine(information: Mapping[str, Any], free_bytes: int | None) -> None:
    """Raise `FailedError` where builds and containers on this engine could not work.

    Args:
        information: what `docker info` says.
        free_bytes: on the disk of the engine's data; None where that is another machine's, or
            the images are there.
    """
    if information.get("IPv4Forwarding") is False:
        raise FailedError(
            "IPv4 forwarding is off on the Docker host, so containers have no network. Turn it "
            "on: sudo sysctl --write net.ipv4.ip_forward=1"
        )
    check_disk(str(information.get("DockerRootDir")), free_bytes)


def check_disk(directory: str, free_bytes: int | None) -> None:
    """Raise `FailedError` where less space is free than is needed."""
    if free_bytes is not None and free_bytes < NEEDED_BYTES:
        raise FailedError(
            f"{directory} has {free_bytes / 1e9:.1f} GB free, but the engine and the images need "
            f"at least {NEEDED_BYTES / 1e9:.0f} GB. Free some space and run this again."
        )


def docker_info() -> dict[str, Any]:
    """What `docker info` says."""
    return dict(json.loads(run(["docker", "info", "--format", "{{json .}}"])))


def free_bytes(information: Mapping[str, Any]) -> int | None:
    """Free space for the engine's data; None where that is not on this machine."""
    if information.get("Name") != socket.gethostname():
        return None
    try:
        return shutil.disk_usage(str(information.get("DockerRootDir"))).free
    except OSError:
        return None


def proxy_build_arguments(environ: Mapping[str, str]) -> list[str]:
    """Build arguments that hand the environment's proxy on; Docker keeps them out of images."""
    return [
        word
        for name in _proxy_names(environ)
        if name.upper() not in _PROXIES or not _on_loopback(environ[name])
        for word in ("--build-arg", name)  # without the value, which may hold a password
    ]


def proxy_notes(environ: Mapping[str, str], information: Mapping[str, Any]) -> Iterator[str]:
    """What the user should know of a proxy in the environment; never its password."""
    names = [name for name in _proxy_names(environ) if name.upper() in _PROXIES]
    if not names:
        return
    for name in names:
        if _on_loopback(environ[name]):
            yield (
                f"{name} points to this machine's loopback, which builds cannot reach, so they "
                f"run without it. Set {name} to an address that containers can reach."
            )
    if not information.get("HttpProxy") and not information.get("HttpsProxy"):
        yield (
            f"{names[0]} is set, but Docker Engine has no proxy configured, so image pulls do "
            f"not use it. To configure it: {PROXY_DOCS}"
        )


def say_proxy(information: Mapping[str, Any]) -> None:
    """Say what there is to know of a proxy."""
    for note in proxy_notes(os.environ, information):
        say(f"  Note: {note}")


def _proxy_names(environ: Mapping[str, str]) -> list[str]:
    wanted = (*_PROXIES, "NO_PROXY")
    return [n for name in wanted for n in (name, name.lower()) if environ.get(n)]


def _on_loopback(url: str) -> bool:
    host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except PermissionError:
            return True  # a port below 1024: the engine binds it, not this user
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    try:
        form = ["--filter", f"publish={port}", "--format", "{{.Names}}"]
        name = run(["docker", "ps", *form]).strip()
    except FailedError:
        name = ""
    if name:
        return f"the container `{name}`"
    native = port == 11_434  # where an Ollama outside of Docker listens
    return "another program" + (" (an Ollama outside of Docker?)" if native else "")
