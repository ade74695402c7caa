"""A database that is older than what agents run: the attempt is adopted, or judged.

The problem: after a restore of a backup, or a failover that loses the last second, the database
knows an older attempt than the agents run, or not all of their reports. A controller that goes by
the database alone would refuse what healthy ranks report, take them for hung, and fence them.

The design: an agent proves with its token that it is ours, and its hello says which attempt it was
last told of. The run takes that number over at once, so that no number is given twice, and what
its agents report counts from then on. The attempt is whole when the heartbeats of its agents name
every rank of its world, once each and alive: then it goes on, and nothing is stopped. It is not
whole when all agents are heard, or `COMPARE_SECONDS` have passed, and a rank is dead or runs twice,
or an agent has no ranks of it: then it has failed, and the run restarts. Where agents are merely
not heard of, people are notified, and nothing is stopped.

Limits: checkpoints that were reported between the backup and its restore are not known to the
database. If the attempt fails before its next checkpoint, the run restarts from an older one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from jobs.commands import StopAttempt
from jobs.spec import RunSpec
from monitors.failures import Evidence, Failure, FailureClass
from monitors.types import Severity
from orchestrator.core.attempts import assembly
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.messages.gang_events import GangStopped
from orchestrator.core.messages.reconciliation_events import (
    AgentAhead,
    AttemptCompared,
    RanksSeen,
)
from orchestrator.core.model import time_ledger
from orchestrator.core.model.decisions import Finish
from orchestrator.core.model.derived import is_reporting
from orchestrator.core.model.entities import Attempt, Run, Seat, Worker
from orchestrator.core.model.state import State
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    RUNNABLE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    AttemptState,
    RunState,
    WorkerState,
)
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.supervision import failures
from orchestrator.core.text import named
from orchestrator.core.turn import Turn

COMPARE_SECONDS = 30.0
"""Seconds in which all agents of an attempt should show their ranks. An agent looks for a server
every 2 s, and beats every second."""
LOOK_AGAIN_SECONDS = 600.0
"""Seconds until the agents of an attempt that is not proven are looked at once more."""
KIND = "database_older"
"""Kind of the notice that the database is older than a run."""
OLDER = (
    "the database is older than the run (a backup was restored, or a failover lost the last"
    " transactions)"
)
_STOPPED_TIMERS = (
    Timer.START,
    Timer.STOP,
    Timer.FENCE,
    Timer.STACKS,
    Timer.SILENT,
    Timer.SUSPECT,
    Timer.RETRY,
    Timer.STANDBY,
    Timer.RECHECK,
    Timer.GROW,
)


def number_of(worker: str) -> int:
    """The number of a worker within its run, from 1; 0: its id has none."""
    with contextlib.suppress(ValueError):
        return int(worker.rpartition("-w")[2].partition("x")[0])
    return 0


def is_whole(spec: RunSpec, seen: Sequence[RanksSeen]) -> bool:
    """True if these are all ranks of a world that the spec allows, each once."""
    with_ranks = [each for each in seen if each.ranks]
    per_node, resources = spec.resources.processes_per_node, spec.resources
    if not resources.min_nodes <= len(with_ranks) <= resources.max_nodes:
        return False
    if any(len(each.ranks) != per_node for each in with_ranks):
        return False
    ranks = sorted(rank for each in with_ranks for rank in each.ranks)
    return ranks == list(range(per_node * len(with_ranks)))


def is_ahead(state: State, hello: AgentAhead) -> bool:
    """True if an agent knows of an attempt, a seat or reports of which the state does not.

    False does not mean that the agent is to go on: its worker may be over, its attempt replaced. Of
    a worker that is not in the state, the caller looks in the record whether it is over.
    """
    run = state.runs.get(hello.run)
    if run is None or run.state in TERMINAL_RUN_STATES:
        return False
    worker = state.workers.get(hello.worker)
    if worker is None:  # without an attempt it runs nothing; an older one was replaced
        return 0 < hello.attempt >= run.attempt
    if worker.state in {WorkerState.STOPPING, WorkerState.ENDED}:
        return False
    if hello.attempt > run.attempt or hello.reports_lost:
        return True
    # A number that was given twice: only agents with a seat have ever heard of an attempt.
    attempt = state.attempts.get(run.id)
    if attempt is None or attempt.number != hello.attempt:
        return False
    return not _is_seated(state, attempt, worker.id)


def _is_seated(state: State, attempt: Attempt, worker: str) -> bool:
    """True if a worker is known to run an attempt: it has ranks in it."""
    place = state.places_of(attempt.run).get(worker)
    return place is not None and bool(attempt.seats[place].ranks)


def is_unknown(state: State, hello: AgentAhead) -> bool:
    """True if an agent may run the newest attempt of a live run, and could not be taken over.

    Its ranks must go on: nobody knows that they are over.
    """
    return hello.worker not in state.workers and is_ahead(state, hello)


def on_agent_ahead(turn: Turn, event: AgentAhead) -> None:
    """Take over what an agent knows: its worker, its attempt, its seat; then compare."""
    run = turn.run(event.run)
    known = event.node in turn.state.nodes
    if not known or not is_ahead(turn.state, event):
        why = "the database knows as much" if known else f"{event.node} is unknown"
        turn.record(run.id, f"{event.worker} may be ahead, but {why}: ignored")
        return
    worker = _admit(turn, event)
    if worker.state not in {WorkerState.READY, WorkerState.LOST}:
        turn.record(run.id, f"{event.worker} is ahead, but {worker.state}: ignored")
        return
    if event.attempt > run.attempt:
        _take_over(turn, run, event)
    attempt = turn.attempt(run.id)
    is_live = attempt is not None and attempt.state in LIVE_ATTEMPT_STATES
    if attempt is not None and is_live and event.attempt == attempt.number:
        _seat(turn, worker, attempt)
        return
    if event.attempt:  # begun in what is lost: its ranks may be alive beside those of a newer one
        reason = f"attempt {event.attempt} is over; {OLDER}"
        turn.send_command(worker.id, StopAttempt, reason, attempt=event.attempt, reason=reason)
    if not is_live:
        assembly.start_if_whole(turn, run.id)  # its report that it has joined may be lost


def _admit(turn: Turn, event: AgentAhead) -> Worker:
    """The worker, which has joined, as its report that is lost has said."""
    worker = turn.state.workers.get(event.worker)
    node, address = event.node, event.address or event.node
    why = "found by its hello: its launch or its joining is not in the database"
    if worker is None:
        made = max(turn.run(event.run).workers_made, number_of(event.worker))
        turn.change_run(event.run, workers_made=made)
        turn.put(
            Worker(
                id=event.worker,
                run=event.run,
                node=node,
                state=WorkerState.READY,
                launched_at=turn.now,
                joined_at=turn.now,
                address=address,
                reason=why,
            )
        )
        turn.schedule_wanted = True
    elif worker.state is WorkerState.LAUNCHING:
        turn.cancel_timer(event.run, Timer.LAUNCH, subject=worker.id)
        turn.change_worker(
            worker.id,
            state=WorkerState.READY,
            node=node,
            joined_at=turn.now,
            address=address,
            reason=why,
        )
    return turn.state.workers[event.worker]


def _take_over(turn: Turn, run: Run, event: AgentAhead) -> None:
    """Begin the attempt of an agent in the database, in place of the older one there."""
    before = turn.attempt(run.id)
    if before is not None and before.state in LIVE_ATTEMPT_STATES:
        # Its end is in what was lost. It may have been fenced: nothing confirms that it is dead.
        turn.change_attempt(run.id, state=AttemptState.FENCED, ended_at=turn.now)
    resources = run.spec.resources
    world = resources.max_nodes * resources.processes_per_node
    turn.put(
        Attempt(
            run=run.id,
            number=event.attempt,
            seats=(),
            world_size=world,
            started_at=turn.now,
        )
    )
    known = f"attempt {run.attempt}" if run.attempt else "no attempt"
    reason = f"{OLDER}: it has {known}, and an agent on {event.node} runs attempt {event.attempt}"
    turn.cancel_timer(run.id, *_STOPPED_TIMERS)
    here = run.held_from if run.state is RunState.HELD else run.state
    if here is RunState.QUEUED:
        turn.change_run(run.id, state=RunState.STARTING, reason=reason)
    elif here is RunState.RUNNING:
        turn.change_run(run.id, state=RunState.RECOVERING, reason=reason)
    turn.change_run(
        run.id,
        attempt=event.attempt,
        decision=_of_people(run),
        pending=None,
        claim=None,
        reason=turn.run(run.id).reason if run.state is RunState.HELD else reason,
        started_at=run.started_at or turn.now,
        ledger=time_ledger.switch(run.ledger, Bucket.STARTING, turn.now),
    )
    turn.set_timer(run.id, Timer.START, attempt_lifecycle.START_SECONDS)
    turn.schedule_wanted = True


def _of_people(run: Run) -> Finish | None:
    """The end of the run, if that is decided; what was decided about an older attempt is void."""
    return run.decision if isinstance(run.decision, Finish) else None


def _seat(turn: Turn, worker: Worker, attempt: Attempt) -> None:
    """Give a worker that says it runs the attempt a seat in it, and have the ranks compared."""
    run = turn.run(worker.run)
    if not _is_seated(turn.state, attempt, worker.id):
        attempt_lifecycle.add_seats(turn, run.id, [worker])
        if attempt.state is AttemptState.STOPPING:
            reason = f"attempt {attempt.number} is being stopped"
            turn.send_command(worker.id, StopAttempt, reason, attempt=attempt.number, reason=reason)
    if attempt.state not in RUNNABLE_ATTEMPT_STATES or run.due(Timer.COMPARE) is not None:
        return
    turn.set_timer(run.id, Timer.COMPARE, COMPARE_SECONDS)
    if run.decision is not None:
        attempt_lifecycle.stop_attempt(turn, run.id, run.decision.restart.reason)
        return
    text = (
        f"{run.name}: {OLDER}; the agent on {worker.node} runs attempt {attempt.number}. It is not"
        " stopped: babysit goes on with it as soon as its agents show all of its ranks"
    )
    turn.notify(run.id, Severity.WARNING, text, kind=KIND)


def on_compared(turn: Turn, event: AttemptCompared) -> None:
    """Go on with an attempt that is whole; have one fail that is not; else wait, and page."""
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    if attempt.state not in RUNNABLE_ATTEMPT_STATES or run.due(Timer.COMPARE) is None:
        turn.record(run.id, f"attempt {attempt.number} is not compared any more: ignored")
        return
    heard = [each for each in event.seen if each.worker in turn.state.workers]
    seen = [each for each in heard if each.attempt == attempt.number]
    ended = attempt.done_ranks.union(failure.rank for failure in attempt.failures)
    dead = sorted({rank for each in seen for rank in each.dead} - ended)
    shown = {each.worker for each in seen if each.ranks}
    if is_whole(run.spec, seen) and not dead and shown.issuperset(turn.state.places_of(run.id)):
        _go_on(turn, attempt, [each for each in seen if each.ranks], event.first_step)
    elif event.last:
        _judge(turn, run, attempt, heard, dead)


def _go_on(turn: Turn, attempt: Attempt, seen: Sequence[RanksSeen], first_step: int) -> None:
    run, number = turn.run(attempt.run), attempt.number
    stopped = {seat.worker for seat in attempt.seats if seat.stopped}
    seats = tuple(
        Seat(
            worker=each.worker,
            node=turn.state.workers[each.worker].node,
            ranks=tuple(sorted(each.ranks)),
            stopped=each.worker in stopped,
        )
        for each in sorted(seen, key=lambda each: min(each.ranks))
    )
    ranks = frozenset(rank for seat in seats for rank in seat.ranks)
    moved = frozenset(rank for each in seen for rank in each.moved)
    turn.cancel_timer(run.id, Timer.COMPARE, Timer.START)
    turn.change_attempt(run.id, seats=())  # the places of workers are noted when the number changes
    attempt = turn.change_attempt(
        run.id,
        seats=seats,
        world_size=len(ranks),
        guessed=False,
        started_ranks=ranks,
        ready_ranks=(attempt.ready_ranks | moved) & ranks,
        restored_ranks=(attempt.restored_ranks | moved) & ranks,
    )
    if moved and attempt.start_step == 0 and first_step > 1:
        turn.change_attempt(run.id, start_step=first_step - 1)
    if len(seats) < run.spec.resources.max_nodes:
        turn.set_timer(run.id, Timer.GROW, attempt.grow_after)
    if moved:
        turn.change_run(run.id, instrumented=True)
    elif not is_reporting(run):
        turn.set_timer(run.id, Timer.SILENT, attempt_lifecycle.SILENT_SECONDS)
    where = named([seat.node for seat in seats])
    turn.record(run.id, f"attempt {number} is whole on {where}: it goes on as it is")
    if run.state is not RunState.HELD:
        turn.change_run(run.id, reason=f"attempt {number} goes on on {where}")
    failures.finish_if_done(turn, run.id)


def _judge(
    turn: Turn, run: Run, attempt: Attempt, heard: Sequence[RanksSeen], dead: Sequence[int]
) -> None:
    """The time is over, and the attempt is not proven to be whole."""
    turn.cancel_timer(run.id, Timer.COMPARE)
    seated = turn.state.places_of(run.id)
    gone = [
        turn.state.workers[each.worker].node
        for each in heard
        if each.worker in seated and (each.attempt != attempt.number or not each.ranks)
    ]
    ranks = [r for each in heard if each.attempt == attempt.number for r in each.ranks]
    twice = sorted({rank for rank in ranks if ranks.count(rank) > 1})
    if not dead and not gone and not twice:
        text = (
            f"{run.name}: {OLDER}, and not all ranks of attempt {attempt.number} are known; those"
            " that are known train on, and nothing is stopped. Look whether all its agents reach"
            f" the server; `babysit restart {run.name}` begins a new attempt"
        )
        turn.set_timer(run.id, Timer.COMPARE, LOOK_AGAIN_SECONDS)
        turn.set_timer(run.id, Timer.START, LOOK_AGAIN_SECONDS + COMPARE_SECONDS)
        turn.notify(run.id, Severity.CRITICAL, text, kind=KIND)
        return
    what = f"rank {dead[0]} is dead" if dead else f"{named(gone)} has no ranks of it"
    what = f"rank {twice[0]} runs twice" if twice else what
    _fail(turn, run, f"attempt {attempt.number} is not whole: {what}; {OLDER}")


def on_stopped_unasked(turn: Turn, event: GangStopped) -> None:
    """Have an attempt fail whose ranks were stopped by an order that the database does not know."""
    run, attempt = turn.run(event.run), turn.state.attempts[event.run]
    seated = [worker for worker in event.workers if worker in turn.state.places_of(run.id)]
    if attempt.state not in RUNNABLE_ATTEMPT_STATES or not seated:
        who = named(event.workers)
        turn.record(run.id, f"{who}: ranks stopped without an order to stop: ignored")
        return
    nodes = named([turn.state.workers[worker].node for worker in seated])
    ranks = f"the ranks of attempt {attempt.number} on {nodes}"
    _fail(turn, run, f"{ranks} got an order to stop; {OLDER}")


def _fail(turn: Turn, run: Run, reason: str) -> None:
    failure = Failure(
        failure_class=FailureClass.WORKER_LOST,
        source=Evidence.BABYSIT,
        signature="database older",
        reason=reason,
    )
    turn.notify(run.id, Severity.CRITICAL, f"{run.name}: {failure.reason}", kind=KIND)
    failures.fail_attempt(turn, run.id, failure, failed_at=turn.now, rank=None, node=None)


def compare_due(turn: Turn, run_id: str, _subject: str) -> None:
    """No heartbeat has settled the comparison: look again later, and page."""
    attempt = turn.attempt(run_id)
    if attempt is not None and attempt.state in RUNNABLE_ATTEMPT_STATES:
        _judge(turn, turn.run(run_id), attempt, (), ())
