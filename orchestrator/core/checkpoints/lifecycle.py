"""Checkpoints on disk, from the first shard to good, bad or deleted.

Trust only grows by evidence: *complete* when every shard is recorded, *verified* when every worker
has read its shards back, *good* when `good_after_steps` clean steps of the same attempt lie after
it. It falls to *bad* by proof of damage alone; never since a file could not be read, which may
pass. Marks beside trust say which ones are passed over (:mod:`.rollback`). The last checkpoint that
can be trusted is not deleted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from babysit.wire import Tier
from jobs.commands import VerifyCheckpoint
from jobs.events import CheckpointChecked, SaveFailed
from jobs.shards import Shards
from monitors.failures import FailureClass
from monitors.types import Severity
from orchestrator.core.checkpoints import deletion, memory_tier, rollback, trouble
from orchestrator.core.messages.gang_events import GangChecked, GangSaved
from orchestrator.core.model.decisions import Rollback, RollbackTo
from orchestrator.core.model.derived import knows_its_past
from orchestrator.core.model.entities import Attempt, Checkpoint
from orchestrator.core.model.states import AttemptState, IncidentState, Trust, WorkerState
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.policy import checkpoint_choice, remedies
from orchestrator.core.turn import Turn


def on_saved(turn: Turn, event: GangSaved) -> None:
    """Shards of a directory checkpoint are on disk; with its last it is complete, and read back.

    Shards that are recorded already change nothing: an agent may report one twice.
    """
    run_id, shards = event.run, event.shards
    key = f"{run_id}/{shards.attempt}/{shards.tier}/{shards.step}"
    known = turn.state.checkpoints.get(key)
    if known is None:
        _overwrites(turn, run_id, shards.path)
        known = memory_tier.new_checkpoint(turn, key, run_id, shards, path=shards.path)
    if known.ranks:
        fresh = [i for i, rank in enumerate(shards.ranks) if rank not in known.ranks]
        shards = shards.kept(fresh) if len(fresh) < len(shards.ranks) else shards
    if not shards.ranks:
        return
    if known.deleted_at is not None:  # a rank was writing it while it was deleted: sweep it again
        turn.change_checkpoint(known.id, removed_at=None, remover="")
        prune(turn, run_id)
        return
    _measure(turn, run_id, shards)
    known, whole = memory_tier.add_shards(turn, known, shards)
    if whole:
        turn.record(run_id, f"the checkpoint of step {known.step} is complete: {known.bytes} bytes")
        trouble.saves_again(turn, run_id, Tier.DIRECTORY)
        verify(turn, known)
        promote(turn, run_id)
        set_milestone(turn, run_id)
        prune(turn, run_id)
    elif trouble.failed_here(turn, run_id, known.attempt, known.step):
        _give_up(turn, known)


def _measure(turn: Turn, run_id: str, shards: Shards) -> None:
    """Remember the longest save: ranks that are asked to stop get the time for another one."""
    seconds = max(map(sum, zip(shards.copy_seconds, shards.write_seconds, strict=True)))
    if seconds > turn.run(run_id).longest_save:
        turn.change_run(run_id, longest_save=seconds)


def on_save_failed(turn: Turn, event: SaveFailed) -> None:
    """A save failed on a rank: the shards of the others are of no use, and take up room."""
    trouble.on_save_failed(turn, event)
    if event.tier is Tier.DIRECTORY:
        for known in turn.state.checkpoints_of(event.run):
            if known.step == event.step and known.attempt == event.attempt:
                _give_up(turn, known)
    prune(turn, event.run)


def _give_up(turn: Turn, known: Checkpoint) -> None:
    """Delete what was saved of a checkpoint that can never become whole.

    Ranks that still write to it fail, or their shards are swept when they report them.
    """
    worker = _ready_worker(turn, known.run)
    half = known.trust is Trust.WRITING and known.deleted_at is None and not known.pinned
    if worker is not None and half and known.tier is Tier.DIRECTORY:
        deletion.delete(turn, worker, known, "a rank could not save its shard")


def _ready_worker(turn: Turn, run_id: str) -> str | None:
    workers = turn.state.workers_of(run_id)
    return next((w.id for w in workers if w.state is WorkerState.READY), None)


def _overwrites(turn: Turn, run: str, path: str) -> None:
    """A later attempt saves the same step to the same path: what was saved there before is gone."""
    for old in turn.state.checkpoints_of(run):
        if old.path == path and old.tier is Tier.DIRECTORY and old.removed_at is None:
            why = "written again by a later attempt"
            turn.change_checkpoint(old.id, deleted_at=turn.now, removed_at=turn.now, reason=why)


def verify(turn: Turn, checkpoint: Checkpoint) -> frozenset[str]:
    """Have each worker read its own shards back; False when none of them is there to do it."""
    ranks_of = _ranks_of_homes(turn, checkpoint)
    there = {
        worker.id: ranks_of[worker.id]
        for worker in turn.state.workers_of(checkpoint.run)
        if worker.id in ranks_of and worker.state is WorkerState.READY
    }
    turn.broadcast(
        checkpoint.run,
        there,
        VerifyCheckpoint,
        f"read step {checkpoint.step} back",
        attempt=checkpoint.attempt,
        checkpoint=checkpoint.id,
        path=checkpoint.path,
        ranks=(),
    )
    return frozenset(there)


def _ranks_of_homes(turn: Turn, checkpoint: Checkpoint) -> Mapping[str, tuple[int, ...]]:
    """Ranks of the shards on each worker, as far as the attempt that wrote them is known."""
    attempt = turn.attempt(checkpoint.run)
    if attempt is not None and attempt.number == checkpoint.attempt and not attempt.guessed:
        return {seat.worker: seat.ranks for seat in attempt.seats}
    ranks_of: dict[str, list[int]] = defaultdict(list)
    for rank, home in sorted(checkpoint.homes.items()):
        ranks_of[home].append(rank)
    return {home: tuple(ranks) for home, ranks in ranks_of.items()}


def on_checked(turn: Turn, event: GangChecked) -> None:
    """Workers read their shards back whole; with the last of them the checkpoint is verified."""
    known = _in_doubt(turn, event.checkpoint)
    if known is None:
        return
    checked = known.checked_by.union(event.workers)
    whole = known.trust is Trust.COMPLETE and checked >= set(known.homes.values())
    media = {*filter(None, known.medium.split(", ")), event.medium}
    turn.change_checkpoint(
        known.id,
        checked_by=checked,
        trust=Trust.VERIFIED if whole else known.trust,
        medium=", ".join(sorted(filter(None, media))),
    )
    if whole:
        _makes_up_for(turn, known)
    promote(turn, known.run)
    prune(turn, known.run)


def on_check_failed(turn: Turn, event: CheckpointChecked) -> None:
    """A worker could not read its shards back, or found them damaged.

    Only damage makes a checkpoint bad: a file that cannot be read may be readable again later.
    """
    known = _in_doubt(turn, event.checkpoint)
    if known is None:
        return
    if event.unreadable:
        turn.record(event.run, f"step {known.step} could not be read back: {event.error}")
        turn.change_checkpoint(known.id, reason=f"could not be read back: {event.error}")
    else:
        found_corrupt(turn, known, event.error)


def _in_doubt(turn: Turn, checkpoint: str) -> Checkpoint | None:
    """The checkpoint, unless what a worker says of it cannot matter any more."""
    known = turn.state.checkpoints.get(checkpoint)
    settled = known is None or known.deleted_at is not None or known.trust is Trust.BAD
    return None if settled else known


def _makes_up_for(turn: Turn, verified: Checkpoint) -> None:
    """A newer one has been read back: what was corrupt before it is no longer missed."""
    for incident in turn.state.incidents_of(verified.run):
        corrupt = incident.kind == FailureClass.CHECKPOINT_CORRUPT
        if corrupt and incident.evidence.get("step", verified.step) < verified.step:
            turn.resolve_incident(incident.id, f"step {verified.step} was saved and read back")


def found_corrupt(turn: Turn, checkpoint: Checkpoint, error: str) -> None:
    """Mark a checkpoint bad that does not read back as written, and open an incident.

    There are two ways to get here: a read-back finds damage, or a rank rejects it at load for
    damage. It is never loaded again.
    """
    rollback.mark_bad(turn, checkpoint.id, error)
    run = turn.run(checkpoint.run)
    incident = turn.open_incident(
        run,
        kind=FailureClass.CHECKPOINT_CORRUPT,
        severity=Severity.WARNING,
        subject=f"checkpoint of step {checkpoint.step} ({checkpoint.tier})",
        remedy=Remedy.FALL_BACK,
        evidence={"step": checkpoint.step},
        reason=f"the {checkpoint.tier} checkpoint of step {checkpoint.step} is corrupt: {error}",
    )
    turn.notify(run.id, Severity.WARNING, f"{run.name}: {incident.reason}", incident.id)


def may_become_good(checkpoint: Checkpoint) -> bool:
    """True if clean steps still count for the checkpoint."""
    return (
        checkpoint.tier is Tier.DIRECTORY
        and checkpoint.deleted_at is None
        and not checkpoint.superseded
        and checkpoint.trust in {Trust.COMPLETE, Trust.VERIFIED}
    )


def promote(turn: Turn, run_id: str) -> None:
    """Verified checkpoints with enough clean steps after them are good.

    Steps are clean while the attempt is not being stopped: an anomaly stops it, and supersedes what
    came after its onset. Those before its onset stay clean: a checkpoint may be read back only
    while the ranks stop, and may be the only one to roll back to. Where nothing is done about an
    anomaly (`observe`, or a hold), or a rise of the loss has time to come back by itself, no step
    from its onset on is clean. Until every rank has loaded, it is not known whose past these steps
    have.
    """
    run, attempt = turn.run(run_id), turn.attempt(run_id)
    if attempt is None or not knows_its_past(run, attempt):
        return
    if run.decision is None and attempt.state is AttemptState.RUNNING:
        _end_respites(turn, attempt)
        clean = _clean_step(turn, attempt)
    elif isinstance(run.decision, Rollback) and attempt.state is AttemptState.STOPPING:
        clean = min(_clean_step(turn, attempt), run.decision.onset_step - 1)
    else:
        return
    clean_until = clean - run.spec.checkpoint.good_after_steps
    for checkpoint in turn.state.checkpoints_of(run_id):
        if (
            may_become_good(checkpoint)
            and checkpoint.trust is Trust.VERIFIED
            and checkpoint.step <= clean_until
        ):
            turn.change_checkpoint(checkpoint.id, trust=Trust.GOOD)


def _end_respites(turn: Turn, attempt: Attempt) -> None:
    """A monitor that was begun anew, or told of a change, may never say what became of a rise."""
    for incident in turn.state.incidents_of(attempt.run):
        if remedies.is_awaited(incident) and attempt.step > incident.evidence.get("until_step", 0):
            turn.resolve_incident(incident.id, "its time is over, and nothing more was found")


def _clean_step(turn: Turn, attempt: Attempt) -> int:
    """The last step of the attempt that no open anomaly casts doubt on."""
    onsets = [
        incident.onset_step - 1
        for incident in turn.state.incidents_of(attempt.run)
        if (incident.kind in remedies.SPOILING or remedies.is_awaited(incident))
        and incident.state is IncidentState.OPEN
        and incident.attempt == attempt.number
        and incident.onset_step is not None
    ]
    return min([attempt.step, *onsets])


def set_milestone(turn: Turn, run_id: str) -> None:
    """Choose the next step that reaches the core as an event.

    The earliest of: the first step beyond all that was reached before (the recovery is over), a
    step that makes a checkpoint good, and `max(good_after_steps, 100)` steps from here. The steps
    in between stay with the monitors: at 2,000 runs they would drown the core.
    """
    run, attempt = turn.run(run_id), turn.state.attempts[run_id]
    if attempt.state is not AttemptState.RUNNING:
        return
    after = run.spec.checkpoint.good_after_steps
    steps = [attempt.step + max(after, 100)]
    if attempt.restart is not None:
        steps.append(attempt.restart.best_step + 1)
    due = trouble.overdue_step(run, attempt, trouble.last_saved(turn, run_id))
    if due is not None and due > attempt.step:
        steps.append(due)
    steps.extend(c.step + after for c in turn.state.checkpoints_of(run_id) if may_become_good(c))
    turn.change_attempt(run_id, milestone=min(step for step in steps if step > attempt.step))


def prune(turn: Turn, run_id: str) -> None:
    """Retention: delete the checkpoints that the spec's `keep` does not cover.

    Any ready worker does it; without one nothing is deleted until the next save. What ranks may be
    loading stays, and so does everything while ranks stop for a rollback: what they save meanwhile
    is passed over, and the step to go back to may be the oldest that is kept.
    """
    worker, attempt = _ready_worker(turn, run_id), turn.attempt(run_id)
    if worker is None or attempt is None:
        return
    deletion.retry(turn, run_id, worker)
    run = turn.run(run_id)
    if isinstance(run.decision, Rollback | RollbackTo) or trouble.keeps_all(run):
        return
    spendable = checkpoint_choice.select_for_deletion(
        turn.state.checkpoints_of(run_id),
        trouble.kept(run),
        in_use(attempt),
        attempt.number,
        full=trouble.is_full(turn, run_id),
    )
    for spent in spendable:
        deletion.delete(turn, worker, spent, "retention")


def in_use(attempt: Attempt | None) -> tuple[str, ...]:
    """Checkpoints that ranks may be loading: all offered ones, until a first step ends."""
    return attempt.candidates if attempt is not None and attempt.first_step_at is None else ()
