"""The command `autoheal`."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from autoheal import __version__
from autoheal.incident import Action
from autoheal.settings import KNOBS, Settings
from probe.cli import OneLineGroup, knob_options

if TYPE_CHECKING:
    from autoheal.engine import Engine
    from autoheal.ledger import Ledger

FAULTS = {
    "freeze": "its first process stands still (SIGSTOP)",
    "freeze-runner": "the process that serves the model stands still, Ollama's API goes on",
    "kill-runner": "the process that serves the model is killed; Ollama starts another",
}
"""What `autoheal drill` can break, and what that means."""

HEAL_SECONDS = 600.0
"""How long `autoheal heal` waits for its answer."""

_WHERE = {"container_label", "docker_sock", "api_timeout", "state_dir", "ledger", "interval"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_ANSWER_LOOK_SECONDS = 0.1

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _where(function: Callable[..., None]) -> Callable[..., None]:
    """The flags that say which engine and which ledger is meant."""
    return knob_options([knob for knob in KNOBS if knob.name in _WHERE])(function)


class _Span(click.ParamType[float]):
    """A span of time: 90s, 30m, 2h, 1d."""

    name = "TIME"

    def convert(self, value: Any, param: object, ctx: object) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value).strip())
        if found is None or not 0 < float(found[1]) * _UNITS[found[2]] <= 365 * _UNITS["d"]:
            raise click.BadParameter(
                f"{value!r}: must be a number with s, m, h or d behind it, such as 30m, and at "
                "most 365d"
            )
        return float(found[1]) * _UNITS[found[2]]


@click.group("autoheal", cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autoheal")
def app() -> None:
    """Watch Docker's health events, and heal the containers that asked for it."""


@app.command()
@knob_options(KNOBS)
def run(**flags: str | None) -> None:
    """Watch and heal until told to stop."""
    settings = Settings.from_flags_and_env(flags, os.environ)
    from autoheal import log, privileges, stale
    from autoheal.supervisor import Supervisor

    log.configure(settings)
    listener = None
    if settings.web is not None:
        from autoheal.web.server import bind

        listener = bind(settings.web)
    supervisor = Supervisor(settings, os.environ, listener)
    # A script may need root, and so does ending the processes of others.
    needs_root = settings.post_restart_script or settings.notify_script or stale.can_be_seen()
    if supervisor.own_id is not None and not needs_root:
        privileges.drop(supervisor.engine_url, settings.ledger_path)
    supervisor.run()


@app.command(short_help="Say whether `autoheal run` is alive; exit 0 or 1.")
@knob_options([knob for knob in KNOBS if knob.name in ("interval", "state_dir")])
def health(**flags: str | None) -> None:
    """Say whether `autoheal run` is alive and in contact with the engine; exit 0 or 1."""
    from autoheal import heartbeat

    problem = heartbeat.problem(Settings.from_flags_and_env(flags, os.environ))
    print("healthy" if problem is None else f"unhealthy: {problem}")
    sys.exit(0 if problem is None else 1)


@app.command(short_help="Show the watched containers, and what was done to them.")
@_where
@_json_option
def status(as_json: bool, **flags: str | None) -> None:
    """Show each watched container: health, reason, last action, attempts left."""
    from autoheal import commands

    settings, engine, ledger = _open(flags)
    rows = _ask_engine(lambda: commands.status(engine, ledger, settings))
    _print(as_json, rows, lambda: commands.status_table(rows))


@app.command(short_help="Show past incidents, with every step that was taken.")
@click.argument("name", required=False)
@click.option(
    "--last",
    default=20,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="How many incidents to show.",
)
@_where
@_json_option
def history(name: str | None, last: int, as_json: bool, **flags: str | None) -> None:
    """Show past incidents of one container, or of all, newest first."""
    from autoheal import commands

    _, _, ledger = _open(flags)
    entries = ledger.history(name, last)
    _print(as_json, commands.history(entries), lambda: commands.history_text(entries, name))


@app.command(short_help="Heal a container now, whatever its health.")
@click.argument("name")
@click.option(
    "--action",
    type=click.Choice([a.value for a in Action if a is not Action.NONE]),
    default="restart",
    show_default=True,
    help="Which action to take.",
)
@_where
@_json_option
def heal(name: str, action: str, as_json: bool, **flags: str | None) -> None:
    """Have `autoheal run` heal a container now, and wait for it, even one that was given up."""
    settings, _, ledger = _open(flags)
    _must_be_alive(settings)
    number = ledger.ask(name, Action(action))
    deadline = time.monotonic() + HEAL_SECONDS
    while (answer := ledger.answer_to(number)) is None:
        if time.monotonic() > deadline:
            raise click.ClickException(f"no answer within {HEAL_SECONDS:g} s; see autoheal history")
        time.sleep(_ANSWER_LOOK_SECONDS)
    if answer != "done":
        raise click.ClickException(answer if name in answer else f"{name}: {answer}")
    _print(as_json, {"container": name, "action": action}, lambda: f"{name}: {action} done")


@app.command(short_help="Leave containers alone for a while.")
@click.argument("name", required=False)
@click.option(
    "--for",
    "seconds",
    type=_Span(),
    default="1h",
    show_default=True,
    help="How long, such as 30m or 2d.",
)
@_where
def pause(name: str | None, seconds: float, **flags: str | None) -> None:
    """Leave one container alone, or all of them, until a time; then healing goes on by itself."""
    from autoheal.commands import UnknownContainerError, moment, subject_of
    from autoheal.ledger import EVERYBODY

    _, engine, ledger = _open(flags)
    try:
        subject = EVERYBODY if name is None else subject_of(name, engine, ledger)
    except UnknownContainerError as error:
        raise click.ClickException(str(error)) from None
    until = time.time() + seconds
    ledger.pause(subject, until)
    who = "All containers" if name is None else subject
    click.echo(f"{who}: left alone until {moment(until)}")


