"""What of an inspection goes into the request that makes a container again."""

from __future__ import annotations

from typing import Any

import pytest

from autoheal.recipe import recipe

ID = "0123456789abcdef" * 4
SHORT = ID[:12]


def inspection(
    host: dict[str, Any] | None = None,
    mounts: list[dict[str, Any]] | None = None,
    networks: dict[str, Any] | None = None,
    **config: Any,
) -> dict[str, Any]:
    return {
        "Id": ID,
        "Config": {"Hostname": SHORT, "Image": "x", "Entrypoint": ["/x"], **config},
        "HostConfig": {"NetworkMode": "bridge", **(host or {})},
        "Mounts": mounts or [],
        "NetworkSettings": {"Networks": networks or {}},
    }


def made(old: dict[str, Any], **more: Any) -> dict[str, Any]:
    return recipe(old, image="x", **more).body


@pytest.mark.parametrize(
    ("name", "mode", "kept"),
    [
        (SHORT, "bridge", ""),
        ("web", "bridge", "web"),
        ("machine", "host", ""),
        ("other", "container:abc", ""),
    ],
)
def test_a_host_name_is_kept_where_the_user_chose_it(name: str, mode: str, kept: str) -> None:
    assert made(inspection({"NetworkMode": mode}, Hostname=name))["Hostname"] == kept


def test_an_anonymous_volume_is_named_and_others_are_left_as_they_are() -> None:
    mounts: list[dict[str, Any]] = [
        {"Type": "volume", "Name": "a" * 64, "Destination": "/data", "RW": True},
        {"Type": "volume", "Name": "named", "Destination": "/named", "RW": True},
        {"Type": "bind", "Source": "/etc", "Destination": "/etc2", "RW": False},
        {"Type": "tmpfs", "Destination": "/t"},
    ]
    host = {"Binds": ["named:/named", "/etc:/etc2:ro"]}
    binds = made(inspection(host, mounts))["HostConfig"]["Binds"]
    assert binds == ["named:/named", "/etc:/etc2:ro", f"{'a' * 64}:/data"]


def test_volumes_of_another_that_is_gone_are_taken_by_their_names() -> None:
    mounts: list[dict[str, Any]] = [
        {"Type": "volume", "Name": "theirs", "Destination": "/v", "RW": False}
    ]
    old = inspection({"VolumesFrom": ["other:ro"]}, mounts)
    assert made(old)["HostConfig"]["VolumesFrom"] == ["other:ro"]
    assert made(old)["HostConfig"].get("Binds") is None
    without = made(old, gone=["other"])["HostConfig"]
    assert (without["VolumesFrom"], without["Binds"]) == (None, ["theirs:/v:ro"])


def test_namespaces_of_one_that_was_made_again_are_those_of_the_new_one() -> None:
    host = {"NetworkMode": "container:old", "PidMode": "container:old", "IpcMode": "private"}
    made_host = made(inspection(host), successors={"old": "new"})["HostConfig"]
    assert made_host["NetworkMode"] == made_host["PidMode"] == "container:new"
    assert made_host["IpcMode"] == "private"


def test_the_network_it_was_made_with_comes_first_and_others_are_connected() -> None:
    networks = {
        "a": {"Aliases": [SHORT, "web"], "IPAddress": "10.0.0.9", "NetworkID": "1"},
        "b": {"IPAMConfig": {"IPv4Address": "10.0.1.9"}, "NetworkID": "2"},
    }
    result = recipe(inspection({"NetworkMode": "b"}, networks=networks), image="x")
    wanted = {"b": {"IPAMConfig": {"IPv4Address": "10.0.1.9"}}}
    assert result.body["NetworkingConfig"] == {"EndpointsConfig": wanted}
    assert result.networks == (("a", {"Aliases": ["web"]}),)


def test_an_entrypoint_that_was_cleared_stays_cleared() -> None:
    assert made(inspection(Entrypoint=None))["Entrypoint"] == [""]


def test_the_inspection_itself_is_left_as_it_is() -> None:
    old = inspection({"Links": ["/db:/web/db"]}, Entrypoint=None)
    assert made(old)["HostConfig"]["Links"] == ["db:db"]
    assert old["HostConfig"]["Links"] == ["/db:/web/db"]
    assert old["Config"]["Entrypoint"] is None
