"""Docker. The only file that imports `docker`; the rest sees these methods and our own types."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import docker
import requests
from docker.tls import TLSConfig
from docker.utils import parse_host
from docker.utils.socket import frames_iter

from autoheal.incident import STACK, Check, Health, Neighbour, Sighting, seconds_of
from autoheal.recipe import NAMESPACES, Inspection, Recipe
from autoheal.settings import Settings
from probe.knobs import SettingError

DEFAULT_SOCKET = "unix:///var/run/docker.sock"
CERTIFICATES = "/certs"


_CLIENT = {True: ("cert.pem", "key.pem"), False: ("client-cert.pem", "client-key.pem")}
"""Names of a client's certificate and key: Docker's own, and docker-autoheal's."""


class EngineError(Exception):
    """A call to the engine failed; its text says which, and why."""


class UnreachableError(EngineError):
    """There was no answer: nobody knows whether the call was carried out."""


RETRY_SECONDS = 1.0
"""How often an engine that does not answer is asked again in the middle of something."""


class GoneError(EngineError):
    """What the call was about is not there (any more)."""


class ConflictError(EngineError):
    """The name is taken, or what the call was about is in use."""


class HangError(EngineError):
    """A command in a container did not end in time; nobody can end it from outside."""


class ForbiddenError(EngineError):
    """A proxy in front of the engine, or the engine, does not allow this call."""


@dataclass(frozen=True)
class Update:
    """How a Swarm service's last update stands.

    Attributes:
        forced: how often the service was updated by force.
        state: Swarm's word: updating, paused, completed, rollback_started, ...; empty for none.
        message: its explanation.
    """

    forced: int
    state: str
    message: str


@dataclass(frozen=True)
class Usage:
    """What a container has used since it started, and holds now.

    Attributes:
        cpu_seconds: CPU time.
        memory_bytes: without the page cache.
        memory_limit_bytes: its own limit, or the machine's memory.
        io_bytes: read from and written to disks.
    """

    cpu_seconds: float
    memory_bytes: int
    memory_limit_bytes: int
    io_bytes: int


_KINDS = {403: ForbiddenError, 404: GoneError, 409: ConflictError}

MOST_CONNECTIONS = 64
"""So many are kept for later calls; docker-py's own 10 are fewer than autoheal's threads."""

T = TypeVar("T")


def until_answered(call: Callable[[], T]) -> T:
    """Call until the engine answers, be it with another `EngineError`."""
    while True:
        try:
            return call()
        except UnreachableError:
            time.sleep(RETRY_SECONDS)


