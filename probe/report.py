"""What a check found, as one line for a person, as JSON, as an exit code, and back.

`autoheal` reads the line out of `docker inspect` with the same file that wrote it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum

LINE_LIMIT = 4000
"""Longest line written, in bytes; Docker cuts a health log's output at 4096."""

MESSAGE_LIMIT = 1500
"""Longest message, in bytes; a longer one is cut."""


class Remedy(StrEnum):
    """What would help."""

    NONE = "none"
    RESTART = "restart"
    RECREATE = "recreate"
    OPERATOR = "operator"


class Reason(StrEnum):
    """Why a server is healthy or not; `docs/reasons.md` has the meanings."""

    READY = "ready"
    IDLE = "idle"
    BUSY = "busy"
    LOADING = "loading"
    API_DOWN = "api_down"
    STALLED = "stalled"
    SLOW = "slow"
    CPU_FALLBACK = "cpu_fallback"
    GPU_LOST = "gpu_lost"
    VRAM_MISMATCH = "vram_mismatch"
    VRAM_TAKEN = "vram_taken"
    MODEL_MISSING = "model_missing"
    MISCONFIGURED = "misconfigured"

    @property
    def remedy(self) -> Remedy:
        """What helps against it, when it is a fault."""
        return _REMEDIES.get(self, Remedy.NONE)


_REMEDIES = {
    Reason.API_DOWN: Remedy.RESTART,
    Reason.STALLED: Remedy.RESTART,
    Reason.SLOW: Remedy.RESTART,
    Reason.CPU_FALLBACK: Remedy.RECREATE,
    Reason.GPU_LOST: Remedy.RECREATE,
    Reason.VRAM_MISMATCH: Remedy.RECREATE,
    Reason.VRAM_TAKEN: Remedy.OPERATOR,
    Reason.MODEL_MISSING: Remedy.OPERATOR,
    Reason.MISCONFIGURED: Remedy.OPERATOR,
}

Reading = str | int | float | bool | None


@dataclass(frozen=True)
class Verdict:
    """The result of one check.

    Attributes:
        healthy: what Docker is told.
        reason: one of a closed list.
        message: the same in words, for the person who reads `docker inspect`. It is made one
            line, and cut where it is longer than `MESSAGE_LIMIT`.
        readings: what it rests on; names carry their unit (`first_token_seconds`). Numbers that
            are none become None, and what a line has no room for is left out.
    """

    healthy: bool
    reason: Reason
    message: str
    readings: dict[str, Reading] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", _one_line(self.message))
        object.__setattr__(self, "readings", _in_room(self.readings))

    @property
    def remedy(self) -> Remedy:
        return Remedy.NONE if self.healthy else self.reason.remedy

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 unhealthy: Docker's codes (2 is reserved there)."""
        return 0 if self.healthy else 1


def render(verdict: Verdict) -> str:
    """The verdict as one line: status, reason, remedy, words, then the readings as JSON.

    Example:
        `unhealthy stalled (restart): tiny gave no token in 10 s {"model":"tiny"}`
    """
    status = "healthy" if verdict.healthy else "unhealthy"
    remedy = "" if verdict.remedy is Remedy.NONE else f" ({verdict.remedy})"
    return f"{status} {verdict.reason}{remedy}: {verdict.message} {_compact(verdict.readings)}"


_HEAD_LIMIT = 60
"""Longer than any status, reason and remedy together."""

# Docker writes its own words before those of a check that was done and could not end, as while a
# call hangs in the driver.
_HEAD = re.compile(
    r"(?:Health check exceeded timeout \([^)]*\): (?=unhealthy ))?"
    r"(healthy|unhealthy) ([a-z_]+)(?: \([a-z]+\))?: "
)


def parse(line: str) -> Verdict | None:
    """The verdict that `render` wrote as this line, or None when it wrote no such line."""
    line = line.strip()
    head = _HEAD.match(line)
    if head is None:
        return None
    body = line[head.end() :]
    # A message may hold braces too: the readings are the shortest tail that is a JSON object.
    for brace in reversed([m.start() for m in re.finditer(r"\{", body)]):
        try:
            readings = json.loads(body[brace:])
            return Verdict(head[1] == "healthy", Reason(head[2]), body[:brace].rstrip(), readings)
        except ValueError:
            continue
    return None


def to_json(verdict: Verdict) -> str:
    """The whole verdict as one line of JSON: status, reason, remedy, message, readings."""
    fields = asdict(verdict)
    fields.pop("healthy")
    status = "healthy" if verdict.healthy else "unhealthy"
    return json.dumps({"status": status, "remedy": str(verdict.remedy), **fields})


def short_time(seconds: float) -> str:
    """A length of time for a person: in ms where it is less than a second."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _one_line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    content = line.encode()
    if len(content) <= MESSAGE_LIMIT:
        return line
    return content[: MESSAGE_LIMIT - 3].decode(errors="ignore").rstrip() + "…"


def _in_room(readings: dict[str, Reading]) -> dict[str, Reading]:
    kept: dict[str, Reading] = {}
    room = LINE_LIMIT - MESSAGE_LIMIT - _HEAD_LIMIT
    for name, value in readings.items():
        reading = None if isinstance(value, float) and not math.isfinite(value) else value
        room -= len(_compact({name: reading}))
        if room >= 0:
            kept[name] = reading
    return kept


def _compact(readings: dict[str, Reading]) -> str:
    return json.dumps(readings, separators=(",", ":"))
