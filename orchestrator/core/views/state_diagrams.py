"""The transition tables as diagrams.

`python -m orchestrator.core.views.state_diagrams > docs/states.md` writes the page. Meanings are
the comments beside the states in :mod:`orchestrator.core.model.states`, so the page says what the
code says. A test compares the page with the tables.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Generic

from orchestrator.core.model import states
from orchestrator.core.model.states import S

_MEANING = re.compile(r'^\s+[A-Z_]+ = "(?P<state>[^"]+)"  # (?P<meaning>.+)$', re.MULTILINE)
_HEAD = """\
# States

Generated from the tables in `orchestrator/core/model/states.py` by
`python -m orchestrator.core.views.state_diagrams > docs/states.md`; do not edit. A state may always
stay what it is. Any other move that is not drawn raises `IllegalMoveError`, which carries the story
so far, and nothing is written. Terminal states are final in the run database too
(`orchestrator/database/guards.py`).
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine(Generic[S]):
    """One kind of thing that has states."""

    title: str
    moves: Mapping[S, frozenset[S]]
    born: tuple[S, ...]
    """States a new one may be in."""

    @property
    def kind(self) -> type[S]:
        """The enum of its states."""
        return type(self.born[0])


MACHINES: tuple[Machine[Any], ...] = (
    Machine(title="Run", moves=states.RUN_MOVES, born=(states.RunState.QUEUED,)),
    Machine(title="Attempt", moves=states.ATTEMPT_MOVES, born=(states.AttemptState.STARTING,)),
    Machine(title="Worker", moves=states.WORKER_MOVES, born=(states.WorkerState.LAUNCHING,)),
    Machine(title="Node", moves=states.NODE_MOVES, born=(states.NodeState.READY,)),
    Machine(title="Checkpoint", moves=states.TRUST_MOVES, born=(states.Trust.WRITING,)),
    Machine(
        title="Incident",
        moves=states.INCIDENT_MOVES,
        born=(states.IncidentState.OPEN, states.IncidentState.MITIGATING),
    ),
)


def meanings(kind: type[StrEnum]) -> dict[str, str]:
    """State → its line of meaning, for the states that have one."""
    return {m["state"]: m["meaning"] for m in _MEANING.finditer(inspect.getsource(kind))}


def diagram(machine: Machine[S]) -> str:
    """A Mermaid state diagram: states and moves in the order of the enum."""
    lines = ["stateDiagram-v2", "    direction LR"]
    lines += [f"    [*] --> {state}" for state in machine.born]
    for old in machine.kind:
        lines += [f"    {old} --> {new}" for new in machine.kind if new in machine.moves[old]]
        if not machine.moves[old]:
            lines.append(f"    {old} --> [*]")
    return "\n".join(lines)


def section(machine: Machine[S]) -> str:
    """Heading, the enum's own line, the diagram, and what each state means."""
    said = meanings(machine.kind)
    about = (inspect.getdoc(machine.kind) or "").splitlines()[0]
    rows = [f"| `{state}` | {said.get(state, '')} |" for state in machine.kind]
    table = "\n".join(("| state | meaning |", "|---|---|", *rows))
    return f"## {machine.title}\n\n{about}\n\n```mermaid\n{diagram(machine)}\n```\n\n{table}\n"


def page() -> str:
    """docs/states.md."""
    return "\n".join((_HEAD, *map(section, MACHINES)))


if __name__ == "__main__":
    sys.stdout.write(page())
