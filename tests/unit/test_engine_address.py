"""Where the engine is, and what is said of an address that cannot be one."""

from __future__ import annotations

import pytest

from autoheal.engine import Engine
from autoheal.settings import Settings
from probe.knobs import SettingError

ALLOWED = "must be unix:///path, tcp://host:port or https://host:port"


@pytest.mark.parametrize(
    "host",
    [
        *("", "unix:///run/docker.sock", "http+unix:///run/docker.sock"),
        *("tcp://10.0.0.1:2375", "tcp://[::1]:2375", "127.0.0.1:2375", "https://a.example:2376"),
    ],
)
def test_an_address_that_docker_py_takes_is_taken(host: str) -> None:
    assert Engine(Settings(), {"DOCKER_HOST": host}).url in (host, "unix:///var/run/docker.sock")


@pytest.mark.parametrize(
    "host", ["nonsense", "tcp://host", "tcp://host:port", "/run/docker.sock", "fd://", "ssh://a@b"]
)
def test_an_address_that_cannot_be_one_is_named_with_what_is_allowed(host: str) -> None:
    with pytest.raises(SettingError) as caught:
        Engine(Settings(), {"DOCKER_HOST": host})
    assert str(caught.value) == f"DOCKER_HOST={host!r}: {ALLOWED}"


def test_docker_sock_goes_before_docker_host_and_is_named_where_it_is_wrong() -> None:
    settings = Settings(docker_sock="tcps://host:2376")
    assert Engine(settings, {"DOCKER_HOST": "nonsense"}).url == "https://host:2376"
    with pytest.raises(SettingError) as caught:
        Engine(Settings(docker_sock="tcps://host"), {})
    assert str(caught.value) == f"DOCKER_SOCK='tcps://host': {ALLOWED}"
