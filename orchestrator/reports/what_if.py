"""Savings that other settings would have brought: sentences and rows, from replays. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from monitors.failures import Cause, FailureClass
from orchestrator.core.text import counted, words
from orchestrator.core.views.models import AttemptView, RestartView
from orchestrator.reports.record import RunRecord
from orchestrator.simulation import what_if
from orchestrator.simulation.scenario.model import Mishap
from orchestrator.simulation.what_if import Phases, RecordedFailure, Recording, Replay, Settings

MOST_FAILURES = 100
"""A run with more failures is not replayed: it would take minutes."""
_LEAST_ERROR = 0.1
"""The error of the method is taken to be at least this share of the unproductive time: one replay
may be right by luck."""
_STEPS_OF_INTERVAL = (0.25, 0.5, 2.0, 4.0)
METHOD = (
    "Method: the production core trains the run again in virtual time, at its recorded pace, and "
    "the recorded failures strike at the recorded times since the first start. The first row "
    "changes nothing: its difference from the record is the error of the method, and the other "
    "rows are compared with it. Failures are taken as independent of the settings, which a bug at "
    "one step is not; a save costs the mean of the recorded ones; waits in the queue, holds, and "
    "restarts that people or other runs asked for are left out; a node that failed is back after "
    "4 hours (median)."
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One replay, as a row."""

    setting: str
    seconds: float | None
    saved: float | None
    """Seconds less than with the run's own settings; negative: more. None: not known."""
    lost: float
    saving: float
    waiting: float
    verdict: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """Savings by other settings, as far as something can be claimed."""

    sentences: Sequence[str]
    options: Sequence[Option] = ()
    """Empty if nothing can be claimed; else the first one is the run as it was."""


def what_if_of(record: RunRecord, play: Callable[..., Replay] = what_if.replay) -> WhatIf:
    """Replay the recorded failures of a run with other settings.

    Nothing is claimed of a run without failures, without saves, or without steps. `play` replays.
    """
    recording = _recording(record)
    if why := _unfit(record, recording):
        return WhatIf(sentences=why)
    before = play(recording, what_if.as_it_was(recording))
    if before.seconds is None:
        return WhatIf(sentences=[_DIFFERS])
    unproductive = max(0.0, recording.seconds - recording.steps * recording.step_seconds)
    error = max(abs(before.seconds - recording.seconds), _LEAST_ERROR * unproductive)
    rows = [_option("as it was", before, before, error)]
    for setting, settings in _variations(recording):
        rows.append(_option(setting, play(recording, settings), before, error))
    failures = counted(len(recording.failures), "recorded failure")
    replayed = f"{failures} replayed."
    if before.struck < len(recording.failures):
        replayed = f"Of {failures}, {before.struck} struck in the replay."
    summary = (
        f"{replayed} To step"
        f" {recording.steps:,}, the run took {words(recording.seconds)}, without what is left out;"
        f" its replay took {words(before.seconds)}: differences below {words(error)} mean nothing."
    )
    said = [summary]
    moved = any(failure.does is Mishap.GPU_FAULT for failure in recording.failures)
    if not moved:
        said.append("No failure took a node from the run, so that spares would have saved nothing.")
    elif best := best_of([row for row in rows if "standby" in row.setting], error):
        said.append(f"{best.setting.capitalize()} would have saved {words(best.saved or 0.0)}.")
    else:
        said.append("More standbys would have saved no more than the error of the method.")
    best = best_of([row for row in rows if "every" in row.setting], error)
    said.append(
        "None of the other intervals tried would have saved more than the error of the method."
        if best is None
        else f"Saving {best.setting} would have saved {words(best.saved or 0.0)}."
    )
    return WhatIf(sentences=said, options=rows)


_DIFFERS = (
    "Nothing is claimed: replayed with its own settings, the run does not reach its last step, so "
    "that the simulator does not describe it."
)


def best_of(rows: Sequence[Option], error: float) -> Option | None:
    """The option that saves most; None if none saves more than the error of the method."""
    better = [row for row in rows if row.saved is not None and row.saved > error]
    return max(better, key=lambda row: row.saved or 0.0, default=None)


def _unfit(record: RunRecord, recording: Recording) -> list[str]:
    """Why nothing can be claimed; empty if it can."""
    failures = len(recording.failures)
    if recording.steps < 1 or recording.step_seconds <= 0:
        return ["Nothing is claimed: no step of the run was reported."]
    if not failures:
        saving = record.run.seconds.get("checkpointing", 0.0)
        why = (
            "Nothing is claimed: no failure of the run is recorded, so that neither more frequent "
            "saves nor spares would have saved anything. Its saves blocked training for "
            f"{words(saving)}: a longer interval could have saved no more than that."
        )
        return [why]
    if failures > MOST_FAILURES:
        return [f"Nothing is claimed: {failures} failures are more than are replayed."]
    checkpoint = recording.checkpoint
    if checkpoint.directory is None and not checkpoint.memory_every_steps:
        return ["Nothing is claimed: babysit saved no checkpoints of this run."]
    return []


