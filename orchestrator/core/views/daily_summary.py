"""The text of the daily summary: each queue, its runs, what they lost, and what is asked. Pure."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Sequence

from orchestrator.core.model.entities import Attempt, Incident, Run
from orchestrator.core.model.states import TERMINAL_RUN_STATES, IncidentState
from orchestrator.core.model.time_ledger import ettr
from orchestrator.core.model.vocabulary import Response
from orchestrator.core.text import counted, words
from orchestrator.core.views.remedy_text import incident_remedy
from orchestrator.core.views.spares import SpareStanding

DAY = dt.timedelta(days=1)
MOST = 2600
"""Characters: Slack shows 3000 in one section."""


@dataclasses.dataclass(frozen=True, slots=True)
class Story:
    """The facts about one run that a summary is made of."""

    run: Run
    step: int
    attempts: Sequence[Attempt]
    incidents: Sequence[Incident]
    """The incidents that are not resolved."""


def concerns(run: Run, now: dt.datetime) -> bool:
    """True for a run that is not over, or has ended within a day."""
    return run.state not in TERMINAL_RUN_STATES or (
        run.ended_at is not None and now - run.ended_at <= DAY
    )


def text(
    day: str, stories: Sequence[Story], now: dt.datetime, spares: SpareStanding | None = None
) -> str:
    """The summary of the day that ends now: what is asked first, then the runs with most losses.

    Runs that do not fit are counted. Spares are left out where there are none, and none is advised.
    """
    pool = [f"Spares: {spares}"] if spares and (spares.reserved or spares.advised) else []
    if not stories:
        return "\n".join([f"Summary of {day}: no run was there in the last 24 hours.", *pool])
    states = Counter(story.run.state.value for story in stories)
    lines = [f"Summary of {day}: " + ", ".join(f"{n} {state}" for state, n in states.items())]
    asked = [incident for story in stories for incident in story.incidents if _waits(incident)]
    names = {story.run.id: story.run.name for story in stories}
    lines += [f"Asked: {names[i.run]}: {incident_remedy(i)} ({i.reason})" for i in asked]
    lines += pool
    queues: dict[str, list[Story]] = defaultdict(list)
    for story in stories:
        queues[story.run.spec.queue].append(story)
    for queue, members in sorted(queues.items()):
        lines.append(f"Queue {queue}: {counted(len(members), 'run')}{_losses(members, now)}")
        ranked = sorted(members, key=lambda s: (-sum(_lost(s, now).values()), s.run.name))
        lines += [_line(story, now) for story in ranked]
    return _cut(lines)


def _line(story: Story, now: dt.datetime) -> str:
    run = story.run
    ratio = ettr(run.ledger, now)
    parts = [f"{run.state.value}, step {story.step}"]
    if ratio is not None:
        parts.append(f"{ratio:.0%} of its time productive")
    restarts = sum(1 for attempt in story.attempts if _is_new(attempt, now))
    if restarts:
        parts.append(counted(restarts, "restart"))
    if story.incidents:
        parts.append(f"{len(story.incidents)} open: {story.incidents[0].reason}")
    return f"• {run.name}: {', '.join(parts)}{_losses([story], now)}"


def _losses(stories: Sequence[Story], now: dt.datetime) -> str:
    """Lost time of the day by cause, most first; empty if there is none."""
    lost: Counter[str] = Counter()
    for story in stories:
        lost.update(_lost(story, now))
    causes = ", ".join(f"{words(seconds)} {cause}" for cause, seconds in lost.most_common())
    return f"; lost {causes}" if causes else ""


def _lost(story: Story, now: dt.datetime) -> dict[str, float]:
    """Seconds of the day from failures to recoveries, by cause."""
    lost: dict[str, float] = defaultdict(float)
    for attempt in story.attempts:
        restart = attempt.restart
        if restart is None:
            continue
        begin = max(restart.failed_at, now - DAY)
        end = restart.recovered_at or attempt.ended_at or now
        if (seconds := (min(end, now) - begin).total_seconds()) > 0:
            lost[restart.cause.value] += seconds
    return dict(lost)


def _is_new(attempt: Attempt, now: dt.datetime) -> bool:
    return attempt.restart is not None and now - attempt.restart.failed_at <= DAY


def _waits(incident: Incident) -> bool:
    asked = incident.response is Response.ASKED and incident.acknowledged_by is None
    return asked and incident.state is IncidentState.OPEN


def _cut(lines: Sequence[str]) -> str:
    kept: list[str] = []
    for line in lines:
        if len("\n".join([*kept, line])) > MOST:
            left = len(lines) - len(kept)
            return "\n".join([*kept, f"and {counted(left, 'more line')}: `babysit ls`"])
        kept.append(line)
    return "\n".join(kept)
