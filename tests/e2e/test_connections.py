"""Every way to the engine: a proxy that lets through only what healing needs, TCP, and TLS."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import docker
import httpx
import pytest

from scripts import images
from testbed.autoheal import PROMPT, WATCHING, Autoheal
from testbed.command import docker_cli
from testbed.containers import AUTOHEAL, ROOT, Workload, wait_log
from testbed.deadlines import scaled
from testbed.network import free_port
from testbed.runs import compose_project, unique

Start = Callable[..., Autoheal]


@pytest.fixture(scope="module")
def proxy_image(engine: docker.DockerClient) -> Iterator[str]:
    """HAProxy's own image where it is here, else Debian's HAProxy."""
    own = os.environ.get("HAPROXY_IMAGE")
    if own:
        yield own
        return
    tag = unique("test-haproxy")
    docker_cli(
        *("build", "--quiet", "--target", "haproxy", "--tag", tag),
        *("--build-arg", f"BASE={images.STANDIN_DEBIAN}"),
        *("--build-context", "ca=/etc/ssl/certs", str(ROOT / "scripts/standin")),
    )
    yield tag
    engine.images.remove(tag, force=True)


@pytest.fixture
def hardened(proxy_image: str, label: str, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """compose.hardened.yaml, without Ollama, for this test's containers."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"services: {{autoheal: {{environment: {{AUTOHEAL_CONTAINER_LABEL: {label}}}}}}}"
    )
    files = ["compose.yaml", "compose.hardened.yaml", str(mine)]
    compose = ["docker", "compose", "--project-name", compose_project()]
    compose += [word for file in files for word in ("--file", file)]
    environment = {
        **os.environ,
        "HAPROXY_IMAGE": proxy_image,
        "AUTOHEAL_PORT": str(free_port()),
    }

    def run(*words: str) -> str:
        done = subprocess.run(
            [*compose, *words], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    yield run
    run("down", "--volumes", "--timeout", "1")


def test_through_the_proxy_everything_that_healing_needs_passes_and_nothing_else(
    hardened: Callable[..., str], workload: Callable[..., Workload], label: str
) -> None:
    one = workload(labels={label: "true", "autoheal.action": "recreate"})
    hardened("up", "--detach", "--no-build", "--wait", "socket-proxy", "autoheal")
    [healer] = hardened("ps", "--quiet", "autoheal").split()
    before = one.attributes["Id"]
    one.make_unhealthy()
    # The healer says so at the end: in the middle the name is nobody's for a moment.
    wait_log(docker.from_env().containers.get(healer), f"{one.name}: recreated in")
    assert one.attributes["Id"] != before
    one.wait_health("healthy")
    said = hardened("exec", "autoheal", "autoheal", "doctor")
    assert "every call that healing needs is allowed" in said
    for action in ("restart", "recreate", "stop"):
        said = hardened("exec", "autoheal", "autoheal", "heal", one.name, "--action", action)
        assert said == f"{one.name}: {action} done\n"
    [proxy] = hardened("ps", "--quiet", "socket-proxy").split()
    assert_refused(proxy, one.name)


def assert_refused(proxy: str, container: str) -> None:
    [network] = (
        Workload(docker.from_env().containers.get(proxy))
        .attributes["NetworkSettings"]["Networks"]
        .values()
    )
    url = f"http://{network['IPAddress']}:2375"
    allowed = [
        ("GET", "/_ping"),
        ("GET", "/v1.41/version"),
        ("GET", f"/containers/{container}/json"),
    ]
    for method, path in allowed:
        assert httpx.request(method, url + path, timeout=scaled(60)).status_code == 200, path
    refused = [
        ("GET", "/images/json"),
        ("POST", "/images/create?fromImage=x"),
        ("POST", "/build"),
        ("GET", f"/containers/{container}/logs"),
        ("GET", f"/containers/{container}/export"),
        ("PUT", f"/containers/{container}/archive?path=/"),
        ("POST", f"/containers/{container}/attach"),
        ("POST", f"/containers/{container}/update"),
        ("POST", f"/containers/{container}/json"),
        ("DELETE", "/volumes/precious"),
        ("DELETE", "/images/x"),
        ("POST", "/volumes/prune"),
        ("POST", "/containers/prune"),
        ("GET", "/secrets"),
        ("GET", "/configs"),
        ("POST", "/swarm/leave"),
        ("POST", "/services/create"),
        ("POST", "/plugins/pull"),
        ("DELETE", "/volumes/autoheal-/../precious"),
        ("GET", "/containers/%2e%2e/images/json"),
    ]
    for method, path in refused:
        reply = httpx.request(method, url + path, timeout=scaled(60))
        assert reply.status_code == 403, (method, path)


class Relay:
    """Relays TCP on loopback to the engine's socket, with TLS where there is a context."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
            engine = socket.socket(socket.AF_UNIX)
            engine.connect("/var/run/docker.sock")
            for source, target in ((client, engine), (engine, client)):
                threading.Thread(target=_copy, args=(source, target), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server and of a client, as Docker's manual makes them."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority"),
        *("-addext", "keyUsage=critical,keyCertSign", "-keyout", "ca-key.pem", "-out", "ca.pem"),
    )
    for who, extra in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "")):
        prefix = "server-" if who == "server" else ""
        openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={who}"),
            *("-keyout", f"{prefix}key.pem", "-out", f"{who}.csr"),
        )
        (folder / "extensions").write_text(f"extendedKeyUsage={who}Auth\n{extra}\n")
        openssl(
            *("x509", "-req", "-days", "2", "-in", f"{who}.csr", "-extfile", "extensions"),
            *("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial"),
            *("-out", f"{prefix}cert.pem"),
        )
    return folder


@pytest.fixture
def tls_port(certificates: Path) -> int:
    """An engine that wants TLS and a client's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return int(Relay(context).port)


def heals(workload: Workload, healer: Autoheal) -> None:
    healer.wait_line(WATCHING)
    workload.make_unhealthy()
    healer.wait_line("is healthy again")


def test_it_heals_over_tcp(workload: Callable[..., Workload], autoheal: Start) -> None:
    heals(workload(), autoheal(DOCKER_SOCK=f"tcp://127.0.0.1:{Relay().port}", **PROMPT))


def test_it_heals_over_tls_with_a_clients_certificate(
    workload: Callable[..., Workload], autoheal: Start, tls_port: int, certificates: Path
) -> None:
    healer = autoheal(
        DOCKER_HOST=f"tcp://127.0.0.1:{tls_port}",
        DOCKER_TLS_VERIFY="1",
        DOCKER_CERT_PATH=str(certificates),
        **PROMPT,
    )
    heals(workload(), healer)


def test_docker_autoheals_tcps_with_the_certificates_in_certs_heals_in_a_container(
    workload: Callable[..., Workload], tls_port: int, certificates: Path, label: str
) -> None:
    names = {"ca.pem": "ca.pem", "cert.pem": "client-cert.pem", "key.pem": "client-key.pem"}
    mounts = [
        word
        for file, name in names.items()
        for word in ("--volume", f"{certificates}/{file}:/certs/{name}:ro")
    ]
    one = workload()
    docker_cli(
        *("run", "--detach", "--name", f"{label}-tls", "--network", "host", *mounts),
        *("--env", f"DOCKER_SOCK=tcps://127.0.0.1:{tls_port}"),
        *("--env", f"AUTOHEAL_CONTAINER_LABEL={label}", AUTOHEAL, "run"),
    )
    try:
        before = one.started_at
        one.make_unhealthy()
        one.wait_restarted(before)
    finally:
        docker_cli("rm", "--force", f"{label}-tls")


@pytest.mark.parametrize("missing", ["client", "authority"])
def test_a_certificate_that_does_not_fit_is_said_in_one_line(
    autoheal: Start, tls_port: int, certificates: Path, tmp_path: Path, missing: str
) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        if not (missing == "client" and name == "key.pem"):
            (tmp_path / name).write_bytes((certificates / name).read_bytes())
    if missing == "authority":
        (tmp_path / "ca.pem").write_bytes((certificates / "cert.pem").read_bytes())
    healer = autoheal(
        DOCKER_HOST=f"tcp://127.0.0.1:{tls_port}",
        DOCKER_TLS_VERIFY="1",
        DOCKER_CERT_PATH=str(tmp_path),
    )
    said = healer.wait_line("trying again until it answers")
    assert ("certificate" in said) or ("key.pem" in said), said
    assert not [line for line in healer.lines if "Traceback" in line]
