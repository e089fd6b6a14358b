"""The small machine that reads settings, for both programs.

A knob is read from its flag, else from its environment variable, else it has its
default. A bad value is one `SettingError`: what, where, and what is allowed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class SettingError(ValueError):
    """A setting has a value that is not allowed; its text is the whole message for the user."""


@dataclass(frozen=True)
class Knob:
    """One setting: its name, how it is read, what it means.

    Attributes:
        name: attribute name in the settings object.
        env: the environment variable.
        default: the default, as a user would write it.
        parse: text to value; raises `ValueError` for what is not allowed.
        allowed: what is allowed, in words that end the error message.
        help: one line for `--help` and the documentation.
        secret: its value must never be shown, not even when it is wrong.
        alone: the value that the flag means without one; None where it needs one.
        option: the flag, where it is not `--` plus the name with dashes.
    """

    name: str
    env: str
    default: str
    parse: Callable[[str], Any]
    allowed: str
    help: str
    secret: bool = False
    alone: str | None = None
    option: str = ""

    @property
    def flag(self) -> str:
        return self.option or "--" + self.name.replace("_", "-")


def read(
    knobs: Sequence[Knob], flags: Mapping[str, str | None], env: Mapping[str, str]
) -> dict[str, Any]:
    """Read every knob.

    Args:
        knobs: what to read.
        flags: values given as flags, by knob name; None where a flag was not given.
        env: the environment. A variable that is empty counts as not set.

    Returns:
        One parsed value for each knob's name.

    Raises:
        SettingError: for the first value that is not allowed.
    """
    values = {}
    for knob in knobs:
        flag = flags.get(knob.name)
        if flag is not None:
            source, text = knob.flag, flag
        elif env.get(knob.env, "") != "":
            source, text = knob.env, env[knob.env]
        else:
            source, text = knob.env, knob.default
        try:
            values[knob.name] = knob.parse(text.strip())
        except ValueError:
            shown = "(hidden)" if knob.secret else repr(text)
            raise SettingError(f"{source}={shown}: must be {knob.allowed}") from None
    return values


def number(low: float, high: float, what: str = "a number") -> tuple[Callable[[str], float], str]:
    """A parser for a number within bounds (both allowed), and those bounds in words."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse, f"{what} from {low:g} to {high:g}"


def seconds(low: float, high: float) -> tuple[Callable[[str], float], str]:
    """A parser for a number of seconds within bounds (both allowed), and those bounds in words."""
    return number(low, high, "a number of seconds")


def one_of(*choices: str) -> tuple[Callable[[str], str], str]:
    """A parser for one of some words, in any case, and those words."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return parse, "one of " + ", ".join(choices)


def address(text: str) -> tuple[str, int]:
    """`host:port`, all interfaces where the host is left out; raises `ValueError`."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(text)
    return host.strip("[]") or "0.0.0.0", int(port)
