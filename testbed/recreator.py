"""The healer itself, without a supervisor: recreates a container by its name."""

from __future__ import annotations

import os
import time
from pathlib import Path

from autoheal.engine import Engine
from autoheal.heal import Healer, Result
from autoheal.incident import Action, Attempt, Incident
from autoheal.ledger import Ledger
from autoheal.settings import Settings


class Recreator:
    """Recreates a container by its name, with the healer itself."""

    def __init__(self, directory: Path) -> None:
        self.engine = Engine(Settings(), os.environ)
        self.ledger = Ledger(str(directory / "ledger.db"), str(directory))
        self.healer = Healer(self.engine, self.ledger)

    def __call__(self, name: str) -> Result:
        container = self.engine.look(name).id
        incident = self.ledger.save(Incident(name, container, time.time(), "a test"))
        attempt = Attempt(time.time(), Action.RECREATE)
        number, operations = self.ledger.begin(
            incident, attempt, [(Action.RECREATE, name, {"id": container, "stop_timeout": 1})]
        )
        return self.healer.carry_out(number, operations, attempt.at)
