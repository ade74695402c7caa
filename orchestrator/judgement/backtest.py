"""A backtest: the monitors with other settings over recorded runs. Pure.

A reader feeds one :class:`RunBacktest` per run with its samples and gets a :class:`RunResult`;
:func:`table` sums the results of many.
"""

from __future__ import annotations

import dataclasses
import heapq
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

from jobs.spec import RunSpec
from monitors.types import FindingKind, Sample
from orchestrator.core.model.vocabulary import Response
from orchestrator.core.views.models import AttemptView, EventView, IncidentView, RunDetail
from orchestrator.judgement.replay import FAMILIES, Alarm, Curve, End, Family, Replay
from orchestrator.judgement.savings import Facts, Saving, saving
from orchestrator.judgement.scores import Match, match, score
from orchestrator.judgement.truth import HANG_KINDS, LOSS_KINDS, Event, events_of, is_proven_hang
from orchestrator.judgement.truth import outcome as outcome_of

_STEP_TIMES = 4096
"""Newest step times that the median is taken of."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The record of a run besides its samples."""

    run: RunDetail
    attempts: Sequence[AttemptView]
    incidents: Sequence[IncidentView]
    acts: Sequence[EventView] = ()
    """Events of the journal that people caused."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """The effect of other settings on one run."""

    run: str
    name: str
    samples: int
    matches: tuple[Match, ...]
    saving: Saving
    lost: tuple[Event, ...]
    """Events that babysit acted on and that the replay with the run's settings does not find."""


class RunBacktest:
    """One run, with its own settings and with other ones."""

    def __init__(self, history: History, other: RunSpec) -> None:
        self._history, self._other = history, other
        self._before, self._after = Replay(history.run.spec), Replay(other)
        self._curves: dict[int, Curve] = {}
        self._seconds: list[float] = []
        self._samples = 0

    def attempt(self, number: int, speaker: int, ranks: Sequence[Iterable[Sample]]) -> None:
        """Feed the samples of an attempt: those of each rank in order of steps.

        Args:
            number: The attempt; attempts come in order.
            speaker: The rank whose curve speaks for the run.
            ranks: The samples of each rank.
        """
        curve = self._curves[number] = Curve()
        for sample in heapq.merge(*ranks, key=attrgetter("step")):
            speaks = sample.rank == speaker
            if speaks:
                curve.add(sample)
                self._seconds.append(sample.seconds)
                if len(self._seconds) > 2 * _STEP_TIMES:
                    del self._seconds[:_STEP_TIMES]
            self._samples += 1
            self._before.feed(sample, speaks=speaks)
            self._after.feed(sample, speaks=speaks)
        if end := self._end(number):
            self._before.end(end)
            self._after.end(end)

    def _end(self, number: int) -> End | None:
        """How an attempt ended; None: by itself, or it runs: its last silence proves nothing."""
        after = next((a.restart for a in self._history.attempts if a.number == number + 1), None)
        if after is None:
            return None
        hangs = [
            each
            for each in self._history.incidents
            if each.attempt == number and each.kind == FindingKind.HANG
        ]
        proven = next((each.onset_step for each in hangs if is_proven_hang(each)), None)
        hung = any(each.id == after.incident for each in hangs)
        return End(
            time=after.detected_at.timestamp(),
            proven_hang_after=proven if hung else None,
            silent=hung,
        )

    def result(self) -> RunResult:
        """All that is known, after the last attempt."""
        run = self._history.run
        events = events_of(self._history.incidents, self._curves, self._history.acts)
        matches = match(run.id, events, self._before.alarms, self._after.alarms, self._outcome)
        known = [x for x in self._seconds if x > 0]
        facts = Facts(run, self._other, statistics.median(known) if known else None)
        return RunResult(
            run=run.id,
            name=run.name,
            samples=self._samples,
            matches=tuple(matches),
            saving=saving(facts, matches),
            lost=tuple(
                m.event for m in matches if m.event.acted_by == "babysit" and m.before is None
            ),
        )

    def _outcome(self, alarm: Alarm) -> tuple[bool | None, str]:
        """The truth about an alarm that no event explains, and how it is known."""
        curve = self._curves.get(alarm.attempt)
        if alarm.family == "loss":
            return outcome_of(curve, alarm.onset_step)
        if curve is not None and curve.step and curve.step[-1] > alarm.onset_step:
            return False, "it went on by itself"
        return None, "the attempt ended in this silence"


