"""How one container is treated: its labels, and the settings that hold where it has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from autoheal.incident import Action, News
from probe.knobs import (
    BOOLEAN,
    ReadSettings,
    absolute,
    knobs_of,
    one_of,
    optional,
    seconds,
    setting,
    whole,
)


def _action(text: str) -> Action | None:
    return None if text.lower() == "ladder" else Action(text.lower())


def _ladder(text: str) -> tuple[Action, ...]:
    actions = tuple(Action(word.strip().lower()) for word in text.split(","))
    if Action.NONE in actions:
        raise ValueError(text)
    return actions


def _news(text: str) -> frozenset[News]:
    if text.lower() in ("all", "true"):
        return frozenset(News)
    if text.lower() in ("none", "false"):
        return frozenset()
    return frozenset(News(word.strip().lower()) for word in text.split(","))


_STOP = seconds(0, 3_600)
_WHOLE_SECONDS = (lambda text: round(_STOP[0](text)), _STOP[1])


@dataclass(frozen=True)
class Policy(ReadSettings):
    """How one container is treated. Times are in seconds.

    Attributes:
        watched: it may be healed.
        action: what is done each time; None: what the ladder says.
        problems: what is wrong with its labels; the defaults hold instead.
    """

    watched: bool = False
    action: Action | None = setting(
        "AUTOHEAL_ACTION",
        "ladder",
        (_action, "one of ladder, runner, restart, recreate, redeploy, stop, none"),
        "What is done: one action after the other (ladder), the same each time, or only a "
        "notification (none).",
        label="autoheal.action",
    )
    ladder: tuple[Action, ...] = setting(
        "AUTOHEAL_LADDER",
        "runner,restart,restart,recreate,redeploy",
        (_ladder, "a list of runner, restart, recreate, redeploy and stop, separated by commas"),
        "Which action comes next when the last did not help. At its end it is given up.",
        label="autoheal.ladder",
    )
    stop_timeout: int = setting(
        "AUTOHEAL_DEFAULT_STOP_TIMEOUT",
        "10",
        _WHOLE_SECONDS,
        "How long it may take to stop before it is killed.",
        label="autoheal.stop.timeout",
    )
    max_attempts: int = setting(
        "AUTOHEAL_MAX_ATTEMPTS",
        "10",
        whole(1, 10_000),
        "How many attempts there may be within the window; then it is given up.",
        label="autoheal.max-attempts",
    )
    window: float = setting(
        "AUTOHEAL_WINDOW",
        "3600",
        seconds(1, 86_400),
        "The window of that budget.",
        label="autoheal.window",
    )
    backoff: float = setting(
        "AUTOHEAL_BACKOFF",
        "10",
        seconds(0, 3_600),
        "The wait after the first attempt; it doubles with each that follows, up to 10 minutes, "
        "and each is longer by up to a quarter, at random.",
        label="autoheal.backoff",
    )
    settle: float = setting(
        "AUTOHEAL_SETTLE",
        "60",
        seconds(0, 86_400),
        "How long it must stay healthy before an incident is over.",
        label="autoheal.settle",
    )
    delay: float = setting(
        "AUTOHEAL_DELAY",
        "0",
        seconds(0, 3_600),
        "Delay before the first attempt, so that a load balancer can drain it. It is left alone "
        "if it becomes healthy meanwhile.",
        label="autoheal.delay",
    )
    dry_run: bool = setting(
        "AUTOHEAL_DRY_RUN",
        "false",
        BOOLEAN,
        "Say what would be done, and do nothing.",
        label="autoheal.dry-run",
    )
    notify: frozenset[News] = setting(
        "AUTOHEAL_NOTIFY",
        "all",
        (_news, "all, none, or a list of healed, failed, given_up, operator and degraded"),
        "Which events send a notification.",
        label="autoheal.notify",
    )
    redeploy: str = setting(
        "AUTOHEAL_REDEPLOY",
        "service",
        one_of("service", "stack"),
        "What a redeploy of a Swarm service takes with it: the service, or its whole stack.",
        label="autoheal.redeploy",
    )
    stack_file: str | None = setting(
        "AUTOHEAL_STACK_FILE",
        "",
        optional(absolute("a file's absolute path")),
        "A redeploy of a Swarm stack runs `docker stack deploy` with this file.",
        label="autoheal.stack.file",
    )
    itself: bool = setting(
        "AUTOHEAL_ITSELF",
        "false",
        BOOLEAN,
        "Heal the container that autoheal runs in too.",
        label="autoheal.itself",
    )
    problems: tuple[str, ...] = ()

    @property
    def rungs(self) -> tuple[Action, ...]:
        """The ladder; one action alone is tried as long as the budget allows."""
        return self.ladder if self.action is None else (self.action,) * (self.max_attempts + 1)


KNOBS = knobs_of(Policy)


def policy(labels: Mapping[str, str], group: str, defaults: Policy) -> Policy:
    """Read a container's labels. A bad value is a problem to report, never an error.

    Args:
        labels: all of them.
        group: the label by which a container is watched, or `all`.
        defaults: what holds where it says nothing.
    """
    if group == "all":
        watched = labels.get("autoheal", "").lower() != "false"
    else:
        watched = labels.get(group, "").lower() == "true"
    own: dict[str, Any] = {}
    problems = []
    for knob in KNOBS:
        text = labels.get(knob.label, "").strip()
        if text:
            try:
                own[knob.name] = knob.parse(text)
            except ValueError:
                default = _shown(getattr(defaults, knob.name))
                problems.append(
                    f"label {knob.label}={text!r}: must be {knob.allowed}; using {default}"
                )
    return replace(defaults, **own, watched=watched, problems=tuple(problems))


def _shown(value: Any) -> str:
    """A setting's value as a person would write it."""
    if value is None or isinstance(value, bool | str):
        return "none" if value is None else str(value).lower()
    if isinstance(value, float | int):
        return f"{value:g}"
    return ",".join(sorted(value) if isinstance(value, frozenset) else value) or "none"
