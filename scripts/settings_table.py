"""Write the tables of docs/configuration.md from the settings themselves."""

from __future__ import annotations

from collections.abc import Sequence

import autoheal.policy
import autoheal.settings
import probe.settings
from probe.knobs import Knob
from scripts.say import ROOT

TABLES = {
    "probe": probe.settings.KNOBS,
    "serve": probe.settings.SERVE_KNOBS,
    "autoheal": autoheal.settings.PROCESS_KNOBS,
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


def label_table() -> str:
    """The same of what a container may say of itself, by its labels."""
    rows = ["| label | default's variable | default | meaning |", "|---|---|---|---|"]
    for knob in autoheal.policy.KNOBS:
        default = f"`{knob.default}`" if knob.default else "none"
        meaning = f"{knob.help} Allowed: {knob.allowed}."
        rows.append(f"| `{knob.label}` | `{knob.env}` | {default} | {meaning} |")
    return "\n".join(rows)


def filled(text: str) -> str:
    """The document with every table between its markers as it should be."""
    tables = {name: table(knobs) for name, knobs in TABLES.items()} | {"labels": label_table()}
    for name, rows in tables.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        text = before + begin + rows + "\n" + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    FILE.write_text(filled(FILE.read_text()))
