"""Checkpoints on disk: saved, read back, trusted, kept and deleted."""

from __future__ import annotations

import pytest

from jobs.commands import DeleteCheckpoint
from jobs.events import (
    AttemptStopped,
    CheckpointChecked,
    RankRestored,
    RejectedCheckpoint,
    SaveFailed,
)
from monitors.types import Severity
from orchestrator.core.messages.events import (
    CheckpointPinned,
    CheckpointRemovalAsked,
    IncidentChanged,
)
from orchestrator.core.messages.instructions import (
    Notify,
)
from orchestrator.core.model.states import IncidentState, RunState, Trust
from orchestrator.errors import ConflictError, NotFoundError
from tests.matching import command, match
from tests.world import World, spec, trained


def fail_to_save(world: World, step: int, rank: int) -> None:
    seat = world.attempt().seats[rank]
    world.do(
        world.event(
            SaveFailed,
            run="run-1",
            worker=seat.worker,
            attempt=world.attempt().number,
            rank=rank,
            step=step,
            tier="memory",
            error="No space left on device",
        )
    )


def test_saves_that_fail_all_the_time_are_one_incident_and_page_once() -> None:
    world = trained(5)
    for step in range(6, 30):
        for rank in (0, 1):
            fail_to_save(world, step, rank)
    (incident,) = world.state.incidents_of("run-1")
    assert incident.severity is Severity.CRITICAL
    notices = [i for i in world.carried if isinstance(i, Notify)]
    about = {"incident": incident.id, "incident_kind": incident.kind}
    assert notices == [
        match(Notify, severity=Severity.WARNING, **about),
        match(Notify, severity=Severity.CRITICAL, **about),
    ]
    assert {n.dedup_key for n in notices} == {f"run-1/{incident.kind}/1"}


def test_one_failed_save_on_every_rank_does_not_page() -> None:
    world = trained(5)
    for rank in (0, 1):
        fail_to_save(world, 6, rank)
    assert match(Notify, severity=Severity.WARNING) in world.carried
    assert match(Notify, severity=Severity.CRITICAL) not in world.carried


@pytest.mark.parametrize(("ok", "trust"), [(True, Trust.VERIFIED), (False, Trust.BAD)])
def test_the_last_checkpoint_is_read_back_though_the_run_is_over(*, ok: bool, trust: Trust) -> None:
    """It is what the run was for; its answer comes after the ranks have ended."""
    world = trained(19)
    world.reach(20)
    last = world.save(20)
    checks = [m for m in world.messages if isinstance(m, CheckpointChecked)]
    world.messages = [m for m in world.messages if m not in checks]
    world.end()
    assert world.run().state is RunState.SUCCEEDED
    for check in checks:
        world.do(check.model_copy(update={"ok": ok, "error": "" if ok else "content differs"}))
    assert world.state.checkpoints[last].trust is trust
    told = [i.text for i in world.carried if isinstance(i, Notify)]
    assert any("step 20 is corrupt" in text for text in told) is not ok


def test_a_read_back_that_cannot_read_condemns_nothing() -> None:
    world = trained(19)
    world.reach(20)
    key = world.save(20)
    world.messages = [
        m.model_copy(update={"ok": False, "unreadable": True, "error": "stale"})
        if isinstance(m, CheckpointChecked)
        else m
        for m in world.messages
    ]
    world.settle()
    assert world.state.checkpoints[key].trust is Trust.COMPLETE
    assert not world.state.incidents_of("run-1")


def test_a_corrupt_checkpoint_is_no_longer_missed_once_a_newer_one_is_read_back() -> None:
    world = trained(19)
    world.reach(20)
    world.save(20)
    world.messages = [
        m.model_copy(update={"ok": False, "error": "bits differ"})
        if isinstance(m, CheckpointChecked)
        else m
        for m in world.messages
    ]
    world.settle()
    (incident,) = world.state.incidents_of("run-1")
    world.trained_to(29)
    assert world.state.incidents[incident.id].state is IncidentState.OPEN
    world.trained_to(30)
    assert world.state.incidents[incident.id].state is IncidentState.RESOLVED


def test_a_corrupt_checkpoint_that_was_fallen_back_from_is_settled_by_new_steps() -> None:
    world = trained(25)
    world.die(last_step=25)
    while world.attempt().number == 1:
        world.do(world.messages.pop(0))
    refused = RejectedCheckpoint(id="run-1/1/directory/20", reason="bits differ")
    instead = {"step": 10, "checkpoint": "run-1/1/directory/10", "rejected": (refused,)}
    world.messages = [
        m.model_copy(update=instead) if isinstance(m, RankRestored) else m for m in world.messages
    ]
    world.settle()
    world.reach(19)
    kinds = {i.kind for i in world.state.incidents_of("run-1")}
    assert kinds == {"signal", "checkpoint_corrupt"}
    world.reach(26)
    assert {i.state for i in world.state.incidents_of("run-1")} == {IncidentState.RESOLVED}


def test_good_waits_while_an_anomaly_is_only_watched() -> None:
    """Steps after an onset are not clean, whoever decided to do nothing about it."""
    world = trained(20, monitors={"loss_spike": {"action": "observe"}})
    world.find(onset=15)
    for step in (30, 40, 50):
        world.reach(step)
    assert world.state.checkpoints["run-1/1/directory/20"].trust is Trust.VERIFIED


def test_good_goes_on_once_a_person_has_resolved_the_anomaly() -> None:
    world = trained(20, monitors={"loss_spike": {"action": "observe"}})
    world.find(onset=15)
    (incident,) = world.state.incidents_of("run-1")
    world.do(world.event(IncidentChanged, incident=incident.id, state=IncidentState.RESOLVED))
    world.reach(50)
    assert world.state.checkpoints["run-1/1/directory/20"].trust is Trust.GOOD


def test_a_pinned_checkpoint_from_after_an_onset_is_kept_but_not_loaded() -> None:
    world = trained(20)
    world.reach(30)
    pinned = world.save(30)
    world.settle()
    world.do(world.event(CheckpointPinned, run="run-1", checkpoint=pinned))
    world.find(onset=25)
    world.settle()
    world.reach(12)
    world.die(last_step=12)
    world.settle()
    assert world.offered()[0][0] < 25
    assert world.state.checkpoints[pinned].deleted_at is None


def test_a_checkpoint_that_is_being_loaded_is_not_deleted() -> None:
    world = trained(25)
    world.die(last_step=25)
    stops = [m for m in world.messages if isinstance(m, AttemptStopped)]
    for message in stops:
        world.do(message)
    assert world.offered()[0] == (20, "directory")
    with pytest.raises(ConflictError, match="ranks may be loading it"):
        world.do(
            world.event(CheckpointRemovalAsked, run="run-1", checkpoint="run-1/1/directory/20")
        )


def test_a_checkpoint_is_deleted_by_its_own_run_only() -> None:
    world = trained(25)
    world.submit(spec("other"), "run-2")
    with pytest.raises(NotFoundError):
        world.do(
            world.event(CheckpointRemovalAsked, run="run-2", checkpoint="run-1/1/directory/10")
        )
    assert command(DeleteCheckpoint) not in world.carried
