"""A container recreated from its own inspection: nobody can tell the difference."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from testbed.command import docker_cli, inspect
from testbed.containers import AUTOHEAL, QUICK_STOP, SLEEP
from testbed.deadlines import Deadline
from testbed.network import create_network, free_port
from testbed.recreator import Recreator
from testbed.runs import compose_project, unique

OF_THE_MOMENT = {
    *("Id", "Created", "State", "RestartCount", "ResolvConfPath", "HostnamePath", "HostsPath"),
    *("LogPath", "GraphDriver", "ExecIDs"),
}
"""What no two containers have alike."""

CHOSEN_BY_DOCKER = {
    *("EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "IPv6Gateway", "GlobalIPv6Address"),
    *("GlobalIPv6PrefixLen", "MacAddress", "DNSNames"),
}
"""What an endpoint has that the user did not choose; what they did is in IPAMConfig and Config."""


@pytest.fixture
def recreate(tmp_path: Path) -> Recreator:
    return Recreator(tmp_path)


@pytest.fixture(scope="module")
def image_with_volume(engine: docker.DockerClient) -> Iterator[str]:
    """An image with a volume, a command, an environment, a user and a health check of its own."""
    recipe = (
        f"FROM {AUTOHEAL}\nVOLUME /data\nENV FROM_IMAGE=yes\nLABEL from.image=yes\nEXPOSE 8080\n"
        'USER 1000:1000\nWORKDIR /tmp\nENTRYPOINT ["/bin/sleep"]\nCMD ["1000"]\n'
        "STOPSIGNAL SIGKILL\nHEALTHCHECK --interval=1h CMD true\n"
    )
    with built(engine, recipe) as tag:
        yield tag


@contextmanager
def built(engine: docker.DockerClient, recipe: str) -> Iterator[str]:
    """An image of a Dockerfile, under a name of its own."""
    tag = f"{unique('test')}:latest"
    docker_cli("build", "--quiet", "--tag", tag, "-", stdin=recipe)
    yield tag
    engine.images.remove(tag, force=True)


def comparable(inspection: dict[str, Any]) -> dict[str, Any]:
    """An inspection without what is of the moment, or was chosen by Docker itself."""
    one = {key: v for key, v in copy.deepcopy(inspection).items() if key not in OF_THE_MOMENT}
    short = inspection["Id"][:12]
    if one["Config"]["Hostname"] == short:
        one["Config"]["Hostname"] = "(its id)"
    networks = one["NetworkSettings"]["Networks"]
    one["NetworkSettings"] = {}
    for network, endpoint in networks.items():
        aliases = [a for a in endpoint.get("Aliases") or () if a != short]
        one["NetworkSettings"][network] = {
            **{key: v for key, v in endpoint.items() if key not in CHOSEN_BY_DOCKER},
            "Aliases": aliases,
        }
    one["Mounts"] = sorted(one["Mounts"], key=lambda mount: str(mount["Destination"]))
    anonymous = {m["Name"] for m in one["Mounts"] if len(m.get("Name", "")) == 64}
    for mount in one["Mounts"]:
        if mount.get("Name") in anonymous:
            mount["Mode"] = ""
    host = one["HostConfig"]
    # An anonymous volume has to be named, if it is to be the same one.
    binds = [b for b in host["Binds"] or () if b.partition(":")[0] not in anonymous]
    host["Binds"] = binds or None
    for mount in host.get("Mounts") or ():
        if mount.get("Source") in anonymous:
            del mount["Source"]
    host["Links"] = sorted(host["Links"] or ())
    return one


SHAPES = {
    "plain": [],
    "command and environment": ["-e", "A=1", "-e", "B=two words", "-e", "EMPTY="],
    "labels": ["-l", "a=b", "-l", "autoheal.action=none", "-l", "weird=ü \" ' $"],
    "host name": ["--hostname", "web", "--domainname", "example.org"],
    "working directory and user": ["-w", "/tmp", "-u", "1000:1000", "--group-add", "5"],
    "terminal": ["-t", "-i"],
    "ports": ["-p", "127.0.0.1:PORT:80", "-p", "127.0.0.1:PORT:81/udp", "--expose", "99"],
    "random ports": ["-P", "--expose", "80", "-p", "127.0.0.1::82"],
    "bind mounts": ["-v", "/etc/hostname:/x:ro", "-v", "/opt:/y:rw,rprivate"],
    "mounts": [
        *("--mount", "type=bind,source=/etc/hostname,target=/x,readonly"),
        *("--mount", "type=tmpfs,target=/t,tmpfs-size=1000000,tmpfs-mode=1770"),
    ],
    "named volume": ["-v", "NAME-v:/data:ro"],
    "anonymous volume": ["-v", "/data", "-v", "/more"],
    "anonymous mount": ["--mount", "type=volume,target=/data"],
    "tmpfs": ["--tmpfs", "/run:size=1m", "--read-only", "--shm-size", "10m"],
    "limits": [
        *("-m", "100m", "--memory-reservation", "50m", "--cpus", "0.5", "--pids-limit", "77"),
        *("--ulimit", "nofile=1000:2000", "--cpu-shares", "512", "--cpuset-cpus", "0"),
        *("--oom-score-adj", "100", "--memory-swap", "200m", "--blkio-weight", "0"),
    ],
    "capabilities": ["--cap-drop", "ALL", "--cap-add", "NET_ADMIN"],
    "security": ["--security-opt", "no-new-privileges", "--security-opt", "seccomp=unconfined"],
    "unmasked paths": ["--security-opt", "systempaths=unconfined"],
    "privileged": ["--privileged"],
    "devices": [
        *("--device", "/dev/null:/dev/mynull:r", "--device-cgroup-rule", "c 1:3 rwm"),
    ],
    "restart policy": ["--restart", "on-failure:3"],
    "always": ["--restart", "always"],
    "health check": [
        *("--health-cmd", "true", "--health-interval", "1h", "--health-retries", "7"),
        *("--health-timeout", "3s", "--health-start-period", "9s"),
    ],
    "no health check": ["--no-healthcheck"],
    "log options": ["--log-driver", "json-file", "--log-opt", "max-size=1m", "--log-opt", "tag=x"],
    "no log": ["--log-driver", "none"],
    "stop signal": ["--stop-signal", "SIGINT", "--stop-timeout", "33", "--init"],
    "host network": ["--network", "host"],
    "no network": ["--network", "none"],
    "DNS": [
        *("--dns", "127.0.0.9", "--dns-search", "example.org", "--dns-option", "ndots:2"),
        *("--add-host", "a:127.0.0.8"),
    ],
    "kernel settings": ["--sysctl", "net.ipv4.ip_forward=1", "--ipc", "shareable"],
    "host namespaces": ["--pid", "host", "--ipc", "host", "--uts", "host"],
    "MAC address": ["--mac-address", "02:11:22:33:44:55"],
    "own network": ["--network", "NAME-a", "--network-alias", "web", "--network-alias", "www"],
    "static address": [
        *("--network", "NAME-b", "--ip", "SUBNET.77", "--mac-address", "02:11:22:33:44:66"),
    ],
    "link": ["--link", "NAME-other:db"],
    "link in a network": ["--network", "NAME-a", "--link", "NAME-netmate:db"],
    "another's network": ["--network", "container:NAME-other"],
    "another's processes": ["--pid", "container:NAME-other", "--ipc", "container:NAME-other"],
    "another's volumes": ["--volumes-from", "NAME-other:ro"],
    "cgroup parent": ["--cgroup-parent", "/zoo"],
    "runtime": ["--runtime", "runc"],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_container_of_any_shape_is_recreated_alike(
    shape: str, name: str, recreate: Recreator, engine: docker.DockerClient
) -> None:
    api = tuple(map(int, engine.version()["ApiVersion"].split(".")))
    if "--mac-address" in SHAPES[shape] and api < (1, 44):
        pytest.skip("the newer command line cannot say this to an older engine")
    try:
        run(name, SHAPES[shape])
    except AssertionError as error:
        if "unable to apply caps" in str(error):
            pytest.skip("this machine does not let an older engine run privileged containers")
        raise
    assert_recreated_alike(name, recreate)


def run(name: str, shape: list[str]) -> None:
    """Run a container of some shape, and before it what it refers to."""
    words = [
        re.sub("PORT", lambda _: str(free_port()), word.replace("NAME", name)) for word in shape
    ]
    text = " ".join(words)
    if f"{name}-a" in text:
        docker_cli("network", "create", f"{name}-a")
    if f"{name}-b" in text:
        subnet = create_network(f"{name}-b")
        words = [word.replace("SUBNET", subnet) for word in words]
    if f"{name}-other" in text:
        other = ["--name", f"{name}-other", "--ipc", "shareable", "-v", "/v"]
        docker_cli("run", "-d", *QUICK_STOP, *other, *SLEEP)
    if f"{name}-netmate" in text:
        mate = ["--name", f"{name}-netmate", "--network", f"{name}-a"]
        docker_cli("run", "-d", *QUICK_STOP, *mate, *SLEEP)
    quick = () if "--stop-signal" in words else QUICK_STOP
    docker_cli("run", "-d", "--name", name, *quick, *words, *SLEEP)


def assert_recreated_alike(name: str, recreate: Recreator) -> None:
    before = inspect(name)
    assert recreate(name).error is None
    after = inspect(name)
    assert after["Id"] != before["Id"]
    assert after["State"]["Running"]
    assert comparable(after) == comparable(before)
    if before["Config"]["Hostname"] == before["Id"][:12]:
        assert after["Config"]["Hostname"] == after["Id"][:12]
    ours = docker_cli("ps", "-aq", "--no-trunc", "--filter", f"name=^/?{name}$")
    assert ours.split() == [after["Id"]]
    assert not docker_cli("ps", "-aq", "--filter", f"name={name}-autoheal").split()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--entrypoint", "/bin/sleep", "IMAGE", "999"],
        ["--entrypoint", "", "IMAGE", "/bin/sleep", "999"],
        ["-v", "/data", "-u", "0"],
        ["-v", "NAME-v:/data"],
        ["--no-healthcheck", "-e", "FROM_IMAGE=no", "-l", "from.image=no"],
    ],
    ids=["as it is", "entrypoint", "no entrypoint", "volume", "named volume", "over it all"],
)
def test_what_came_from_the_image_is_kept_too(
    words: list[str], name: str, image_with_volume: str, recreate: Recreator
) -> None:
    words = [w.replace("NAME", name).replace("IMAGE", image_with_volume) for w in words]
    end = [] if image_with_volume in words else [image_with_volume]
    docker_cli("run", "-d", "--name", name, *words, *end)
    assert_recreated_alike(name, recreate)


def test_what_lies_in_an_anonymous_volume_is_still_there(name: str, recreate: Recreator) -> None:
    docker_cli("run", "-d", "--name", name, "-v", "/data", *SLEEP)
    docker_cli("exec", name, "touch", "/data/precious")
    assert recreate(name).error is None
    assert docker_cli("exec", name, "ls", "/data").split() == ["precious"]


def test_all_of_its_networks_are_kept(name: str, recreate: Recreator) -> None:
    create_network(f"{name}-a")
    address = f"{create_network(f'{name}-b')}.9"
    docker_cli("run", "-d", "--name", name, "--network", f"{name}-a", *SLEEP)
    docker_cli("network", "connect", "--ip", address, "--alias", "web", f"{name}-b", name)
    docker_cli("network", "connect", "bridge", name)
    assert_recreated_alike(name, recreate)
    assert inspect(name)["NetworkSettings"]["Networks"][f"{name}-b"]["IPAddress"] == address


def test_an_image_whose_name_means_another_by_now_is_kept_by_its_id(
    name: str, engine: docker.DockerClient, recreate: Recreator
) -> None:
    with built(engine, f"FROM {AUTOHEAL}\nENV OTHER=0\n") as tag:
        docker_cli("run", "-d", "--name", name, "--entrypoint", "/bin/sleep", tag, "1000")
        before = inspect(name)
        other = f"FROM {AUTOHEAL}\nENV OTHER=1\n"
        docker_cli("build", "--quiet", "--tag", tag, "-", stdin=other)
        assert recreate(name).error is None
        assert inspect(name)["Image"] == before["Image"]
        assert "OTHER=0" in inspect(name)["Config"]["Env"]


def test_a_container_that_is_removed_when_it_stops_is_left_alone(
    name: str, recreate: Recreator
) -> None:
    docker_cli("run", "-d", "--rm", "--name", name, *SLEEP)
    before = inspect(name)
    assert "it cannot be recreated" in str(recreate(name).error)
    assert inspect(name)["State"] == before["State"]


def test_the_old_one_comes_back_where_the_new_one_does_not_run(
    name: str, tmp_path: Path, recreate: Recreator
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    script = "test -e /s/first && exit 3; touch /s/first; exec sleep 1000"
    words = ["-v", f"{source}:/s", "--entrypoint", "/bin/sh", AUTOHEAL, "-c", script]
    docker_cli("run", "-d", "--name", name, *words)
    deadline = Deadline()
    while not (source / "first").exists():
        assert not deadline.passed
        time.sleep(0.05)  # the container's first life writes it
    before = inspect(name)
    error = recreate(name).error
    assert error == f"the new {name} ended at once, with 3; the old {name} is back"
    after = inspect(name)
    assert after["Id"] == before["Id"]
    assert after["Name"] == before["Name"]
    assert docker_cli("ps", "-aq", "--filter", f"name={name}").split() == [before["Id"][:12]]


COMPOSE = """
services:
  db:
    image: {image}
    entrypoint: [/bin/sleep, "1000"]
    stop_signal: SIGKILL
    volumes: [/scratch, "data:/data"]
    networks: {{front: {{aliases: [database]}}, back: {{}}}}
    ports: ["127.0.0.1::80"]
    healthcheck: {{test: [CMD, "true"], interval: 1h}}
    deploy: {{resources: {{limits: {{memory: 100M}}}}}}
    configs: [note]
  side:
    image: {image}
    entrypoint: [/bin/sleep, "1000"]
    stop_signal: SIGKILL
    network_mode: service:db
  web:
    image: {image}
    entrypoint: [/bin/sleep, "1000"]
    stop_signal: SIGKILL
    networks: [front]
    depends_on: {{db: {{condition: service_started, restart: true}}}}
  loner:
    image: {image}
    entrypoint: [/bin/sleep, "1000"]
    stop_signal: SIGKILL
    networks: [front]
    depends_on: {{db: {{condition: service_started}}}}
