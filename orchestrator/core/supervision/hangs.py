"""Hangs: silence makes a run suspect, evidence convicts it, a generous limit ends the rest.

A monitor notices silence beyond the run's own pace within seconds. That alone proves nothing: it
may be a validation, an upload, a compilation. So every rank is looked at, twice, and
:mod:`monitors.hang_verdict` says whether the run can go on. Convicted, it gets the remedy of a hang
at once. Slow, it is shown as such, looked at again now and then, and gets the remedy only at its
limit (:func:`orchestrator.core.policy.time_limits.pause_limit`).

A pause that was ended by a restart and comes back at the same place was part of the training: its
limit doubles, and then people are asked. Without an answer it is restarted once more; if it comes
back again, nothing but a person ends it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from typing import Any

from babysit.wire import Phase
from jobs.commands import CaptureStacks
from jobs.events import RankStack
from jobs.spec import Hang
from monitors.flight_recorder import merge
from monitors.hang_verdict import Scene, Verdict, judge
from monitors.types import Finding, FindingKind, Severity
from orchestrator.core.messages.events import FindingRaised, ProgressSeen
from orchestrator.core.messages.gang_events import GangStacks
from orchestrator.core.model import time_ledger
from orchestrator.core.model.derived import is_reporting
from orchestrator.core.model.entities import Attempt, EndedPause, Incident, Run, Suspicion
from orchestrator.core.model.states import RUNNABLE_ATTEMPT_STATES, IncidentState
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Remedy, Timer
from orchestrator.core.policy import remedies, silent_scripts, time_limits
from orchestrator.core.supervision import findings
from orchestrator.core.turn import Turn

STACKS_SECONDS = 8.0
"""How long a verdict waits for the looks of all agents; two looks take about 1.5 s."""
LOOKS_KEPT = 64
"""Looks in the evidence of an incident, at most."""
CALLED_OVER_SECONDS = 900.0
"""Seconds until a silence that a person called over is looked at again, as long as it lasts."""
RECHECK_SECONDS = 15.0
"""Between two verdicts about a run that is slow: what moves now may be stopped later."""


def on_finding(turn: Turn, event: FindingRaised) -> None:
    """Take what a monitor found: silence makes the run suspect, all else goes by the table."""
    attempt, finding = turn.state.attempts[event.run], event.finding
    silence = remedies.FINDINGS[finding.kind].remedy is Remedy.RESTART
    if not silence or attempt.state not in RUNNABLE_ATTEMPT_STATES:
        findings.on_finding(turn, event)
    elif attempt.suspect is None:
        since = min(dt.datetime.fromtimestamp(finding.onset_time, dt.UTC), turn.now)
        # A step that ends after all must be noticed at once.
        soon = min(attempt.milestone, finding.detected_step + 1)
        suspect = Suspicion(since=since, finding=finding)
        turn.change_attempt(event.run, milestone=soon, suspect=suspect)
        _look(turn, event.run, finding.reason)


def _look(turn: Turn, run_id: str, reason: str) -> None:
    """Have every agent look at its ranks; :func:`conclude` goes on with what comes in time."""
    attempt = turn.change_attempt(run_id, stacks=(), stacks_from=frozenset(), answers=0)
    turn.set_timer(run_id, Timer.STACKS, STACKS_SECONDS)
    there = {seat.worker: () for seat in attempt.seats if seat.worker in turn.state.workers}
    turn.broadcast(run_id, there, CaptureStacks, reason, attempt=attempt.number)


def on_stacks(turn: Turn, event: GangStacks) -> None:
    """Looks at ranks are in; with the last ones the verdict falls."""
    attempt = turn.state.attempts[event.run]
    heard = attempt.stacks_from.union(event.workers)
    attempt = turn.change_attempt(
        event.run,
        stacks=(*attempt.stacks, *event.stacks),
        stacks_from=heard,
        answers=attempt.answers + len(heard) - len(attempt.stacks_from),
    )
    if attempt.stacks_from >= turn.state.places_of(event.run).keys():
        conclude(turn, event.run)


def conclude(turn: Turn, run_id: str) -> None:
    """Judge a suspect by the looks that came.

    There are two ways to get here: the last agent has answered, or the timer `stacks` is due. A run
    that has made progress meanwhile is not suspect any more, and nothing happens. Looks that came
    before a restart of the server are lost, and their ranks would pass for absent: all are looked
    at again.
    """
    run, attempt = turn.run(run_id), turn.attempt(run_id)
    turn.cancel_timer(run_id, Timer.STACKS)
    if attempt is None or attempt.suspect is None or attempt.state not in RUNNABLE_ATTEMPT_STATES:
        return
    if attempt.answers != len(attempt.stacks_from):
        _look(turn, run_id, attempt.suspect.finding.reason)
        return
    verdict = _with_records(judge(attempt.stacks, _scene(attempt, attempt.suspect)), attempt)
    if not is_reporting(run):
        verdict = silent_scripts.certain(verdict, attempt.suspect.sentence)
    # The look at a run that stays silent counts from the first step that did not come.
    limit = _limit(run, attempt.suspect, verdict)
    silent = (turn.now - attempt.suspect.since).total_seconds()
    if verdict.convicted or silent >= limit:
        _convict(turn, run, attempt, verdict)
    else:
        _wait(turn, run, attempt, verdict, limit)


def _with_records(verdict: Verdict, attempt: Attempt) -> Verdict:
    """The verdict with what the flight recorders say: who has not entered the collective.

    They name ranks where the stacks name none. They convict nobody: a rank that is late looks like
    one that never comes.
    """
    found = merge({stack.rank: stack.groups for stack in attempt.stacks if stack.groups})
    if found is None:
        return verdict
    culprits = found.astray or found.absent
    if verdict.ranks or not culprits:
        return dataclasses.replace(verdict, sentence=f"{verdict.sentence}; {found.sentence}")
    homes = {seat.node for seat in attempt.seats if set(culprits) & set(seat.ranks)}
    node = homes.pop() if len(homes) == 1 else None
    return dataclasses.replace(
        verdict, ranks=culprits, node=node, users=bool(found.astray), sentence=found.sentence
    )


def _scene(attempt: Attempt, suspect: Suspicion) -> Scene:
    ranks = suspect.finding.evidence.get("ranks", ())
    seen = {stack.rank for stack in attempt.stacks}
    everyone = {rank: seat.node for seat in attempt.seats for rank in seat.ranks}
    return Scene(
        nodes=everyone,
        phases={rank["rank"]: rank["phase"] for rank in ranks},
        steps={rank["rank"]: rank["step"] for rank in ranks},
        ended=attempt.done_ranks,
        absent=frozenset(everyone) - seen - attempt.done_ranks,
    )


def _place(verdict: Verdict, suspect: Suspicion) -> str:
    """Equal for the same pause: the activity of the culprits, its place and step."""
    return f"{verdict.signature} after step {suspect.finding.onset_step}"


def _limit(run: Run, suspect: Suspicion, verdict: Verdict) -> float:
    """Seconds of silence that a run without proof against it is granted."""
    if not is_reporting(run):
        return math.inf
    evidence = suspect.finding.evidence
    if (
        _lingers(suspect) and not verdict.raised
    ):  # the work is done: to restart the run for its tail would be a loss
        return time_limits.PAUSE_CEILING_SECONDS
    limit = time_limits.pause_limit(
        run.spec,
        longest=evidence.get("longest_pause_seconds", 0.0),
        starting=bool(evidence.get("starting")) and not verdict.raised,
        longest_start=evidence.get("longest_start_seconds", 0.0),
        printed=not run.instrumented,
    )
    doubled = limit * 2.0 ** _ended_before(run, suspect, verdict)
    return max(limit, min(doubled, time_limits.PAUSE_CEILING_SECONDS))


def _lingers(suspect: Suspicion) -> bool:
    """True if every rank is past its last step: an upload, a thread that keeps it alive."""
    ranks = suspect.finding.evidence.get("ranks", ())
    return bool(ranks) and all(rank["phase"] == Phase.FINISHED for rank in ranks)


def _ended_before(run: Run, suspect: Suspicion, verdict: Verdict) -> int:
    """How often this very pause was ended by a restart."""
    place = _place(verdict, suspect)
    return next((pause.times for pause in run.ended_pauses if pause.place == place), 0)


def _wait(turn: Turn, run: Run, attempt: Attempt, verdict: Verdict, limit: float) -> None:
    """The run is slow: say so, and look again.

    An engine that starts its processes is silent for as long as nodes start and images are
    pulled, and its driver shows nothing of that: such a start opens an incident only at its limit.
    """
    suspect = attempt.suspect
    assert suspect is not None  # noqa: S101 (`conclude` has looked)
    silent = (turn.now - suspect.since).total_seconds()
    if math.isinf(limit):
        turn.change_attempt(run.id, suspect=dataclasses.replace(suspect, sentence=verdict.sentence))
        turn.set_timer(run.id, Timer.SUSPECT, silent_scripts.seconds_to_next_look(silent))
        return
    finding = suspect.finding
    incident = suspect.incident
    if incident is None and not (run.engine and finding.evidence.get("starting")):
        incident = turn.open_incident(
            run,
            kind=FindingKind.SLOW,
            severity=Severity.WARNING,
            reason=f"{finding.reason}; {verdict.sentence}",
            subject=findings.subject(attempt, verdict.rank, verdict.node),
            onset_step=finding.onset_step,
            remedy=Remedy.WAIT,
            evidence={**finding.evidence, "limit_seconds": limit, "looks": _looks(attempt)},
        ).id
    elif incident is not None:
        turn.change_incident(incident, evidence=_evidence(turn, incident, limit, attempt))
    turn.change_attempt(
        run.id,
        suspect=dataclasses.replace(
            suspect, incident=incident, sentence=verdict.sentence, limit_seconds=limit
        ),
    )
    turn.set_timer(run.id, Timer.SUSPECT, max(1.0, min(RECHECK_SECONDS, limit - silent)))


def _evidence(turn: Turn, incident: str, limit: float, attempt: Attempt) -> dict[str, Any]:
    evidence = turn.state.incidents[incident].evidence
    return {**evidence, "limit_seconds": limit, "looks": _looks(attempt)}


def _looks(attempt: Attempt) -> list[dict[str, Any]]:
    """The looks as evidence of an incident: all of them, or in a large world one of each kind.

    Equal looks at thousands of ranks, 19 MB at 8,192, tell no more than one of them with the ranks
    that are `alike`. The rarest kinds come first in the choice: the odd rank is among them.
    """
    stacks = sorted(attempt.stacks, key=lambda stack: stack.rank)
    if len(stacks) <= LOOKS_KEPT:
        return [stack.model_dump(mode="json", exclude={"groups"}) for stack in stacks]
    kinds: dict[str, list[RankStack]] = {}
    for stack in stacks:
        kinds.setdefault(
            stack.model_dump_json(exclude={"rank", "cpu_seconds", "groups"}), []
        ).append(stack)
    rarest = sorted(kinds.values(), key=len)[:LOOKS_KEPT]
    return [
        {
            **alike[0].model_dump(mode="json", exclude={"groups"}),
            "alike": [stack.rank for stack in alike],
        }
        for alike in rarest
    ]


def look_again(turn: Turn, run_id: str) -> None:
    """The timer `suspect` is due: a run that is still silent is looked at again."""
    attempt = turn.attempt(run_id)
    if attempt is not None and attempt.suspect is not None:
        _look(turn, run_id, attempt.suspect.finding.reason)


def _convict(turn: Turn, run: Run, attempt: Attempt, verdict: Verdict) -> None:
    suspect = attempt.suspect
    assert suspect is not None  # noqa: S101 (`conclude` has looked)
    times = _ended_before(run, suspect, verdict)
    finding = _finding(suspect.finding, verdict, attempt)
    turn.change_attempt(run.id, suspect=None)
    if suspect.incident is not None:
        turn.resolve_incident(suspect.incident, "it did not go on by itself", went_on=False)
    if _is_unproven(run, attempt, suspect, verdict):
        findings.raise_incident(turn, run, attempt, finding, ask="unproven")
        return
    if not verdict.convicted and not verdict.raised:
        place = _place(verdict, suspect)
        others = [pause for pause in run.ended_pauses if pause.place != place]
        pauses = (*others, EndedPause(place=place, times=times + 1))[-_PAUSES_KEPT:]
        run = turn.change_run(run.id, ended_pauses=pauses)
    tries = 0 if verdict.convicted or verdict.raised else times + _lingers(suspect)
    ask: findings.Ask = "no" if tries == 0 else "yes" if tries == 1 else "wait"
    findings.raise_incident(turn, run, attempt, finding, ask=ask)


def _is_unproven(run: Run, attempt: Attempt, suspect: Suspicion, verdict: Verdict) -> bool:
    """True if nothing but silence speaks against a run that has never ended a step.

    It may prepare its data for an hour, or never report at all; unless other runs of the name have
    shown how long a start takes. A limit that its owner set is obeyed, and ranks that all wait in
    one collective get no further by themselves.
    """
    known = suspect.finding.evidence.get("longest_start_seconds", 0.0)
    never = attempt.first_step_at is None and run.best_step == 0 and not known
    evidence = verdict.convicted or verdict.raised or verdict.all_wait
    return never and not evidence and run.spec.monitors.hang.starting == _DEFAULT_STARTING


_DEFAULT_STARTING: float = Hang.model_fields["starting"].default
_PAUSES_KEPT = 8


def _finding(finding: Finding, verdict: Verdict, attempt: Attempt) -> Finding:
    """The monitor's finding with the verdict added: people read it, and the core acts on it."""
    stands = "cannot go on by itself" if verdict.convicted else "has used up its limit"
    said = {
        "convicted": verdict.convicted,
        "users": verdict.users,
        "node": verdict.node if verdict.convicted and not _is_scripts(verdict) else None,
        "signature": verdict.signature,
        "raised": verdict.raised,
    }
    return finding.model_copy(
        update={
            "rank": verdict.rank,
            "reason": f"{finding.reason}; the run {stands}: {verdict.sentence}",
            "evidence": {**finding.evidence, "verdict": said, "stacks": _looks(attempt)},
        }
    )


