"""The end of an attempt's processes, as its agents report it."""

from __future__ import annotations

from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.messages.gang_events import GangStopped
from orchestrator.core.model.states import AttemptState
from orchestrator.core.supervision import failures, reconciliation
from orchestrator.core.turn import Turn


def on_stopped(turn: Turn, event: GangStopped) -> None:
    """No process of the attempt is left on these workers; with the last worker it is judged.

    Agents report it as the answer to an order. Where this database knows of none, the order was
    lost with the transactions that a restore took back: no rank will say its end.
    """
    if turn.state.attempts[event.run].state is not AttemptState.STOPPING:
        reconciliation.on_stopped_unasked(turn, event)
    elif attempt_lifecycle.record_stopped(turn, event):
        failures.attempt_dead(turn, event.run)
