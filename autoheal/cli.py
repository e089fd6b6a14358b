"""The command `autoheal`."""

from __future__ import annotations

import os
import sys

import click

from autoheal import __version__
from autoheal.settings import KNOBS, Settings
from probe.cli import OneLineGroup, knob_options


@click.group("autoheal", cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="autoheal")
def app() -> None:
    """Watch Docker's health events, and heal the containers that asked for it."""


@app.command()
@knob_options(KNOBS)
def run(**flags: str | None) -> None:
    """Watch and heal until told to stop."""
    settings = Settings.from_flags_and_env(flags, os.environ)
    from autoheal import log, privileges
    from autoheal.supervisor import Supervisor

    log.configure(settings.log_format)
    supervisor = Supervisor(settings, os.environ)
    if settings.post_restart_script is None:  # docker-autoheal runs it as root
        privileges.drop(supervisor.engine_url)
    supervisor.run()


@app.command(short_help="Say whether `autoheal run` is alive; exit 0 or 1.")
@knob_options([knob for knob in KNOBS if knob.name in ("interval", "state_dir")])
def health(**flags: str | None) -> None:
    """Say whether `autoheal run` is alive and in contact with the engine; exit 0 or 1."""
    from autoheal import heartbeat

    problem = heartbeat.problem(Settings.from_flags_and_env(flags, os.environ))
    print("healthy" if problem is None else f"unhealthy: {problem}")
    sys.exit(0 if problem is None else 1)


def main() -> None:
    """Where the command starts."""
    app(prog_name="autoheal")


if __name__ == "__main__":
    main()
