"""What the HEALTHCHECK of a container says of the probe in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoheal.incident import PROBE_COMMAND


def probe_program(test: Sequence[str]) -> str:
    """How a health check calls the probe."""
    words = " ".join(test).split()
    return next((word for word in words if word.endswith(PROBE_COMMAND)), PROBE_COMMAND)


def probe_setting(test: Sequence[str], env: Mapping[str, str], flag: str, default: str) -> str:
    """What a setting of the probe is: the value of its flag, else that of its variable.

    Args:
        test: the health check's command, as Docker has it (`CMD`, ...).
        env: the container's environment.
        flag: such as `--heal`, whose variable is `PROBE_HEAL`.
        default: where neither is there.
    """
    words = " ".join(test).replace("=", " ").split()
    by_flag = words[words.index(flag) + 1 :][:1] if flag in words else []
    variable = "PROBE_" + flag.removeprefix("--").replace("-", "_").upper()
    return (by_flag or [env.get(variable) or default])[0]


def environment(words: Sequence[str] | None) -> dict[str, str]:
    """A container's environment, of what Docker has of it (`NAME=VALUE`)."""
    return dict(word.partition("=")[::2] for word in words or ())
