"""What the controller tells the core of steps: milestones, and the news before what may end it."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.commands import StartAttempt
from jobs.events import RankReady, RankRestored, RanksStarted
from orchestrator.core import machine
from orchestrator.core.messages.events import RollbackAsked, StepReached
from orchestrator.core.turn import Turn
from orchestrator.errors import ConflictError
from tests.control_room import STEPS, Agent, Room, samples


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents whose ranks come up, and do what the test says."""

    def come_up(self: Agent, command: StartAttempt) -> None:
        number = self.attempt = self.newest = command.attempt
        (rank,) = command.ranks
        self.say(
            number,
            self.event(RanksStarted, number, ranks=command.ranks),
            self.event(RankReady, number, rank=rank),
            self.event(RankRestored, number, rank=rank, step=0),
        )

    monkeypatch.setattr(Agent, "_train", come_up)


async def steps_told(room: Room) -> list[tuple[int, float]]:
    """Steps that the core was told of, and how long saves had blocked until then."""
    journal = await room.store.journal(limit=10_000)
    reached = [entry.payload for entry in journal if entry.name == "step_reached"]
    return [(event["step"], event["blocked_seconds"]) for event in reached]


async def running(room: Room) -> Agent:
    """A run of one rank, which is up."""
    await room.open()
    await room.submit(nodes=1)
    attempts = room.controller.state.attempts
    assert await room.until(lambda: "run-1" in attempts and bool(attempts["run-1"].restored_ranks))
    return next(iter(room.agents.values()))


async def test_the_core_knows_the_last_step_before_a_rank_ends() -> None:
    """What was lost, what blocked and what is new go by it, not by the last milestone."""
    room = Room()
    await room.open()
    await room.submit()
    assert await room.until(lambda: room.state_of() is not None and not room.controller.state.runs)
    await room.kill()
    each = [(1, 0.25), (STEPS, STEPS * 0.25)]
    assert await steps_told(room) == [*each, *((STEPS + step, blocked) for step, blocked in each)]


@pytest.mark.usefixtures("idle")
async def test_the_news_stay_when_a_request_is_refused() -> None:
    """They are a turn of their own: what is in the state is in the journal."""
    room = Room()
    agent = await running(room)
    agent.say(1, samples=tuple(samples(0, step) for step in (1, 2, 3)))
    await room.until(lambda: not agent.spool)
    with pytest.raises(ConflictError, match="no checkpoint of step 17"):
        await room.controller.submit(room.event(RollbackAsked, run="run-1", to_step=17))
    assert await steps_told(room) == [(1, 0.25), (3, 0.75)]
    assert room.controller.state.runs["run-1"].best_step == 3
    await room.controller.submit(room.event(RollbackAsked, run="run-1"))
    assert len(await steps_told(room)) == 2, "nothing new"
    await room.kill()


@pytest.mark.usefixtures("idle")
async def test_after_a_defect_milestones_are_those_of_the_state_that_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The state is another object then, and so is the observer, which must not miss the report."""
    handlers = dict(machine._HANDLERS)

    def on_step(turn: Turn, event: Any) -> None:
        if event.step == 1:
            raise KeyError("a defect")
        handlers[StepReached](turn, event)

    monkeypatch.setattr(machine, "_HANDLERS", {**handlers, StepReached: on_step})
    room = Room()
    agent = await running(room)
    agent.say(1, samples=tuple(samples(0, step) for step in (1, 2, 3)))
    await room.until(lambda: not agent.spool)
    assert [step for step, _ in await steps_told(room)] == [2]
    await room.controller.submit(room.event(RollbackAsked, run="run-1"))
    assert await steps_told(room) == [(2, 0.5), (3, 0.75)]
    await room.kill()
