"""Worlds of GPU nodes, for tests of what the scheduler decides."""

from __future__ import annotations

from typing import Any

from orchestrator.core.messages.events import CapacityChanged, NodeInfo
from orchestrator.core.model.states import WorkerState
from orchestrator.core.placement import snapshot
from orchestrator.core.scheduling import Holding
from tests.world import World, spec


def cluster(nodes: int, gpus: int = 8, **labels: Any) -> World:
    """A world of GPU nodes, labelled by functions of their number."""
    world = World(nodes=0)
    infos = tuple(
        NodeInfo(
            id=f"node-{i}",
            gpus=gpus,
            cpus=8,
            labels={level: str(of(i)) for level, of in labels.items()},
        )
        for i in range(nodes)
    )
    world.do(world.event(CapacityChanged, nodes=infos))
    return world


def gpu_spec(name: str, nodes: Any = 2, **fields: Any) -> Any:
    """A run spec of `nodes` whole nodes of 8 GPUs."""
    return spec(name, resources={"nodes": nodes, "gpus_per_node": 8}, **fields)


def start(world: World, run: str, **fields: Any) -> None:
    """Submit a run and let it train to step 12, with a checkpoint at 10."""
    world.submit(gpu_spec(run, **fields), run)
    world.settle()
    if world.state.runs[run].attempt:
        world.trained_to(12, run)


def nodes_of(world: World, run: str) -> set[str]:
    """The nodes on which a run has a worker."""
    return {w.node for w in world.state.workers_of(run) if w.state is not WorkerState.ENDED}


def holdings(world: World, run: str) -> list[Holding]:
    """What a scheduling pass would see of a run."""
    return [h for h in snapshot.snapshot(world.state, world.now).holdings if h.run == run]
