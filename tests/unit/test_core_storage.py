"""Full and vanished file systems, checkpoints that do not come, deletions until they are true."""

from __future__ import annotations

import pytest

from jobs.commands import DeleteCheckpoint
from jobs.events import (
    CheckpointDeleted,
    Place,
    SaveFailed,
    SaveResumed,
    ShardWritten,
    StorageTrouble,
)
from monitors.types import Severity
from orchestrator.core.checkpoints.trouble import OVERDUE_SECONDS
from orchestrator.core.messages.events import CheckpointRemovalAsked
from orchestrator.core.messages.instructions import Notify, SendCommand
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.state import is_over
from orchestrator.core.model.states import IncidentState, Trust
from tests.matching import match
from tests.world import World, trained


def tell(world: World, kind: type, of: int = 0, **fields: object) -> None:
    """An agent's event about a rank of the live attempt."""
    attempt = world.attempt()
    seat = next(seat for seat in attempt.seats if of in seat.ranks)
    world.do(world.event(kind, run="run-1", worker=seat.worker, attempt=attempt.number, **fields))


def full(world: World, step: int, rank: int = 1, tier: str = "directory") -> None:
    error = {"error": "[Errno 28] No space left on device", "full": True}
    tell(world, SaveFailed, rank, rank=rank, step=step, tier=tier, **error)


def shard(world: World, step: int, rank: int) -> str:
    """One rank has saved its shard to the directory; returns the id of the checkpoint."""
    report = world.shard(world.attempt(), step, rank, "directory")
    tell(world, ShardWritten, rank, shard=report)
    return f"run-1/{world.attempt().number}/directory/{step}"


def incidents(world: World, kind: str) -> list[Incident]:
    return [
        each
        for each in world.state.incidents_of("run-1")
        if each.kind == kind and each.state is not IncidentState.RESOLVED
    ]


def deletions(world: World, checkpoint: str) -> list[object]:
    return [
        each
        for each in world.told("delete_checkpoint")
        if each.command.checkpoint == checkpoint  # type: ignore[attr-defined]
    ]


def test_a_full_disk_has_a_name_pages_and_ends_with_the_next_checkpoint() -> None:
    world = trained(5)
    full(world, 10)
    full(world, 20)
    [incident] = incidents(world, "disk_full")
    assert incident.severity is Severity.CRITICAL
    assert "No space left" in incident.reason
    assert match(Notify, severity=Severity.CRITICAL, incident=incident.id) in world.carried
    assert not incidents(world, "checkpoint_failed")
    world.save(30)
    assert not incidents(world, "disk_full")


@pytest.mark.parametrize("first", ["shard", "failure"])
def test_a_checkpoint_that_one_rank_cannot_save_is_deleted_on_all(first: str) -> None:
    """Else each try adds the shards of the ranks whose disk has room, until it has none."""
    world = trained(5)
    if first == "shard":
        known = shard(world, 10, 0)
        full(world, 10)
    else:
        full(world, 10)
        known = shard(world, 10, 0)
    assert deletions(world, known)
    assert known not in [c.id for c in world.state.checkpoints_of("run-1") if not c.deleted_at]


def test_half_written_checkpoints_do_not_pile_up_on_a_full_disk() -> None:
    world = trained(5)
    world.save(5)
    for step in range(10, 510, 10):
        shard(world, step, 0)
        full(world, step)
    half = [c for c in world.state.checkpoints_of("run-1") if c.trust is Trust.WRITING]
    assert not [c for c in half if c.deleted_at is None]


def test_room_for_keep_but_not_for_one_more_gives_up_the_oldest_and_saving_recovers() -> None:
    """Never the last one to be trusted, and only after all that is of no use was deleted."""
    world = trained(5)
    keep = world.run().spec.checkpoint.keep
    saved = []
    for step in range(10, 10 * keep + 10, 10):
        world.reach(step)
        saved.append(world.save(step))
        world.settle()

    def left() -> list[str]:
        return [c.id for c in world.state.checkpoints_of("run-1") if not c.deleted_at]

    assert set(left()) == set(saved)
    full(world, 10 * keep + 10)
    assert set(left()) == set(saved)
    full(world, 10 * keep + 20)
    assert set(left()) == set(saved[1:])
    newest = world.save(10 * keep + 30)
    world.settle()
    assert not incidents(world, "disk_full")
    assert newest in left()
    kept = [saved[-1], newest]
    good = [c.id for c in world.state.checkpoints_of("run-1") if c.trust is Trust.GOOD]
    assert set(left()) <= {*kept, *good}, "no more than have room, so that no save fails"
    for more in range(40, 200, 10):
        full(world, 10 * keep + more)
    assert newest in left()


def test_memory_that_is_saved_to_again_ends_its_incident() -> None:
    world = trained(5)
    full(world, 6, tier="memory")
    assert incidents(world, "disk_full")
    tell(world, SaveResumed, 1, rank=1, step=7, tier="memory")
    assert not incidents(world, "disk_full")


