"""The small machine that reads settings, for both programs.

A knob is read from its flag, else from its environment variable, else it has its
default. A bad value is one `SettingError`: what, where, and what is allowed.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

Allowed = tuple[Callable[[str], Any], str]
"""What a setting may be: a parser, and the same in words that end the error message."""


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
        label: a container's label that holds before the variable; empty: there is none.
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
    label: str = ""

    @property
    def flag(self) -> str:
        return self.option or "--" + self.name.replace("_", "-")


def setting(env: str, default: str, allowed: Allowed, meaning: str, **more: Any) -> Any:
    """A field of a class of settings, which is all that has to be said of one.

    Args:
        env: the environment variable.
        default: as a user would write it.
        allowed: what is allowed.
        meaning: one line for `--help` and the documentation.
        more: other attributes of its `Knob`.
    """
    parse, words = allowed
    knob = Knob("", env, default, parse, words, meaning, **more)
    return field(default=parse(default), metadata={"knob": knob})


@functools.cache
def knobs_of(settings: type) -> tuple[Knob, ...]:
    """The knobs of a class of settings, in their order."""
    found = ((one.name, one.metadata.get("knob")) for one in fields(settings))
    return tuple(replace(knob, name=name) for name, knob in found if knob is not None)


class ReadSettings:
    """A class of settings whose fields are made by `setting`; a base of dataclasses."""

    @classmethod
    def from_flags_and_env(
        cls, flags: Mapping[str, str | None], env: Mapping[str, str], **more: Any
    ) -> Self:
        """Read every setting; one that is not given has its default.

        Args:
            flags: values given as flags, by the setting's name; None where a flag was not given.
            env: the environment. A variable that is empty counts as not set.
            more: fields that are no settings.

        Raises:
            SettingError: for the first value that is not allowed.
        """
        knobs = knobs_of(cls)  # type: ignore[arg-type] # every class is hashable
        return cls(**_given(knobs, flags, env), **more)


def _given(
    knobs: tuple[Knob, ...], flags: Mapping[str, str | None], env: Mapping[str, str]
) -> dict[str, Any]:
    values = {}
    for knob in knobs:
        flag = flags.get(knob.name)
        if flag is not None:
            source, text = knob.flag, flag
        elif env.get(knob.env, "") != "":
            source, text = knob.env, env[knob.env]
        else:
            continue
        try:
            values[knob.name] = knob.parse(text.strip())
        except ValueError:
            shown = "(hidden)" if knob.secret else repr(text)
            raise SettingError(f"{source}={shown}: must be {knob.allowed}") from None
    return values


def number(low: float, high: float, what: str = "a number") -> Allowed:
    """A parser for a number within bounds (both allowed), and those bounds in words."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse, f"{what} from {low:g} to {high:g}"


def whole(low: int, high: int) -> Allowed:
    """A parser for a whole number within bounds (both allowed), and those bounds in words."""
    parse_number, words = number(low, high, "a whole number")

    def parse(text: str) -> int:
        value = parse_number(text)
        if value != int(value):
            raise ValueError(text)
        return int(value)

    return parse, words


def seconds(low: float, high: float) -> Allowed:
    """A parser for a number of seconds within bounds (both allowed), and those bounds in words."""
    return number(low, high, "a number of seconds")


def one_of(*choices: str) -> Allowed:
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


_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _boolean(text: str) -> bool:
    try:
        return _TRUTHS[text.lower()]
    except KeyError:
        raise ValueError(text) from None


BOOLEAN: Allowed = (_boolean, "true or false")


def optional(allowed: Allowed) -> Allowed:
    """What another one allows, or nothing, which is None."""
    parse, words = allowed
    return lambda text: parse(text) if text else None, words


def absolute(what: str) -> Allowed:
    """A parser for an absolute path, and `what` it is."""

    def parse(text: str) -> str:
        if not text.startswith("/"):
            raise ValueError(text)
        return text

    return parse, what
