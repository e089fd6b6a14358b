"""What a check found, as one line for a person, as JSON, as an exit code, and back.

`autoheal` reads the line out of `docker inspect` with the same file that wrote it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum

LINE_LIMIT = 2048
"""Longest line written, in characters; Docker cuts a health log's output at 4096 bytes."""


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
        message: the same in words, one line, for the person who reads `docker inspect`.
        readings: what it rests on; names carry their unit (`first_token_seconds`).
    """

    healthy: bool
    reason: Reason
    message: str
    readings: dict[str, Reading] = field(default_factory=dict)

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

    A message that would make the line longer than `LINE_LIMIT` is cut.
    """
    status = "healthy" if verdict.healthy else "unhealthy"
    remedy = "" if verdict.remedy is Remedy.NONE else f" ({verdict.remedy})"
    head = f"{status} {verdict.reason}{remedy}: "
    tail = " " + json.dumps(verdict.readings, separators=(",", ":"))
    message = _one_line(verdict.message)
    room = max(LINE_LIMIT - len(head) - len(tail), 0)
    if len(message) > room:
        message = message[: max(room - 1, 0)] + "…"
    return head + message + tail


_HEAD = re.compile(r"(healthy|unhealthy) ([a-z_]+)(?: \([a-z]+\))?: ")


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


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
