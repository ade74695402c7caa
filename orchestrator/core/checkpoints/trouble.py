"""Trouble with saving, and with the file systems that a run needs: incidents, and their ends.

A save that fails costs nothing but the save: training goes on, and the next save tries again. A
full file system is a condition with a name of its own, `disk_full`: it is nobody's mistake in the
code, and one person with an `rm` ends it for all runs.
"""

from __future__ import annotations

from babysit.wire import Tier
from jobs.events import SaveFailed, SaveResumed, StorageTrouble
from monitors.types import Severity
from orchestrator.core.model.entities import Attempt, Incident, Run
from orchestrator.core.model.states import AttemptState, IncidentState, Trust
from orchestrator.core.model.vocabulary import Remedy, SaveTrouble, Timer
from orchestrator.core.turn import Turn

PAGE_AFTER_FAILED_SAVES = 2
"""Consecutive failed saves before someone is paged (FAILURES.md row 17)."""
OVERDUE_INTERVALS = 3
"""Intervals of `every_steps` without a new checkpoint that open an incident."""
OVERDUE_SECONDS = 60.0
"""Time for which they are waited for then."""

_OF_AGENTS = (SaveTrouble.DISK_FULL, SaveTrouble.STORAGE_LOST)
_FAILING = (SaveTrouble.CHECKPOINT_FAILED, SaveTrouble.DISK_FULL)


def on_save_failed(turn: Turn, event: SaveFailed) -> None:
    """A save failed; training goes on. The second step in a row that fails to save pages, once.

    The same step failing on many ranks is one failure. The incident ends with the next complete
    save.
    """
    run = turn.run(event.run)
    reason = f"rank {event.rank} could not save step {event.step} ({event.tier}): {event.error}"
    known = failing_saves(turn, run.id, event.tier)
    if known is None:
        known = turn.open_incident(
            run,
            kind=SaveTrouble.DISK_FULL if event.full else SaveTrouble.CHECKPOINT_FAILED,
            severity=Severity.WARNING,
            reason=reason,
            subject=f"rank {event.rank}",
            remedy=Remedy.NEXT_SAVE,
            evidence={"failed": 1, "step": event.step, "tier": event.tier.value},
        )
        turn.notify(run.id, known.severity, f"{run.name}: {reason}", known.id)
    elif event.step != known.evidence["step"]:
        failed = known.evidence["failed"] + 1
        severe = failed >= PAGE_AFTER_FAILED_SAVES
        turn.change_incident(
            known.id,
            reason=reason,
            severity=Severity.CRITICAL if severe else known.severity,
            evidence={**known.evidence, "failed": failed, "step": event.step},
        )
        if is_full(turn, run.id) and failed % PAGE_AFTER_FAILED_SAVES == 0:
            _keep_fewer(turn, run.id)
        if failed == PAGE_AFTER_FAILED_SAVES:
            turn.notify(run.id, Severity.CRITICAL, f"{run.name}: {reason}", known.id)


def failing_saves(turn: Turn, run_id: str, tier: Tier) -> Incident | None:
    """The open incident of saves to this tier."""
    return next(
        (
            incident
            for incident in turn.state.incidents_of(run_id)
            if incident.kind in _FAILING
            and incident.state is not IncidentState.RESOLVED
            and incident.evidence.get("tier") == tier.value
        ),
        None,
    )


def is_full(turn: Turn, run_id: str) -> bool:
    """True if there is no room for the checkpoints of a run now."""
    known = failing_saves(turn, run_id, Tier.DIRECTORY)
    return known is not None and known.kind == SaveTrouble.DISK_FULL


def kept(run: Run) -> int:
    """Checkpoints that retention keeps: `keep` of the spec, or fewer where no more have room."""
    attempt, room = run.room or (0, 0)
    if attempt == run.attempt:
        return room
    resume = run.spec.resume
    return resume.keep if resume is not None and resume.keep else run.spec.checkpoint.keep


def keeps_all(run: Run) -> bool:
    """True if the script's own checkpoints are not ours to delete."""
    return run.spec.resume is not None and run.spec.resume.keep is None


def _keep_fewer(turn: Turn, run_id: str) -> None:
    """Keep one checkpoint less for the rest of the attempt, but always one.

    Two saves in a row have failed for want of room by then, though all that is of no use was
    deleted: there is room for those that are kept, and none for the next one beside them.
    """
    run = turn.run(run_id)
    fewer = max(1, kept(run) - 1)
    if fewer < kept(run):
        turn.change_run(run_id, room=(run.attempt, fewer))
        turn.record(run_id, f"no room for another checkpoint: only {fewer} are kept from now on")


def failed_here(turn: Turn, run_id: str, attempt: int, step: int) -> bool:
    """True if a rank of this attempt could not save this step to the directory."""
    known = failing_saves(turn, run_id, Tier.DIRECTORY)
    return known is not None and known.attempt == attempt and known.evidence["step"] == step


def saves_again(turn: Turn, run_id: str, tier: Tier) -> None:
    """A save to this tier has worked: what was open about it is over."""
    known = failing_saves(turn, run_id, tier)
    if known is not None:
        turn.resolve_incident(known.id, "a checkpoint was saved again")
    if tier is Tier.DIRECTORY:
        _resolve(turn, run_id, SaveTrouble.CHECKPOINTS_OVERDUE, "", "a checkpoint was saved again")


def on_save_resumed(turn: Turn, event: SaveResumed) -> None:
    """A rank saves to a tier again after it had failed to.

    The directory tier waits for a complete checkpoint, which all ranks must save.
    """
    known = failing_saves(turn, event.run, event.tier)
    if event.tier is Tier.MEMORY and known is not None and event.step >= known.evidence["step"]:
        saves_again(turn, event.run, event.tier)


