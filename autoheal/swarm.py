"""Updates a Swarm service, or deploys a stack again from its file."""

from __future__ import annotations

import subprocess
import time

from autoheal.engine import Engine
from autoheal.ledger import Ledger
from autoheal.operation import HealError, Operation

UPDATE_SECONDS = 1800.0
"""The longest that a Swarm update is watched; it goes on without us."""

UPDATE_LOOK_SECONDS = 1.0


def update(engine: Engine, ledger: Ledger, operation: Operation) -> Operation:
    """Have Swarm replace all tasks of a service, and wait until it has."""
    service = operation.facts["id"]
    if operation.step == "planned":
        forced = engine.service(service).forced + 1
        operation = ledger.step(operation, "update", forced=forced)
    if engine.service(service).forced < operation.facts["forced"]:
        engine.update_by_force(service, operation.facts["forced"])
    deadline = time.monotonic() + UPDATE_SECONDS
    while time.monotonic() < deadline:
        update = engine.service(service)
        if update.state == "completed":
            return operation
        if update.state in ("paused", "rollback_paused", "rollback_completed"):
            raise HealError(f"Swarm's update is {update.state}: {update.message}")
        time.sleep(UPDATE_LOOK_SECONDS)
    raise HealError(f"Swarm's update is not over after {UPDATE_SECONDS:g} s")


def deploy(engine: Engine, ledger: Ledger, operation: Operation) -> Operation:
    """`docker stack deploy`: only Docker's own program reads stack files."""
    operation = ledger.step(operation, "deploy")
    file = operation.facts["file"]
    command = ["docker", "--host", engine.url, "stack", "deploy", "--compose-file", file]
    try:
        done = subprocess.run(
            [*command, "--with-registry-auth", operation.name],
            capture_output=True,
            text=True,
            timeout=UPDATE_SECONDS,
        )
    except FileNotFoundError:
        raise HealError(
            "there is no docker program here to read the stack file with: mount one, or leave "
            "the file out for an update by force"
        ) from None
    except subprocess.TimeoutExpired:
        raise HealError(f"docker stack deploy was not over after {UPDATE_SECONDS:g} s") from None
    if done.returncode != 0:
        raise HealError(f"docker stack deploy: {' '.join(done.stderr.split())[-300:]}")
    return operation
