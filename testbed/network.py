"""Ports and subnets that no other process of these tests has."""

from __future__ import annotations

import fcntl
import random
import socket
import tempfile
from ipaddress import ip_network
from pathlib import Path
from typing import IO

import docker

from testbed.command import docker_cli

_PORTS = range(20_000, 30_000)
"""Below those that the kernel gives to outgoing connections."""

_held: list[IO[str]] = []


def free_port() -> int:
    """A port of this machine that nobody listens at; reserved until this process ends."""
    folder = Path(tempfile.gettempdir(), "autoheal-ports")
    folder.mkdir(exist_ok=True)
    while True:
        port = random.choice(_PORTS)
        lock = open(folder / str(port), "w")  # noqa: SIM115  held until the end
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as one:
                one.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        return port


def create_network(name: str) -> str:
    """Create a network with a subnet that was free; returns the first three parts of it."""
    while True:
        prefix = f"10.{random.randrange(100, 250)}.{random.randrange(256)}"
        try:
            docker_cli("network", "create", "--subnet", f"{prefix}.0/24", name)
        except AssertionError as error:
            if "overlap" not in str(error):
                raise
        else:
            return prefix


def bridge_gateway(engine: docker.DockerClient) -> str:
    """This machine's address on the containers' bridge."""
    [config] = engine.networks.get("bridge").attrs["IPAM"]["Config"]
    first = next(ip_network(config["Subnet"]).hosts())
    return str(config.get("Gateway") or first)  # older engines do not name their own choice
