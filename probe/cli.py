"""The command line of `ollama-probe`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from probe import __version__
from probe.check import glance, run
from probe.knobs import Knob, SettingError
from probe.report import Reason, Verdict, render
from probe.setting_names import setting_notes
from probe.settings import KNOBS, RETIRED_FLAGS, SERVE_KNOBS, ServeSettings, Settings

WATCH_SECONDS = 2.0

SIMILAR = 0.75
"""How similar an option must be to be suggested in the place of one that does not exist."""

F = TypeVar("F", bound=Callable[..., Any])


class OneLineGroup(click.Group):
    """A group whose errors are one line, and end with 1: Docker reserves exit code 2."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            sys.exit(super().main(*args, **{**extra, "standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as error:
            print(error.format_message(), file=sys.stderr)
        except click.UsageError as error:
            self.complain(_usage_problem(error))
        except click.ClickException as error:
            self.complain(error.format_message())
        except SettingError as error:
            self.complain(str(error))
        except (click.Abort, KeyboardInterrupt):
            self.complain("interrupted")
        sys.exit(1)

    def complain(self, problem: str) -> None:
        """Tell the user what is wrong, in one line."""
        print(f"{self.name}: {problem}", file=sys.stderr)


def _usage_problem(error: click.UsageError) -> str:
    """What is wrong with a command line, and where its options are explained."""
    if isinstance(error, click.NoSuchOption):
        from difflib import get_close_matches  # not needed by a check, which must start fast

        # click also suggests options with only a few letters in common.
        near = get_close_matches(error.option_name, error.possibilities or (), 1, SIMILAR)
        error.possibilities = near  # type: ignore[misc]
    problem = error.format_message().rstrip(".")
    return f"{problem}; see {error.ctx.command_path} --help" if error.ctx else problem


class _ProbeGroup(OneLineGroup):
    def complain(self, problem: str) -> None:
        if sys.argv[1:2] == ["check"]:
            # Docker runs this: whoever reads its log must know that no restart would help.
            print(render(Verdict(False, Reason.MISCONFIGURED, problem)))
        else:
            super().complain(problem)


def knob_options(knobs: Sequence[Knob]) -> Callable[[F], F]:
    """A flag for every knob, with its variable and default in the help."""

    def decorate(function: F) -> F:
        for knob in reversed(knobs):
            default = knob.default or "none"
            text = f"{knob.help} Allowed: {knob.allowed}. [{knob.env}; default: {default}]"
            extra: dict[str, Any] = {}
            if knob.alone is not None:
                extra = {"is_flag": False, "flag_value": knob.alone}
            function = click.option(knob.flag, knob.name, metavar="VALUE", help=text, **extra)(
                function
            )
        return function

    return decorate


def _retired_flags(function: F) -> F:
    """Accept and ignore the flags of older versions."""
    for flag in RETIRED_FLAGS:
        function = click.option(flag, hidden=True, expose_value=False)(function)
    return function


def _format_option(person: str, text: str) -> Callable[[F], F]:
    """`--format`: as a person reads it (`line` or `text`, the default), or `json`."""
    choice = click.Choice([person, "json"])
    return click.option(
        "--format", "form", type=choice, default=person, show_default=True, help=text
    )


@click.group(
    "ollama-probe", cls=_ProbeGroup, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="ollama-probe")
def main() -> None:
    """Say whether the Ollama server in this container really answers, on the GPU it should use."""


@main.command(short_help="Make one check; this is what HEALTHCHECK runs.")
@knob_options(KNOBS)
@_retired_flags
@_format_option("line", "One line for a person, or the whole verdict as JSON.")
def check(form: str, **flags: str | None) -> None:
    """Make one check and print its verdict; exit 0 when healthy, 1 when not.

    This is what HEALTHCHECK runs. One deadline (--timeout) covers everything it does.
    """
    run(flags, as_json=form == "json")


