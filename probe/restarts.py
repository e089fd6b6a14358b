"""When checks have ended the server, in a file that outlives it, and how often they may."""

from __future__ import annotations

import json
import os

from probe.memory_file import write_whole
from probe.processes import boot_id, read

_HOUR, _DAY = 3600.0, 86_400.0

BUDGET = {"an hour": (_HOUR, 3), "a day": (_DAY, 6)}
"""A check ends the server no more often than this within these times: it does not help."""

_GAPS = (60.0, 240.0)
"""Seconds from the first end within an hour to the second, and from that to the third."""

_SHORT_LIVED = ("tmpfs", "ramfs")
"""Kinds of file systems that end with the container."""

_LIMIT_BYTES = 1 << 16


class Restarts:
    """The ends of this container's server, in seconds of the machine's monotonic clock.

    Attributes:
        path: of the file.
        problem: why none can be noted so that it is known afterwards; None when it can.
        times: when the server was ended, since the machine was started; oldest first.
    """

    def __init__(self, directory: str, proc: str = "/proc") -> None:
        self.path = os.path.join(directory, f"restarts-{os.geteuid()}.json")
        self._boot = boot_id(proc)
        self.problem = _short_lived(directory, proc)
        self.times: tuple[float, ...] = ()
        try:
            with open(self.path, encoding="utf-8") as file:
                content = json.loads(file.read(_LIMIT_BYTES))
            times = tuple(float(one) for one in content["times"])
            self.times = times if content["boot"] == self._boot else ()
        except FileNotFoundError:
            pass  # none was ended yet
        except (OSError, ValueError, TypeError, LookupError) as error:
            self.problem = f"{self.path} cannot be read: {error}"

    def spent(self, now: float) -> str | None:
        """How often the server was ended, if that is as often as may be; None where it is not."""
        for name, (seconds, most) in BUDGET.items():
            if len(self._within(seconds, now)) >= most:
                return f"{most} times within {name}"
        return None

    def wait(self, now: float) -> float:
        """Seconds until it may be ended again, where it is not spent."""
        recent = self._within(_HOUR, now)
        return max(recent[-1] + _GAPS[len(recent) - 1] - now, 0.0) if recent else 0.0

    def note(self, now: float) -> bool:
        """Note one more, and return whether it will be known afterwards."""
        if self.problem is not None:
            return False
        times = (*self._within(_DAY, now), now)
        try:
            write_whole(self.path, {"boot": self._boot, "times": times}, sync=True)
        except OSError as error:
            self.problem = str(error)
            return False
        self.times = times
        return True

    def _within(self, seconds: float, now: float) -> tuple[float, ...]:
        return tuple(one for one in self.times if now - one < seconds)


def _short_lived(directory: str, proc: str) -> str | None:
    """Why what is written here ends with the container; None where it does not."""
    path, found, kind = os.path.realpath(directory), "", ""
    for line in read(f"{proc}/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4]
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(found):
            found, kind = place, after.split()[0]
    if kind in _SHORT_LIVED:
        return f"{directory} is on {kind}, which ends with the container (PROBE_CACHE_DIR)"
    return None if kind else f"where {directory} is kept is not known"
