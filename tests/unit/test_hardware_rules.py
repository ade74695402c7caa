"""The page of hardware rules is that of the rows."""

from __future__ import annotations

from pathlib import Path

from orchestrator.core.views import hardware_rules

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_says_what_the_rows_say() -> None:
    assert (DOCS / "hardware-rules.md").read_text() == hardware_rules.page(), (
        "run python -m orchestrator.core.views.hardware_rules > docs/hardware-rules.md"
    )