def _is_scripts(verdict: Verdict) -> bool:
    return verdict.users or bool(verdict.raised)


def on_progress_seen(turn: Turn, event: ProgressSeen) -> None:
    """Ranks move again, though no step may have ended yet."""
    clear(turn, event.run, "the ranks moved again")


def on_step(turn: Turn, run_id: str, step: int) -> None:
    """A step has ended: progress, unless the silence began after it.

    Steps between milestones reach the core late, often with a request of a user. A step that had
    ended before the monitor spoke does not count as a sign of life: it would leave a hung run alone
    forever, since the monitor reports a silence only once.
    """
    attempt = turn.state.attempts[run_id]
    noticed_at = [
        _last_step(each) for each in turn.state.incidents_of(run_id) if _is_open(each, attempt)
    ]
    if attempt.suspect is not None:
        noticed_at.append(attempt.suspect.finding.detected_step)
    if step > max(noticed_at, default=-1):
        clear(turn, run_id, f"step {step} has ended")


def called_over(turn: Turn, incident: Incident) -> None:
    """A person resolves an open hang: look at the run again later, if there is no progress.

    Else a hang that was taken for over would never be noticed again: monitors report it once.
    """
    attempt = turn.attempt(incident.run)
    if (
        attempt is None
        or not _is_open(incident, attempt)
        or attempt.state not in RUNNABLE_ATTEMPT_STATES
        or attempt.suspect is not None
    ):
        return
    finding = Finding.model_validate(incident.evidence["finding"])
    turn.change_attempt(
        incident.run,
        milestone=min(attempt.milestone, finding.detected_step + 1),
        suspect=Suspicion(since=turn.now, finding=finding),
    )
    turn.set_timer(incident.run, Timer.SUSPECT, CALLED_OVER_SECONDS)


