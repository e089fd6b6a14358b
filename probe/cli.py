"""The command line of `ollama-probe`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from probe import __version__
from probe.check import run
from probe.report import Reason, Verdict, render
from probe.settings import KNOBS, Knob, SettingError

F = TypeVar("F", bound=Callable[..., Any])


class OneLineGroup(click.Group):
    """A group whose errors are one line, and end with 1: Docker reserves exit code 2."""

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            sys.exit(super().main(*args, **{**extra, "standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as error:
            print(error.format_message(), file=sys.stderr)
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


class _ProbeGroup(OneLineGroup):
    def complain(self, problem: str) -> None:
        # Docker runs this: whoever reads its log must know that no restart would help.
        print(render(Verdict(False, Reason.MISCONFIGURED, problem)))


def knob_options(knobs: Sequence[Knob]) -> Callable[[F], F]:
    """A flag for every knob, with its variable and default in the help."""

    def decorate(function: F) -> F:
        for knob in reversed(knobs):
            text = f"{knob.help} [{knob.env}; default: {knob.default or 'none'}]"
            function = click.option(knob.flag, knob.name, metavar="VALUE", help=text)(function)
        return function

    return decorate


@click.group(
    "ollama-probe", cls=_ProbeGroup, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="ollama-probe")
def main() -> None:
    """Say whether the Ollama server in this container really answers, on the GPU it should use."""


@main.command(short_help="Make one check; this is what HEALTHCHECK runs.")
@knob_options(KNOBS)
@click.option(
    "--format",
    "form",
    type=click.Choice(["line", "json"]),
    default="line",
    show_default=True,
    help="One line for a person, or the whole verdict as JSON.",
)
def check(form: str, **flags: str | None) -> None:
    """Make one check and print its verdict; exit 0 when healthy, 1 when not.

    This is what HEALTHCHECK runs. One deadline (--timeout) covers everything it does.
    """
    run(flags, as_json=form == "json")
