"""Log lines, and times, in the forms that Ollama writes."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from datetime import datetime, timedelta

FOREVER = (2**63 - 1) / 1e9
"""The longest duration that Go knows, in seconds: 292 years."""

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PARTS = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")


def say(message: str, level: str = "INFO", **fields: object) -> None:
    """Write a line to the log."""
    more = "".join(f" {name}={json.dumps(str(value))}" for name, value in fields.items())
    line = f"time={timestamp(time.time())} level={level} source=twin msg={json.dumps(message)}"
    write(line + more)


def write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def timestamp(seconds: float) -> str:
    """RFC 3339 with up to nine digits and this container's time zone, as Go writes it."""
    whole = math.floor(seconds)
    # a far date is not in the range of the C library's conversions on every system
    zone = datetime.now().astimezone().utcoffset() or timedelta()
    moment = datetime(1970, 1, 1) + timedelta(seconds=whole) + zone
    digits = f"{round((seconds - whole) * 1e9):09d}"[:9].rstrip("0")
    minutes = int(zone.total_seconds() // 60)
    name = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}{'.' if digits else ''}{digits}{name if minutes else 'Z'}"


def duration(value: object) -> float:
    """Seconds of a `keep_alive`: a number of them, or Go's text; negative is for ever.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"Unsupported type: '{type(value).__name__}'")
    if isinstance(value, str):
        sign, digits = (-1, value[1:]) if value.startswith("-") else (1, value.removeprefix("+"))
        if digits != "0" and not re.fullmatch(f"({_PARTS.pattern})+", digits):
            raise ValueError(f'time: invalid duration "{value}"')
        value = sign * sum(float(n) * _UNITS[unit] for n, unit in _PARTS.findall(digits))
    return FOREVER if value < 0 else min(float(value), FOREVER)


def setting(name: str, default: int) -> int:
    """A number in the environment."""
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default


def default_keep_alive() -> float:
    """OLLAMA_KEEP_ALIVE, in seconds."""
    text = os.environ.get("OLLAMA_KEEP_ALIVE", "")
    try:
        return duration(float(text) if re.fullmatch(r"-?\d+", text) else text)
    except ValueError:
        return 300.0
