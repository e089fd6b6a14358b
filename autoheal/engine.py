"""Docker. The only file that imports `docker`; the rest sees these methods and our own types."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import docker
import requests
from docker.tls import TLSConfig

from autoheal.decide import Health, Sighting
from autoheal.settings import Settings

DEFAULT_SOCKET = "unix:///var/run/docker.sock"
CERTIFICATES = "/certs"


_CLIENT = {True: ("cert.pem", "key.pem"), False: ("client-cert.pem", "client-key.pem")}
"""Names of a client's certificate and key: Docker's own, and docker-autoheal's."""


class EngineError(Exception):
    """A call to the engine failed; its text says which, and why."""


class NoSuchContainerError(EngineError):
    """The container is gone."""


class Engine:
    """One Docker engine. Connects at the first call, and again after a failed one.

    Every method raises `EngineError`. Methods may be called from any thread.
    """

    def __init__(self, settings: Settings, env: Mapping[str, str]) -> None:
        self.url, self._certificates, self._verify = _address(settings, env)
        self._timeout = settings.api_timeout
        self._client: docker.APIClient | None = None

    def look(self, container: str) -> Sighting:
        """One container now; raises `NoSuchContainerError` when it is gone."""
        return _sighting(self._call(container, lambda client: client.inspect_container(container)))

    def unhealthy(self, label: str) -> list[str]:
        """Ids of the containers that are unhealthy; `label` is `NAME=VALUE`, or empty for all."""
        filters: dict[str, Any] = {"health": "unhealthy"}
        if label:
            filters["label"] = label
        rows = self._call(
            "the list of containers", lambda client: client.containers(all=True, filters=filters)
        )
        return [row["Id"] for row in rows]

    def restart(self, container: str, stop_timeout: int) -> None:
        """Stop it, kill it after `stop_timeout` seconds, and start it again, all in the engine."""
        # docker-py adds the stop timeout to its own, so a slow stop is no lost call.
        self._call(container, lambda client: client.restart(container, timeout=stop_timeout))

    def events(self, label: str) -> Iterator[str]:
        """The ids of containers as their health changes, from now on.

        Returns once the engine listens for us; iterating ends when it closes the connection.
        """
        filters: dict[str, Any] = {"type": "container", "event": "health_status"}
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

    def _call(self, what: str, call: Any) -> Any:
        try:
            if self._client is None:
                self._client = self._connect()
            return call(self._client)
        except docker.errors.NotFound as error:
            raise NoSuchContainerError(f"{what}: {error.explanation}") from None
        except docker.errors.APIError as error:
            raise EngineError(f"{what}: {error.explanation or error}") from None
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise EngineError(_explain(error, self.url)) from None

    def _connect(self) -> docker.APIClient:
        tls: TLSConfig | bool = False
        if self._certificates:
            files = [f"{self._certificates}/{name}" for name in ("ca.pem", *_CLIENT[self._verify])]
            tls = TLSConfig(client_cert=(files[1], files[2]), ca_cert=files[0], verify=True)
        return docker.APIClient(self.url, version="auto", tls=tls, timeout=round(self._timeout))


def _address(settings: Settings, env: Mapping[str, str]) -> tuple[str, str, bool]:
    """The engine's URL, the directory of certificates (empty: none), and whose names they have."""
    sock = settings.docker_sock
    if sock is not None:
        if sock.startswith(("tcps://", "https://")):
            return f"https://{urlsplit(sock).netloc}", CERTIFICATES, False
        return sock, "", False
    host = env.get("DOCKER_HOST") or DEFAULT_SOCKET
    if env.get("DOCKER_TLS_VERIFY"):
        home = os.path.expanduser("~/.docker")
        return host.replace("tcp://", "https://"), env.get("DOCKER_CERT_PATH") or home, True
    return host, "", False


def _sighting(attributes: dict[str, Any]) -> Sighting:
    state = attributes["State"]
    health = state.get("Health") or {}
    log = health.get("Log") or []
    try:
        status = Health(health.get("Status") or "none")
    except ValueError:
        status = Health.NONE
    return Sighting(
        id=attributes["Id"],
        name=attributes["Name"].lstrip("/"),
        state=state["Status"],
        health=status,
        line=log[-1].get("Output", "") if log else "",
        finished_at=state.get("FinishedAt", ""),
        labels=attributes["Config"].get("Labels") or {},
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
    return f"cannot reach the Docker engine at {url}: {text}"