class Engine:
    """One Docker engine. Connects at the first call, and again after a failed one.

    Every method raises `EngineError`. Methods may be called from any thread.
    """

    def __init__(self, settings: Settings, env: Mapping[str, str]) -> None:
        self.url, self._certificates, self._verify = _address(settings, env)
        self._timeout = settings.api_timeout
        self._client: Any = None  # docker-py is half typed
        self._shares: dict[str, frozenset[str]] = {}

    # -- looking

    def look(self, container: str) -> Sighting:
        """One container now; raises `GoneError` when it is gone."""
        return _sighting(self.inspect(container))

    def inspect(self, container: str) -> Inspection:
        """All that the engine says of a container."""
        return self._call(container, lambda client: dict(client.inspect_container(container)))

    def find(self, container: str) -> Inspection | None:
        """The same; None when there is no such container."""
        try:
            return self.inspect(container)
        except GoneError:
            return None

    def containers(self, label: str = "", **filters: str) -> list[dict[str, Any]]:
        """Containers in short, as `docker ps --all` knows them.

        Args:
            label: `NAME=VALUE`, or empty for all.
            filters: more of the engine's filters, such as `health="unhealthy"`.
        """
        wanted: dict[str, Any] = {**filters, **({"label": label} if label else {})}
        return self._call(
            "the list of containers",
            lambda client: list(client.containers(all=True, filters=wanted)),
        )

    def neighbours(self) -> list[Neighbour]:
        """All containers, as possible followers of another."""
        found = []
        for row in self.containers():
            if row["Id"] not in self._shares:  # it never changes in a container's life
                inspection = self.find(row["Id"])
                if inspection is None:
                    continue
                self._shares[row["Id"]] = _shares(inspection)
            name = min(row["Names"] or [""], key=lambda one: one.count("/")).lstrip("/")
            labels = row["Labels"] or {}
            found.append(Neighbour(row["Id"], name, row["State"], labels, self._shares[row["Id"]]))
        self._shares = {one.id: one.shares for one in found}
        return found

    def image_of(self, name: str) -> str | None:
        """The id of the image that a name means now; None when it means none."""
        try:
            image = self._call(name, lambda client: client.inspect_image(name))
        except GoneError:
            return None
        return str(image["Id"])

    def usage(self, container: str) -> Usage:
        """What a container has used; the engine answers at once, without measuring a second."""
        stats = self._call(
            container, lambda client: client.stats(container, stream=False, one_shot=True)
        )
        return _usage(stats)

    def info(self) -> dict[str, Any]:
        """What the engine says of itself."""
        return self._call("the engine", lambda client: {**client.version(), **client.info()})

    # -- changing

    def restart(self, container: str, stop_timeout: int) -> None:
        """Stop it, kill it after `stop_timeout` seconds, and start it again, all in the engine."""
        # docker-py adds the stop timeout to its own, so a slow stop is no lost call.
        self._call(container, lambda client: client.restart(container, timeout=stop_timeout))

    def stop(self, container: str, stop_timeout: int) -> None:
        """Stop it, and kill it after `stop_timeout` seconds; nothing when it has stopped."""
        self._call(container, lambda client: client.stop(container, timeout=stop_timeout))

    def start(self, container: str) -> None:
        """Start it; nothing when it runs."""
        self._call(container, lambda client: client.start(container))

    def kill(self, container: str, signal: str) -> None:
        """Send its first process a signal."""
        self._call(container, lambda client: client.kill(container, signal))

    def run_in(
        self, container: str, command: Sequence[str], seconds: float | None = None
    ) -> tuple[int, str]:
        """Run a command in it; returns its exit code and output.

        Args:
            container: its id or name.
            command: a program and its arguments.
            seconds: how long it may take; None: as long as any call to the engine.
        """
        limit = self._timeout if seconds is None else seconds

        def call(client: Any) -> tuple[int, str]:
            job = client.exec_create(container, list(command))["Id"]
            with closing(client.exec_start(job, socket=True)) as connection:
                ended = threading.Timer(limit, _shut, [connection.fileno()])
                ended.start()  # docker-py reads what a command prints without a limit
                try:
                    frames = frames_iter(connection, tty=False)  # type: ignore[no-untyped-call]
                    output = b"".join(data for _, data in frames)
                finally:
                    ended.cancel()
            code = client.exec_inspect(job)["ExitCode"]
            if code is None:
                raise HangError(f"{' '.join(command)} did not end within {limit:g} s")
            return code, output.decode(errors="replace")

        return self._call(container, call)

    def rename(self, container: str, name: str) -> None:
        """Give it another name; raises `ConflictError` when that is taken."""
        self._call(container, lambda client: client.rename(container, name))

    def remove(self, container: str) -> None:
        """Remove it, running or not; its volumes stay."""
        self._call(container, lambda client: client.remove_container(container, force=True))

    def create(self, name: str, recipe: Recipe) -> str:
        """Make a container, without starting it; returns its id.

        One that could not be made completely is removed again.
        """
        made = self._call(
            f"making {name}",
            lambda client: client.create_container_from_config(recipe.body, name)["Id"],
        )
        try:
            for network, endpoint in recipe.networks:
                self.connect(made, network, endpoint)
        except EngineError:
            self.remove(made)
            raise
        return str(made)

    def connect(self, container: str, network: str, endpoint: dict[str, Any]) -> None:
        """Connect it to a network, with these endpoint settings."""
        self._call(
            f"connecting {container} to {network}", partial(_connect, container, network, endpoint)
        )

    def ends_within(self, container: str, seconds: float) -> bool:
        """Wait so long; whether it has stopped by then."""

        def call(client: Any) -> bool:
            try:
                client.wait(container, timeout=seconds)
            except (requests.ReadTimeout, requests.ConnectionError) as error:
                if "timed out" in str(error).lower():
                    return False
                raise
            return True

        return self._call(container, call)

    # -- Swarm

    def services_of(self, stack: str) -> list[tuple[str, str]]:
        """Ids and names of a stack's services, in the order in which they were made."""
        rows = self._call(
            f"stack {stack}", lambda client: client.services(filters={"label": f"{STACK}={stack}"})
        )
        rows.sort(key=lambda row: row["CreatedAt"])
        return [(row["ID"], row["Spec"]["Name"]) for row in rows]

    def service(self, service: str) -> Update:
        """How a service's last update stands."""
        found = self._call(service, lambda client: client.inspect_service(service))
        status = found.get("UpdateStatus") or {}
        forced = found["Spec"]["TaskTemplate"].get("ForceUpdate") or 0
        return Update(forced, status.get("State") or "", status.get("Message") or "")

    def update_by_force(self, service: str, forced: int) -> None:
        """Make a service's tasks anew under its own update policy.

        Args:
            service: its id.
            forced: how often it will have been updated by force; a repeated call is no second
                update.
        """

        def call(client: Any) -> None:
            found = client.inspect_service(service)
            spec = found["Spec"]
            spec["TaskTemplate"]["ForceUpdate"] = forced
            url = client._url("/services/{0}/update", service)
            params = {"version": found["Version"]["Index"]}
            # docker-py's own update_service knows but a part of the specification's fields, and
            # would reset the rest.
            client._raise_for_status(client._post_json(url, data=spec, params=params))

        self._call(service, call)

    # -- leases: volumes, since making one tells whether somebody else was first

    def claim(self, name: str, labels: dict[str, str]) -> dict[str, str]:
        """Make a volume, unless it is there; returns the labels of the one that is there."""
        made = self._call(name, lambda client: client.create_volume(name, labels=labels))
        return dict(made["Labels"] or {})

    def claims(self, label: str) -> dict[str, dict[str, str]]:
        """The labels of all volumes that have this label (`NAME` or `NAME=VALUE`), by name."""
        found = self._call(label, lambda client: client.volumes(filters={"label": label}))
        return {row["Name"]: dict(row["Labels"] or {}) for row in found["Volumes"] or ()}

    def unclaim(self, name: str) -> None:
        """Remove such a volume; nothing when it is gone."""
        with suppress(GoneError):
            self._call(name, lambda client: client.remove_volume(name))

    def events(self, label: str) -> Iterator[str]:
        """The ids of containers as their health changes or they are removed, from now on.

        Returns once the engine listens for us; iterating ends when it closes the connection.
        """
        filters: dict[str, Any] = {"type": "container", "event": ["health_status", "destroy"]}
        if label:
            filters["label"] = label
        stream = self._call("events", lambda client: client.events(decode=True, filters=filters))
        return self._ids(stream)

    def _ids(self, stream: Iterator[dict[str, Any]]) -> Iterator[str]:
        try:
            for event in stream:
                yield event["Actor"]["ID"]
        except (docker.errors.DockerException, requests.RequestException, OSError, ValueError) as e:
            raise EngineError(f"the event stream broke: {_explain(e, self.url)}") from None

    def _call(self, what: str, call: Callable[[Any], T]) -> T:
        try:
            if self._client is None:
                self._client = self._connect()
            return call(self._client)
        except docker.errors.APIError as error:
            kind = _KINDS.get(error.status_code or 0, EngineError)
            raise kind(f"{what}: {error.explanation or error}") from None
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise UnreachableError(_explain(error, self.url)) from None

    def _connect(self) -> Any:
        tls: TLSConfig | bool = False
        if self._certificates:
            files = [f"{self._certificates}/{name}" for name in ("ca.pem", *_CLIENT[self._verify])]
            tls = TLSConfig(client_cert=(files[1], files[2]), ca_cert=files[0], verify=True)
        client: Any = docker.APIClient(
            self.url,
            version="1.41",
            tls=tls,
            timeout=round(self._timeout),
            max_pool_size=MOST_CONNECTIONS,
        )
        # Variables of the environment (REQUESTS_CA_BUNDLE) would go before the certificates that
        # were given for the engine: psf/requests 3829.
        client.trust_env = False
        client._version = client.version(api_version=False)["ApiVersion"]
        return client


