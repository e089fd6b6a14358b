"""The documentation says what the programs do."""

from __future__ import annotations

import re

from probe.report import Reason
from scripts.say import ROOT
from scripts.settings_table import FILE, filled

LATER = {Reason.SLOW, Reason.VRAM_MISMATCH, Reason.VRAM_TAKEN}


def test_every_setting_is_documented_as_it_is() -> None:
    assert FILE.read_text() == filled(FILE.read_text()), "run: python -m scripts.settings_table"


def test_every_reason_that_a_check_can_give_is_in_the_readme() -> None:
    named = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.M))
    assert {r.value for r in Reason if r not in LATER} <= named
