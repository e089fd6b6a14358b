"""`autoheal doctor`: what stands in the way of healing here, and what to do about each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from autoheal.engine import Engine, EngineError, ForbiddenError
from autoheal.ledger import Ledger, LedgerError
from autoheal.settings import MEMORY, Settings, policy

OLDEST_API = (1, 41)

_NOBODY = "autoheal-doctor-asks-for-nobody"
_PROBE_OF_OURS = "ollama-probe"


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        level: ok, warning or problem.
        what: what was found.
        advice: what to do about it; empty where all is well.
    """

    level: str
    what: str
    advice: str = ""


def examine(
    engine: Engine, settings: Settings, own_id: str | None, heartbeat: str | None
) -> Iterator[Finding]:
    """Look at everything; yields findings as they come.

    Args:
        engine: to be reached.
        settings: as `autoheal run` would have them here.
        own_id: the container that this runs in, if it does.
        heartbeat: why the supervisor is not well; None when it is.
    """
    if heartbeat is None:
        yield Finding("ok", "autoheal run is alive here")
    else:
        yield Finding("warning", heartbeat, "start it here, or run this command where it runs")
    try:
        info = engine.info()
    except EngineError as error:
        mount = "-v /var/run/docker.sock:/var/run/docker.sock"
        advice = f"mount the socket ({mount}), or set DOCKER_HOST"
        yield Finding("problem", str(error), advice)
        return
    version = tuple(int(part) for part in info["ApiVersion"].split("."))
    words = f"Docker Engine {info['Version']}, API {info['ApiVersion']}, at {engine.url}"
    if version < OLDEST_API:
        yield Finding("problem", words, "update it to 20.10 (API 1.41) or later")
    else:
        yield Finding("ok", words)
    yield from _calls(engine)
    yield from _ledger(settings, own_id)
    yield from _containers(engine, settings, info)


def _calls(engine: Engine) -> Iterator[Finding]:
    """Whether a proxy lets through what healing needs; each call is about nobody."""
    calls: dict[str, Callable[[], None]] = {
        "restart containers": lambda: engine.restart(_NOBODY, 0),
        "make containers anew": lambda: engine.rename(_NOBODY, _NOBODY),
        "take leases (volumes)": lambda: engine.unclaim(_NOBODY),
    }
    refused = []
    for what, call in calls.items():
        try:
            call()
        except ForbiddenError:
            refused.append(what)
        except EngineError:
            pass  # as it should be: there is no such container
    if refused:
        yield Finding(
            "problem",
            f"the engine, or a proxy in front of it, does not let autoheal {', '.join(refused)}",
            "allow the calls of docs/security.md",
        )
    else:
        yield Finding("ok", "every call that healing needs is allowed")


def _ledger(settings: Settings, own_id: str | None) -> Iterator[Finding]:
    advice = (
        "give it a file on a volume: -v autoheal:/var/lib/autoheal "
        "-e AUTOHEAL_LEDGER=/var/lib/autoheal/ledger.db"
    )
    path = settings.ledger_path
    if settings.ledger == MEMORY:
        yield Finding("warning", "the ledger is in memory, and ends with this container", advice)
        return
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        yield Finding("problem", f"the ledger's directory {folder} is not there", advice)
    elif own_id is not None and os.stat(folder).st_dev == os.stat("/").st_dev:
        yield Finding("warning", f"the ledger {path} is not on a volume", advice)
    elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
        yield Finding(
            "problem",
            f"the ledger {path} cannot be written by user {os.geteuid()}",
            f"chown it, or use a named volume: {advice}",
        )
    else:
        yield Finding("ok", f"the ledger is at {path}")


def _containers(engine: Engine, settings: Settings, info: Mapping[str, Any]) -> Iterator[Finding]:
    rows = engine.containers(settings.label_filter)
    starts: Mapping[str, float] = {}
    with suppress(LedgerError):
        ledger = Ledger(settings.ledger_path, settings.state_dir, guest=True)
        starts = ledger.longest_starts()
        ledger.shut()
    watched = 0
    for row in rows:
        found = engine.find(row["Id"])
        if found is None:
            continue
        name = found["Name"].lstrip("/")
        rules = policy(found["Config"].get("Labels") or {}, settings)
        if not rules.watched:
            continue
        watched += 1
        yield from (Finding("problem", f"{name}: {one}") for one in rules.problems)
        yield from _container(name, found, starts.get(name), info)
    if watched:
        noun = "container is" if watched == 1 else "containers are"
        yield Finding("ok", f"{watched} {noun} watched")
    else:
        label = settings.label_filter or "a HEALTHCHECK"
        yield Finding("warning", "no container is watched", f"start one with the label {label}")
    for row in engine.containers():
        name = min(row["Names"] or [""]).lstrip("/")
        if "-autoheal-old-" in name or "-autoheal-new-" in name:
            yield Finding(
                "warning",
                f"{name} was left over from making a container anew",
                "if the container it stands for is well, remove it: docker rm " + name,
            )


def _container(
    name: str, found: dict[str, Any], longest_start: float | None, info: Mapping[str, Any]
) -> Iterator[Finding]:
    config, host = found["Config"], found["HostConfig"]
    check = config.get("Healthcheck") or {}
    if (check.get("Test") or ["NONE"])[0] == "NONE":
        yield Finding(
            "problem",
            f"{name} is labelled, but has no HEALTHCHECK: nobody would know that it is sick",
            "give it one (healthcheck: in Compose), or the image of Dockerfile.ollama",
        )
        return
    start_period = check.get("StartPeriod", 0) / 1e9
    patience = start_period + (check.get("Retries") or 3) * (check.get("Interval") or 30e9) / 1e9
    if longest_start is not None and longest_start > patience:
        yield Finding(
            "warning",
            f"{name} took {longest_start:.0f} s to get healthy, and is called unhealthy after "
            f"{patience:.0f} s",
            f"give its HEALTHCHECK a start period of {2 * longest_start:.0f} s (start_period:)",
        )
    if host.get("AutoRemove"):
        yield Finding(
            "warning",
            f"{name} goes away when it stops (--rm), so it can be restarted but not made anew",
            "start it without --rm",
        )
    if _PROBE_OF_OURS in " ".join(check["Test"]):
        yield from _gpu(name, found, info)


def _gpu(name: str, found: dict[str, Any], info: Mapping[str, Any]) -> Iterator[Finding]:
    env = dict(word.partition("=")[::2] for word in found["Config"].get("Env") or ())
    host = found["HostConfig"]
    asks = bool(host.get("DeviceRequests")) or host.get("Runtime") == "nvidia"
    has_runtime = "nvidia" in (info.get("Runtimes") or {})
    if (asks or env.get("PROBE_GPU") == "required") and not has_runtime:
        yield Finding(
            "problem",
            f"{name} wants a GPU, and this engine has no NVIDIA runtime",
            "install the NVIDIA Container Toolkit: "
            "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit",
        )
    elif has_runtime and not asks and env.get("PROBE_GPU") != "off":
        yield Finding(
            "warning",
            f"{name} was given no GPU, though this engine has NVIDIA's runtime",
            "use compose.gpu.yaml (docker run --gpus all), or say PROBE_GPU=off",
        )