configs:
  note: {{file: ./note}}
volumes: {{data: {{}}}}
networks: {{front: {{}}, back: {{}}}}
"""


def test_compose_cannot_tell_the_difference_and_dependents_follow(
    tmp_path: Path, recreate: Recreator
) -> None:
    name = compose_project()
    (tmp_path / "note").write_text("hello")
    (tmp_path / "compose.yaml").write_text(COMPOSE.format(image=AUTOHEAL))
    compose = ["compose", "--project-directory", str(tmp_path), "--project-name", name]
    docker_cli(*compose, "up", "--detach")
    try:
        before = {s: inspect(f"{name}-{s}-1") for s in ("db", "side", "web", "loner")}
        assert recreate(f"{name}-db-1").error is None
        after = {service: inspect(f"{name}-{service}-1") for service in before}
        for service in ("db", "side"):
            assert after[service]["Id"] != before[service]["Id"]
        assert after["side"]["HostConfig"]["NetworkMode"] == f"container:{after['db']['Id']}"
        assert after["web"]["Id"] == before["web"]["Id"]
        assert after["web"]["State"]["StartedAt"] > after["db"]["State"]["StartedAt"]
        assert after["loner"]["State"]["StartedAt"] == before["loner"]["State"]["StartedAt"]
        assert comparable(after["db"]) == comparable(before["db"])
        # Compose finds nothing to do, and nothing that is not its own
        docker_cli(*compose, "up", "--detach")
        for service in ("db", "web", "loner"):
            assert inspect(f"{name}-{service}-1")["Id"] == after[service]["Id"]
        rows = docker_cli(*compose, "ps", "--format", "{{.Service}} {{.State}}").splitlines()
        assert sorted(rows) == [f"{s} running" for s in sorted(before)]
        docker_cli(*compose, "logs", "db")
    finally:
        docker_cli(*compose, "down", "--volumes", "--timeout", "1")
    assert not docker_cli("ps", "-aq", "--filter", f"name={name}").split()
