"""What the controller tells the core of steps: milestones, and progress before what may end it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from babysit.wire import Phase
from jobs.commands import StartAttempt
from jobs.events import RankBeat, RankExited, RankReady, RankRestored, RanksStarted, Report
from monitors.types import Finding, FindingKind, Sample, Severity
from orchestrator.controller.sample_events import SampleEvents
from orchestrator.controller.sample_pipeline import RunSamplePipeline
from orchestrator.core import machine
from orchestrator.core.attempts.lifecycle import SILENT_SECONDS
from orchestrator.core.messages.events import (
    FindingRaised,
    RollbackAsked,
    RunReleased,
    StepReached,
)
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.states import AttemptState, RunState
from orchestrator.core.turn import Turn
from orchestrator.database.port import WorkerSamples
from orchestrator.errors import ConflictError
from tests.controller_harness import STEPS, Agent, Harness, samples
from tests.world import spec


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


async def steps_told(harness: Harness) -> list[tuple[int, float]]:
    """Steps that the core was told of, and how long saves had blocked until then."""
    journal = await harness.store.journal(limit=10_000)
    reached = [entry.payload for entry in journal if entry.name == "step_reached"]
    return [(event["step"], event["blocked_seconds"]) for event in reached]


async def running(harness: Harness) -> Agent:
    """A run of one rank, which is up."""
    await harness.open()
    await harness.submit(nodes=1)
    attempts = harness.controller.state.attempts
    assert await harness.until(
        lambda: "run-1" in attempts and bool(attempts["run-1"].restored_ranks)
    )
    return next(iter(harness.agents.values()))


async def test_the_core_knows_the_last_step_before_a_rank_ends() -> None:
    """What was lost, what blocked and what is new go by it, not by the last milestone."""
    harness = Harness()
    await harness.open()
    await harness.submit()
    assert await harness.until(
        lambda: harness.state_of() is not None and not harness.controller.state.runs
    )
    await harness.kill()
    each = [(1, 0.25), (STEPS, STEPS * 0.25)]
    assert await steps_told(harness) == [
        *each,
        *((STEPS + step, blocked) for step, blocked in each),
    ]


@pytest.mark.usefixtures("idle")
async def test_progress_stays_when_a_request_is_refused() -> None:
    """It is a transaction of its own: what is in the state is in the journal."""
    harness = Harness()
    agent = await running(harness)
    agent.say(1, samples=tuple(samples(0, step) for step in (1, 2, 3)))
    await harness.until(lambda: not agent.spool)
    with pytest.raises(ConflictError, match="no checkpoint of step 17"):
        await harness.controller.submit(harness.event(RollbackAsked, run="run-1", to_step=17))
    assert await steps_told(harness) == [(1, 0.25), (3, 0.75)]
    assert harness.controller.state.runs["run-1"].best_step == 3
    await harness.controller.submit(harness.event(RollbackAsked, run="run-1"))
    assert len(await steps_told(harness)) == 2, "nothing new"
    await harness.kill()


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
    harness = Harness()
    agent = await running(harness)
    agent.say(1, samples=tuple(samples(0, step) for step in (1, 2, 3)))
    await harness.until(lambda: not agent.spool)
    assert [step for step, _ in await steps_told(harness)] == [2]
    await harness.controller.submit(harness.event(RunReleased, run="run-1"))  # held over it
    assert await steps_told(harness) == [(2, 0.5), (3, 0.75)]
    await harness.kill()


@pytest.mark.parametrize(
    ("phase", "printed", "reports"),
    [
        (Phase.RESTORING, False, True),  # only `babysit.init()` leads there
        (Phase.TRAINING, False, True),
        (Phase.STARTING, False, False),  # so does every script look
        (Phase.TRAINING, True, False),  # read from the output of a script that says nothing
    ],
)
async def test_a_script_reports_if_its_heartbeats_show_so(
    monkeypatch: pytest.MonkeyPatch, phase: Phase, printed: bool, reports: bool
) -> None:
    """Its agent's words that ranks are ready were unreadable: a hang must be noticed all the same.

    A script whose silence says nothing stays a silent one: its ranks are only looked at.
    """

    def come_up(self: Agent, command: StartAttempt) -> None:
        number = self.attempt = self.newest = command.attempt
        beat = {"step": 0, "phase": phase, "beat": 0.0, "alive": True, "printed": printed}
        self.beats = tuple(RankBeat(rank=rank, **beat) for rank in command.ranks)
        self.say(number, self.event(RanksStarted, number, ranks=command.ranks))

    monkeypatch.setattr(Agent, "_train", come_up)
    harness = Harness()
    await harness.open()
    await harness.submit(nodes=1)
    attempts, passed = harness.controller.state.attempts, harness.clock.monotonic

    def is_suspect() -> bool:
        return "run-1" in attempts and attempts["run-1"].suspect is not None

    await harness.until(is_suspect, ticks=100_000)
    assert harness.controller.state.runs["run-1"].instrumented is reports
    if not reports:
        await harness.until(lambda: passed() > 2 * SILENT_SECONDS, ticks=100_000)
        assert is_suspect()
        assert harness.controller.state.incidents_of("run-1") == []
        assert attempts["run-1"].number == 1
    await harness.kill()


# one event at a time


class Spike(RunSamplePipeline):
    """A pipeline whose monitors find a loss spike at step 3."""

    def observe(self, samples: Sequence[Sample]) -> list[Finding]:
        return [
            Finding(
                kind=FindingKind.LOSS_SPIKE,
                severity=Severity.CRITICAL,
                attempt=1,
                onset_step=3,
                onset_time=3.0,
                detected_time=3.0,
                detected_step=3,
                reason="a spike",
            )
            for sample in samples
            if sample.step == 3
        ]


def attempt(harness: Harness, milestone: int) -> Attempt:
    return Attempt(
        run="run-1",
        number=1,
        state=AttemptState.RUNNING,
        seats=(),
        world_size=1,
        started_at=harness.clock.now(),
        milestone=milestone,
    )


def said(event: Any) -> object:
    return event.step if isinstance(event, StepReached) else type(event)


async def test_which_step_is_an_event_depends_on_the_milestone_as_it_is_then() -> None:
    """The core moves the milestone while it handles a step: nothing may be drawn ahead."""
    harness = Harness()
    report = Report(sequence=1, attempt=1, samples=tuple(samples(0, s) for s in (5, 4, 3, 2, 1)))
    first = attempt(harness, milestone=1)
    told = SampleEvents("run-1", Spike(spec()), report, harness.event)
    assert said(told.next(first)) == 1
    moved = dataclasses.replace(first, milestone=2)
    assert said(told.next(moved)) == 2
    moved = dataclasses.replace(first, milestone=5)
    assert said(told.next(moved)) is FindingRaised, "before the step at which it was detected"
    assert said(told.next(moved)) == 5
    assert told.next(moved) is None

    told = SampleEvents("run-1", Spike(spec()), report, harness.event)
    never = dataclasses.replace(first, milestone=100)
    assert [said(told.next(never)), told.next(never)] == [FindingRaised, None]
    ended = SampleEvents("run-1", RunSamplePipeline(spec()), report, harness.event)
    assert ended.next(None) is None, "a run without an attempt"


@pytest.mark.parametrize("again", [False, True])
async def test_a_rank_whose_samples_the_database_refuses_does_not_speak(again: bool) -> None:
    """A backup was restored: what agents say of an attempt before it is known is not stored."""
    harness = Harness()
    first = attempt(harness, milestone=100)
    early, later = (samples(0, 1),), (samples(1, 1),)
    pipeline = RunSamplePipeline(spec())
    if again:
        pipeline.take_again(2, early, first.number)
    else:
        report = Report(sequence=1, attempt=2, samples=early)
        SampleEvents("run-1", pipeline, report, harness.event).next(first)
    found = dataclasses.replace(first, number=2)
    report = Report(sequence=1, attempt=2, samples=later)
    SampleEvents("run-1", pipeline, report, harness.event).next(found)
    stored = pipeline.kept.of(WorkerSamples(run="run-1", attempt=2, ranks=later))
    assert [each.rank for each in stored.ranks] == [1]


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("name", ["observe", "progress_event"])
async def test_a_defect_of_the_monitors_takes_no_event_of_an_agent_with_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A rank has ended: without that event the run would hang for ever."""
    harness = Harness()
    agent = await running(harness)

    def fail(*_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(RunSamplePipeline, name, fail)
    ended = agent.event(RankExited, 1, code=0, rank=0, last_step=2)
    agent.say(1, ended, samples=(samples(0, 1), samples(0, 2)))
    agent.attempt = 0
    assert await harness.until(lambda: not agent.spool)
    journal = await harness.store.journal(limit=10_000)
    assert [entry.name for entry in journal].count("rank_exited") == 1
    assert await harness.store.sample_total("run-1") == 2
    assert await harness.until(lambda: harness.state_of() is RunState.SUCCEEDED)
    await harness.kill()
