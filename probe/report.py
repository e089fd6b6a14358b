"""A check's result as one line for people, as JSON, as an exit code, and back.

`autoheal` reads the line in `docker inspect` with the code that wrote it. The probe may be of
another version, so the line says what would help, and words that are not known here are kept.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

LINE_LIMIT = 4000
"""Longest line written, in bytes. Docker cuts the output in its health log at 4096."""

HEAD_AND_MESSAGE_LIMIT = 500
"""Longest line without its readings, in bytes. Podman cuts the output in its health log here."""

_HEAD_LIMIT = 60
"""Longer than any status, reason and remedy together, in bytes."""

MESSAGE_LIMIT = HEAD_AND_MESSAGE_LIMIT - _HEAD_LIMIT
"""Longest message, in bytes; a longer one is cut."""


class Remedy(StrEnum):
    """What would help."""

    NONE = "none"
    RUNNER = "runner"
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
    MODEL_UNUSABLE = "model_unusable"
    MISCONFIGURED = "misconfigured"

    @property
    def remedy(self) -> Remedy:
        """What helps against it when it is a fault, unless the verdict says otherwise."""
        return _REMEDIES.get(self, Remedy.NONE)


_REMEDIES = {
    Reason.API_DOWN: Remedy.RESTART,
    Reason.STALLED: Remedy.RESTART,
    Reason.SLOW: Remedy.RESTART,
    Reason.CPU_FALLBACK: Remedy.RESTART,
    Reason.GPU_LOST: Remedy.RESTART,
    Reason.VRAM_MISMATCH: Remedy.RESTART,
    Reason.VRAM_TAKEN: Remedy.OPERATOR,
    Reason.MODEL_MISSING: Remedy.OPERATOR,
    Reason.MODEL_UNUSABLE: Remedy.OPERATOR,
    Reason.MISCONFIGURED: Remedy.OPERATOR,
}

Reading = str | int | float | bool | None


@dataclass(frozen=True)
class Verdict:
    """The result of one check.

    Attributes:
        healthy: what Docker is told.
        reason: one of a closed list. In a line of a newer probe it may be another word.
        message: the same in words, for whoever reads `docker inspect`. It is made one line, and
            cut where it is longer than `MESSAGE_LIMIT`.
        readings: what it rests on; names carry their unit (`first_token_seconds`). Numbers that
            are not finite become None, and what a line has no room for is left out.
        remedy: what would help. Left out, it is what helps against the reason; a healthy verdict
            always has `Remedy.NONE`.
        certain: no other check has to find this again. It is not written into the line.
    """

    healthy: bool
    reason: Reason | str
    message: str
    readings: dict[str, Reading] = field(default_factory=dict)
    remedy: Remedy = None  # type: ignore[assignment]  # never None once it is made
    certain: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", _one_line(self.message))
        object.__setattr__(self, "readings", _in_room(self.readings))
        if self.healthy or self.remedy is None:
            remedy = Remedy.NONE if self.healthy else _usual_remedy(self.reason)
            object.__setattr__(self, "remedy", remedy)

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 unhealthy: Docker's codes (2 is reserved there)."""
        return 0 if self.healthy else 1


def _usual_remedy(reason: Reason | str) -> Remedy:
    """What is meant where no remedy is written; an unknown reason is no ground for a restart."""
    return reason.remedy if isinstance(reason, Reason) else Remedy.NONE


def unhealthy(reason: Reason, message: str, **readings: Reading) -> Verdict:
    """A fault, whose remedy is the usual one for its reason."""
    return Verdict(False, reason, message, readings)


def render(verdict: Verdict) -> str:
    """The verdict as one line: status, reason, remedy, message, then the readings as JSON.

    Example:
        `unhealthy stalled (restart): tiny gave no token in 10 s {"model":"tiny"}`
    """
    status = "healthy" if verdict.healthy else "unhealthy"
    goes_without_saying = verdict.remedy is Remedy.NONE and (
        verdict.healthy or _usual_remedy(verdict.reason) is Remedy.NONE
    )
    remedy = "" if goes_without_saying else f" ({verdict.remedy})"
    return f"{status} {verdict.reason}{remedy}: {verdict.message} {_compact(verdict.readings)}"


# Docker writes its own words before those of a check that was done and could not end, as while a
# call hangs in the driver.
_HEAD = re.compile(
    r"(?:Health check exceeded timeout \([^)]*\): (?=unhealthy ))?"
    r"(healthy|unhealthy) ([a-z_]{1,32})(?: \(([a-z_]{1,16})\))?:(?: |$)"
)

_OPEN = r'"(?:[^"\\]|\\.)*'
_STRING = f'{_OPEN}"'
_CUT_READINGS = re.compile(
    rf"(?:^| )\{{(?:{_STRING}:(?:{_STRING}|[^\",]+),)*"
    rf"(?:{_STRING}:[^\",]*|(?:{_STRING}:)?(?:{_OPEN}\\?|{_STRING})|)$"
)
"""The beginning of a JSON object as `_compact` writes it, up to where it was cut."""


def parse(line: str) -> Verdict | None:
    """Read a line that `render` wrote, in this version of the probe or another.

    The line may have been cut anywhere behind its head; a verdict without its readings is still
    the verdict. Other programs' health checks may begin with the same words, so a line counts
    only if its reason or its remedy is known here, or if it ends with readings.

    Returns:
        The verdict, or None for anything else. A remedy that is not known is `Remedy.OPERATOR`.
    """
    line = line.strip()[: LINE_LIMIT + 1000]  # Docker's own words may stand before it
    head = _HEAD.match(line)
    if head is None:
        return None
    body = line[head.end() :]
    reason = Reason(head[2]) if head[2] in _REASONS else head[2]
    remedy = Remedy(head[3]) if head[3] in _KNOWN_REMEDIES else None
    message, readings = _split(body)
    if readings is None and remedy is None and not isinstance(reason, Reason):
        return None
    if head[3] and remedy is None:
        remedy = Remedy.OPERATOR
    verdict = Verdict(head[1] == "healthy", reason, message, readings or {})
    return verdict if remedy is None else replace(verdict, remedy=remedy)


_REASONS = frozenset(map(str, Reason))
_KNOWN_REMEDIES = frozenset(map(str, Remedy))


def _split(body: str) -> tuple[str, dict[str, Reading] | None]:
    """The message, and the readings behind it; None where they are cut off."""
    # A message may hold braces too: the readings are the shortest tail that is a JSON object.
    for brace in reversed([m.start() for m in re.finditer(r"\{", body)]):
        try:
            return body[:brace].rstrip(), json.loads(body[brace:])
        except (ValueError, RecursionError):
            continue
    return _CUT_READINGS.sub("", body).rstrip(), None


def to_json(verdict: Verdict) -> str:
    """The whole verdict as one line of JSON: status, reason, remedy, message, readings."""
    fields = asdict(verdict)
    del fields["healthy"], fields["certain"]
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
