"""The row and the revision of a run that somebody follows.

The problem: a page of a run must learn within a second that something about the run has changed,
but most seconds nothing has. The design: entities are never changed, only replaced, so a look
compares what the state holds with what it held. Of a run that is not in the state (it is over, or
another server leads), the journal's last position says whether anything happened, and is read
every few seconds. All followers of a run share one watch.

Limits: revisions are of this process: a follower that comes back takes any other one as a change.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from weakref import WeakValueDictionary

from orchestrator.controller.live_numbers import Newest
from orchestrator.core.model.entities import Incident, Run
from orchestrator.core.model.states import IncidentState
from orchestrator.database.port import RunNumbers
from orchestrator.server.context import Context
from orchestrator.server.fleet import NUMBER_SECONDS, REFRESH_SECONDS, row_of
from orchestrator.server.fleet_views import FleetRow

_NEWEST = 2**62
"""Before this position: the newest rows of a journal."""


class RunWatch:
    """Looks at one run on behalf of all who follow it."""

    def __init__(self, here: Context, run: Run) -> None:
        self._here, self._run = here, run.id
        self._seen: tuple[object, ...] = ()
        self._restarts = (-1, 0)
        self._epoch, self._revision = secrets.token_hex(4), 0
        self._row: FleetRow | None = None
        self._looked = self._read = float("-inf")
        self._lock = asyncio.Lock()

    async def look(self) -> tuple[FleetRow, str]:
        """The row, and the revision of everything else about the run.

        Raises:
            NotFoundError: The history of the run was removed.
        """
        async with self._lock:
            now = self._here.clock.monotonic()
            if now - self._looked >= REFRESH_SECONDS * 0.9 or self._row is None:
                run = self._here.controller.state.runs.get(self._run)
                if run is not None:
                    self._row = await self._of_state(run)
                elif self._row is None or now - self._read >= NUMBER_SECONDS:
                    self._row = await self._of_database()
                    self._read = now
                self._looked = now
            return self._row, f"{self._epoch}-{self._revision}"

    async def _of_state(self, run: Run) -> FleetRow:
        state = self._here.controller.state
        incidents = state.incidents_of(run.id)
        attempt = state.attempts.get(run.id)
        checkpoints, workers = state.checkpoints_of(run.id), state.workers_of(run.id)
        self._compare(run, attempt, state.fleet.hold, *incidents, *checkpoints, *workers)
        if self._restarts[0] != run.attempt:
            read = await self._here.store.run_numbers([run])
            self._restarts = run.attempt, read[run.id].restarts
        newest = self._here.controller.numbers.runs.get(run.id)
        return self._row_of(run, incidents, newest or RunNumbers())

    async def _of_database(self) -> FleetRow:
        store = self._here.store
        run = await store.run(self._run)
        last = await store.journal(run.id, before=_NEWEST, limit=1)
        self._compare(last[0].position if last else 0)
        newest = (await store.run_numbers([run]))[run.id]
        self._restarts = run.attempt, newest.restarts
        return self._row_of(run, await store.incidents(run.id, open_only=True), newest)

    def _row_of(
        self, run: Run, incidents: Sequence[Incident], newest: Newest | RunNumbers
    ) -> FleetRow:
        there = [each for each in incidents if each.state is not IncidentState.RESOLVED]
        now = self._here.clock.now()
        return row_of(run, there, now, newest=newest, restarts=self._restarts[1])

    def _compare(self, *seen: object) -> None:
        """Count a revision if these are not the very objects of the last look, or equal numbers."""
        same = len(seen) == len(self._seen) and all(
            a is b or (isinstance(a, int | str) and a == b)
            for a, b in zip(seen, self._seen, strict=True)
        )
        if not same:
            self._seen, self._revision = seen, self._revision + 1


class RunWatches:
    """The watches of the runs that somebody follows."""

    def __init__(self, here: Context) -> None:
        self._here = here
        self._of: WeakValueDictionary[str, RunWatch] = WeakValueDictionary()

    def of(self, run: Run) -> RunWatch:
        """The watch of a run; it lives as long as somebody holds it."""
        return self._of.setdefault(run.id, RunWatch(self._here, run))