def _option(setting: str, replay: Replay, before: Replay, error: float) -> Option:
    saved = None
    if replay.seconds is not None and before.seconds is not None:
        saved = before.seconds - replay.seconds
    if replay is before:
        verdict = "for comparison"
    elif saved is None:
        verdict = "would not have got there"
    elif abs(saved) <= error:
        verdict = "no difference beyond the error"
    else:
        verdict = f"would have {'saved' if saved > 0 else 'cost'} {words(abs(saved))}"
    return Option(
        setting=setting, seconds=replay.seconds, saved=saved, lost=replay.lost,
        saving=replay.saving, waiting=replay.waiting, verdict=verdict,
    )  # fmt: skip


def _variations(recording: Recording) -> list[tuple[str, Settings]]:
    own = recording.checkpoint.every_steps
    intervals = {max(1, round(own * factor)) for factor in _STEPS_OF_INTERVAL}
    young = what_if.best_interval(recording)
    intervals = {each for each in (*intervals, young) if 0 < each <= recording.steps} - {own}
    rows = [
        (
            f"every {counted(every, 'step')}" + (" (Young's formula)" if every == young else ""),
            Settings(every_steps=every, standbys=recording.standbys),
        )
        for every in sorted(intervals)
    ]
    if any(failure.does is Mishap.GPU_FAULT for failure in recording.failures):
        rows += [
            (
                counted(more, "more standby"),
                Settings(every_steps=own, standbys=recording.standbys + more),
            )
            for more in (1, 2)
        ]
    return rows


def _recording(record: RunRecord) -> Recording:
    run = record.run
    attempts = list(record.attempts)
    steps = max([run.step, *(attempt.step for attempt in attempts)])
    productive = run.seconds.get("productive", 0.0)
    step_seconds = productive / steps if steps else 0.0
    checkpoint = run.spec.checkpoint
    computed = steps + sum(restart.lost_steps or 0 for restart in run.restarts)
    saves = computed / checkpoint.every_steps if checkpoint.directory else 0.0
    if checkpoint.memory_every_steps:
        saves += computed / checkpoint.memory_every_steps
    begin = attempts[0].started_at if attempts else run.submitted_at
    failures = [restart for restart in run.restarts if _is_failure(restart)]
    nodes = max((len(attempt.nodes) for attempt in attempts), default=1)
    used = {node for attempt in attempts for node in attempt.nodes}
    return Recording(
        checkpoint=checkpoint,
        nodes=nodes,
        spares=max(len(used) - nodes, run.spec.placement.standbys),
        standbys=run.spec.placement.standbys,
        steps=steps,
        seconds=_own_seconds(record),
        step_seconds=step_seconds,
        save_seconds=run.seconds.get("checkpointing", 0.0) / saves if saves else 0.0,
        phases=_phases(failures, step_seconds),
        failures=[
            RecordedFailure(
                at=max(
                    0.0,
                    (each.detected_at - begin).total_seconds() - (each.seconds["detect"] or 0.0),
                ),
                does=_mishap(each, attempts),
                failure_class=FailureClass.SIGNAL,
            )
            for each in failures
        ],
    )


def _own_seconds(record: RunRecord) -> float:
    """Seconds from the first attempt to the end, without what the replays leave out."""
    run = record.run
    if not record.attempts:
        return 0.0
    begin = record.attempts[0].started_at
    queued_first = max(0.0, (begin - run.submitted_at).total_seconds())
    waits = max(0.0, run.seconds.get("queued", 0.0) - queued_first)
    asked = sum(
        sum(value or 0.0 for value in restart.seconds.values())
        for restart in run.restarts
        if not _is_failure(restart)
    )
    return max(0.0, (record.end - begin).total_seconds() - waits - asked)


def _is_failure(restart: RestartView) -> bool:
    """True for what failed; people and other runs ask for the other restarts."""
    return restart.cause not in {Cause.OPERATOR, Cause.PREEMPTION}


def _mishap(restart: RestartView, attempts: Sequence[AttemptView]) -> Mishap:
    """The failure as the simulator plays it: its time is of interest, not its class."""
    if restart.cause == Cause.ANOMALY:
        return Mishap.NAN if "finite" in restart.reason else Mishap.LOSS_SPIKE
    nodes = {attempt.number: set(attempt.nodes) for attempt in attempts}
    after = nodes.get(restart.attempt, set())
    left = nodes.get(restart.attempt - 1, set()) - after
    return Mishap.GPU_FAULT if left and after else Mishap.CRASH


def _phases(failures: Sequence[RestartView], step_seconds: float) -> Phases:
    """Mean durations of the recoveries."""
    over = [each for each in failures if each.recovered_at is not None]
    if not over:
        return Phases()

    def mean(phase: str, among: Sequence[RestartView]) -> float:
        return sum(each.seconds.get(phase) or 0.0 for each in among) / len(among)

    died = [each for each in over if each.cause != Cause.ANOMALY] or over
    again = sum(each.lost_steps or 0 for each in over) * step_seconds / len(over)
    return Phases(
        detect=mean("detect", died),
        stop=mean("stop", over),
        launch=mean("place", over) + mean("start", over),
        start=mean("start", over),
        restore=mean("restore", over),
        first_step=max(0.0, mean("recompute", over) - again),
    )