def test_what_is_wrong_with_a_home_is_said_once_and_ended() -> None:
    world = trained(5)
    place = {"place": Place.LOGS, "path": "/home/logs", "error": "No space left on device"}
    for _ in range(2):
        tell(world, StorageTrouble, full=True, **place)
    [incident] = incidents(world, "disk_full")
    assert incident.subject.startswith("logs on node")
    assert len([i for i in world.carried if isinstance(i, Notify)]) == 1
    tell(world, StorageTrouble, over=True, **place)
    assert not incidents(world, "disk_full")
    tell(world, StorageTrouble, place=Place.RANKS, path="/dev/shm/x", error="has vanished")
    [lost] = incidents(world, "storage_lost")
    assert lost.state is IncidentState.OPEN
    world.kill_agent(str(lost.evidence["worker"]), "gone")
    world.settle()
    assert not incidents(world, "storage_lost")


def test_checkpoints_that_do_not_come_are_an_incident_and_saves_end_it() -> None:
    world = trained(5)
    every = world.run().spec.checkpoint.every_steps
    for step in range(6, 3 * every + 1):
        world.reach(step)
    assert not incidents(world, "checkpoints_overdue")
    for step in range(3 * every + 1, 6 * every):
        world.reach(step)
    assert not incidents(world, "checkpoints_overdue"), "they may be on their way"
    world.advance(OVERDUE_SECONDS)
    [incident] = incidents(world, "checkpoints_overdue")
    assert f"one is due every {every}" in incident.reason
    world.save(world.attempt().step)
    assert not incidents(world, "checkpoints_overdue")


@pytest.mark.parametrize(("saves", "severity"), [(0, Severity.INFO), (1, Severity.WARNING)])
def test_a_run_that_has_never_saved_is_told_so_once(saves: int, severity: Severity) -> None:
    """A run that has stopped saving is a warning; nobody wakes for one that never began to."""
    world = trained(5)
    every = world.run().spec.checkpoint.every_steps
    for step in range(every, (saves + 1) * every, every):
        world.reach(step)
        world.save(step)
    world.reach((saves + 4) * every)
    world.advance(OVERDUE_SECONDS)
    [incident] = incidents(world, "checkpoints_overdue")
    assert incident.severity is severity
    world.die()
    world.settle()
    begun = world.attempt().start_step
    for step in range(begun + 1, begun + 8 * every, every // 2):
        world.reach(step)
        world.advance(OVERDUE_SECONDS)
    [again] = incidents(world, "checkpoints_overdue")
    assert again.id == incident.id
    assert world.attempt().number == 2


def test_a_checkpoint_that_was_on_its_way_is_not_missed() -> None:
    """After an outage, steps are heard of before the checkpoints between them."""
    world = trained(5)
    world.reach(400)
    world.save(390)
    world.advance(OVERDUE_SECONDS)
    assert not incidents(world, "checkpoints_overdue")


def test_no_checkpoint_is_missed_where_saves_come() -> None:
    world = trained(200)
    assert not incidents(world, "checkpoints_overdue")


def kept(world: World) -> tuple[str, int]:
    """Save until retention deletes a checkpoint, unanswered; its id, and the last step."""
    world.deletes = False
    for step in range(10, 200, 10):
        world.reach(step)
        world.save(step)
        world.settle()
        if gone := [c.command.checkpoint for c in world.told("delete_checkpoint")]:  # type: ignore[attr-defined]
            return gone[0], step
    raise AssertionError("retention deletes nothing")


def test_a_deletion_is_under_way_until_it_is_confirmed_and_tried_again_until_then() -> None:
    world = trained(5)
    old, step = kept(world)
    [order] = deletions(world, old)
    assert isinstance(order.command, DeleteCheckpoint)  # type: ignore[attr-defined]
    tell(world, CheckpointDeleted, checkpoint=old, error="[Errno 39] Directory not empty")
    known = world.state.checkpoints[old]
    assert known.removed_at is None
    assert not is_over(known)
    assert "not empty" in known.reason
    world.save(step + 10)
    assert len(deletions(world, old)) == 2
    tell(world, CheckpointDeleted, checkpoint=old)
    assert is_over(world.state.checkpoints[old])


def test_a_deletion_whose_worker_has_gone_is_given_to_another() -> None:
    world = trained(5)
    old, step = kept(world)
    remover = world.state.checkpoints[old].remover
    world.lose_contact(remover)
    world.save(step + 10)
    assert world.state.checkpoints[old].remover not in {"", remover}
    assert len(deletions(world, old)) == 2


def test_a_deletion_that_outlives_its_run_is_finished_on_request() -> None:
    world = trained(5)
    old, _ = kept(world)
    world.end()
    world.settle()
    assert not is_over(world.state.checkpoints[old])
    ask = world.event(CheckpointRemovalAsked, run="run-1", checkpoint=old)
    assert not [each for each in world.do(ask) if isinstance(each, SendCommand)]
    assert is_over(world.state.checkpoints[old])  # the server removes the files
