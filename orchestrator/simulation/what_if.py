"""Replays the recorded failures of one run with other settings, in virtual time.

The problem: "would more frequent checkpoints have paid?" cannot be read from a run that had one
interval. The design: the production core runs the same training again, at the recorded pace, with
the recorded durations of the phases of a recovery, and is struck by the recorded failures at the
recorded times since the first start. The first replay changes nothing: its difference from the
record is the error of the method, and all other replays are compared with it, not with the record.

Limits: a failure is taken as independent of the settings (true of hardware, not of a bug at a
step); a save costs the mean of the recorded ones; waits of the queue, holds, and restarts that a
person asked for are left out; a node that failed is back after the default repair time of
scenarios, unless a spare takes its place. The gang is simulated with at most `MOST_NODES` nodes:
durations of phases are those of the whole gang, whatever its size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from jobs.spec import Checkpoint, Recovery, RunSpec
from monitors.failures import FailureClass
from orchestrator.core.model import time_ledger
from orchestrator.core.model.states import RunState
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.simulation.scenario import model
from orchestrator.simulation.scenario.model import Mishap, Scenario
from orchestrator.simulation.scenario.world import World

MOST_NODES = 2
_NAME = "replayed"
_LEAST_SECONDS = 1e-3
_SLOWEST = 3.0
"""A replay ends after this many times the recorded seconds, and a day for repairs."""
_BUDGET = 10_000
"""Budget of each cause: the record shows that the run went on."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFailure:
    """A failure that the run had."""

    at: float
    """Seconds since the first attempt began."""
    does: Mishap
    failure_class: FailureClass


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Recorded durations in seconds of what a recovery consists of."""

    detect: float = 0.5
    stop: float = 1.0
    launch: float = 30.0
    """A new agent, on a node that was not warm."""
    start: float = 10.0
    restore: float = 10.0
    first_step: float = 0.0
    """Seconds of the first step beyond those of a usual one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One run as it was."""

    checkpoint: Checkpoint
    nodes: int
    spares: int
    """Nodes beyond those that it needs at once."""
    standbys: int
    steps: int
    """The step that all replays go to."""
    seconds: float
    """From the first attempt to that step."""
    step_seconds: float
    save_seconds: float
    """For which a save blocks training."""
    phases: Phases
    failures: Sequence[RecordedFailure]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a replay."""

    every_steps: int
    standbys: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The outcome of one replay."""

    settings: Settings
    seconds: float | None
    """To the same step; None: it did not get there."""
    lost: float
    """Seconds in which steps were computed again."""
    saving: float
    """Seconds for which saves blocked training."""
    waiting: float
    """Seconds without nodes, after the first start."""
    struck: int
    """Recorded failures that struck."""


def as_it_was(recording: Recording) -> Settings:
    """The settings of the run itself."""
    return Settings(every_steps=recording.checkpoint.every_steps, standbys=recording.standbys)


def best_interval(recording: Recording) -> int:
    """The steps between saves that cost least by Young's formula.

    `sqrt(2 w M)` seconds: w is what a save costs, M the mean time between failures (Young, CACM
    17(9), 1974). Without failures, or if saves cost nothing, it says nothing, and is 0.
    """
    failures = len(recording.failures)
    if not failures or recording.save_seconds <= 0 or recording.step_seconds <= 0:
        return 0
    between = recording.seconds / failures
    seconds = math.sqrt(2 * recording.save_seconds * between)
    return max(1, min(recording.steps, round(seconds / recording.step_seconds)))


def replay(recording: Recording, settings: Settings) -> Replay:
    """Replay a run with some settings. Deterministic."""
    world = World(_scenario(recording, settings))
    world.run()
    run = world.tally.runs[_NAME].run
    book = time_ledger.totals(run.ledger, run.ended_at or world.engine.moment())
    reached = run.state is RunState.SUCCEEDED and run.ended_at is not None
    began = run.started_at or run.submitted_at
    end = run.ended_at or world.engine.moment()
    first_wait = (began - run.submitted_at).total_seconds()
    return Replay(
        settings=settings,
        seconds=(end - began).total_seconds() if reached else None,
        lost=book[Bucket.LOST],
        saving=book[Bucket.CHECKPOINTING],
        waiting=max(0.0, book[Bucket.QUEUED] - first_wait),
        struck=sum(hit for _, hit in world.happened.values()),
    )


def _scenario(recording: Recording, settings: Settings) -> Scenario:
    more = settings.standbys - recording.standbys
    phases = recording.phases
    return Scenario(
        name=_NAME,
        days=max(recording.seconds, 60.0) * _SLOWEST / model.DAY + 1.0,
        cluster=model.Cluster(
            nodes=min(recording.nodes, MOST_NODES),
            spares=recording.spares + max(0, more),
            gpus_per_node=1,
        ),
        runs=(_run(recording, settings),),
        failures=tuple(
            model.FailureModel(
                name=f"{number}: {failure.does}",
                does=failure.does,
                at=(failure.at,),
                strikes="training",
                **{"class": failure.failure_class},
            )
            for number, failure in enumerate(recording.failures, 1)
        ),
        recovery=model.Recovery(
            exit_seen=_seconds(phases.detect),
            stop=_seconds(phases.stop),
            launch=_seconds(phases.launch),
            start=_seconds(phases.start / 2),
            ready=_seconds(phases.start / 2),
            restore=_seconds(phases.restore),
            restore_memory=_seconds(phases.restore),
            first_step=_seconds(phases.first_step),
            write=_seconds(recording.save_seconds),
            read_back=_seconds(recording.save_seconds),
        ),
    )


def _run(recording: Recording, settings: Settings) -> model.SimulatedRun:
    every = max(1, min(settings.every_steps, recording.steps))
    spec = RunSpec.model_validate(
        {
            "name": _NAME,
            "command": ["train"],
            "resources": {"nodes": min(recording.nodes, MOST_NODES), "gpus_per_node": 1},
            "placement": {"standbys": settings.standbys},
            "checkpoint": recording.checkpoint.model_copy(
                update={"every_steps": every, "directory": recording.checkpoint.directory or "/c"}
            ),
            "recovery": Recovery(infrastructure=_BUDGET, user=_BUDGET, anomaly=_BUDGET),
        }
    )
    return model.SimulatedRun(
        spec=spec,
        steps=recording.steps,
        step_seconds=_seconds(recording.step_seconds),
        save_seconds=recording.save_seconds,
        memory_save_seconds=recording.save_seconds,
    )


def _seconds(value: float) -> float:
    return max(_LEAST_SECONDS, value)
