"""A spike is computed again with each rank on another node, and the verdict says where."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from babysit.wire import Tier
from monitors.types import FindingKind
from orchestrator.core.attempts.replay_seats import exchanged
from orchestrator.core.model.entities import Checkpoint, Incident, Seat
from orchestrator.core.model.states import Trust
from orchestrator.core.supervision import spike_replays
from tests.unit.test_core_silent_scripts import deliver, own_checkpoints, printed, saved
from tests.world import World, trained

IN_PLACE = "on the same nodes as before"


def homes(world: World) -> dict[int, str]:
    return {rank: seat.node for seat in world.attempt().seats for rank in seat.ranks}


def spike(world: World) -> Incident:
    (found,) = [i for i in world.state.incidents_of("run-1") if i.kind == FindingKind.LOSS_SPIKE]
    return found


def replayed(world: World, outcome: str, *ranks: int) -> str:
    """The verdict arrives; its words in the incident."""
    evidence = {
        "outcome": outcome,
        "ranks": list(ranks),
        "of_attempt": 1,
        "of_step": 44,
        "of_kind": "loss_spike",
    }
    world.find(FindingKind.REPLAY, onset=41, evidence=evidence)
    return str(spike(world).evidence["replay"]["reason"])


def spiked(nodes: int, *, onset: int = 41, **fields: object) -> tuple[World, dict[int, str]]:
    """A run that has gone back for a spike, and the node of each rank at the spike."""
    world = trained(45, resources={"nodes": nodes}, **fields)
    before = homes(world)
    world.find(onset=onset)
    world.settle()
    assert (world.attempt().number, set(homes(world))) == (2, set(before))
    return world, before


@pytest.mark.parametrize("count", range(2, 12))
def test_each_rank_changes_its_worker_and_neighbours_stay_near(count: int) -> None:
    seats = tuple(
        Seat(worker=f"w{i}", node=f"n{i}", ranks=(2 * i, 2 * i + 1)) for i in range(count)
    )
    others = exchanged(seats)
    assert [seat.ranks for seat in others] == [seat.ranks for seat in seats]
    assert sorted(seat.worker for seat in others) == sorted(seat.worker for seat in seats)
    assert all(old.worker != new.worker for old, new in zip(seats, others, strict=True))
    places = [int(seat.node[1:]) for seat in others]
    assert all(abs(a - b) <= 2 for a, b in itertools.pairwise(places))


def test_one_worker_has_nobody_to_change_with() -> None:
    alone = (Seat(worker="w0", node="n0", ranks=(0,)),)
    assert exchanged(alone) == alone


@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_a_spike_is_computed_again_with_each_rank_on_another_node(nodes: int) -> None:
    world, before = spiked(nodes)
    now = homes(world)
    assert set(now.values()) == set(before.values()), "no agent is started or ended"
    assert all(now[rank] != before[rank] for rank in now)
    assert world.attempt().start_step == 30
    assert spike(world).evidence["places"]["moved"] == nodes


def test_later_attempts_keep_those_places() -> None:
    """Memory checkpoints serve where they are."""
    world, _ = spiked(2)
    now = homes(world)
    world.trained_to(60)
    world.die()
    world.settle()
    assert (world.attempt().number, homes(world)) == (3, now)


def test_a_failure_that_is_no_spike_changes_no_place() -> None:
    world = trained(45)
    before = homes(world)
    world.die()
    world.settle()
    assert homes(world) == before


def test_a_second_spike_skips_batches_and_replays_nothing() -> None:
    world, _ = spiked(2)
    now = homes(world)
    world.trained_to(43)
    world.find(onset=41)
    world.settle()
    assert (world.attempt().number, homes(world)) == (3, now)
    assert world.run().skip_batches


@pytest.mark.parametrize("step", [32, 30])
def test_a_checkpoint_in_memory_costs_no_steps(step: int) -> None:
    """It serves the ranks where they were, but a rollback for an anomaly loads from the disk."""
    world = trained(45)
    before = homes(world)
    seats = world.attempt().seats
    world.state.put(
        Checkpoint(
            id=f"run-1/1/memory/{step}",
            run="run-1",
            attempt=1,
            step=step,
            tier=Tier.MEMORY,
            world_size=2,
            path="",
            batch=step,
            created_at=world.now,
            trust=Trust.GOOD,
            ranks=frozenset({0, 1}),
            homes={rank: seat.worker for seat in seats for rank in seat.ranks},
        )
    )
    world.remember(step)
    world.find(onset=41)
    world.settle()
    assert all(node != before[rank] for rank, node in homes(world).items())
    assert world.attempt().start_step == 30


def test_a_run_of_one_node_stays() -> None:
    world, before = spiked(1)
    assert homes(world) == before
    assert spike(world).evidence["places"]["moved"] == 0
    assert replayed(world, "data or optimisation").endswith(
        "on the same node as before: a machine that makes the same mistake twice is not ruled out"
    )


def test_the_verdict_of_data_clears_all_machines_where_all_ranks_were_elsewhere() -> None:
    world, before = spiked(2)
    assert replayed(world, "data or optimisation").endswith(
        f"each rank on another node than before (rank 0: {before[0]}, now {before[1]},"
        f" rank 1: {before[1]}, now {before[0]})"
    )
    assert spike(world).evidence["replay"]["elsewhere"] is True
    assert spike(world).evidence["replay"]["nodes"] == []


def test_the_verdict_of_hardware_names_both_nodes_of_the_rank() -> None:
    world, before = spiked(3)
    two = sorted({before[1], homes(world)[1]})
    assert replayed(world, "hardware", 1).endswith(f": {two[0]} or {two[1]} computed wrongly")
    assert spike(world).evidence["replay"]["nodes"] == two
    assert {node.state for node in world.state.nodes.values()} == {"ready"}, "nobody acts on it"


PLACES = {
    "none": {"ranks": 4, "moved": 0},
    "some": {"ranks": 4, "moved": 1},
    "all": {"ranks": 4, "moved": 4},
}


@pytest.mark.parametrize(
    ("moved", "outcome", "ranks", "elsewhere", "suspects", "said"),
    [
        ("none", "data or optimisation", [], False, (), f"{IN_PLACE}: a machine that makes the"),
        ("none", "hardware", [2], False, (), f"{IN_PLACE}: no evidence against a node"),
        ("none", "unknown", [], False, (), IN_PLACE),
        ("some", "data or optimisation", [], False, (), "1 of 4 ranks on other nodes than before"),
        ("some", "hardware", [0], False, (), "1 of 4 ranks on other nodes"),  # rank 0 has stayed
        ("some", "hardware", [2], False, ("a", "b"), "a or b computed wrongly"),
        ("all", "data or optimisation", [], True, (), "each rank on another node than before"),
        ("all", "hardware", [2], True, ("a", "b"), "a or b computed wrongly"),
        ("all", "hardware", [], True, (), "each rank on another node than before"),
        ("all", "unknown", [], True, (), "each rank on another node than before"),
    ],
)
def test_what_a_replay_proves_by_its_places(
    *, moved: str, outcome: str, ranks: list[int], elsewhere: bool, suspects: tuple[str, ...],
    said: str,
) -> None:  # fmt: skip
    world, _ = spiked(2)
    there = "b" if moved == "all" else "a"
    seats = [
        {"ranks": [0, 1], "then": "a", "now": there},
        {"ranks": [2, 3], "then": "b", "now": "b" if moved == "none" else "a"},
    ]
    incident = dataclasses.replace(
        spike(world), evidence={"places": {**PLACES[moved], "seats": seats}}
    )
    found = spike_replays.where(incident, {"outcome": outcome, "ranks": ranks})
    assert (found.elsewhere, found.suspects) == (elsewhere, suspects)
    assert said in found.said


def test_large_gangs_are_counted_and_not_listed() -> None:
    world, _ = spiked(2)
    places = {"ranks": 16384, "moved": 16384}
    large = dataclasses.replace(spike(world), evidence={"places": places})
    found = spike_replays.where(large, {"outcome": "hardware", "ranks": [7]})
    assert (found.elsewhere, found.suspects) == (True, ())
    assert found.said == "each rank on another node than before"


def test_a_script_that_resumes_by_itself_stays() -> None:
    """Its own checkpoints may be on disks of the nodes."""
    world = own_checkpoints()
    saved(world, 10)
    before = homes(world)
    printed(world, 40, 1)
    world.find(onset=25)
    deliver(world)
    world.advance(2)
    deliver(world)
    assert (world.attempt().number, homes(world)) == (2, before)
    assert spike(world).evidence["places"] == {
        "ranks": 2,
        "moved": 0,
        "seats": [
            {"ranks": [rank], "then": node, "now": node} for rank, node in sorted(before.items())
        ],
    }
