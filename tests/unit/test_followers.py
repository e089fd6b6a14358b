"""Who follows a healed container, as a table."""

from __future__ import annotations

import pytest

from autoheal.followers import followers
from autoheal.incident import Neighbour


def one(
    name: str, *, shares: str = "", group: str = "", service: str = "", on: str = ""
) -> Neighbour:
    """A container whose id is its name; `on` is Compose's own label of what it depends on."""
    labels = {"autoheal.group": group} if group else {}
    if service:
        labels |= {
            "com.docker.compose.project": "p",
            "com.docker.compose.service": service,
            "com.docker.compose.container-number": "1",
            "com.docker.compose.depends_on": on,
        }
    return Neighbour(name, name, "running", labels, frozenset(shares.split()))


RESTART, NO_RESTART = "db:service_started:true", "db:service_healthy:false"


@pytest.mark.parametrize(
    ("replaced", "neighbours", "follow"),
    [
        ({}, [one("db"), one("web")], ""),
        # in its namespaces
        ({}, [one("db"), one("side", shares="db")], "side"),
        ({"old": "db"}, [one("db"), one("side", shares="old")], "side!"),
        ({"old": "db"}, [one("db"), one("b", shares="a"), one("a", shares="old")], "a! b!"),
        ({}, [one("db"), one("side", shares="other")], ""),
        # Compose's restart: true, and in order
        ({}, [one("db", service="db"), one("web", service="web", on=RESTART)], "web"),
        ({}, [one("db", service="db"), one("web", service="web", on=NO_RESTART)], ""),
        ({}, [one("db", service="db"), one("web", service="web", on="x::true," + RESTART)], "web"),
        (
            {"old": "db"},
            [
                one("db", service="db"),
                one("a", service="a", on="z:service_started:true"),
                one("z", service="z", on=RESTART),
                one("side", service="side", shares="old", on=RESTART),
            ],
            "side! z a",
        ),
        # a group
        ({}, [one("db", group="g"), one("b", group="g"), one("a", group="g")], "a b"),
        ({}, [one("db", group="g"), one("a", group="h"), one("b")], ""),
        # nonsense that must not hang
        ({}, [one("db", shares="web"), one("web", shares="db")], "web"),
    ],
)
def test_who_follows_and_in_which_order(
    replaced: dict[str, str], neighbours: list[Neighbour], follow: str
) -> None:
    found = followers(["db"], replaced, neighbours)
    assert " ".join(f.container.name + "!" * f.anew for f in found) == follow


def test_another_projects_service_of_the_same_name_is_nobodys_dependency() -> None:
    web = one("web", service="web", on=RESTART)
    other = one("db", service="db")
    other.labels["com.docker.compose.project"] = "q"  # type: ignore[index]
    assert followers(["db"], {}, [other, web]) == []
