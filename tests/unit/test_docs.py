"""The documentation says what the programs do."""

from __future__ import annotations

import pytest

from probe.report import Reason
from scripts.say import ROOT
from scripts.settings_table import FILE, filled


def test_every_setting_is_documented_as_it_is() -> None:
    assert FILE.read_text() == filled(FILE.read_text()), "run: python -m scripts.settings_table"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_explained_and_in_the_readme(reason: Reason) -> None:
    reasons = (ROOT / "docs/reasons.md").read_text()
    assert f"\n## {reason}\n" in reasons
    assert f"[{reason}](#{reason})" in reasons
    assert f"| `{reason}` |" in (ROOT / "README.md").read_text()
