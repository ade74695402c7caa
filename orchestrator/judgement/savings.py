"""The time that other settings would have saved or cost, in seconds and in ETTR.

ETTR is productive / allocated. The work of a run stays the same, so that

    ETTR' = productive / (allocated - saved)

where `saved` sums, over the events of a run (seconds; negative where they cost):

* right with both: how much earlier the remedy starts;
* wrong with the run's settings only: the restart that took place and was not needed;
* wrong with the other settings only: minus a restart (the mean of those of the run, without
  `detect` and `recompute`) and the steps since the save that it would load, at the median pace;
* right with the other settings, where a person had to act: how much earlier the remedy starts.

What cannot be known is counted, not guessed: a true event that only the run's settings find (nobody
knows when a person would have), alarms without a known truth, restarts without known seconds.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from jobs.spec import RunSpec
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.views.models import RestartView, RunDetail
from orchestrator.judgement.replay import Alarm
from orchestrator.judgement.scores import Match
from orchestrator.judgement.truth import Event

_OVERHEAD = ("stop", "place", "start", "restore")
"""Phases of a restart that do not depend on when its cause was found."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """The effect on the time of a run."""

    productive: float
    """Seconds of steps never done before."""
    allocated: float
    """Seconds in which it held nodes."""
    saved: float = 0.0
    """Seconds, as far as they are known; negative: the other settings cost that much."""
    items: tuple[str, ...] = ()
    """The terms of `saved`, in words."""
    unknown: tuple[str, ...] = ()
    """Effects that nobody can compute, in words."""

    @property
    def ettr(self) -> float | None:
        """As recorded; None: nothing was allocated."""
        return self.productive / self.allocated if self.allocated else None

    @property
    def other_ettr(self) -> float | None:
        """With the other settings, as far as it is known."""
        left = self.allocated - self.saved
        return min(1.0, self.productive / left) if self.allocated and left > 0 else None


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """The record of a run that savings are computed from."""

    run: RunDetail
    other: RunSpec
    """The spec with the other settings."""
    step_seconds: float | None
    """Median step time; None: not known."""


def saving(facts: Facts, matches: Sequence[Match]) -> Saving:
    """The effect of other settings on one run."""
    seconds: Mapping[str, float] = facts.run.seconds
    allocated = sum(value for name, value in seconds.items() if name != Bucket.QUEUED)
    saved, items, unknown = 0.0, [], []
    for each in matches:
        gain, words = _of(facts, each)
        if words and gain is None:
            unknown.append(words)
        elif words and gain is not None:
            saved += gain
            items.append(f"{gain:+.1f} s: {words}")
    return Saving(
        productive=seconds.get(Bucket.PRODUCTIVE, 0.0),
        allocated=allocated,
        saved=saved,
        items=tuple(items),
        unknown=tuple(unknown),
    )


def _of(facts: Facts, match: Match) -> tuple[float | None, str]:
    """Seconds saved by the other settings at one event, and why; empty: no difference."""
    event, base, after = match.event, _base(match), _acts(match.after)
    place = f"{event.family} at step {event.onset_step} of attempt {event.attempt}"
    if base == after:
        return 0.0, ""
    if event.true is None:
        return None, f"{place}: {event.basis}"
    if event.true:
        return _of_a_true_one(place, event, base, after)
    if base is None:
        assert match.after is not None  # noqa: S101 (`after` is its time)
        return _of_a_false_alarm(facts, place, match.after)
    if after is None:
        cost = _recorded_cost(facts.run.restarts, event.incident)
        words = f"{place}: the restart that was not needed does not take place"
        return (cost, words) if cost is not None else (None, f"{words}; its seconds are unknown")
    return 0.0, ""


def _base(match: Match) -> float | None:
    """When a remedy started with the run's settings, Unix seconds; None: it did not.

    What is compared was found by the same means: of a remedy of babysit's, the time of the alarm in
    the replay counts, and one that the replay cannot find again makes no difference.
    """
    event, before = match.event, _acts(match.before)
    if event.acted_by == "babysit":
        if before is None and match.after is None:
            return None
        return event.acted_at if before is None else before
    return event.acted_at if event.acted_by else before


def _of_a_true_one(
    place: str, event: Event, base: float | None, after: float | None
) -> tuple[float | None, str]:
    if base is None:
        return None, f"{place}: nobody ended it, so nobody knows what an end would have saved"
    if after is None and event.acted_by in {"", "babysit"}:
        return None, f"{place}: nothing would have been done"
    if after is None:
        return 0.0, ""
    who = event.acted_by if event.acted_by not in {"", "babysit"} else "the run's settings"
    when = "earlier" if after < base else "later"
    return base - after, f"{place}: the remedy starts {when} than that of {who}"


def _of_a_false_alarm(facts: Facts, place: str, alarm: Alarm) -> tuple[float | None, str]:
    cost = _mean_overhead(facts.run.restarts)
    again = _recomputed(facts, alarm)
    if cost is None or again is None:
        return None, f"{place}: a restart that is not needed, of a run that shows no cost of one"
    return -(cost + again), f"{place}: a restart that is not needed"


def _acts(alarm: Alarm | None) -> float | None:
    return None if alarm is None else alarm.acts_at


def _recorded_cost(restarts: Sequence[RestartView], incident: str | None) -> float | None:
    for restart in restarts:
        if incident is not None and restart.incident == incident:
            known = [value for value in restart.seconds.values() if value is not None]
            return sum(known) if known else None
    return None


def _mean_overhead(restarts: Sequence[RestartView]) -> float | None:
    sums = [
        sum(restart.seconds.get(phase) or 0.0 for phase in _OVERHEAD)
        for restart in restarts
        if restart.recovered_at is not None
    ]
    return statistics.mean(sums) if sums else None


def _recomputed(facts: Facts, alarm: Alarm) -> float | None:
    """Seconds of steps that a restart at an alarm would do again."""
    if facts.step_seconds is None:
        return None
    saves = facts.other.checkpoint
    memory = saves.memory_every_steps
    last = alarm.onset_step if alarm.family == "loss" else alarm.detected_step
    if alarm.family == "hang" and memory:
        every = memory
    else:
        every = min(saves.every_steps, memory or saves.every_steps)
    return (alarm.detected_step - last // every * every) * facts.step_seconds
