"""The invariants that one turn can break: pure, on what was stored before it and what it adds.

They say again, from outside, what docs/architecture.md and docs/recovery.md promise. Nothing here
asks the core whether it did right: it would only agree with itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from babysit.wire import Tier
from jobs.commands import DeleteCheckpoint, StartAttempt
from monitors.failures import Cause
from orchestrator.core.messages.instructions import (
    BroadcastCommand,
    IncidentUpdate,
    Instruction,
    LaunchWorker,
    Notify,
    Record,
    SendCommand,
)
from orchestrator.core.model.entities import Attempt, Checkpoint, Incident, Run, Worker
from orchestrator.core.model.state import State
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    AttemptState,
    IncidentState,
    RunState,
    Trust,
    WorkerState,
)
from orchestrator.core.model.time_ledger import totals
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.policy.recovery import LAUNCH_TRIES
from orchestrator.database.port import Batch, JournalEntry

WHOLE = frozenset({Trust.COMPLETE, Trust.VERIFIED, Trust.GOOD})
_OF_ONE_ATTEMPT = frozenset(
    {
        "ranks_started",
        "rank_ready",
        "rank_restored",
        "rank_exited",
        "shard_written",
        "save_failed",
        "attempt_stopped",
        "stacks_captured",
        "gang_started",
        "gang_ready",
        "gang_restored",
        "gang_finished",
        "gang_saved",
        "gang_stopped",
        "gang_stacks",
    }
)
"""Events that count for their own attempt, and for no other."""
_ROUNDING_SECONDS = 1e-3
_OF_ENDED_RUNS = (Record, Notify, IncidentUpdate)
"""Instructions that may follow the end of a run: people hear of it."""


def parts(instruction: Instruction) -> Sequence[Instruction]:
    """An instruction, once for each worker that it concerns."""
    return (
        tuple(instruction.each()) if isinstance(instruction, BroadcastCommand) else (instruction,)
    )


def commands_of(batch: Batch) -> Iterator[SendCommand]:
    """Every command of a turn, once for each agent that gets it."""
    for instruction in batch.outbox:
        yield from (part for part in parts(instruction) if isinstance(part, SendCommand))


def before(stored: State, batch: Batch) -> Iterator[str]:
    """Rules that a turn breaks, given the state before it."""
    yield from _attempts_go_on(stored, batch)
    for entity in batch.entities:
        match entity:
            case Run():
                yield from _run_goes_on(stored.runs.get(entity.id), entity)
            case Worker():
                old = stored.workers.get(entity.id)
                if old is not None and old.state is WorkerState.ENDED is not entity.state:
                    yield f"{entity.id} is back from its end"
            case Incident():
                incident = stored.incidents.get(entity.id)
                if incident and incident.state is IncidentState.RESOLVED is not entity.state:
                    yield f"incident {entity.id} is open again"
            case _:
                pass
    over = {run.id for run in stored.runs.values() if run.state in TERMINAL_RUN_STATES}
    for instruction in batch.outbox:
        if instruction.run in over and not isinstance(instruction, _OF_ENDED_RUNS):
            yield f"{instruction.kind} for {instruction.run}, which is over"
    yield from _late_events_change_nothing(stored, batch)
    yield from _last_trusted_stays(stored, batch)
    yield from _holds_hold(stored, batch)


def _late_events_change_nothing(stored: State, batch: Batch) -> Iterator[str]:
    """Late events: reports of an older attempt must change nothing."""
    events = [entry for entry in batch.journal if entry.kind == "event"]
    if not events or not all(_is_late(stored, entry) for entry in events):
        return
    for entity in batch.entities:
        if isinstance(entity, Run | Attempt | Checkpoint | Incident):
            late = events[0]
            yield f"{late.name} of attempt {late.attempt}, which is over, changes {entity.id}"


def _is_late(stored: State, entry: JournalEntry) -> bool:
    run = stored.runs.get(entry.run or "")
    over = run is not None and (
        run.state in TERMINAL_RUN_STATES or (entry.attempt or 0) < run.attempt
    )
    return over and entry.name in _OF_ONE_ATTEMPT


def _run_goes_on(old: Run | None, new: Run) -> Iterator[str]:
    if old is not None and old.state in TERMINAL_RUN_STATES and new.state is not old.state:
        yield f"{new.id} was {old.state} and becomes {new.state}"
    if old is not None and new.attempt < old.attempt:
        yield f"{new.id} goes back from attempt {old.attempt} to {new.attempt}"
    if not new.reason:
        yield f"{new.id} is {new.state} without a reason"


def _attempts_go_on(stored: State, batch: Batch) -> Iterator[str]:
    newest = dict(stored.attempts)
    changed = [entity for entity in batch.entities if isinstance(entity, Attempt)]
    for attempt in sorted(changed, key=lambda attempt: attempt.number):
        yield from _attempt_goes_on(newest.get(attempt.run), attempt)
        newest[attempt.run] = attempt


def _attempt_goes_on(old: Attempt | None, new: Attempt) -> Iterator[str]:
    if old is None:
        return
    if new.number < old.number:
        yield f"attempt {new.number} of {new.run} changes after {old.number} has begun"
    if new.number > old.number and old.state in LIVE_ATTEMPT_STATES:
        yield f"attempt {new.number} of {new.run} begins while {old.number} is {old.state}"
    final = old.state not in LIVE_ATTEMPT_STATES and new.state is not old.state
    if new.number == old.number and final:
        yield f"attempt {new.number} of {new.run} was {old.state} and becomes {new.state}"


def _last_trusted_stays(stored: State, batch: Batch) -> Iterator[str]:
    changed = {each.id: each for each in batch.entities if isinstance(each, Checkpoint)}
    for order in commands_of(batch):
        if not isinstance(order.command, DeleteCheckpoint):
            continue
        deleted = stored.checkpoints.get(order.command.checkpoint)
        if deleted is None or deleted.trust not in WHOLE:
            continue
        left = [
            checkpoint
            for checkpoint in {**stored.checkpoints, **changed}.values()
            if checkpoint.run == deleted.run
            and checkpoint.tier is Tier.DIRECTORY
            and checkpoint.trust in WHOLE
            and not checkpoint.superseded
            and checkpoint.deleted_at is None
        ]
        if not left:
            yield f"{deleted.id} is deleted, the last checkpoint of {deleted.run} to be trusted"
        if deleted.pinned:
            yield f"{deleted.id} is deleted, which is pinned"


def _holds_hold(stored: State, batch: Batch) -> Iterator[str]:
    """Holds: no action begins in a turn that was frozen before it and still is after it."""
    runs = {each.id: each for each in batch.entities if isinstance(each, Run)}
    fleets = [each for each in batch.entities if getattr(each, "id", "") == "fleet"]
    everything = bool(stored.fleet.hold) and all(getattr(fleet, "hold", "") for fleet in fleets)
    begins: list[Instruction] = [each for each in batch.outbox if isinstance(each, LaunchWorker)]
    begins += [order for order in commands_of(batch) if isinstance(order.command, StartAttempt)]
    for instruction in begins:
        old = stored.runs.get(str(instruction.run))
        new = runs.get(str(instruction.run), old)
        own = old and new and old.state is new.state is RunState.HELD
        if old and (everything or own):
            yield f"{instruction.kind} for {old.id}, which is held"


def after(stored: State, batch: Batch, *, count_seconds: bool) -> Iterator[str]:
    """Rules that a turn breaks, given the state after it."""
    for order in commands_of(batch):
        if isinstance(order.command, StartAttempt):
            yield from _offers_are_trusted(stored, str(order.run), order.command)
    now = max((entry.at for entry in batch.journal), default=None)
    for entity in batch.entities:
        if isinstance(entity, Run) and entity.state not in TERMINAL_RUN_STATES:
            yield from _budgets_hold(entity)
            yield from _has_deadlines(stored, entity)
            if count_seconds and now is not None:
                booked = sum(totals(entity.ledger, now).values())
                elapsed = (now - entity.submitted_at).total_seconds()
                if abs(booked - elapsed) > _ROUNDING_SECONDS:
                    yield f"{entity.id} has {booked:.3f} s on its ledger after {elapsed:.3f} s"
    if any(entry.name == "scheduling_pass_due" for entry in batch.journal):
        for run in stored.live_runs():
            yield from _waits_for_something(stored, run)


def _offers_are_trusted(stored: State, run: str, command: StartAttempt) -> Iterator[str]:
    restart = stored.attempts[run].restart
    for candidate in command.restore:
        offered = stored.checkpoints.get(candidate.id)
        if offered is not None and restart and restart.cause is Cause.OPERATOR:
            if offered.trust is Trust.BAD:
                continue  # only a person's --force offers one, and its ranks may refuse it
        elif offered is not None and (offered.doubted or offered.superseded):
            yield f"{candidate.id} is offered, which is doubted or superseded: {offered.reason}"
        if (
            offered is None
            or offered.trust not in WHOLE
            or len(offered.ranks) != offered.world_size
        ):
            yield f"{candidate.id} is offered, which is {offered.trust if offered else 'unknown'}"
        elif offered.deleted_at is not None:
            yield f"{candidate.id} is offered, which is deleted"
        elif restart and restart.cause is Cause.ANOMALY and offered.trust is not Trust.GOOD:
            yield f"{candidate.id} is offered after an anomaly, and is {offered.trust}"


def _budgets_hold(run: Run) -> Iterator[str]:
    spec = run.spec.recovery
    limits = {
        "infrastructure": spec.infrastructure,
        "user": spec.user,
        "anomaly": spec.anomaly,
        "launch": LAUNCH_TRIES,
    }
    for key, budget in run.budgets.items():
        limit = limits.get(key)
        if limit is not None and budget.count > limit:
            yield f"{run.id} goes on after {budget.count} failures of {limit} ({key})"


def _waits_for_something(stored: State, run: Run) -> Iterator[str]:
    """Once the scheduler has looked, a run that does not train has a word for why it waits."""
    attempt = stored.attempts.get(run.id)
    if attempt is not None and attempt.state in LIVE_ATTEMPT_STATES:
        return
    coming = any(w.state is not WorkerState.ENDED for w in stored.workers_of(run.id))
    held = run.state is RunState.HELD or stored.fleet.hold
    if not (held or run.pending or coming or run.due(Timer.RETRY)):
        yield f"{run.id} is {run.state} and waits for nothing: {run.reason}"


_TIMER_OF = {WorkerState.LAUNCHING: Timer.LAUNCH, WorkerState.LOST: Timer.CONTACT}


def _has_deadlines(stored: State, run: Run) -> Iterator[str]:
    """Whatever is under way ends by some time."""
    attempt = stored.attempts.get(run.id)
    workers = [w for w in stored.workers.values() if w.run == run.id]
    for worker in workers:
        timer = _TIMER_OF.get(worker.state)
        if timer is not None and run.due(timer, worker.id) is None:
            yield f"{worker.id} is {worker.state} without a deadline"
    if attempt is not None and attempt.state is AttemptState.STOPPING:
        if not (run.due(Timer.STOP) or run.due(Timer.FENCE)):
            yield f"attempt {attempt.number} of {run.id} is being stopped without a deadline"
    elif attempt is not None and attempt.state is AttemptState.STARTING:
        whole = len(attempt.started_ranks) == attempt.world_size
        if not (whole or run.due(Timer.START)):
            yield f"attempt {attempt.number} of {run.id} starts without a deadline"


def one_live_attempt(attempts: Iterable[Attempt]) -> Iterator[str]:
    """No run has two."""
    alive = Counter(each.run for each in attempts if each.state in LIVE_ATTEMPT_STATES)
    for run, count in alive.items():
        if count > 1:
            yield f"{run} has {count} live attempts"
