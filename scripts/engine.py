"""Make a Docker Engine with Compose v2 answer: find one, start it, or install it."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

from scripts import apt
from scripts.engine_plan import Plan, Stop, plan
from scripts.machine import CLIENT_SECONDS, Machine, inspect
from scripts.say import LOGS, FailedError, run, say, step, works

START_SECONDS = 60

SOURCE = Path("/etc/apt/sources.list.d/ollama-autoheal-engine.sources")
PREFERENCES = Path("/etc/apt/preferences.d/ollama-autoheal-engine")
"""Where updates of an engine from Debian 13 come from, on Debian 12."""

_ENGINES = {"docker.io", "docker-ce", "docker-ce-cli", "containerd", "containerd.io", "runc"}
"""Packages that containers run on, Docker's or others'."""


def decide(machine: Machine) -> Plan:
    """What has to be done here; raises `FailedError` where only the user can do it."""
    todo = plan(machine)
    if isinstance(todo, Stop):
        raise FailedError(todo.message)
    return todo


def carry_out(todo: Plan, machine: Machine) -> Machine:
    """Make an engine answer; returns what the machine has then, raises `FailedError`."""
    if todo.install:
        _install(todo, machine)
    if todo.start and not answers():
        _start(machine)
    if todo != Plan():
        machine = inspect()
        # Nothing left to do, or whatever is left is more than was foreseen.
        if plan(machine) != Plan():
            raise FailedError(
                f"Docker was installed or started, and does not work yet. See {LOGS}/make.log, and "
                "run `make up` again."
            )
    compose = run(["docker", "compose", "version", "--short"]).strip()
    say(f"Docker Engine {version()}, Compose {compose}")
    return machine


def answers() -> bool:
    """Whether an engine does, where the client looks for it."""
    return works(["docker", "version"], timeout=CLIENT_SECONDS)


def version() -> str:
    """The engine's, such as 26.1.5."""
    return run(["docker", "version", "--format", "{{.Server.Version}}"]).strip()


def _install(todo: Plan, machine: Machine) -> None:
    engine = any(package.partition("/")[0] == "docker.io" for package in todo.install)
    what = "Docker Engine" if engine else "the Docker plugins"
    say(f"{what[0].upper()}{what[1:]} from the package archive of {machine.name}:")
    if machine.begun:  # an earlier run may have been interrupted
        run(["dpkg", "--configure", "-a"])
    apt.update()
    try:
        if todo.from_trixie:
            _add_trixie()
        apt.check(todo.install, what, _changes_an_engine)
    except BaseException:
        if not machine.begun:  # nothing came from there, so nothing needs it for updates
            SOURCE.unlink(missing_ok=True)
            PREFERENCES.unlink(missing_ok=True)
        raise
    apt.install(todo.install, what)


def _changes_an_engine(simulated: str) -> str | None:
    """Why it must not be done: it would replace what containers run on, perhaps another's."""
    names = [name for name in apt.upgrades(simulated) if name in _ENGINES]
    return f"replace {', '.join(names)}" if names else None


def _add_trixie() -> None:
    SOURCE.write_text(
        f"Types: deb\nURIs: {apt.archive()}\nSuites: trixie\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
    # Nothing is taken from there unless it is asked for by name.
    PREFERENCES.write_text("Package: *\nPin: release n=trixie\nPin-Priority: 100\n")
    apt.update(only=str(SOURCE))


def _start(machine: Machine) -> None:
    with step("starting Docker Engine"):
        daemon = None
        if machine.systemd:
            run(["systemctl", "start", "docker"])
        else:
            _clear_leftovers()
            LOGS.mkdir(exist_ok=True)
            with open(LOGS / "dockerd.log", "wb") as log:
                daemon = subprocess.Popen(
                    ["dockerd"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if time.monotonic() > deadline or (daemon is not None and daemon.poll() is not None):
                raise FailedError(f"Docker Engine does not start.\n{_why(machine)}")
            time.sleep(0.3)


def _why(machine: Machine) -> str:
    """The last words of an engine that did not start."""
    if machine.systemd:
        return "See: journalctl --unit docker"
    lines = (LOGS / "dockerd.log").read_text(errors="replace").strip().splitlines()
    return "\n".join(["    " + line for line in lines[-3:]] + [f"  See {LOGS}/dockerd.log"])


def _clear_leftovers() -> None:
    """Remove what a killed engine left, which would stop the next one: pid files of others."""
    for file, name in (
        ("/var/run/docker.pid", "dockerd"),
        ("/var/run/docker/containerd/containerd.pid", "containerd"),
    ):
        alive = False
        with suppress(OSError, ValueError):
            pid = int(Path(file).read_text())
            alive = Path(f"/proc/{pid}/comm").read_text().strip() == name
        if not alive:
            Path(file).unlink(missing_ok=True)
