"""Swaps of a slow node: from the finding to another node, or why there is none."""

from __future__ import annotations

import pytest

from monitors.types import FindingKind
from orchestrator.core.model.states import IncidentState, RunState
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.supervision.findings import ASK_SECONDS
from tests.world import World, spec


def training(nodes=3, **straggler):
    world = World(nodes=nodes)
    world.submit(spec(monitors={"straggler": {"action": "act", **straggler}}))
    world.trained_to(25)
    return world


def find(world, rank=1, **evidence):
    node = next(seat.node for seat in world.attempt().seats if rank in seat.ranks)
    shown = {"node": node, "phase": "backward", "share": 0.2, "slow_ranks": [rank], **evidence}
    world.find(FindingKind.STRAGGLER, rank=rank, evidence=shown)
    return node


def incident(world):
    return max(world.state.incidents.values(), key=lambda each: each.id)


def nodes_of(world):
    return {seat.node for seat in world.attempt().seats}


def train_on(world, *steps):
    for step in steps:
        world.reach(step)
        if step % 10 == 0:
            world.save(step)
            world.settle()


def test_a_run_leaves_a_slow_node_after_its_next_checkpoint():
    world = training()
    slow = find(world)
    assert incident(world).remedy is Remedy.SWAP_NODE
    train_on(world, 26, 29)
    assert world.attempt().number == 1
    train_on(world, 30)
    assert (world.attempt().number, world.attempt().start_step) == (2, 30)
    assert slow not in nodes_of(world)
    assert slow in world.run().avoid
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.remedy, restart.node, restart.rank) == (Remedy.SWAP_NODE, slow, 1)
    assert not any(world.run().budgets.values())
    train_on(world, 31)
    assert world.run().state is RunState.RUNNING
    assert incident(world).state is IncidentState.RESOLVED


@pytest.mark.parametrize(
    ("nodes", "setting", "evidence", "why"),
    [
        (2, {}, {}, "there is no spare node"),
        (3, {"horizon": 10}, {"share": 0.01}, "and a swap"),
        (3, {}, {"elsewhere": ["node-9"]}, "slow on another node too"),
        (3, {}, {"phase": "other"}, "does more than the others"),
        (3, {}, {"node": ""}, "its node is not known"),
    ],
)
def test_a_swap_that_would_not_help_is_only_recorded(nodes, setting, evidence, why):
    world = training(nodes, **setting)
    find(world, **evidence)
    found = incident(world)
    assert (found.state, found.remedy) == (IncidentState.RESOLVED, Remedy.RECORD)
    assert why in found.evidence["resolved"]
    train_on(world, 30)
    assert world.attempt().number == 1


def test_a_rank_that_is_slow_on_its_new_node_as_well_is_not_moved_again():
    world = training(nodes=4)
    find(world)
    train_on(world, 30, 31, 35)
    find(world)
    assert "slow on another node too" in incident(world).evidence["resolved"]
    train_on(world, 40)
    assert world.attempt().number == 2


def test_people_are_asked_first_and_observe_does_nothing():
    world = training(action="ask")
    find(world)
    train_on(world, 30)
    assert world.attempt().number == 1
    world.advance(ASK_SECONDS + 1)
    train_on(world, 40)
    assert world.attempt().number == 2
    world = training(action="observe")
    find(world)
    train_on(world, 30)
    assert world.attempt().number == 1
