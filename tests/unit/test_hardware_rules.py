"""The page of hardware rules is that of the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.hardware_rules import parse, read
from jobs.yaml_file import SpecError
from monitors.hardware.types import NodeAction
from orchestrator.core.views import hardware_rules
from orchestrator.errors import InvalidError
from orchestrator.server.hardware.desk import monitor_settings
from orchestrator.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_says_what_the_rows_say() -> None:
    assert (DOCS / "hardware-rules.md").read_text() == hardware_rules.page(), (
        "run python -m orchestrator.core.views.hardware_rules > docs/hardware-rules.md"
    )


def test_the_example_of_the_docs_is_a_file_that_is_read() -> None:
    text = (DOCS / "monitors.md").read_text()
    example = text.split("```yaml\nchange:")[1].split("```")[0]
    catalogue = parse("change:" + example)
    assert catalogue.rows["xid-79"].action is NodeAction.PAGE
    assert catalogue.rows["our-fan"].shadow
    assert not read(None).rows["xid-79"].shadow


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("change: {xid-799: {action: page}}", "did you mean"),
        ("change: {xid-79: {action: explode}}", "change.xid-79.action"),
        ("chnage: {}", "did you mean change"),
        ("rows: [{id: a, says: b, source: c, action: page}]", "exactly one sign"),
        ("", "hardware.yaml"),
    ],
)
def test_a_mistake_is_said_with_its_file(text: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        parse(text)
    assert said in str(error.value)
    assert "hardware.yaml" in str(error.value)


def test_a_server_with_a_wrong_file_does_not_start(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("change: {xid-7999: {action: page}}")
    with pytest.raises(InvalidError, match=r"BABYSIT_HARDWARE_RULES: .*rules.yaml"):
        monitor_settings(Settings(home=tmp_path, hardware_rules=file))
    file.write_text("change: {xid-79: {action: page}}")
    changed = monitor_settings(Settings(home=tmp_path, hardware_rules=file))
    assert changed is not None
    assert changed.catalogue.rows["xid-79"].action is NodeAction.PAGE
    assert monitor_settings(Settings(home=tmp_path)) is None
