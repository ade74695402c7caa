"""docs/states.md says what the transition tables say."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import pytest

from orchestrator.core.model import states
from orchestrator.core.views import state_diagrams

PAGE = Path(__file__).parents[2] / "docs" / "states.md"
TABLES = [value for name, value in vars(states).items() if name.endswith("_MOVES")]


def test_the_page_is_up_to_date() -> None:
    again = "python -m orchestrator.core.views.state_diagrams > docs/states.md"
    assert PAGE.read_text() == state_diagrams.page(), f"generate it again: {again}"


def test_every_table_has_a_picture() -> None:
    assert [machine.moves for machine in state_diagrams.MACHINES] == TABLES


@pytest.mark.parametrize("machine", state_diagrams.MACHINES, ids=lambda machine: machine.title)
def test_every_state_has_a_meaning(machine: state_diagrams.Machine[StrEnum]) -> None:
    assert set(state_diagrams.meanings(machine.kind)) == {state.value for state in machine.kind}


@pytest.mark.parametrize("machine", state_diagrams.MACHINES, ids=lambda machine: machine.title)
def test_the_arrows_are_the_moves(machine: state_diagrams.Machine[StrEnum]) -> None:
    """Read back from the text: nothing is lost and nothing is made up."""
    arrows = re.findall(r"^    (\S+) --> (\S+)$", state_diagrams.diagram(machine), re.MULTILINE)
    moves = {(old.value, new.value) for old, news in machine.moves.items() for new in news}
    ends = {(old.value, "[*]") for old, news in machine.moves.items() if not news}
    births = {("[*]", state.value) for state in machine.born}
    assert len(arrows) == len(set(arrows))
    assert set(arrows) == moves | ends | births