def _address(settings: Settings, env: Mapping[str, str]) -> tuple[str, str, bool]:
    """The engine's URL, the directory of certificates (empty: none), and whose names they have.

    Raises:
        SettingError: where no engine can be meant by it.
    """
    sock = settings.docker_sock
    if sock is not None:
        _must_be_an_address("DOCKER_SOCK", sock.replace("tcps://", "https://"), sock)
        if sock.startswith(("tcps://", "https://")):
            return f"https://{urlsplit(sock).netloc}", CERTIFICATES, False
        return sock, "", False
    host = env.get("DOCKER_HOST") or DEFAULT_SOCKET
    _must_be_an_address("DOCKER_HOST", host, host)
    if env.get("DOCKER_TLS_VERIFY"):
        home = os.path.expanduser("~/.docker")
        return host.replace("tcp://", "https://"), env.get("DOCKER_CERT_PATH") or home, True
    return host, "", False


def _must_be_an_address(variable: str, address: str, text: str) -> None:
    """Raises `SettingError` for an address that docker-py would refuse at each call."""
    with suppress(docker.errors.DockerException, ValueError):
        if not str(parse_host(address)).startswith("ssh:"):  # that needs another package
            return
    raise SettingError(
        f"{variable}={text!r}: must be unix:///path, tcp://host:port or https://host:port"
    )