@app.command(short_help="End a pause.")
@click.argument("name", required=False)
@_where
def resume(name: str | None, **flags: str | None) -> None:
    """End the pause of one container; without a name, all pauses."""
    from autoheal import commands

    _, engine, ledger = _open(flags)
    healed, words = commands.resume(name, engine, ledger)
    if not healed:
        raise click.ClickException(words)
    click.echo(words)


@app.command(short_help="Say what stands in the way of healing, and what to do about it.")
@_where
@_json_option
def doctor(as_json: bool, **flags: str | None) -> None:
    """Look at the engine, the ledger and the containers; exit 1 where there is a problem."""
    from autoheal import heartbeat
    from autoheal.doctor import examine
    from autoheal.engine import Engine
    from autoheal.supervisor import own_container_id

    settings = Settings.from_flags_and_env(flags, os.environ)
    engine, own_id = Engine(settings, os.environ), own_container_id()
    _become_unprivileged(engine, own_id, settings)
    findings = []
    problem = heartbeat.problem(settings)
    for finding in examine(engine, settings, own_id, problem, os.environ):
        findings.append(finding)
        if not as_json:
            colour = {"ok": "green", "warning": "yellow", "problem": "red"}[finding.level]
            click.echo(f"{click.style(finding.level.ljust(7), fg=colour)}  {finding.what}")
            if finding.advice:
                click.echo(f"         → {finding.advice}")
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    sys.exit(1 if any(finding.level == "problem" for finding in findings) else 0)


@app.command(short_help="Break a container on purpose, and watch it being healed.")
@click.argument("name")
@click.option(
    "--fault",
    type=click.Choice(list(FAULTS)),
    default="freeze",
    show_default=True,
    help="What to break. " + " ".join(f"{fault}: {words}." for fault, words in FAULTS.items()),
)
@click.option(
    "--for",
    "seconds",
    type=_Span(),
    default="10m",
    show_default=True,
    help="Maximum time to watch.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@_where
@_json_option
def drill(
    name: str, fault: str, seconds: float, yes: bool, as_json: bool, **flags: str | None
) -> None:
    """Break a healthy container on purpose, watch it being healed, and report the times.

    Its users are cut off until it is healed. Exit 1 where it was not.
    """
    from autoheal import drill as drills

    settings, engine, ledger = _open(flags)
    _must_be_alive(settings)
    if ledger.paused_until(name, time.time()) is not None:
        raise click.ClickException(f"{name} is paused: end that first (autoheal resume)")
    if not yes:
        if not sys.stdin.isatty():
            raise click.ClickException(f"drill breaks {name} on purpose; say --yes if you mean it")
        click.confirm(f"{name}: {FAULTS[fault]}. Its users will notice. Go on?", abort=True)

    def say(at: float, words: str) -> None:
        if not as_json:
            click.echo(f"{at:7.1f} s  {words}")

    say(0.0, f"fault: {FAULTS[fault]}")
    times = _ask_engine(lambda: drills.drill(engine, name, fault, seconds, say))
    _print(as_json, asdict(times), lambda: drills.summary(times))
    sys.exit(0 if times.healthy is not None else 1)


def main() -> None:
    """Where the command starts."""
    app(prog_name="autoheal")


def _open(flags: Mapping[str, str | None]) -> tuple[Settings, Engine, Ledger]:
    """The settings, the engine and the ledger that `autoheal run` has here."""
    from autoheal.engine import Engine
    from autoheal.ledger import Ledger, LedgerError
    from autoheal.supervisor import own_container_id

    settings = Settings.from_flags_and_env(flags, os.environ)
    engine = Engine(settings, os.environ)
    _become_unprivileged(engine, own_container_id(), settings)
    try:
        ledger = Ledger(settings.ledger_path, settings.state_dir, guest=True)
    except LedgerError as error:
        raise click.ClickException(
            f"{error}; run this command where autoheal runs (docker compose exec autoheal "
            "autoheal ...), or name its ledger in AUTOHEAL_LEDGER"
        ) from None
    return settings, engine, ledger


def _become_unprivileged(engine: Engine, own_id: str | None, settings: Settings) -> None:
    """In a container, become who `autoheal run` is there: the ledger is that user's."""
    from autoheal import privileges

    if own_id is not None:
        privileges.drop(engine.url, settings.ledger_path)


def _must_be_alive(settings: Settings) -> None:
    from autoheal import heartbeat

    problem = heartbeat.problem(settings)
    if problem is not None:
        if os.path.exists(heartbeat.path(settings)):
            raise click.ClickException(f"autoheal cannot heal now: {problem}")
        raise click.ClickException(f"{problem}; run this where autoheal runs")


def _ask_engine(ask: Callable[[], Any]) -> Any:
    from autoheal.engine import EngineError

    try:
        return ask()
    except EngineError as error:
        raise click.ClickException(str(error)) from None


def _print(as_json: bool, data: Any, text: Callable[[], str]) -> None:
    click.echo(json.dumps(data, indent=2) if as_json else text())


if __name__ == "__main__":
    main()
