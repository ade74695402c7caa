"""Agents against the database: what to do when an agent knows more than it.

The problem: a backup is restored, or a failover loses the last second. Agents go on with what the
lost transactions had decided. A controller that takes the database for the whole truth refuses
them, and ends healthy training.

The design: the core compares the hello of an agent with the state. A run that the database does not
have cannot be taken back: its agents are refused, its ranks train on, and people are notified. In a
run that is there, the core takes over what the agent knows (`AgentAhead`), and the heartbeats of
all its agents decide whether the attempt is whole (`compare`). What the core does then is in
:mod:`orchestrator.core.supervision.reconciliation`.
"""

from __future__ import annotations

import contextlib
import datetime as dt

import structlog

from jobs.events import Hello
from monitors.types import Severity
from orchestrator.alerts.port import Notifier
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.turn_queue import TurnQueue
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.messages.reconciliation_events import AgentAhead, AttemptCompared
from orchestrator.core.model.entities import Attempt, Run
from orchestrator.core.model.states import WorkerState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.supervision.reconciliation import (
    COMPARE_SECONDS,
    KIND,
    is_ahead,
    is_unknown,
    is_whole,
)
from orchestrator.database.port import Store
from orchestrator.errors import ConflictError, NotFoundError

_log = structlog.get_logger(__name__)
_OLDER = (
    "the database is older than a run of its own (a backup was restored, or a failover lost the"
    " last transactions)"
)
_OTHERS_SECONDS = 10.0
"""Seconds in which agents that the database does not know should have come: they try every 2 s."""


class LostRuns:
    """Runs of agents that the database does not have, of which people are notified once."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._known: set[str] = set()

    async def refuse_if_lost(self, store: Store, worker: str, run: str) -> None:
        """Refuse an agent whose run is not stored, and notify people.

        Raises:
            ConflictError: The run is not stored: its ranks must go on.
            DatabaseUnavailableError: Nobody can tell.
        """
        with contextlib.suppress(NotFoundError):
            if (await store.run(run)).id == run:
                return
        await self._tell(worker, run)
        raise ConflictError(f"{_OLDER}: it does not have run {run}; its ranks go on", run=run)

    async def _tell(self, worker: str, run: str) -> None:
        """Notify people, once for each run, of an agent whose run the database has lost.

        No outbox can hold that notice: the run is not there. One that is not delivered is tried
        again when an agent of the run asks again.
        """
        if run in self._known:
            return
        self._known.add(run)
        text = (
            f"{_OLDER}: it does not have run {run}, and worker {worker} of that run asks for it."
            " Its ranks train on, and nobody watches them. Restore a newer backup, or end its"
            " agents before you submit the run again"
        )
        _log.error("run not in the database", run=run, worker=worker, reason=text)
        notice = Notify(
            id=f"{KIND}-{run}",
            cause=KIND,
            run=None,
            reason=text,
            severity=Severity.CRITICAL,
            text=text,
            incident_kind=KIND,
        )
        try:
            await self._notifier.notify(notice)
        except Exception as error:  # noqa: BLE001 (whatever the channel raises)
            self._known.discard(run)
            _log.warning("notice about a lost run not delivered", run=run, error=str(error))


async def take_over(store: Store, queue: TurnQueue, live: LiveState, hello: Hello) -> None:
    """Have the core take over what an agent knows, if that is more than is stored.

    The core says whether it is (`is_ahead`). Only the record knows of workers that are over.

    Raises:
        DatabaseUnavailableError: Nobody can tell whether its worker is over.
        ConflictError: It could not be taken over, though the agent is not known to be over: its
            ranks must go on.
    """
    known = {
        "run": hello.run,
        "worker": hello.worker,
        "node": hello.node,
        "attempt": hello.attempt,
        "reports_lost": hello.next_sequence > live.last_sequence(hello.worker) + 1,
        "address": hello.address,
    }
    ahead = live.events.make(AgentAhead, **known)
    assert isinstance(ahead, AgentAhead)  # noqa: S101 (for mypy: the factory made the kind)
    if not is_ahead(live.state, ahead):
        return
    if is_unknown(live.state, ahead):
        over = await store.workers(hello.run, ended=True)
        if any(each.id == hello.worker for each in over):
            return
    _log.warning(
        "an agent is ahead of the database",
        worker=hello.worker,
        attempt=hello.attempt,
        known=live.state.runs[hello.run].attempt,
        next_sequence=hello.next_sequence,
        stored=live.last_sequence(hello.worker),
    )
    await queue.decide(AgentAhead, **known)
    if is_unknown(live.state, ahead):
        raise ConflictError(
            f"worker {hello.worker} of run {live.state.runs[hello.run].name} is not in the"
            " database, and could not be taken over; its ranks go on",
            run=hello.run,
        )


class Comparisons:
    """Attempts that the database is not sure of, against the heartbeats of their agents."""

    def __init__(self, queue: TurnQueue, live: LiveState) -> None:
        self._queue, self._live = queue, live
        self._complete: dict[str, dt.datetime] = {}
        """By run: the deadline before which all of its agents were heard, and compared, once."""

    async def compare(self, run: Run, attempt: Attempt) -> None:
        """Have the core compare an attempt with what its agents show, when that suffices.

        It does when they show the largest world that the spec allows, whole and alive; when all
        agents of the run are heard, and others have had time to come; or when the time is over.
        """
        due = run.due(Timer.COMPARE)
        if due is None:
            return
        seen = self._live.ranks_seen(run.id)
        here = [each for each in seen if each.attempt == attempt.number and each.ranks]
        nodes = run.spec.resources.max_nodes
        whole = len(here) == nodes and is_whole(run.spec, here) and not any(e.dead for e in here)
        left = self._live.seconds_until(due)
        last = left <= 0 or self._all_heard(run, due, left, {each.worker for each in seen})
        if not whole and not last:
            return
        self._complete[run.id] = due
        await self._queue.decide(
            AttemptCompared,
            run=run.id,
            attempt=attempt.number,
            seen=seen,
            first_step=self._live.pipeline(run.id).first_step(attempt.number),
            last=last,
        )

    def _all_heard(self, run: Run, due: dt.datetime, left: float, heard: set[str]) -> bool:
        too_early = COMPARE_SECONDS - _OTHERS_SECONDS < left <= COMPARE_SECONDS
        if too_early or self._complete.get(run.id) == due:
            return False
        workers = [
            worker
            for worker in self._live.state.workers_of(run.id)
            if worker.state not in {WorkerState.STOPPING, WorkerState.ENDED}
        ]
        return all(w.state is WorkerState.READY and w.id in heard for w in workers)