def _is_open(incident: Incident, attempt: Attempt) -> bool:
    """True for a hang of this attempt about which nothing was done (yet)."""
    is_open = incident.state is IncidentState.OPEN and incident.kind == FindingKind.HANG
    return is_open and incident.attempt == attempt.number


def _last_step(incident: Incident) -> int:
    """The last step that any rank had ended when the monitor spoke."""
    ranks = incident.evidence.get("ranks", ())
    return max((int(rank["step"]) for rank in ranks), default=incident.onset_step or 0)


def clear(turn: Turn, run_id: str, why: str) -> None:
    """There is progress: the run is not suspect any more, and its pause is booked as stalled.

    There are three ways to get here: a step has ended, ranks have joined or loaded, or a beat has
    changed without a step (:class:`orchestrator.core.messages.events.ProgressSeen`).
    """
    attempt = turn.attempt(run_id)
    if attempt is not None and (suspect := attempt.suspect) is not None:
        turn.change_attempt(run_id, suspect=None)
        turn.cancel_timer(run_id, Timer.SUSPECT)
        turn.cancel_timer(run_id, Timer.STACKS)
        if suspect.incident is not None:
            seconds = (turn.now - suspect.since).total_seconds()
            _book_pause(turn, run_id, seconds)
            how = f"{why} after a pause of {seconds:.0f} s"
            turn.resolve_incident(suspect.incident, how, went_on=True)
    for incident in turn.state.incidents_of(run_id):
        findings.end_by_progress(turn, run_id, incident, why)


def _book_pause(turn: Turn, run_id: str, seconds: float) -> None:
    book = turn.run(run_id).ledger
    if book.bucket == Bucket.PRODUCTIVE:
        closed = time_ledger.switch(book, Bucket.PRODUCTIVE, turn.now)
        moved = time_ledger.move(closed, Bucket.PRODUCTIVE, Bucket.STALLED, seconds)
        turn.change_run(run_id, ledger=moved)
