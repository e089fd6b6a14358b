"""Finds variables that look like settings and are none. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from probe.knobs import Knob
from probe.settings import KNOBS, LEARNED, RETIRED, SERVE_KNOBS

_FOREIGN = frozenset({"AUTOHEAL_PORT", "AUTOHEAL_TEST_RUN"})
"""Variables with our prefix that are no settings: of Compose and `make`, and of the tests."""

# Kubernetes sets them for a service that is called `probe` or `autoheal`, and Docker for a link.
_FOREIGN_FORM = re.compile(
    r"[A-Z]+_(?:\w+_)?(?:SERVICE_(?:HOST|PORT)(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)?)"
    r"|[A-Z]+_(?:NAME|ENV_\w+)"
)


def unknown_names(
    prefix: str, knobs: Sequence[Knob], env: Mapping[str, str]
) -> list[tuple[str, str | None]]:
    """Find variables that look like settings of ours and are none, as misspelled ones are.

    Args:
        prefix: what names of settings begin with, such as `PROBE_`.
        knobs: the settings.
        env: an environment. A variable that is empty counts as not set.

    Returns:
        For each, its name and the setting that was probably meant; None where none is near.
    """
    known = [knob.env for knob in knobs if knob.env.startswith(prefix)]
    return [
        (name, nearest(name, known, prefix))
        for name, value in env.items()
        if name.startswith(prefix)
        and value
        and name not in {*known, *RETIRED, *_FOREIGN}
        and not _FOREIGN_FORM.fullmatch(name)
    ]


def nearest(name: str, names: Sequence[str], prefix: str) -> str | None:
    """The most similar of some names that share a prefix; None where none is similar."""
    from difflib import get_close_matches  # not needed by a check, which must start fast

    rests = [one.removeprefix(prefix) for one in names]
    found = get_close_matches(name.removeprefix(prefix), rests, n=1)
    return prefix + found[0] if found else None


def retired_names(env: Mapping[str, str]) -> list[tuple[str, str]]:
    """Find settings of the probe that are no longer used; each with what stands in its place."""
    found = [(name, instead) for name, instead in RETIRED.items() if env.get(name)]
    rate = "PROBE_MIN_TOKENS_PER_SECOND"
    if env.get(rate, "").strip().lower() == LEARNED:
        found.append((f"{rate}={LEARNED}", "set a number of tokens per second, or off"))
    return found


def setting_notes(env: Mapping[str, str]) -> list[str]:
    """What is odd about the names of the probe's settings in an environment, a line each."""
    hints = {
        name: f"; did you mean {near}?" if near else ""
        for name, near in unknown_names("PROBE_", (*KNOBS, *SERVE_KNOBS), env)
    }
    return [
        *(f"{name} is not a setting{hint}" for name, hint in hints.items()),
        *(f"{name} is no longer used; {instead}" for name, instead in retired_names(env)),
    ]