@main.command(short_help="Show GPUs, models and the last checks.")
@knob_options(KNOBS)
@_retired_flags
@click.option("--watch", is_flag=True, help="Refresh every two seconds, until Ctrl-C.")
@_format_option("text", "For a person, or for a program.")
def status(form: str, watch: bool, **flags: str | None) -> None:
    """Show GPUs, models and the last checks; exit 0 when nothing is wrong, 1 when something is.

    This only looks: no model is asked for anything.
    """
    from probe.status import as_json, memory_notes, page

    settings = Settings.from_flags_and_env(flags, os.environ)
    notes = [*setting_notes(os.environ), *memory_notes(settings)]
    while True:
        verdict, observation, memory = glance(settings)
        now = time.monotonic()
        if form == "json":
            text = json.dumps({**as_json(verdict, observation, memory, now), "notes": notes})
        else:
            text = page(verdict, observation, memory, now, settings, notes)
        if watch and form == "text":
            click.clear()
        click.echo(text)
        if not watch:
            sys.stdout.flush()
            os._exit(verdict.exit_code)  # an NVML call that hangs would hold us
        time.sleep(WATCH_SECONDS)


@main.command("end-runner", short_help="End the process that a model is stalled in.")
@knob_options([knob for knob in KNOBS if knob.name not in ("heal", "restart_policy", "models")])
@click.option("--model", "only", metavar="NAME", help="End only the runner of this model.")
@click.option("--dry-run", is_flag=True, help="Say what would be ended, and end nothing.")
@_format_option("line", "One line for a person, or everything as JSON.")
def end_runner(form: str, dry_run: bool, only: str | None, **flags: str | None) -> None:
    """Make one check; if it finds that a model is stalled in its process, end that process.

    The server and its other models go on, and the next request loads the model again. It is
    refused where the check finds nothing of the kind.

    Exit codes: 0 ended, 1 not ended, 3 refused.
    """
    from probe.end_runner import end_runner as end

    outcome = end(Settings.from_flags_and_env(flags, os.environ), only, dry_run=dry_run)
    click.echo(json.dumps(outcome.as_json()) if form == "json" else outcome.message)
    sys.stdout.flush()
    os._exit(outcome.exit_code)  # an NVML call that hangs would hold us


@main.command(short_help="Print GPUs and models as Prometheus metrics.")
@knob_options([knob for knob in KNOBS if knob.name == "host"])
@click.option(
    "--textfile",
    type=click.Path(dir_okay=False),
    help="Write them to this file, for node_exporter's textfile collector (*.prom).",
)
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 86_400),
    help="Write that file again and again, so often, until Ctrl-C.",
)
def metrics(host: str | None, textfile: str | None, every: float | None) -> None:
    """Print GPUs and models as Prometheus metrics; no model is asked for anything."""
    from probe.metrics import Metrics

    if every is not None and textfile is None:
        raise click.UsageError("--every needs --textfile: a file to write again and again")
    made = Metrics(Settings.from_flags_and_env({"host": host}, os.environ).host)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if textfile is None:
        print(made.page().decode(), end="", flush=True)
    while textfile is not None:
        began = time.monotonic()
        try:
            made.write(textfile)
        except OSError as error:
            raise click.ClickException(f"--textfile {textfile}: {error.strerror}") from None
        if every is None:
            break
        time.sleep(max(began + every - time.monotonic(), 0))
    os._exit(0)  # an NVML call that hangs would hold us


@main.command(short_help="Answer over HTTP: /health, /livez, /readyz, /metrics.")
@knob_options((*SERVE_KNOBS, *KNOBS))
@_retired_flags
def serve(**flags: str | None) -> None:
    """Check every --interval seconds, and answer over HTTP with what the last check found.

    /health has everything: 200 healthy, 503 unhealthy, 206 while a model is being loaded. /livez is
    for a liveness probe: 503 only where a restart helps. /readyz is for a readiness probe. /metrics
    is for Prometheus.
    """
    from probe.serve import serve as answer

    options = ServeSettings.from_flags_and_env(flags, os.environ)
    answer(Settings.from_flags_and_env(flags, os.environ), options)
