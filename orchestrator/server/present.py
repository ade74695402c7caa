"""All that is live now: from the memory of the server that leads, else from the database.

The problem: to read ten thousand nodes and their workers from the database takes a tenth of a
second, in which a server answers nobody. The design: the leader has them in memory, as of its last
turn. Limits: what a turn has changed is seen a moment before it is stored.
"""

from __future__ import annotations

from orchestrator.core.model.entities import Node, Run, Worker
from orchestrator.core.model.states import WorkerState
from orchestrator.server.context import Context
from orchestrator.server.run_queries import LIVE

_MOST_RUNS = 10_000
"""Live runs that a server which does not lead reads."""


async def all_nodes(here: Context) -> dict[str, Node]:
    """All nodes by name, in the order of their names."""
    if here.controller.is_leader:
        return dict(sorted(here.controller.state.nodes.items()))
    return {node.id: node for node in await here.store.nodes()}


async def live_workers(here: Context) -> list[Worker]:
    """All workers that have not ended."""
    if here.controller.is_leader:
        workers = here.controller.state.workers.values()
        return [worker for worker in workers if worker.state is not WorkerState.ENDED]
    return await here.store.workers()


async def live_runs(here: Context) -> list[Run]:
    """All runs that are not over."""
    if here.controller.is_leader:
        return list(here.controller.state.live_runs())
    return await here.store.runs(states=LIVE, limit=_MOST_RUNS)