def _sighting(attributes: dict[str, Any]) -> Sighting:
    state = attributes["State"]
    health = state.get("Health") or {}
    log = health.get("Log") or []
    try:
        status = Health(health.get("Status") or "none")
    except ValueError:
        status = Health.NONE
    healthcheck = attributes["Config"].get("Healthcheck") or {}
    return Sighting(
        id=attributes["Id"],
        name=attributes["Name"].lstrip("/"),
        state=state["Status"],
        health=status,
        line=log[-1].get("Output", "") if log else "",
        test=tuple(healthcheck.get("Test") or ()),
        check_seconds=_check_seconds(healthcheck),
        checks=tuple(
            Check(seconds_of(one.get("Start", "")), one.get("ExitCode", 0), one.get("Output", ""))
            for one in log
        ),
        started_at=state.get("StartedAt", ""),
        finished_at=state.get("FinishedAt", ""),
        labels=attributes["Config"].get("Labels") or {},
        auto_remove=bool(attributes["HostConfig"].get("AutoRemove")),
    )


def _shut(connection: int) -> None:
    """End a connection that another thread reads from."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection)) as one:
        one.shutdown(socket.SHUT_RDWR)


def _check_seconds(healthcheck: dict[str, Any]) -> float:
    """After how long a check is over that begins from now on: one may be under way. Docker's own
    30 s where it says nothing."""
    interval, timeout = (healthcheck.get(key) or 30e9 for key in ("Interval", "Timeout"))
    return float(timeout + interval + timeout) / 1e9


def _shares(inspection: Inspection) -> frozenset[str]:
    modes = [inspection["HostConfig"].get(key) or "" for key in NAMESPACES]
    return frozenset(m.partition(":")[2] for m in modes if m.startswith("container:"))


def _connect(container: str, network: str, endpoint: dict[str, Any], client: Any) -> None:
    url = client._url("/networks/{0}/connect", network)
    body = {"Container": container, "EndpointConfig": endpoint}
    client._raise_for_status(client._post_json(url, data=body))


def _usage(stats: dict[str, Any]) -> Usage:
    memory = stats.get("memory_stats") or {}
    details = memory.get("stats") or {}
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    blocks = (stats.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ()
    return Usage(
        cpu_seconds=stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
        memory_bytes=max(memory.get("usage", 0) - cache, 0),
        memory_limit_bytes=memory.get("limit", 0),
        io_bytes=sum(b["value"] for b in blocks if b["op"].lower() in ("read", "write")),
    )


def _explain(error: Exception, url: str) -> str:
    """What went wrong on the way to the engine, and what to do about it."""
    text = str(error)
    path = url.removeprefix("unix://")
    if "Permission denied" in text or isinstance(error, PermissionError):
        try:
            group = f", which belongs to group {os.stat(path).st_gid}"
        except OSError:
            group = ""
        return f"may not use {url}{group}: run autoheal as that group, or as root"
    if "No such file" in text or isinstance(error, FileNotFoundError):
        return f"there is no Docker engine at {url}: is it running, is its socket mounted?"
    if "Connection refused" in text:
        return f"nothing listens at {url}: is the Docker engine running?"
    if "Failed to resolve" in text:
        return f"cannot resolve {urlsplit(url).hostname}, the host of {url}"
    return f"cannot reach the Docker engine at {url}: {text}"
