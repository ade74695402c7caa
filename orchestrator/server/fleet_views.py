"""Models of the fleet as the page shows it: a row per run, and what goes for the whole cluster."""

from __future__ import annotations

import datetime as dt

from pydantic import Field

from orchestrator.core.model.states import RunState
from orchestrator.core.views.hardware import View


class FleetRow(View):
    """A run in a row."""

    id: str
    name: str
    state: RunState
    reason: str
    pending: str | None = Field(description="Why it waits, as a word of the scheduler.")
    owner: str
    project: str
    queue: str
    nodes: int
    attempt: int
    step: int
    loss: float | None
    ettr: float | None
    restarts: int
    incidents: int = Field(description="Incidents that are not resolved.")
    severity: str | None = Field(description="The worst of these incidents.")
    submitted_at: dt.datetime
    started_at: dt.datetime | None
    ended_at: dt.datetime | None


class OpenIncident(View):
    """An incident that is not resolved, in a line."""

    id: str
    run: str
    run_name: str
    kind: str
    severity: str
    state: str
    reason: str
    remedy: str
    remedy_at: dt.datetime | None
    opened_at: dt.datetime
    acknowledged_by: str | None


class NodeCount(View):
    """How many nodes of a pool are in a state."""

    pool: str = Field(description="The label `pool` of the nodes; empty: they have none.")
    state: str
    count: int
    gpus: int


class ServerStatus(View):
    """The server that answers, and what people must know of the control plane."""

    version: str
    leader: bool
    leader_name: str | None
    hold: str | None = Field(description="Why all automation is held, if it is.")
    database: str
    alerts: str
    lag: str


class FleetView(View):
    """The fleet at one moment."""

    id: str = Field(description="Where `/fleet/changes?after=` goes on from.")
    at: dt.datetime
    status: ServerStatus
    nodes: list[NodeCount]
    incidents: list[OpenIncident] = Field(description="The worst and newest; at most 50.")
    rows: list[FleetRow] = Field(description="Live runs, and the newest of those that ended.")


class SeatView(View):
    """The ranks of a run on one node."""

    node: str
    node_state: str | None = Field(description="Null: the cluster does not list the node.")
    worker: str
    worker_state: str | None = Field(description="State of the agent; null: it has ended.")
    ranks: str = Field(description="`0-7`, `3`, `0, 4`.")
    count: int
    failures: list[str] = Field(description="Ranks that died in this attempt.")


class RanksView(View):
    """Where the newest attempt of a run has its ranks."""

    attempt: int
    state: str | None
    world_size: int
    started: int = Field(description="Ranks whose processes were launched.")
    ready: int
    restored: int
    done: int
    seats: list[SeatView]