def table(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """One row per family and settings: counts, precision, recall, delay."""
    matches = [each for result in results for each in result.matches]
    rows = []
    for family in FAMILIES:
        for settings, which in (("recorded", _before), ("other", _after)):
            found = score(matches, family, which)
            rows.append(
                {
                    "monitor": family,
                    "settings": settings,
                    "right": found.right,
                    "wrong": found.wrong,
                    "missed": found.missed,
                    "unknown": found.unknown,
                    "precision": found.precision,
                    "recall": found.recall,
                    "delay_steps": found.delay_steps,
                    "delay_seconds": found.delay_seconds,
                }
            )
    return rows


def _before(each: Match) -> Alarm | None:
    return each.before


def _after(each: Match) -> Alarm | None:
    return each.after


def differences(results: Sequence[RunResult]) -> Iterator[dict[str, Any]]:
    """Events about which the two settings differ, with what is known of each."""
    for result in results:
        for each in result.matches:
            before, after = each.before, each.after
            same = (before and before.acts_at) == (after and after.acts_at)
            if same and (before is None) == (after is None):
                continue
            yield {
                "run": result.run,
                "name": result.name,
                "monitor": each.event.family,
                "attempt": each.event.attempt,
                "onset_step": each.event.onset_step,
                "true": each.event.true,
                "basis": each.event.basis,
                "incident": each.event.incident,
                "recorded_step": before.detected_step if before else None,
                "other_step": after.detected_step if after else None,
                "reason": (after or before).reason if after or before else "",  # type: ignore[union-attr]
            }


def ettr(results: Sequence[RunResult]) -> dict[str, Any]:
    """ETTR of all runs together, as recorded and with the other settings, and its terms."""
    productive = sum(result.saving.productive for result in results)
    allocated = sum(result.saving.allocated for result in results)
    saved = sum(result.saving.saved for result in results)
    whole = Saving(productive=productive, allocated=allocated, saved=saved)
    return {
        "recorded": whole.ettr,
        "other": whole.other_ettr,
        "productive_seconds": productive,
        "allocated_seconds": allocated,
        "saved_seconds": saved,
        "terms": [f"{r.name}: {item}" for r in results for item in r.saving.items],
        "unknown": [f"{r.name}: {item}" for r in results for item in r.saving.unknown],
    }


def shadow(incidents: Iterable[IncidentView]) -> list[dict[str, Any]]:
    """Incidents that no replay judges, and those with the response `observed`: by kind.

    Precision is that of the verdicts; recall is unknown, since nobody lists what was missed.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    for each in incidents:
        replayed: bool = each.kind in (LOSS_KINDS | HANG_KINDS)
        if replayed and each.response != Response.OBSERVED:
            continue
        mode = "observed" if each.response == Response.OBSERVED else "recorded"
        counts.setdefault((each.kind, mode), Counter())[each.verdict or "unjudged"] += 1
    return [
        {
            "kind": kind,
            "mode": mode,
            "incidents": count.total(),
            "right": count["right"],
            "wrong": count["wrong"],
            "unjudged": count["unjudged"],
            "precision": count["right"] / known
            if (known := count["right"] + count["wrong"])
            else None,
        }
        for (kind, mode), count in sorted(counts.items())
    ]


NOT_REPLAYED: dict[Family, str] = {
    "loss": "Samples of most ranks are not stored: a spike of a rank that does not speak for the"
    " run may be missed.",
    "hang": "Phases are not recorded: every pause counts as training, and the time before the first"
    " step of an attempt is not judged.",
}
"""The blind spots of a replay, by family."""
