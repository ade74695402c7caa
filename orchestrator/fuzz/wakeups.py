"""The invariant that nobody is forgotten: no scheduling pass would now decide what is undecided.

The controller runs a pass after each change that may alter a decision. A change that wrongly wants
none leaves a run waiting until somebody else's event happens to wake the scheduler. Here a pass is
planned beside the leader, on its state, and what it would decide must not stay undecided. Nor may
its snapshot differ from one that keeps nothing from earlier passes.

Limits: a decision counts as forgotten only if it stays the same for `FORGOTTEN_SECONDS`, since a
transaction may be under way. That is shorter than the period of the periodic pass, which would
otherwise hide what is forgotten.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from orchestrator.core.model.derived import Derived
from orchestrator.core.model.state import State
from orchestrator.core.placement import snapshot
from orchestrator.core.placement.workers import current_plan

FORGOTTEN_SECONDS = 8.0
"""Virtual seconds for which a decision may stay undecided."""


class ForgottenDecisions:
    """Decisions that a pass would make, each since when."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def check(self, state: State, now: dt.datetime, seconds: float) -> Iterator[str]:
        """Plan a pass that is not carried out; yield sentences about forgotten decisions.

        Args:
            state: The leader's state; it is not changed.
            now: The leader's clock, UTC.
            seconds: The virtual time.
        """
        yield from _stale(state, now)
        due = set() if state.pass_wanted is not None else set(_decisions(state, now))
        self._since = {what: self._since.get(what, seconds) for what in sorted(due)}
        for what, since in self._since.items():
            if seconds - since > FORGOTTEN_SECONDS:
                yield f"a pass would {what} since {seconds - since:.0f} s, and none is wanted"


def _stale(state: State, now: dt.datetime) -> Iterator[str]:
    """A sentence if what the snapshot keeps of runs is no longer what it would find anew."""
    kept = snapshot.snapshot(state, now)
    facts, state.derived = state.derived, Derived()
    anew = snapshot.snapshot(state, now)
    state.derived = facts
    if kept != anew:
        yield "the snapshot of the scheduler differs from one that is made anew"


def _decisions(state: State, now: dt.datetime) -> Iterator[str]:
    outcome = current_plan(state, now)
    for run, nodes in outcome.placements.items():
        yield f"place {run} on {', '.join(nodes)}"
    for run, nodes in outcome.growth.items():
        yield f"give {run} {', '.join(nodes)}"
    for run, nodes in outcome.leaves.items():
        yield f"have {run} leave {', '.join(nodes)}"
    for eviction in outcome.evictions:
        yield f"preempt {eviction.run} for {eviction.by}"
