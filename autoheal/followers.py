"""Who must follow when a container is healed, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from autoheal.incident import COMPOSE_PROJECT, COMPOSE_SERVICE, Neighbour, is_of_compose

DEPENDS_ON = "com.docker.compose.depends_on"
GROUP = "autoheal.group"


@dataclass(frozen=True)
class Follower:
    """One that follows.

    Attributes:
        container: who.
        anew: it must be made again, since it is bound to the id of one that was.
    """

    container: Neighbour
    anew: bool


def followers(
    healed: Collection[str], replaced: Mapping[str, str], neighbours: Sequence[Neighbour]
) -> list[Follower]:
    """Who follows, each after those that it depends on.

    A container follows when it is in the network, PID or IPC namespace of another that follows
    or was healed, when Compose marks that other `restart: true` in its `depends_on`, or when it
    has the same `autoheal.group` as a healed one.

    Args:
        healed: ids of those that were healed, as they are now.
        replaced: ids of those that were made again, and what their ids are now.
        neighbours: all containers, as they are now.
    """
    by_id = {one.id: one for one in neighbours}
    groups = {by_id[i].labels.get(GROUP) for i in healed if i in by_id} - {None, ""}
    depends = _dependencies(neighbours, replaced)
    moving = set(healed)
    moving |= {one.id for one in neighbours if one.labels.get(GROUP) in groups}
    while more := {one for one, on in depends.items() if one not in moving and on & moving}:
        moving |= more
    in_order = sorted(moving & set(by_id), key=lambda one: by_id[one].name)
    graph = {one: depends[one] & moving for one in in_order}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError:
        order = list(graph)
    anew: set[str] = set()
    result = []
    for one in order:
        if one in healed:
            continue
        if by_id[one].shares & (set(replaced) | anew):
            anew.add(one)
        result.append(Follower(by_id[one], one in anew))
    return result


def _dependencies(
    neighbours: Sequence[Neighbour], replaced: Mapping[str, str]
) -> dict[str, set[str]]:
    """For each container the ids of those with which it must be brought back."""
    of_service: dict[tuple[str, str], set[str]] = {}
    for one in neighbours:
        if is_of_compose(one.labels):
            key = one.labels[COMPOSE_PROJECT], one.labels[COMPOSE_SERVICE]
            of_service.setdefault(key, set()).add(one.id)
    depends = {}
    for one in neighbours:
        on = {replaced.get(shared, shared) for shared in one.shares}
        if is_of_compose(one.labels):
            for entry in one.labels.get(DEPENDS_ON, "").split(","):
                service, _, rest = entry.partition(":")
                if rest.lower().endswith(":true"):
                    on |= of_service.get((one.labels[COMPOSE_PROJECT], service), set())
        depends[one.id] = on - {one.id}
    return depends
