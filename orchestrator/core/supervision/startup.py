"""The start of an attempt: its ranks exist, are past their imports, and have loaded their state.

Reports of different agents arrive in any order, and a step may be known before the last rank has
said that it is ready; handlers here count ranks, and never assume that one report follows another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from jobs.events import RankRestored
from monitors.failures import Evidence, Failure, FailureClass
from orchestrator.core.attempts.lifecycle import SILENT_SECONDS
from orchestrator.core.checkpoints import lifecycle as checkpoint_lifecycle
from orchestrator.core.checkpoints import rollback
from orchestrator.core.messages.batching import gang_of
from orchestrator.core.messages.gang_events import GangReady, GangRestored, GangStarted
from orchestrator.core.model import time_ledger
from orchestrator.core.model.derived import is_reporting
from orchestrator.core.model.states import AttemptState, RunState, Trust
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.policy import doubt
from orchestrator.core.supervision import failures
from orchestrator.core.text import named
from orchestrator.core.turn import Turn


def on_started(turn: Turn, event: GangStarted) -> None:
    """Processes of these ranks exist. Whether their script ever reports remains to be seen.

    With the last rank the deadline of the start is cancelled. A script that has never called
    `babysit.init()` gets `SILENT_SECONDS` to do so, and then counts as one that does not report.
    """
    turn.record(event.run, f"ranks {named(event.ranks)} started")
    attempt = turn.state.attempts[event.run]
    started = attempt.started_ranks.union(event.ranks)
    turn.change_attempt(event.run, started_ranks=started)
    if len(started) == attempt.world_size:
        turn.cancel_timer(event.run, Timer.START)
    if attempt.state is AttemptState.STARTING and not is_reporting(turn.run(event.run)):
        turn.set_timer(event.run, Timer.SILENT, SILENT_SECONDS)


def on_ready(turn: Turn, event: GangReady) -> None:
    """Ranks have called `babysit.init()`: they are past their imports, and load their state next.

    With the last rank the time of the run is booked as restoring.
    """
    attempt = turn.state.attempts[event.run]
    ready = attempt.ready_ranks.union(event.ranks)
    attempt = turn.change_attempt(event.run, ready_ranks=ready)
    turn.cancel_timer(event.run, Timer.SILENT)
    run = turn.change_run(event.run, instrumented=True)
    if len(ready) == attempt.world_size:
        if attempt.first_step_at is None:  # agents speak in turn: steps may be known already
            book = time_ledger.switch(run.ledger, Bucket.RESTORING, turn.now)
            run = turn.change_run(run.id, ledger=book)
        if attempt.restart is not None:
            turn.change_attempt(
                run.id, restart=dataclasses.replace(attempt.restart, ready_at=turn.now)
            )
        counted_as_silent = attempt.state is AttemptState.RUNNING
        if counted_as_silent and attempt.step == 0 and run.state is RunState.RUNNING:
            late = "its ranks have called babysit.init(); no step has ended yet"
            turn.change_run(run.id, reason=late)


def restored(turn: Turn, run_id: str, ranks: Iterable[int], step: int, checkpoint: str) -> bool:
    """Record the step and checkpoint that ranks have loaded.

    Returns False, and changes nothing, if ranks before them have loaded another step. With the last
    rank the time of the run is booked as productive, or as lost while it computes known steps
    again.
    """
    attempt = turn.state.attempts[run_id]
    if not turn.run(run_id).instrumented and attempt.first_step_at is not None:
        return True  # its first step has shown more than what it was given
    if attempt.restored_ranks and step != attempt.start_step:
        return False
    restart = attempt.restart
    if restart is not None and not attempt.restored_ranks:
        # Known with the first rank: agents speak in turn, and a new step may come before the last.
        # One may come before the first rank, too: that script restores all the same.
        restart = dataclasses.replace(restart, resumed_step=step)
    attempt = turn.change_attempt(
        run_id,
        restored_ranks=attempt.restored_ranks.union(ranks),
        restored=checkpoint or None,
        start_step=step,
        milestone=step + 1,
        step=max(attempt.step, step),
        restart=restart,
    )
    run = turn.run(run_id)
    # A script that saves by itself has only been given a checkpoint: its first step shows the rest.
    if run.instrumented and len(attempt.restored_ranks) == attempt.world_size:
        again = restart is not None and step < restart.best_step
        bucket = Bucket.LOST if again else Bucket.PRODUCTIVE
        turn.change_run(run.id, ledger=time_ledger.switch(run.ledger, bucket, turn.now))
        if restart is not None:
            restored_at = dataclasses.replace(restart, restored_at=turn.now)
            turn.change_attempt(run.id, restart=restored_at)
    return True


def on_restored(turn: Turn, event: GangRestored) -> None:
    """Ranks loaded the first checkpoint that they were offered, or had none to load."""
    if event.ranks:
        _loaded(turn, event)


def on_fallback(turn: Turn, event: RankRestored) -> None:
    """A rank rejected checkpoints that it was offered, and loaded an older one, or none.

    A rejection for damage makes the checkpoint bad. One that could not be read stays as it was:
    that may pass.
    """
    for rejected in event.rejected:
        known = turn.state.checkpoints.get(rejected.id)
        if known is not None and known.trust is not Trust.BAD and not rejected.unreadable:
            checkpoint_lifecycle.found_corrupt(turn, known, rejected.reason)
    _loaded(turn, gang_of(event), tuple(rejected.reason for rejected in event.rejected))


def _loaded(turn: Turn, event: GangRestored, rejections: tuple[str, ...] = ()) -> None:
    """Go on if all ranks so far have loaded the same step; otherwise the attempt fails.

    Ranks at different steps would train a model that never was. The newer of the two checkpoints is
    doubted, since not every rank could load it: so the next attempt cannot split in the same way.
    """
    ranks = event.ranks
    if turn.state.attempts[event.run].candidates and not event.checkpoint and event.step == 0:
        failures.nothing_loaded(turn, event, rejections)
        return
    if restored(turn, event.run, ranks, event.step, event.checkpoint):
        attempt = turn.state.attempts[event.run]
        if len(attempt.restored_ranks) == attempt.world_size:
            rollback.settle_past(turn, event.run)
        return
    attempt = turn.state.attempts[event.run]
    reason = (
        f"ranks loaded different steps: {attempt.start_step} and {event.step} (rank {ranks[0]})"
    )
    for checkpoint in turn.state.checkpoints_of(event.run):
        if (
            checkpoint.step == max(attempt.start_step, event.step)
            and checkpoint.id in attempt.candidates
        ):
            rollback.cast_doubt(turn, checkpoint.id, "not every rank could load it")
    failure = Failure(
        failure_class=FailureClass.CHECKPOINT_CORRUPT,
        reason=reason,
        signature=doubt.SPLIT,
        source=Evidence.BABYSIT,
    )
    failures.fail_attempt(turn, event.run, failure, failed_at=event.at, rank=ranks[0], node=None)
