"""Silent data corruption: the odd rank's node is drained, and a replay settles what is open."""

from __future__ import annotations

import pytest

from jobs.commands import StopAttempt
from monitors.types import FindingKind
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.states import AttemptState, IncidentState, NodeState, Trust
from orchestrator.core.model.vocabulary import Remedy
from tests.matching import command
from tests.world import World, trained

SLOW_TRUST = {"directory": "/checkpoints", "every_steps": 10, "good_after_steps": 1000}


def corrupted(world: World, *odd: int, onset: int = 41) -> str:
    """Replicas differ; the node of rank 1, the suspect."""
    node = next(seat.node for seat in world.attempt().seats if 1 in seat.ranks)
    evidence: dict[str, object] = {"odd": list(odd), "suspects": list(odd) or [0, 1]}
    rank = odd[0] if odd else None
    world.find(FindingKind.CORRUPTION, onset=onset, rank=rank, evidence=evidence)
    return node


def replayed(world: World, outcome: str, *ranks: int, **more: object) -> None:
    evidence = {"outcome": outcome, "ranks": list(ranks), "of_attempt": 1, "of_step": 44, **more}
    world.find(FindingKind.REPLAY, onset=41, evidence=evidence)


def incident(world: World) -> Incident:
    (found,) = [i for i in world.state.incidents_of("run-1") if i.kind == FindingKind.CORRUPTION]
    return found


def seats(world: World) -> set[str]:
    return {seat.node for seat in world.attempt().seats}


def test_the_odd_rank_is_left_and_its_node_drained_and_the_run_goes_back() -> None:
    world = trained(45)
    node = corrupted(world, 1)
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (2, 40)
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.node, restart.rank, restart.remedy) == (node, 1, Remedy.ROLL_BACK)
    assert world.state.nodes[node].state is NodeState.DRAINING
    assert node not in seats(world)
    assert incident(world).evidence["drained"] == [node]
    assert world.run().skip_batches == ()


def test_a_checkpoint_from_before_the_last_agreement_is_good_without_clean_steps() -> None:
    world = trained(45, checkpoint=SLOW_TRUST)
    corrupted(world, 1, onset=35)
    world.settle()
    assert world.attempt().start_step == 30
    by_step = {c.step: c for c in world.state.checkpoints_of("run-1")}
    assert by_step[30].trust is Trust.GOOD
    assert by_step[40].superseded


def test_two_suspects_are_settled_by_the_replay() -> None:
    world = trained(45)
    node = corrupted(world)
    world.settle()
    assert {n.state for n in world.state.nodes.values()} == {NodeState.READY}
    assert world.attempt().restart.node is None
    world.trained_to(44)
    replayed(world, "hardware", 1)
    world.settle()
    assert world.state.nodes[node].state is NodeState.DRAINING
    assert (incident(world).state, incident(world).evidence["replay"]["outcome"]) == (
        IncidentState.RESOLVED,
        "hardware",
    )
    assert node not in seats(world), "the run saved, and went on elsewhere"


def test_losses_of_a_spike_settle_no_disagreement_of_fingerprints() -> None:
    """Both may be of one attempt; nobody acts on what the losses say."""
    world = trained(45)
    corrupted(world)
    world.settle()
    replayed(world, "hardware", 1, of_kind="loss_spike")
    assert "replay" not in incident(world).evidence
    assert all(node.state is NodeState.READY for node in world.state.nodes.values())


def test_a_disagreement_that_follows_the_rank_gives_the_node_back() -> None:
    world = trained(45)
    node = corrupted(world, 1)
    world.trained_to(44)
    replayed(world, "script")
    assert world.state.nodes[node].state is NodeState.READY
    assert world.run().avoid == ()
    assert all(fault.acquitted for fault in world.state.nodes[node].faults)
    assert incident(world).evidence["replay"]["elsewhere"] is True


def test_without_a_spare_node_the_replay_decides() -> None:
    world = trained(45, resources={"nodes": 4})
    node = corrupted(world, 1)
    world.settle()
    assert world.state.nodes[node].state is NodeState.READY
    assert node in seats(world)
    world.trained_to(44)
    replayed(world, "hardware", 1)
    assert world.state.nodes[node].state is NodeState.DRAINING


@pytest.mark.parametrize("outcome", ["unknown", None])
def test_an_incident_does_not_wait_for_ever_for_its_replay(outcome: str | None) -> None:
    world = trained(45)
    corrupted(world, 1)
    world.trained_to(50)
    assert incident(world).state is IncidentState.MITIGATING
    if outcome:
        replayed(world, outcome)
    else:
        world.trained_to(400)
    assert not any(i.state is not IncidentState.RESOLVED for i in world.state.incidents_of("run-1"))


@pytest.mark.parametrize("action", ["observe", "ask"])
def test_the_spec_may_say_observe_or_ask(action: str) -> None:
    world = trained(45, monitors={"corruption": {"action": action}})
    node = corrupted(world, 1)
    world.settle()
    assert world.attempt().state is AttemptState.RUNNING
    assert command(StopAttempt) not in world.carried
    assert world.state.nodes[node].state is NodeState.READY


def test_a_script_that_stops_sharing_its_weights_is_only_on_record() -> None:
    world = trained(45)
    world.find(FindingKind.CORRUPTION, onset=41, evidence={"form": "diverged"})
    assert world.state.incidents_of("run-1") == []
    assert world.attempt().state is AttemptState.RUNNING
