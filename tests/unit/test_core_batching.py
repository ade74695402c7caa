"""Events put together mean what they meant one by one."""

from __future__ import annotations

import pytest

from babysit.wire import Tier
from jobs.events import (
    AttemptStopped,
    CheckpointChecked,
    RankExited,
    RankReady,
    RankRestored,
    RanksStarted,
    ShardWritten,
)
from monitors.failures import Failure, FailureClass
from monitors.types import FindingKind
from orchestrator.core.messages.batching import coalesce
from orchestrator.core.messages.events import EVENT
from orchestrator.core.messages.gang_events import (
    GangChecked,
    GangFinished,
    GangReady,
    GangSaved,
    GangStopped,
)
from orchestrator.core.model.states import RunState, Trust
from tests.world import World, spec


class Gathering(World):
    """A world whose messages are put together before they are delivered."""

    def settle(self) -> None:
        while self.messages or self.orders:
            while self.orders:
                self.obey(self.orders[0])
            messages, self.messages = self.messages, []
            for event in coalesce(messages):
                self.do(EVENT.validate_json(event.model_dump_json()))

    def save(self, step: int, run: str = "run-1") -> str:
        shards = [
            self.event(
                ShardWritten,
                run=run,
                worker=seat.worker,
                attempt=self.attempt(run).number,
                shard=self.shard(self.attempt(run), step, rank, Tier.DIRECTORY),
            )
            for seat in self.attempt(run).seats
            for rank in seat.ranks
        ]
        for event in coalesce(shards):
            self.do(event)
        return f"{run}/{self.attempt(run).number}/directory/{step}"


def story(kind: type[World]) -> World:
    """Up, trained, a death, back from memory; a spike, back from a good one; a hang; the end."""
    world = kind()
    world.submit(spec(resources={"nodes": 3, "processes_per_node": 4}))
    world.trained_to(25)
    world.remember(25)
    world.die(rank=5, last_step=25)
    world.settle()
    world.trained_to(45)
    world.find(onset=43)
    world.settle()
    world.trained_to(50)
    world.find(FindingKind.HANG, onset=50)
    world.settle()
    world.trained_to(55)
    return world


def test_the_core_comes_to_the_same_state() -> None:
    alone, together = story(World), story(Gathering)
    kinds = [type(event) for event, _, _ in together.journal]
    assert {GangReady, GangSaved, GangStopped} <= set(kinds)
    assert len(kinds) < len(alone.journal) / 2
    one, other = alone.attempt(), together.attempt()
    assert one.number == other.number == 4
    assert (one.seats, one.start_step) == (other.seats, other.start_step)
    assert one.restored_ranks == other.restored_ranks
    trusts = [
        {c.id: (c.trust, c.homes, c.bytes, c.checked_by) for c in w.state.checkpoints.values()}
        for w in (alone, together)
    ]
    assert trusts[0] == trusts[1]
    assert Trust.GOOD in {trust for trust, *_ in trusts[0].values()}
    together.end()
    assert together.run().state is RunState.SUCCEEDED


def events(world: World, kind: type, **fields: object) -> list:
    world.submit(spec(resources={"nodes": 2, "processes_per_node": 2}))
    world.settle()
    seats = world.attempt().seats
    return [
        world.event(kind, run="run-1", worker=seat.worker, attempt=1, **fields) for seat in seats
    ]


def test_only_neighbours_that_say_the_same_are_joined() -> None:
    world = World()
    first, second = events(world, RankReady, rank=0)
    other = world.event(RanksStarted, run="run-1", worker=first.worker, attempt=1, ranks=(0, 1))
    assert coalesce([first, other, second]) == [first, other, second]
    older = second.model_copy(update={"attempt": 0})
    assert coalesce([first, older]) == [first, older]
    [joined] = coalesce([first, second])
    assert isinstance(joined, GangReady)
    assert (joined.id, joined.workers) == (first.id, (first.worker, second.worker))


def test_ranks_that_loaded_different_steps_are_not_joined() -> None:
    world = World()
    first, second = events(world, RankRestored, rank=0, step=10)
    assert len(coalesce([first, second.model_copy(update={"step": 20})])) == 2


def test_a_worker_without_a_seat_does_not_count() -> None:
    world = World(slow=True)
    world.submit(spec(resources={"nodes": 2, "processes_per_node": 2}))
    while not world.state.attempts:
        world.do(world.messages.pop(0))
    mine = world.attempt().seats[0]
    strange = ("run-1-w99", mine.worker)
    world.do(world.event(GangReady, run="run-1", attempt=1, workers=strange, ranks=(0, 1, 2, 3)))
    assert world.attempt().ready_ranks == set(mine.ranks)
    world.do(world.event(GangReady, run="run-1", attempt=1, workers=strange[:1], ranks=(3,)))
    assert world.attempt().ready_ranks == set(mine.ranks)


def test_ranks_that_finish_together_end_their_run_and_a_failed_one_stands_alone() -> None:
    world = World()
    ends = [
        end.model_copy(update={"rank": rank})
        for rank, end in enumerate(events(world, RankExited, rank=0, code=0, last_step=30))
    ]
    died = ends[1].model_copy(
        update={
            "code": 1,
            "failure": Failure(
                failure_class=FailureClass.UNKNOWN, reason="exit 1", signature="exit 1"
            ),
        }
    )
    assert coalesce([ends[0], died]) == [ends[0], died]
    crashed = ends[1].model_copy(update={"code": -11, "remark": "ended by SIGSEGV late"})
    [joined] = coalesce([ends[0], crashed])
    assert isinstance(joined, GangFinished)
    assert joined.remark == "rank 1 was ended by SIGSEGV late"
    others = [end.model_copy(update={"rank": end.rank + 2}) for end in ends]
    [joined] = coalesce([*ends, *others])
    assert isinstance(joined, GangFinished)
    world.do(joined)
    assert world.run().state is RunState.SUCCEEDED
    assert world.attempt().step == 30


@pytest.mark.parametrize("attempt", [0, 2])
def test_what_a_gang_says_of_another_attempt_is_refused(attempt: int) -> None:
    world = World()
    stops = events(world, AttemptStopped)
    joined = coalesce([stop.model_copy(update={"attempt": attempt}) for stop in stops])[0]
    world.do(joined)
    assert world.attempt().number == 1
    assert not any(seat.stopped for seat in world.attempt().seats)


def test_a_gang_reads_the_last_checkpoint_back_after_its_run_has_ended() -> None:
    """It is the model that the run was for; a single worker's answer counts then, too."""
    world = World()
    world.submit()
    world.trained_to(19)
    world.reach(20)
    last = world.save(20)
    answers = [m for m in world.messages if isinstance(m, CheckpointChecked)]
    world.messages = [m for m in world.messages if m not in answers]
    world.end()
    assert world.run().state is RunState.SUCCEEDED
    [joined] = coalesce(answers)
    assert isinstance(joined, GangChecked)
    world.do(joined)
    assert world.state.checkpoints[last].trust is Trust.VERIFIED
