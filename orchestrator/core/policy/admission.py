"""Admission: reasons to refuse a submission before an entity is made of it."""

from __future__ import annotations

import datetime as dt

from jobs.spec import RunSpec
from orchestrator.core.model import away
from orchestrator.core.model.state import State
from orchestrator.core.model.states import NodeState
from orchestrator.core.scheduling.free_resources import could_fit
from orchestrator.core.scheduling.node_table import NodeTable
from orchestrator.core.scheduling.topology import largest_domain
from orchestrator.errors import ConflictError, InvalidError


def check(state: State, spec: RunSpec, now: dt.datetime) -> None:
    """Refuse a run that could never run, or that would get in another's way.

    Raises:
        InvalidError: Even the empty cluster does not fit it. An unknown cluster refuses nothing.
        ConflictError: A live run saves where it would.
    """
    _refuse_too_large(state, spec, now)
    _refuse_shared_directory(state, spec)


def _refuse_too_large(state: State, spec: RunSpec, now: dt.datetime) -> None:
    """Raise InvalidError when even the empty cluster does not fit the run.

    An unknown cluster refuses nothing.
    """
    nodes = [
        node
        for node in state.nodes.values()
        if node.state is not NodeState.GONE or away.capacity(node, now) is not None
    ]
    if not nodes:
        return
    need, pack = spec.resources, spec.placement.pack
    table = state.node_table(now)
    if largest_domain(table, could_fit(table, need), pack) >= need.min_nodes:
        return  # of those that take work or are away: known without looking at each node
    table = NodeTable(node.capacity for node in nodes)
    mask = could_fit(table, need)
    fitting = largest_domain(table, mask, pack)
    if fitting >= need.min_nodes:
        return
    if int(mask.sum()) >= need.min_nodes:
        raise InvalidError(
            f"placement.pack: asks for {need.min_nodes} nodes within one {pack}, and the largest"
            f" has {fitting} that fit: ask for less, or pack within something larger",
            field="placement.pack",
        )
    largest = max(nodes, key=lambda n: (n.gpus, n.cpus, n.memory))
    memory = f", {largest.memory / 2**30:.1f} GiB" if largest.memory else ""
    shape = f"{need.gpus_per_node} GPUs, {need.cpus_per_node:g} CPUs"
    offer = f"{largest.gpus} GPUs, {largest.cpus:g} CPUs{memory}"
    raise InvalidError(
        f"resources: asks for {need.min_nodes} x ({shape}"
        + (f", {need.memory_per_node / 2**30:.1f} GiB" if need.memory_per_node else "")
        + f") but the cluster has {len(nodes)} nodes of at most ({offer}),"
        f" of which {int(mask.sum())} fit: ask for less, or add nodes",
        field="resources",
    )


def _refuse_shared_directory(state: State, spec: RunSpec) -> None:
    """Raise ConflictError when a live run saves where this one would.

    Steps of both would lie at the same paths, and each would overwrite and prune the other's.
    """
    directory = _saves_to(spec)
    others = (run for run in state.live_runs() if _saves_to(run.spec) == directory)
    if directory is not None and (other := next(others, None)) is not None:
        field = "checkpoint.directory" if spec.resume is None else "resume.checkpoints"
        raise ConflictError(
            f"{directory} holds the checkpoints of {other.name} ({other.id}), which is"
            f" {other.state}: name another {field}, or wait for that run or cancel it"
        )


def _saves_to(spec: RunSpec) -> str | None:
    return spec.checkpoint.directory or (spec.resume.checkpoints if spec.resume else None)
