"""What `make up` finds before it begins, where it could not end well."""

from __future__ import annotations

import socket

import pytest

from scripts import preflight
from scripts.say import FailedError, run

ENGINE = {"IPv4Forwarding": True, "DockerRootDir": "/var/lib/docker"}
PASSWORD = "http://user:secret@proxy.example:3128"


def test_a_port_in_use_is_named_with_another_one_that_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FailedError) as error:
            preflight.check_ports({"OLLAMA_PORT": port}, {"OLLAMA_PORT": False})
        words = str(error.value)
        assert words.startswith(f"Port {port} of this machine is in use by another program.")
        other = int(words.rpartition("make up OLLAMA_PORT=")[2])
        with socket.create_server(("127.0.0.1", other)):
            pass  # it is free
        preflight.check_ports({"OLLAMA_PORT": port}, {"OLLAMA_PORT": True})  # it is our own


def test_an_engine_without_forwarding_is_named_with_the_command_that_turns_it_on() -> None:
    preflight.check_engine(ENGINE, 10**10)
    with pytest.raises(FailedError, match=r"sudo sysctl --write net.ipv4.ip_forward=1"):
        preflight.check_engine({**ENGINE, "IPv4Forwarding": False}, 10**10)


def test_a_full_disk_is_named_with_what_is_free_and_what_is_needed() -> None:
    with pytest.raises(FailedError, match=r"/var/lib/docker has 0.5 GB free, .* 2 GB"):
        preflight.check_engine(ENGINE, 500_000_000)
    preflight.check_engine(ENGINE, None)  # another machine's


def test_a_disk_that_fills_up_on_the_way_is_said_in_one_line() -> None:
    with pytest.raises(FailedError) as error:
        run(["sh", "-c", "echo 'write /x: no space left on device' >&2; exit 1"])
    assert str(error.value).splitlines()[-1] == (
        "The disk is full. Free some space, and run this again: it continues where it stopped."
    )


@pytest.mark.parametrize(
    ("environ", "arguments", "notes"),
    [
        ({}, [], []),
        (
            {"HTTPS_PROXY": PASSWORD, "no_proxy": "localhost"},
            ["--build-arg", "HTTPS_PROXY", "--build-arg", "no_proxy"],
            ["HTTPS_PROXY is set, but Docker Engine has no proxy configured"],
        ),
        (
            {"http_proxy": "http://127.0.0.1:3128"},
            [],
            ["http_proxy points to this machine's loopback", "http_proxy is set, but"],
        ),
        ({"HTTP_PROXY": "[::1]:80"}, [], ["HTTP_PROXY points to", "HTTP_PROXY is set, but"]),
        ({"NO_PROXY": "localhost"}, ["--build-arg", "NO_PROXY"], []),
    ],
)
def test_a_proxy_reaches_builds_where_it_can_and_its_password_reaches_nobody(
    environ: dict[str, str], arguments: list[str], notes: list[str]
) -> None:
    assert preflight.proxy_build_arguments(environ) == arguments
    said = list(preflight.proxy_notes(environ, ENGINE))
    assert [s.startswith(n) for s, n in zip(said, notes, strict=True)] == [True] * len(notes)
    assert "secret" not in "".join([*arguments, *said])


def test_an_engine_that_has_a_proxy_of_its_own_needs_no_note() -> None:
    engine = {**ENGINE, "HttpsProxy": "http://proxy.example"}
    assert list(preflight.proxy_notes({"HTTPS_PROXY": PASSWORD}, engine)) == []
