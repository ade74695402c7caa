"""The fleet in rows, and what has changed in it: one reading for everybody who looks.

The problem: a page that shows a thousand runs live must not cost a thousand queries a second, nor
the same work again for each person who looks.

The design: each follower asks for a refresh, and at most one a second is done, from the state in
memory. Each row has the version in which it last changed, so a follower gets what changed
since the version that it has. States, reasons and incidents change at once; step, loss and ETTR
move all the time, so those are looked at every :data:`NUMBER_SECONDS`. While nobody looks, nothing
is done. A server that does not lead reads the database, every :data:`NUMBER_SECONDS`.

Limits: versions are of this process. A follower that comes with one of another reads all rows anew.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from monitors.types import Severity
from orchestrator.controller.live_numbers import Newest
from orchestrator.core.model import time_ledger
from orchestrator.core.model.entities import Incident, Node, Run
from orchestrator.core.model.states import TERMINAL_RUN_STATES, IncidentState
from orchestrator.core.views.remedy_text import incident_remedy
from orchestrator.database.port import RunNumbers
from orchestrator.server.context import Context
from orchestrator.server.fleet_views import (
    FleetRow,
    FleetView,
    NodeCount,
    OpenIncident,
    ServerStatus,
)
from orchestrator.server.run_queries import LIVE
from orchestrator.version import package_version

REFRESH_SECONDS = 1.0
"""Seconds between two looks at states at least."""
NUMBER_SECONDS = 5.0
"""Seconds between two looks at steps, losses and ETTR at least."""
ENDED_KEPT = 200
"""Runs that are over and shown; older ones are found by `GET /runs`."""
MOST_LIVE = 10_000
"""Live runs that a server which does not lead reads."""
_ENDED_AT_ONCE = 50
"""Runs that ended and are read in one look; the others follow in the next."""
_INCIDENTS = 50
_SEVERITIES = [severity.value for severity in Severity]
"""From the least to the most severe."""
Numbers = tuple[str, int, float | None, float | None]
"""Id of a run, step, loss, ETTR."""
Covers = Callable[[FleetRow], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class Changes:
    """Everything that has changed since a version."""

    id: str
    rows: list[FleetRow]
    numbers: list[Numbers]
    gone: list[str]
    summary: bool
    """True if status, nodes or incidents changed."""

    def __bool__(self) -> bool:
        return bool(self.rows or self.numbers or self.gone or self.summary)


@dataclasses.dataclass(slots=True)
class _Kept:
    """A row, and when it changed."""

    run: Run
    incidents: tuple[Incident, ...]
    row: FleetRow
    changed: int
    """Version in which the row changed in more than its numbers."""
    counted: int
    """Version in which its numbers changed."""


class Fleet:
    """The rows of the fleet. Call :meth:`refresh` before anything else."""

    def __init__(self, here: Context) -> None:
        self._here = here
        self._epoch = secrets.token_hex(4)
        self._version = 0
        self._kept: dict[str, _Kept] = {}
        self._gone: dict[str, int] = {}
        self._restarts: dict[str, tuple[int, int]] = {}
        self._summary: tuple[ServerStatus, list[NodeCount], list[OpenIncident]] | None = None
        self._summary_changed = 0
        self._looked = self._counted = -math.inf
        self._led: bool | None = None
        self._lock = asyncio.Lock()
        self.at = here.clock.now()

    @property
    def id(self) -> str:
        """The version that a follower has after it has read everything."""
        return f"{self._epoch}-{self._version}"

    def row(self, run: str) -> FleetRow | None:
        """The row of a run; None: it is not among those shown."""
        kept = self._kept.get(run)
        return None if kept is None else kept.row

    async def refresh(self) -> None:
        """Look at the fleet, unless that was done a moment ago."""
        async with self._lock:
            clock = self._here.clock
            if clock.monotonic() - self._looked < REFRESH_SECONDS * 0.9:
                return
            leads = self._here.controller.is_leader
            numbers = clock.monotonic() - self._counted >= NUMBER_SECONDS * 0.9
            if numbers or leads:
                await self._look(leads=leads, numbers=numbers or leads != self._led)
            self._looked = clock.monotonic()
            self.at = clock.now()

    def view(self, covers: Covers) -> FleetView:
        """Everything, of the runs that the caller may see."""
        assert self._summary is not None  # noqa: S101 (refreshed before)
        status, nodes, incidents = self._summary
        rows = [kept.row for kept in self._kept.values() if covers(kept.row)]
        return FleetView(
            id=self.id,
            at=self.at,
            status=status,
            nodes=nodes,
            incidents=self._seen(incidents, covers),
            rows=rows,
        )

    def summary(self, covers: Covers) -> dict[str, Any]:
        """Status, nodes and open incidents, of the runs that the caller may see, as JSON."""
        assert self._summary is not None  # noqa: S101 (refreshed before)
        status, nodes, incidents = self._summary
        return {
            "status": status.model_dump(mode="json"),
            "nodes": [each.model_dump(mode="json") for each in nodes],
            "incidents": [each.model_dump(mode="json") for each in self._seen(incidents, covers)],
        }

    def _seen(self, incidents: Iterable[OpenIncident], covers: Covers) -> list[OpenIncident]:
        """The incidents about runs that the caller may see, and about nodes."""
        return [
            i
            for i in incidents
            if not i.run or ((kept := self._kept.get(i.run)) and covers(kept.row))
        ]

    def version_of(self, id_: str) -> int | None:
        """The version that a follower has; None: this process has not made it."""
        epoch, _, version = id_.partition("-")
        if epoch != self._epoch or not version.isdecimal() or int(version) > self._version:
            return None
        return int(version)

    def since(self, version: int, covers: Covers) -> Changes:
        """Everything that changed after a version."""
        rows: list[FleetRow] = []
        numbers: list[Numbers] = []
        for kept in self._kept.values():
            if max(kept.changed, kept.counted) <= version or not covers(kept.row):
                continue
            if kept.changed > version:
                rows.append(kept.row)
            else:
                numbers.append((kept.row.id, kept.row.step, kept.row.loss, kept.row.ettr))
        gone = [run for run, when in self._gone.items() if when > version]
        return Changes(self.id, rows, numbers, gone, summary=self._summary_changed > version)

    async def _look(self, *, leads: bool, numbers: bool) -> None:
        here, version = self._here, self._version + 1
        now = here.clock.now()
        runs = (
            list(here.controller.state.live_runs())
            if leads
            else await here.store.runs(states=LIVE, limit=MOST_LIVE)
        )
        over = await self._over({run.id for run in runs}, whole=leads != self._led)
        incidents = await self._open_incidents(leads=leads)
        changed = False
        stale = [run for run in (*runs, *over) if self._is_stale(run, incidents, numbers=numbers)]
        for row in await self._rows(stale, incidents, now, leads=leads):
            changed |= self._keep(row, version)
        changed |= self._drop(version, {run.id for run in runs})
        summary = (await status_of(here), await self._nodes(leads=leads), self._lines(incidents))
        if summary != self._summary:
            self._summary, self._summary_changed, changed = summary, version, True
        if changed:
            self._version = version
        self._led = leads
        if numbers:
            self._counted = here.clock.monotonic()

    async def _over(self, live: set[str], *, whole: bool) -> list[Run]:
        """Runs that have ended since the last look; at the first look, the newest that ended."""
        ended = [
            key
            for key, kept in self._kept.items()
            if key not in live and kept.run.state not in TERMINAL_RUN_STATES
        ]
        found = [await self._here.store.run(key) for key in ended[:_ENDED_AT_ONCE]]
        if whole:
            states = tuple(TERMINAL_RUN_STATES)
            found += await self._here.store.runs(states=states, limit=ENDED_KEPT)
        return [run for run in found if run.id not in live and run.state in TERMINAL_RUN_STATES]

    async def _open_incidents(self, *, leads: bool) -> dict[str, tuple[Incident, ...]]:
        found: Iterable[Incident] = (
            self._here.controller.state.incidents.values()
            if leads
            else await self._here.store.incidents(open_only=True, limit=MOST_LIVE)
        )
        by_run: dict[str, tuple[Incident, ...]] = {}
        for incident in found:
            if incident.state is not IncidentState.RESOLVED:
                by_run[incident.run] = (*by_run.get(incident.run, ()), incident)
        return by_run

    def _is_stale(
        self, run: Run, incidents: dict[str, tuple[Incident, ...]], *, numbers: bool
    ) -> bool:
        kept = self._kept.get(run.id)
        if kept is None or numbers or kept.incidents != incidents.get(run.id, ()):
            return True
        return kept.run is not run and _without_numbers(kept.run) != _without_numbers(run)

    async def _rows(
        self,
        runs: Sequence[Run],
        incidents: dict[str, tuple[Incident, ...]],
        now: dt.datetime,
        *,
        leads: bool,
    ) -> list[_Kept]:
        live = self._here.controller.numbers.runs if leads else {}
        unknown = [
            run
            for run in runs
            if run.id not in live or self._restarts.get(run.id, (-1, 0))[0] != run.attempt
        ]
        read = await self._here.store.run_numbers(unknown) if unknown else {}
        for run in unknown:
            self._restarts[run.id] = (run.attempt, read[run.id].restarts)
        rows = []
        for run in runs:
            newest = live.get(run.id) or read[run.id]
            mine = incidents.get(run.id, ())
            row = row_of(run, mine, now, newest=newest, restarts=self._restarts[run.id][1])
            rows.append(_Kept(run, mine, row, 0, 0))
        return rows

    def _keep(self, new: _Kept, version: int) -> bool:
        old = self._kept.get(new.row.id)
        if old is None:
            new.changed = version
        else:
            new.changed, new.counted = old.changed, old.counted
            if old.row != new.row:
                same = old.row.model_copy(
                    update={"step": new.row.step, "loss": new.row.loss, "ettr": new.row.ettr}
                )
                if same == new.row:
                    new.counted = version
                else:
                    new.changed = version
        self._kept[new.row.id] = new
        return version in {new.changed, new.counted}

    def _drop(self, version: int, live: set[str]) -> bool:
        """Drop the oldest runs that are over, beyond those that are kept."""
        over = [key for key in self._kept if key not in live]
        over.sort(key=lambda key: self._kept[key].row.submitted_at, reverse=True)
        for key in over[ENDED_KEPT:]:
            del self._kept[key]
            self._restarts.pop(key, None)
            self._gone[key] = version
        while len(self._gone) > MOST_LIVE:
            del self._gone[next(iter(self._gone))]
        return len(over) > ENDED_KEPT

    async def _nodes(self, *, leads: bool) -> list[NodeCount]:
        nodes: Iterable[Node] = (
            self._here.controller.state.nodes.values() if leads else await self._here.store.nodes()
        )
        count: Counter[tuple[str, str]] = Counter()
        gpus: Counter[tuple[str, str]] = Counter()
        for node in nodes:
            kind = node.labels.get("pool", ""), node.state.value
            count[kind] += 1
            gpus[kind] += node.gpus
        return [
            NodeCount(pool=pool, state=state, count=count[pool, state], gpus=gpus[pool, state])
            for pool, state in sorted(count)
        ]

    def _lines(self, incidents: dict[str, tuple[Incident, ...]]) -> list[OpenIncident]:
        """The open incidents of live runs and of nodes: first those nobody has acknowledged."""
        among = {"", *self._kept}
        found = [each for mine in incidents.values() for each in mine if each.run in among]
        found.sort(key=_urgency, reverse=True)
        return [
            OpenIncident(
                id=each.id,
                run=each.run,
                run_name=self._kept[each.run].row.name if each.run else each.subject,
                kind=each.kind.value,
                severity=each.severity.value,
                state=each.state.value,
                reason=each.reason,
                remedy=incident_remedy(each),
                remedy_at=each.remedy_at,
                opened_at=each.opened_at,
                acknowledged_by=each.acknowledged_by,
            )
            for each in found[:_INCIDENTS]
        ]


async def status_of(here: Context) -> ServerStatus:
    """The server that answers, and what people must know of the control plane."""
    plane = here.controller
    lease = None if plane.is_leader else await here.store.leader()
    return ServerStatus(
        version=package_version(),
        leader=plane.is_leader,
        leader_name=None if lease is None else lease.holder,
        hold=plane.state.fleet.hold,
        database=plane.database.reason,
        alerts=". ".join(plane.alerts_trouble.values()),
        lag=plane.lag.sentence,
    )


def _urgency(incident: Incident) -> tuple[bool, int, dt.datetime]:
    severity = _SEVERITIES.index(incident.severity.value)
    return incident.acknowledged_by is None, severity, incident.opened_at


def _without_numbers(run: Run) -> tuple[object, ...]:
    return run.state, run.reason, run.pending, run.attempt


def row_of(
    run: Run,
    incidents: Sequence[Incident],
    now: dt.datetime,
    *,
    newest: Newest | RunNumbers,
    restarts: int,
) -> FleetRow:
    """The row of a run; `incidents` are its open ones."""
    step, loss = newest.step, newest.loss
    ettr = time_ledger.ettr(run.ledger, run.ended_at or now)
    ranks = [_SEVERITIES.index(incident.severity.value) for incident in incidents]
    return FleetRow(
        id=run.id,
        name=run.name,
        state=run.state,
        reason=run.reason,
        pending=None if run.pending is None else run.pending.value,
        owner=run.owner,
        project=run.spec.project,
        queue=run.spec.queue,
        nodes=run.spec.resources.min_nodes,
        attempt=run.attempt,
        step=run.best_step if step is None else step,
        loss=None if loss is None or not math.isfinite(loss) else loss,
        ettr=None if ettr is None else round(ettr, 4),
        restarts=restarts,
        incidents=len(incidents),
        severity=_SEVERITIES[max(ranks)] if ranks else None,
        submitted_at=run.submitted_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
    )
