"""From a container's inspection to the request that makes the same one again. Pure.

What the user or Compose chose is kept; what Docker chose by itself (host name, MAC, addresses,
random ports) is left for it to choose again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

Inspection = dict[str, Any]
"""What the engine says of a container, as `docker inspect` shows it."""

NAMESPACES = ("NetworkMode", "PidMode", "IpcMode")
"""Where an inspection says whose namespaces a container is in."""


@dataclass(frozen=True)
class Recipe:
    """How to make a container.

    Attributes:
        body: of the request that creates it, as the engine's API has it.
        networks: those it is connected to after that: name and endpoint settings.
    """

    body: dict[str, Any]
    networks: tuple[tuple[str, dict[str, Any]], ...]


def recipe(
    old: Inspection,
    *,
    image: str,
    gone: Collection[str] = (),
    successors: Mapping[str, str] | None = None,
) -> Recipe:
    """How to make a container again.

    Args:
        old: its inspection.
        image: what to name its image by: the name it was made with, or the image's id where
            that name means another image by now.
        gone: those of its `VolumesFrom` that are no more.
        successors: ids of containers that were made again, and those of the new ones; the
            namespaces that it shares with them are named anew.
    """
    config = copy.deepcopy(old["Config"])
    host = copy.deepcopy(old["HostConfig"])
    config["Image"] = image
    if config.get("Entrypoint") is None:
        config["Entrypoint"] = [""]  # the image's own must not come back, where it was cleared
    for key in NAMESPACES:
        host[key] = _renewed(host.get(key) or "", successors or {})
    host["Links"] = [_link(link) for link in host.get("Links") or ()]
    _keep_volumes(old, host, gone)
    mode = host["NetworkMode"]
    if _hostname_is_dockers(old, mode, host.get("UTSMode") or ""):
        config["Hostname"] = ""
        if mode.startswith("container:"):
            config["Domainname"] = ""
    if mode.startswith("container:"):  # these are the other container's to have
        config.pop("ExposedPorts", None)
        config.pop("MacAddress", None)
    networks = _networks(old, mode, config.get("MacAddress") or "")
    first = [one for one in networks if _is_first(one[0], mode, old)][:1]
    body = {**config, "HostConfig": host}
    if first and first[0][1]:
        body["NetworkingConfig"] = {"EndpointsConfig": dict(first)}
    return Recipe(body, tuple(one for one in networks if one not in first))


def sources_of_volumes(old: Inspection) -> list[str]:
    """The containers whose volumes it has (`--volumes-from`)."""
    return [text.partition(":")[0] for text in old["HostConfig"].get("VolumesFrom") or ()]


def _renewed(mode: str, successors: Mapping[str, str]) -> str:
    kind, _, container = mode.partition(":")
    return f"{kind}:{successors.get(container, container)}" if container else mode


def _link(text: str) -> str:
    """A legacy link as a request has it; an inspection says `/other:/this/alias`."""
    other, _, alias = text.partition(":")
    return f"{other.lstrip('/')}:{alias.rpartition('/')[2]}" if alias else text


def _keep_volumes(old: Inspection, host: dict[str, Any], gone: Collection[str]) -> None:
    """Name the anonymous volumes, so that the new container has the same and not fresh ones."""
    mounts = {mount["Destination"]: mount for mount in old.get("Mounts") or ()}
    for wanted in host.get("Mounts") or ():
        mount = mounts.pop(wanted.get("Target"), None)
        if mount is not None and wanted.get("Type") == "volume" and not wanted.get("Source"):
            wanted["Source"] = mount["Name"]
    for bind in host.get("Binds") or ():
        mounts.pop(_destination(bind), None)
    if host.get("VolumesFrom"):
        left = [text for text in host["VolumesFrom"] if text.partition(":")[0] not in gone]
        if len(left) == len(host["VolumesFrom"]):
            declared = old["Config"].get("Volumes") or {}
            mounts = {path: mount for path, mount in mounts.items() if path in declared}
        host["VolumesFrom"] = left or None
    binds = [
        f"{mount['Name'] if mount['Type'] == 'volume' else mount['Source']}:{path}"
        + ("" if mount.get("RW", True) else ":ro")
        for path, mount in sorted(mounts.items())
        if mount["Type"] in ("volume", "bind")
    ]
    if binds:
        host["Binds"] = [*(host.get("Binds") or ()), *binds]


def _destination(bind: str) -> str:
    """Where a bind is seen in the container: `source:destination[:options]`."""
    return bind.split(":")[1] if ":" in bind else bind


def _hostname_is_dockers(old: Inspection, mode: str, uts: str) -> bool:
    return (
        old["Config"].get("Hostname") == old["Id"][:12]
        or mode == "host"
        or mode.startswith("container:")
        or uts == "host"
    )


def _networks(old: Inspection, mode: str, mac: str) -> list[tuple[str, dict[str, Any]]]:
    """The endpoints that the user chose, with what he chose of them."""
    if mode in ("host", "none") or mode.startswith("container:"):
        return []
    networks = []
    for name, endpoint in (old["NetworkSettings"].get("Networks") or {}).items():
        wanted: dict[str, Any] = {}
        for key in ("IPAMConfig", "Links", "DriverOpts", "GwPriority"):
            if endpoint.get(key) is not None:
                wanted[key] = endpoint[key]
        aliases = [a for a in endpoint.get("Aliases") or () if a != old["Id"][:12]]
        if aliases:
            wanted["Aliases"] = aliases
        if mac and endpoint.get("MacAddress") == mac:
            wanted["MacAddress"] = mac
        networks.append((name, wanted))
    return networks


def _is_first(name: str, mode: str, old: Inspection) -> bool:
    """Whether a network is the one that the container is made with."""
    network = (old["NetworkSettings"].get("Networks") or {}).get(name) or {}
    return mode in (name, network.get("NetworkID")) or (
        name == "bridge" and re.fullmatch("default|bridge|", mode) is not None
    )
