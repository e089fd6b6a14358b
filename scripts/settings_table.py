"""Write the tables of docs/configuration.md from the settings themselves."""

from __future__ import annotations

from collections.abc import Sequence

import autoheal.settings
import probe.settings
from probe.settings import Knob
from scripts.say import ROOT

TABLES = {
    "probe": probe.settings.KNOBS,
    "serve": probe.settings.SERVE_KNOBS,
    "autoheal": autoheal.settings.KNOBS,
}
FILE = ROOT / "docs/configuration.md"


def table(knobs: Sequence[Knob]) -> str:
    """A Markdown table of settings: variable, flag, default, meaning and what is allowed."""
    rows = ["| variable | flag | default | meaning |", "|---|---|---|---|"]
    for knob in knobs:
        default = f"`{knob.default}`" if knob.default else "none"
        meaning = f"{knob.help} Allowed: {knob.allowed}."
        rows.append(f"| `{knob.env}` | `{knob.flag}` | {default} | {meaning} |")
    return "\n".join(rows)


def filled(text: str) -> str:
    """The document with every table between its markers as it should be."""
    for name, knobs in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        text = before + begin + table(knobs) + "\n" + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    FILE.write_text(filled(FILE.read_text()))
