"""Checkpoints on disk of which the database has not heard, looked for before a restart.

The problem: an agent that dies takes the reports with it that no server had stored, and a database
that is restored, or fails over, may have lost some. The checkpoints lie whole in the directory, and
a restart from the newest *known* one throws hours of training away.

The design: before a run's next attempt starts, one of its agents looks at the directory, since
servers need not reach it. That is done once by each leader for the runs that it took over, and
again when an agent of a live attempt ended without a word of its own. An ordinary restart waits for
nothing: its agents have reported all that they saved.

Limits: what was found is *complete*, not read back: ranks compare sizes and hashes when they load
it. Bytes on disk of attempts before the last one stay out: the run may have left them behind.
"""

from __future__ import annotations

import itertools

from babysit.wire import Tier
from jobs.commands import FindCheckpoints
from jobs.events import CheckpointsFound
from jobs.shards import Shards
from orchestrator.core.checkpoints import memory_tier, rollback
from orchestrator.core.messages.events import LeadershipBegan
from orchestrator.core.model.entities import Run, Worker
from orchestrator.core.model.states import Trust, WorkerState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.turn import Turn

LOOK_SECONDS = 60.0
"""Seconds that a look at the directory may take; then the attempt starts with what is known.

An estimate of ours: a look reads the manifests of one checkpoint, 10,000 small files at the most.
"""


def on_leadership(turn: Turn, _event: LeadershipBegan) -> None:
    """Have the disk looked at before the next attempt of every run that is taken over."""
    for run in list(turn.state.live_runs()):
        reports_lost(turn, run.id)


def reports_lost(turn: Turn, run_id: str) -> None:
    """Note that there may be whole checkpoints on disk of which no report will come."""
    run = turn.run(run_id)
    on_disk = run.spec.checkpoint.directory is not None or run.spec.resumes_by_step
    if run.attempt > 0 and on_disk and not run.look_at_disk:
        turn.change_run(run_id, look_at_disk=True)


def look(turn: Turn, run: Run, ready: list[Worker]) -> None:
    """Have one of these agents look; nothing happens while one of them does."""
    asked = run.timers.get(Timer.LOOK, {})
    if any(worker.id in asked for worker in ready):
        return
    for worker in asked:  # it is gone, and so is its answer
        turn.cancel_timer(run.id, Timer.LOOK, subject=worker)
    first = ready[0]
    why = f"looks on {first.node} for checkpoints on disk that no report told of"
    turn.set_timer(run.id, Timer.LOOK, LOOK_SECONDS, subject=first.id)
    turn.send_command(
        first.id, FindCheckpoints, why, attempt=run.attempt, above=_newest_known(turn, run)
    )
    turn.change_run(run.id, reason=why)


def _newest_known(turn: Turn, run: Run) -> int:
    """The newest whole checkpoint of the last attempt: those of older ones may be left behind."""
    steps = [
        c.step
        for c in turn.state.checkpoints_of(run.id)
        if c.tier is Tier.DIRECTORY
        and c.attempt >= run.attempt
        and c.trust is not Trust.WRITING
        and c.deleted_at is None
    ]
    return max(steps, default=0)


def give_up(turn: Turn, run_id: str, worker_id: str) -> None:
    """Start with what is known: an agent has not answered in `LOOK_SECONDS`."""
    worker = turn.state.workers.get(worker_id)
    if worker is not None and worker.state is WorkerState.READY:
        why = f"the look for checkpoints on {worker.node} took over {LOOK_SECONDS:.0f} s"
        turn.record(run_id, f"{why}: the next attempt starts with what is known")
        turn.change_run(run_id, look_at_disk=False)


def on_found(turn: Turn, event: CheckpointsFound) -> None:
    """Record the checkpoints that an agent found on disk, and what they say of the run's progress.

    An answer that comes when the next attempt has started changes nothing: what that attempt does
    is the run's past.
    """
    run = turn.run(event.run)
    if event.attempt != run.attempt or not run.look_at_disk:
        turn.record(run.id, f"a look at the disk for attempt {event.attempt} came late: ignored")
        return
    for worker in run.timers.get(Timer.LOOK, {}):
        turn.cancel_timer(run.id, Timer.LOOK, subject=worker)
    turn.change_run(run.id, look_at_disk=False)
    if event.error:
        turn.record(run.id, f"the checkpoint directory could not be read: {event.error}")
    groups = itertools.groupby(event.shards, key=lambda shard: (shard.step, shard.attempt))
    found = [Shards.of(event.worker, *shards) for _, shards in groups]
    new = [shards for shards in found if _is_new(turn, run.id, shards)]
    for shards in reversed(new):
        _record(turn, run.id, shards)
    if new:
        turn.change_run(run.id, best_step=max(run.best_step, *(s.step for s in new)))
    if new and run.decision is not None:  # a rollback leaves behind what was saved after its step
        rollback.rewind(turn, run.id, run.decision)


def _is_new(turn: Turn, run_id: str, shards: Shards) -> bool:
    known = turn.state.checkpoints.get(_key(run_id, shards))
    return known is None or (known.trust is Trust.WRITING and known.deleted_at is None)


def _key(run_id: str, shards: Shards) -> str:
    return f"{run_id}/{shards.attempt}/{shards.tier}/{shards.step}"


def _record(turn: Turn, run_id: str, shards: Shards) -> None:
    key = _key(run_id, shards)
    known = turn.state.checkpoints.get(key)
    if known is None:
        known = memory_tier.new_checkpoint(turn, key, run_id, shards, path=shards.path)
    missing = [place for place, rank in enumerate(shards.ranks) if rank not in known.ranks]
    memory_tier.add_shards(turn, known, shards.kept(missing))
    turn.record(run_id, f"step {shards.step} of attempt {shards.attempt} was found whole on disk")
