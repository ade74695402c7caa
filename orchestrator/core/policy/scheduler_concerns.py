"""Which changes of entities may change what a scheduling pass decides. Pure."""

from __future__ import annotations

from orchestrator.core.model.entities import Attempt, Entity, Node, Run, Worker
from orchestrator.core.model.states import TERMINAL_RUN_STATES, RunState, WorkerState

_SCHEDULED_ALIKE = frozenset(RunState) - frozenset({RunState.HELD, *TERMINAL_RUN_STATES})
"""States between which a run may move without any effect on scheduling."""


def concerns_scheduler(old: Entity, new: Entity) -> bool:
    """True if a change of an entity may change what a scheduling pass decides.

    What a pass reads is in :mod:`orchestrator.core.placement.snapshot`. Figures that only shift
    costs or estimates (steps, checkpoints) are left out: the periodic pass takes them up.
    """
    match old, new:
        case Run(), Run():
            return (
                old.decision != new.decision
                or old.avoid != new.avoid
                or (old.state is not new.state and not {old.state, new.state} <= _SCHEDULED_ALIKE)
            )
        case Worker(), Worker():
            # A gang of thousands joins one by one: joining frees nothing and asks for nothing.
            return old.state is not new.state and new.state is not WorkerState.READY
        case Node(), Node():
            return (old.state, old.capacity) != (new.state, new.capacity)
        case Attempt(), Attempt():
            return old.state is not new.state
    return True
