"""`autoheal doctor`: what stands in the way of healing here, and what to do about each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from autoheal import policy
from autoheal.engine import Engine, EngineError, ForbiddenError
from autoheal.followers import GROUP
from autoheal.healthcheck import environment, probe_program, probe_setting
from autoheal.incident import PROBE_COMMAND, Action
from autoheal.ledger import Ledger, LedgerError
from autoheal.recipe import Recipe
from autoheal.settings import KNOBS, MEMORY, Settings
from probe.generations import describe, is_known
from probe.gpus import NEVER_USED
from probe.setting_names import nearest, retired_names, unknown_names
from probe.settings import KNOBS as PROBE_KNOBS
from probe.settings import SERVE_KNOBS, STARTS_AGAIN

OLDEST_API = (1, 41)

_LABELS = "autoheal."

_NOBODY = "autoheal-doctor-asks-for-nobody"
_NO_LEASE = "autoheal-lease-doctor-asks-for-nobody"
_NO_VOLUME = "/"
"""No volume can have this name, so that none is made."""
_NO_IMAGE = "sha256:" + 64 * "0"
"""No image can have this id, so that no container is made."""


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
    engine: Engine,
    settings: Settings,
    own_id: str | None,
    heartbeat: str | None,
    env: Mapping[str, str],
) -> Iterator[Finding]:
    """Look at everything; yields findings as they come.

    Args:
        engine: to be reached.
        settings: as `autoheal run` would have them here.
        own_id: the container that this runs in, if it does.
        heartbeat: why the supervisor is not well; None when it is.
        env: the environment of autoheal.
    """
    if heartbeat is None:
        yield Finding("ok", "autoheal run is alive here")
    else:
        yield Finding("warning", heartbeat, "start it here, or run this command where it runs")
    yield from _unknown("", "a setting of autoheal", unknown_names("AUTOHEAL_", KNOBS, env))
    try:
        info = engine.info()
    except EngineError as error:
        yield Finding("problem", str(error), _where_the_engine_is(settings, env))
        return
    version = tuple(int(part) for part in info["ApiVersion"].split("."))
    words = f"Docker Engine {info['Version']}, API {info['ApiVersion']}, at {engine.url}"
    if version < OLDEST_API:
        yield Finding("problem", words, "update it to 20.10 (API 1.41) or later")
    else:
        yield Finding("ok", words)
    yield from _calls(engine, settings)
    yield from _ledger(settings, own_id)
    yield from _containers(engine, settings, info)


def _where_the_engine_is(settings: Settings, env: Mapping[str, str]) -> str:
    """What to do where no engine answers."""
    if settings.docker_sock is None and env.get("DOCKER_HOST"):
        return f"check DOCKER_HOST={env['DOCKER_HOST']}"
    mount = "-v /var/run/docker.sock:/var/run/docker.sock"
    return f"mount the socket ({mount}), or set DOCKER_HOST"


def _calls(engine: Engine, settings: Settings) -> Iterator[Finding]:
    """Whether a proxy lets through what healing needs.

    No call changes anything: each is about a container, network or volume that does not exist,
    creates a container from an image that cannot exist, or a volume with a name that is refused.
    """
    calls: dict[str, Callable[[], object]] = {
        "GET /events": lambda: engine.events(""),
        "GET /images/NAME/json": lambda: engine.image_of(_NOBODY),
        "POST /containers/ID/restart": lambda: engine.restart(_NOBODY, 0),
        "POST /containers/ID/stop": lambda: engine.stop(_NOBODY, 0),
        "POST /containers/ID/start": lambda: engine.start(_NOBODY),
        "POST /containers/ID/wait": lambda: engine.ends_within(_NOBODY, 1),
        "POST /containers/ID/rename": lambda: engine.rename(_NOBODY, _NOBODY),
        "POST /containers/create": lambda: engine.create(_NOBODY, Recipe({"Image": _NO_IMAGE}, ())),
        "POST /networks/ID/connect": lambda: engine.connect(_NOBODY, _NOBODY, {}),
        "DELETE /containers/ID": lambda: engine.remove(_NOBODY),
        "GET /volumes": lambda: engine.claims(_NO_LEASE),
        "POST /volumes/create": lambda: engine.claim(_NO_VOLUME, {}),
        "DELETE /volumes/autoheal-lease-*": lambda: engine.unclaim(_NO_LEASE),
    }
    if Action.RUNNER in settings.defaults.rungs:
        calls["POST /containers/ID/exec"] = lambda: engine.run_in(_NOBODY, [PROBE_COMMAND])
    refused = []
    for what, call in calls.items():
        try:
            call()
        except ForbiddenError:
            refused.append(what)
        except EngineError:
            pass  # as it should be: there is nothing of that name
    if refused:
        yield Finding(
            "problem",
            f"the engine, or a proxy in front of it, refuses {', '.join(refused)}",
            "allow the calls of docs/security.md",
        )
    else:
        words = "every call that healing needs is allowed (calls to Swarm were not tried)"
        yield Finding("ok", words)


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
        labels = found["Config"].get("Labels") or {}
        rules = settings.policy(labels)
        if not rules.watched:
            continue
        watched += 1
        yield from (Finding("problem", f"{name}: {one}") for one in rules.problems)
        yield from _unknown(f"{name}: ", "a label of autoheal", _unknown_labels(labels, settings))
        yield from _container(name, found, starts.get(name), info, engine)
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
                f"{name} is left over from recreating a container",
                "if the container that it stands for is healthy, remove it: docker rm " + name,
            )


def _container(
    name: str,
    found: dict[str, Any],
    longest_start: float | None,
    info: Mapping[str, Any],
    engine: Engine,
) -> Iterator[Finding]:
    config, host = found["Config"], found["HostConfig"]
    check = config.get("Healthcheck") or {}
    if (check.get("Test") or ["NONE"])[0] == "NONE":
        yield Finding(
            "problem",
            f"{name} is labelled, but has no HEALTHCHECK: its failures cannot be detected",
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
            f"{name} is removed when it stops (--rm), so it can be restarted but not recreated",
            "start it without --rm",
        )
    env = environment(config.get("Env"))
    yield from _counting(name, check, env)
    if PROBE_COMMAND in " ".join(check["Test"]):
        yield from _probe_settings(name, env)
        yield from _ending(name, check["Test"], env, found)
        if found["State"]["Running"]:
            yield from _server(name, found["Id"], check["Test"], engine)
        yield from _gpu(name, found, env, info)


def _probe_settings(name: str, env: Mapping[str, str]) -> Iterator[Finding]:
    unknown = unknown_names("PROBE_", (*PROBE_KNOBS, *SERVE_KNOBS), env)
    yield from _unknown(f"{name}: ", "a setting of the probe", unknown)
    for variable, instead in retired_names(env):
        yield Finding("warning", f"{name}: {variable} is no longer used", instead)


def _counting(name: str, check: Mapping[str, Any], env: Mapping[str, str]) -> Iterator[Finding]:
    """Either the probe counts failing checks, as in its image, or Docker: not both, nor nobody."""
    in_image = env.get("PROBE_RETRIES")
    by_docker = check.get("Retries") or 3
    by_probe = probe_setting(check["Test"], env, "--retries", "1")
    ours = PROBE_COMMAND in " ".join(check["Test"])
    if ours and by_docker > 1 and by_probe != "1":
        yield Finding(
            "warning",
            f"{name} is called unhealthy after {by_docker} failing checks, although the probe "
            f"counts by itself (--retries {by_probe}): healing begins later than it could",
            "set retries: 1 for its HEALTHCHECK (in a Swarm keep 3)",
        )
    elif in_image is not None and by_docker == 1 and (by_probe == "1" or not ours):
        yield Finding(
            "warning",
            f"{name} is called unhealthy after one failing check, and nothing counts: what its "
            "HEALTHCHECK leaves out comes from the image",
            "set retries: 3 for its HEALTHCHECK",
        )


def _ending(
    name: str, test: list[str], env: Mapping[str, str], found: Mapping[str, Any]
) -> Iterator[Finding]:
    """A check that ends the server relies on the policy by which Docker starts it again."""
    is_task = "com.docker.swarm.task.id" in (found["Config"].get("Labels") or {})
    if is_task or probe_setting(test, env, "--heal", "off").lower() != "restart":
        return
    stated = probe_setting(test, env, "--restart-policy", "none").lower()
    policy = (found["HostConfig"].get("RestartPolicy") or {}).get("Name") or "no"
    starts_again = policy in STARTS_AGAIN
    if stated not in STARTS_AGAIN:
        wanted = policy if starts_again else "unless-stopped, and give it that policy (restart:)"
        yield Finding(
            "warning",
            f"{name} has PROBE_HEAL=restart and PROBE_RESTART_POLICY={stated}: its checks end no "
            "server",
            f"set PROBE_RESTART_POLICY={wanted}",
        )
    elif not starts_again:
        yield Finding(
            "problem",
            f"{name} has PROBE_HEAL=restart, PROBE_RESTART_POLICY={stated} and the restart policy "
            f"{policy}: it stays down once a check has ended its server",
            f"give it the policy {stated} (restart: in Compose), or set PROBE_HEAL=runner",
        )


def _server(name: str, container: str, test: list[str], engine: Engine) -> Iterator[Finding]:
    """The Ollama that a container runs, as its own probe sees it; asks no model for anything."""
    try:
        _, output = engine.run_in(container, [probe_program(test), "status", "--format", "json"])
        seen = json.loads(output)
        version, readings = seen["server"]["version"], seen["readings"]
    except (EngineError, ValueError, LookupError, TypeError):
        version, readings = "", {}
    if not version:
        yield Finding("ok", f"{name}: its version of Ollama could not be determined")
    elif is_known(version):
        yield Finding("ok", f"{name}: {describe(version)}")
    else:
        yield Finding(
            "warning",
            f"{name}: {describe(version)}",
            "compare `ollama-probe status` in it with what you know, and report what is wrong",
        )
    if readings.get("gpu") == NEVER_USED:
        yield Finding(
            "warning",
            f"{name} has a GPU, and no model has been in its VRAM yet",
            "set PROBE_GPU=required where it has to be used, or a model on the CPU is no fault",
        )


def _unknown_labels(labels: Mapping[str, str], settings: Settings) -> list[tuple[str, str | None]]:
    known = [GROUP, *(knob.label for knob in policy.KNOBS)]
    names = [name for name in labels if name.startswith(_LABELS)]
    return [
        (name, nearest(name, known, _LABELS))
        for name in names
        if name not in (*known, settings.container_label)
    ]


def _unknown(where: str, what: str, names: Iterable[tuple[str, str | None]]) -> Iterator[Finding]:
    """Findings for names that look like ours and are not; each with the nearest real one."""
    for name, near in names:
        advice = f"did you mean {near}?" if near else "see docs/configuration.md"
        yield Finding("warning", f"{where}{name} is not {what}", advice)


def _gpu(
    name: str, found: dict[str, Any], env: Mapping[str, str], info: Mapping[str, Any]
) -> Iterator[Finding]:
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
