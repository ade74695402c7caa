"""Precision, recall and delay of alarms against what was really wrong.

An alarm is about an event of its family and attempt if its stretch, from onset to detection, meets
that of the event within `NEAR_STEPS`. Several alarms about one event count once.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from orchestrator.judgement.replay import Alarm, Family
from orchestrator.judgement.truth import NEAR_STEPS, Event


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An event, and the first alarm about it of each of the two settings."""

    run: str
    event: Event
    before: Alarm | None
    """With the settings of the run."""
    after: Alarm | None
    """With the other ones."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How one set of settings did on all events of a family."""

    right: int = 0
    """True events with an alarm."""
    wrong: int = 0
    """Alarms about nothing that needed a remedy."""
    missed: int = 0
    """True events without an alarm."""
    unknown: int = 0
    """Alarms of which nobody knows whether they were right."""
    delay_steps: float | None = None
    """Median from the onset to the alarm, over the right ones; None: there is none."""
    delay_seconds: float | None = None

    @property
    def precision(self) -> float | None:
        """Right / (right + wrong); None: neither."""
        known = self.right + self.wrong
        return self.right / known if known else None

    @property
    def recall(self) -> float | None:
        """Right / (right + missed); None: nothing was wrong, as far as is known."""
        true = self.right + self.missed
        return self.right / true if true else None


Ask = Callable[[Alarm], tuple[bool | None, str]]
"""Tells the truth about an alarm that no event explains, and how it is known."""


def match(
    run: str, events: Sequence[Event], before: Sequence[Alarm], after: Sequence[Alarm], ask: Ask
) -> list[Match]:
    """Pair the alarms of two settings with the events of a run.

    Alarms without an event become events of their own, whose truth `ask` knows.
    """
    everything = list(events)
    for alarm in (*before, *after):
        if not any(_is_about(alarm, event) for event in everything):
            true, basis = ask(alarm)
            everything.append(
                Event(
                    family=alarm.family,
                    attempt=alarm.attempt,
                    onset_step=alarm.onset_step,
                    last_step=alarm.detected_step,
                    onset_time=alarm.onset_time,
                    true=true,
                    basis=basis,
                )
            )
    everything.sort(key=lambda event: (event.attempt, event.onset_step, event.family))
    return [
        Match(run=run, event=each, before=_first(each, before), after=_first(each, after))
        for each in everything
    ]


def _first(event: Event, alarms: Sequence[Alarm]) -> Alarm | None:
    about = [alarm for alarm in alarms if _is_about(alarm, event)]
    return min(about, key=lambda alarm: alarm.at, default=None)


def _is_about(alarm: Alarm, event: Event) -> bool:
    return (
        alarm.family == event.family
        and alarm.attempt == event.attempt
        and alarm.onset_step <= event.last_step + NEAR_STEPS
        and alarm.detected_step >= event.onset_step - NEAR_STEPS
    )


def score(
    matches: Sequence[Match], family: Family, which: Callable[[Match], Alarm | None]
) -> Score:
    """How the alarms that `which` picks did on a family."""
    mine = [(each.event, which(each)) for each in matches if each.event.family == family]
    right = [(event, alarm) for event, alarm in mine if alarm is not None and event.true]
    return Score(
        right=len(right),
        wrong=sum(alarm is not None and event.true is False for event, alarm in mine),
        missed=sum(alarm is None and event.true is True for event, alarm in mine),
        unknown=sum(alarm is not None and event.true is None for event, alarm in mine),
        delay_steps=_median([max(0, a.detected_step - e.onset_step) for e, a in right]),
        delay_seconds=_median([max(0.0, a.at - e.onset_time) for e, a in right]),
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