def on_storage_trouble(turn: Turn, event: StorageTrouble) -> None:
    """A file system that an agent needs is full or gone, or is well again."""
    run = turn.run(event.run)
    worker = turn.state.workers.get(event.worker)
    node = worker.node if worker is not None else event.worker
    kind = SaveTrouble.DISK_FULL if event.full else SaveTrouble.STORAGE_LOST
    subject = f"{event.place.value} on {node}"
    if event.over:
        for each in (SaveTrouble.DISK_FULL, SaveTrouble.STORAGE_LOST):
            _resolve(turn, run.id, each, subject, f"{event.path} can be written again")
        return
    if _open(turn, run.id, kind, subject) is not None:
        return
    reason = f"{event.path} on {node}: {event.error}; {_COSTS[event.place.value]}"
    incident = turn.open_incident(
        run,
        kind=kind,
        severity=Severity.WARNING,
        reason=reason,
        subject=subject,
        remedy=Remedy.RECORD,
        evidence={"path": event.path, "place": event.place.value, "worker": event.worker},
    )
    turn.notify(run.id, incident.severity, f"{run.name}: {reason}", incident.id)


def ends_with(turn: Turn, run_id: str, worker: str) -> None:
    """A worker is gone, and with it what was wrong with its directories."""
    for incident in turn.state.incidents_of(run_id):
        if incident.kind in _OF_AGENTS and incident.evidence.get("worker") == worker:
            turn.resolve_incident(incident.id, f"{worker} is gone")


_COSTS = {
    "logs": "lines of the ranks' logs are lost until there is room, training goes on",
    "spool": "samples are dropped until there is room, events are kept in memory",
    "ranks": "what ranks report meanwhile may be lost, training goes on",
    "memory": "checkpoints in memory are lost, training goes on",
}


def overdue_step(run: Run, attempt: Attempt, saved: int) -> int | None:
    """The step at which a missing checkpoint is an incident; None: the spec asks for none."""
    policy = run.spec.checkpoint
    if policy.directory is None:
        return None
    return max(saved, attempt.start_step) + OVERDUE_INTERVALS * policy.every_steps + 1


def last_saved(turn: Turn, run_id: str) -> int:
    """The newest step of the live attempt that is saved whole; 0: none."""
    attempt = turn.state.attempts[run_id]
    return max(
        (
            c.step
            for c in turn.state.checkpoints_of(run_id)
            if c.attempt == attempt.number
            and c.tier is Tier.DIRECTORY
            and c.trust is not Trust.WRITING
        ),
        default=0,
    )


def _ever_saved(turn: Turn, run_id: str) -> bool:
    """True if the run has a checkpoint of any attempt, or began from one."""
    return turn.state.attempts[run_id].start_step > 0 or any(
        checkpoint.tier is Tier.DIRECTORY and checkpoint.trust is not Trust.WRITING
        for checkpoint in turn.state.checkpoints_of(run_id)
    )


def check_overdue(turn: Turn, run_id: str) -> None:
    """Wait for the checkpoints that are due, if steps go by and they do not come.

    Steps may be heard of before the checkpoints between them, such as after an outage.
    """
    if _is_overdue(turn, run_id) and turn.run(run_id).due(Timer.OVERDUE) is None:
        turn.set_timer(run_id, Timer.OVERDUE, OVERDUE_SECONDS)


def _is_overdue(turn: Turn, run_id: str) -> bool:
    """Failing saves have an incident of their own."""
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state is not AttemptState.RUNNING:
        return False
    limit = overdue_step(turn.run(run_id), attempt, last_saved(turn, run_id))
    return (
        limit is not None
        and attempt.step >= limit
        and failing_saves(turn, run_id, Tier.DIRECTORY) is None
        and _open(turn, run_id, SaveTrouble.CHECKPOINTS_OVERDUE, "") is None
    )


def on_overdue(turn: Turn, run_id: str) -> None:
    """Open an incident: the checkpoints that were due have not come meanwhile.

    A script that has never saved, in any attempt, most likely does not call `checkpoint`: that is
    said once and disturbs nobody. One that has stopped saving is a warning.
    """
    if not _is_overdue(turn, run_id):
        return
    run, attempt = turn.run(run_id), turn.state.attempts[run_id]
    saved = last_saved(turn, run_id)
    every = run.spec.checkpoint.every_steps
    since = f"the last one is of step {saved}" if saved else "this attempt has saved none"
    reason = (
        f"no checkpoint for {attempt.step - max(saved, attempt.start_step)} steps, at step"
        f" {attempt.step}: one is due every {every}, and {since}; does the script call"
        " `run.checkpoint()` after each step?"
    )
    incident = turn.open_incident(
        run,
        kind=SaveTrouble.CHECKPOINTS_OVERDUE,
        severity=Severity.WARNING if _ever_saved(turn, run_id) else Severity.INFO,
        reason=reason,
        remedy=Remedy.RECORD,
        evidence={"step": attempt.step, "saved": saved},
    )
    turn.notify(run.id, incident.severity, f"{run.name}: {reason}", incident.id)


def _open(turn: Turn, run_id: str, kind: SaveTrouble, subject: str) -> Incident | None:
    return next(
        (
            incident
            for incident in turn.state.incidents_of(run_id)
            if incident.kind == kind
            and incident.subject == subject
            and incident.state is not IncidentState.RESOLVED
        ),
        None,
    )


def _resolve(turn: Turn, run_id: str, kind: SaveTrouble, subject: str, how: str) -> None:
    known = _open(turn, run_id, kind, subject)
    if known is not None:
        turn.resolve_incident(known.id, how)
