"""docs/vocabulary.md and the table in docs/scheduling.md say what the enums and tables say."""

from __future__ import annotations

import re
import typing
from enum import StrEnum
from pathlib import Path

import pytest

from monitors.failures import FailureClass
from monitors.types import FindingKind
from orchestrator.core.messages.instructions import AnyInstruction, Instruction
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Remedy, Response, SaveTrouble, Timer
from orchestrator.core.scheduling import Pending
from orchestrator.core.timers import HANDLERS
from orchestrator.core.views import state_diagrams, vocabulary

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS: dict[str, type[StrEnum]] = {
    "Findings": FindingKind,
    "Failure classes": FailureClass,
    "Other kinds of incident": SaveTrouble,
    "Remedies": Remedy,
    "Responses to an incident": Response,
    "Timers": Timer,
    "Time ledger": Bucket,
}


def rows(section: str) -> set[str]:
    """First column of a section's table."""
    text = (DOCS / "vocabulary.md").read_text().partition(f"\n## {section}\n")[2]
    return set(re.findall(r"^\| `([^`]+)` \|", text.partition("\n## ")[0], re.MULTILINE))


def test_the_page_is_up_to_date() -> None:
    again = "python -m orchestrator.core.views.vocabulary > docs/vocabulary.md"
    assert (DOCS / "vocabulary.md").read_text() == vocabulary.page(), f"generate it again: {again}"


def test_the_reasons_to_wait_are_in_the_page_on_scheduling() -> None:
    table = vocabulary.reasons()
    assert table in (DOCS / "scheduling.md").read_text(), f"the table should be:\n{table}"
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == {why.value for why in Pending}


@pytest.mark.parametrize(("section", "kind"), SECTIONS.items())
def test_each_word_has_a_row(section: str, kind: type[StrEnum]) -> None:
    assert rows(section) == {word.value for word in kind}


@pytest.mark.parametrize("kind", [*SECTIONS.values(), Pending], ids=lambda kind: kind.__name__)
def test_each_word_has_a_meaning_beside_it(kind: type[StrEnum]) -> None:
    assert set(state_diagrams.meanings(kind)) == {word.value for word in kind}


def test_each_instruction_has_a_row() -> None:
    kinds = typing.get_args(typing.get_args(AnyInstruction)[0])
    assert set(kinds) == set(Instruction.__subclasses__())
    assert rows("Instructions") == {kind.model_fields["kind"].default for kind in kinds}


def test_each_timer_has_a_handler() -> None:
    assert set(HANDLERS) == set(Timer)
