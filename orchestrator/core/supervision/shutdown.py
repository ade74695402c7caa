"""The end of an attempt's processes, as its agents report it."""

from __future__ import annotations

from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.messages.gang_events import GangStopped
from orchestrator.core.model.states import AttemptState
from orchestrator.core.supervision import failures
from orchestrator.core.text import named
from orchestrator.core.turn import Turn


def on_stopped(turn: Turn, event: GangStopped) -> None:
    """No process of the attempt is left on these workers; with the last worker it is judged.

    A report that nobody asked for is recorded and does not count: the ranks of a healthy attempt
    are known to be dead by their exits, not by an agent's word.
    """
    if turn.state.attempts[event.run].state is not AttemptState.STOPPING:
        who = named(event.workers)
        turn.record(event.run, f"{who}: ranks stopped without an order to stop: ignored")
    elif attempt_lifecycle.record_stopped(turn, event):
        failures.attempt_dead(turn, event.run)
