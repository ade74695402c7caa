"""Backtests: replayed alarms, what was really wrong, scores, and what other settings would save."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from jobs.spec import Action, RunSpec
from monitors.types import FindingKind, Sample
from orchestrator.core.views.models import (
    AttemptView,
    EventView,
    IncidentView,
    RestartView,
    RunDetail,
)
from orchestrator.errors import InvalidError
from orchestrator.judgement import backtest
from orchestrator.judgement.backtest import History, RunBacktest, RunResult
from orchestrator.judgement.changed_settings import changed, read
from orchestrator.judgement.truth import outcome

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
STEP = 0.5  # seconds
Loss = Callable[[int], float]
CALM: Loss = lambda step: 2.0 + 0.01 * math.sin(7.1 * step)  # noqa: E731


def at(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def spec(**fields: Any) -> RunSpec:
    saves = {"checkpoint": {"every_steps": 20}}
    return RunSpec.model_validate({"name": "tiny", "command": ["train"], **saves, **fields})


def samples(
    steps: Iterable[int],
    loss: Loss = CALM,
    *,
    attempt: int = 1,
    pauses: dict[int, float] | None = None,
) -> list[Sample]:
    """Reports of rank 0; `pauses`: seconds of silence before a step."""
    found, time = [], START.timestamp()
    for step in steps:
        time += STEP + (pauses or {}).get(step, 0.0)
        value = loss(step)
        found.append(
            Sample(
                attempt=attempt, rank=0, step=step, batch=step, time=time, loss=value, seconds=STEP
            )
        )
    return found


def rises(first: int, last: int, by: float = 3.0) -> Loss:
    return lambda step: CALM(step) + (by if first <= step <= last else 0.0)


def run(**fields: Any) -> RunDetail:
    base = {
        "id": "R",
        "name": "tiny",
        "state": "succeeded",
        "reason": "",
        "pending": None,
        "owner": "",
        "project": "default",
        "queue": "default",
        "priority": "normal",
        "nodes": 1,
        "grace_seconds": 30,
        "attempt": 1,
        "step": 300,
        "loss": 2.0,
        "restarts_count": 0,
        "ettr": 0.8,
        "submitted_at": START,
        "started_at": START,
        "ended_at": None,
        "restarts": [],
        "incidents": [],
        "checkpoint": None,
        "suspect": None,
        "seconds": {"productive": 80.0, "lost": 20.0, "queued": 50.0},
        "node_names": [],
        "skip_batches": [],
        "avoid": [],
        "spec": spec(),
    }
    return RunDetail.model_validate({**base, **fields})


def incident(**fields: Any) -> IncidentView:
    base = {
        "id": "I",
        "run": "R",
        "attempt": 1,
        "kind": "loss_spike",
        "severity": "critical",
        "state": "resolved",
        "subject": "",
        "onset_step": 100,
        "remedy": "roll back",
        "reason": "",
        "opened_at": at(52),
        "resolved_at": at(60),
        "acknowledged_by": None,
        "response": "acted",
        "verdict": None,
    }
    evidence = {"finding": {"detected_step": 102, "onset_time": at(50).timestamp()}}
    return IncidentView.model_validate({**base, "evidence": evidence, **fields})


def restart(**fields: Any) -> RestartView:
    seconds = {
        "detect": 1.0,
        "stop": 1.0,
        "place": 0.5,
        "start": 2.0,
        "restore": 0.5,
        "recompute": 5.0,
    }
    base = {
        "attempt": 2,
        "cause": "anomaly",
        "class": "numerics",
        "reason": "",
        "node": None,
        "remedy": "roll back",
        "rank": None,
        "incident": "I",
        "detected_at": at(52),
        "recovered_at": at(60),
        "resumed_step": 80,
        "lost_steps": 22,
        "seconds": seconds,
    }
    return RestartView.model_validate({**base, **fields})


def judged(
    reports: list[Sample],
    settings: dict[str, Any],
    *,
    policy: Action | None = None,
    **record: Any,
) -> RunResult:
    """The backtest of a run with one attempt."""
    recorded = History(**{"run": run(), "attempts": (), "incidents": (), **record})
    test = RunBacktest(recorded, changed(recorded.run.spec, settings, policy))
    test.attempt(1, 0, [reports])
    return test.result()


def rows(result: RunResult) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["monitor"], row["settings"]): row for row in backtest.table([result])}


RESTARTED = {
    "run": run(restarts=[restart()]),
    "attempts": [
        AttemptView.model_validate(
            {
                "run": "R", "number": 2, "state": "ended", "nodes": [], "world_size": 1,
                "start_step": 80, "step": 300, "restored": None, "started_at": at(55),
                "first_step_at": None, "ended_at": None, "restart": restart(), "failures": [],
            }
        )
    ],
}  # fmt: skip


def test_a_setting_that_finds_nothing_misses_what_was_judged_right() -> None:
    reports = samples(range(1, 103), rises(100, 400))
    record = {**RESTARTED, "incidents": [incident(verdict="right")]}
    found = judged(reports, {"monitors.loss_spike.threshold": "8000"}, **record)
    before, after = rows(found)["loss", "recorded"], rows(found)["loss", "other"]
    assert (before["right"], before["missed"], before["precision"], before["recall"]) == (
        1,
        0,
        1,
        1,
    )
    assert before["delay_steps"] == 2
    assert before["delay_seconds"] == pytest.approx(1.0)
    assert (after["right"], after["missed"], after["precision"], after["recall"]) == (0, 1, None, 0)
    assert after["delay_steps"] is None
    summed = backtest.ettr([found])
    assert summed["saved_seconds"] == 0
    assert ["nothing would have been done" in words for words in summed["unknown"]] == [True]
    (difference,) = backtest.differences([found])
    assert (difference["recorded_step"], difference["other_step"], difference["true"]) == (
        102,
        None,
        True,
    )


def test_a_wrong_remedy_that_does_not_start_saves_its_restart() -> None:
    reports = samples(range(1, 103), rises(100, 400))
    record = {**RESTARTED, "incidents": [incident(verdict="wrong")]}
    found = judged(reports, {"monitors.loss_spike.threshold": "8000"}, **record)
    assert (rows(found)["loss", "recorded"]["wrong"], rows(found)["loss", "other"]["wrong"]) == (
        1,
        0,
    )
    summed = backtest.ettr([found])
    assert summed["saved_seconds"] == 10.0, "all phases of the restart"
    assert summed["recorded"] == pytest.approx(80 / 100), "the queue is not allocated"
    assert summed["other"] == pytest.approx(80 / 90)
    assert summed["unknown"] == []


def test_a_new_alarm_about_a_loss_that_came_back_costs_a_restart() -> None:
    reports = samples(range(1, 400), rises(200, 201))
    settings = {"monitors.loss_spike.persistence": "1"}
    found = judged(reports, settings, run=run(restarts=[restart()]))
    assert rows(found)["loss", "recorded"]["wrong"] == 0
    other = rows(found)["loss", "other"]
    assert (other["right"], other["wrong"], other["unknown"], other["precision"]) == (0, 1, 0, 0)
    again = (200 - 200 // 20 * 20) * STEP
    assert backtest.ettr([found])["saved_seconds"] == pytest.approx(-(4.0 + again))
    unpriced = judged(reports, settings)  # of a run that never restarted
    assert backtest.ettr([unpriced])["saved_seconds"] == 0
    assert len(backtest.ettr([unpriced])["unknown"]) == 1


def test_a_loss_that_stayed_up_and_that_nobody_ended_is_a_miss() -> None:
    reports = samples(range(1, 600), rises(200, 600))
    record = {"run": run(spec=spec(monitors={"loss_spike": {"threshold": 8000}}))}
    found = judged(reports, {"monitors.loss_spike.threshold": "8"}, **record)
    assert rows(found)["loss", "other"]["right"] == 1
    assert rows(found)["loss", "recorded"]["missed"] == 1
    (words,) = backtest.ettr([found])["unknown"]
    assert "nobody ended it" in words


def test_what_a_person_rolled_back_was_missed_and_counts_from_when_they_did() -> None:
    reports = samples(range(1, 221), rises(200, 600))
    act = EventView.model_validate(
        {
            "position": 1,
            "id": "E",
            "at": at(110),
            "run": "R",
            "attempt": 1,
            "actor": "operator:mia",
            "kind": "event",
            "name": "rollback_asked",
            "cause": None,
            "reason": "",
            "payload": {"to_step": 180},
        }
    )
    record = {"run": run(spec=spec(monitors={"loss_spike": {"threshold": 8000}})), "acts": [act]}
    found = judged(reports, {"monitors.loss_spike.threshold": "8"}, **record)
    assert rows(found)["loss", "recorded"]["missed"] == 1
    other = rows(found)["loss", "other"]
    assert (other["right"], other["recall"]) == (1, 1)
    assert backtest.ettr([found])["saved_seconds"] == pytest.approx(110 - 202 * STEP)


def test_observe_finds_and_does_nothing() -> None:
    reports = samples(range(1, 103), rises(100, 400))
    record = {**RESTARTED, "incidents": [incident(verdict="right")]}
    found = judged(reports, {}, policy=Action.OBSERVE, **record)
    assert rows(found)["loss", "other"]["right"] == 1
    assert len(backtest.ettr([found])["unknown"]) == 1
    asked = judged(reports, {}, policy=Action.ASK, **record)
    assert backtest.ettr([asked])["saved_seconds"] == pytest.approx(-900)


def test_a_pause_that_ended_by_itself_is_a_false_alarm_of_a_shorter_limit() -> None:
    reports = samples(range(1, 200), pauses={100: 40.0})
    found = judged(reports, {"monitors.hang.after": "20s"}, run=run(restarts=[restart()]))
    assert (rows(found)["hang", "recorded"]["wrong"], rows(found)["hang", "other"]["wrong"]) == (
        0,
        1,
    )
    again = (99 - 80) * STEP
    assert backtest.ettr([found])["saved_seconds"] == pytest.approx(-(4.0 + again))
    longer = judged(reports, {"monitors.hang.after": "60s"}, run=run(restarts=[restart()]))
    assert rows(longer)["hang", "other"]["wrong"] == 0


def hang_evidence(*, convicted: bool) -> dict[str, Any]:
    verdict = {"verdict": {"convicted": convicted}}
    onset = {"detected_step": 102, "onset_time": at(51).timestamp()}
    return {"finding": {**onset, "evidence": verdict}}


@pytest.mark.parametrize("kind", ["slow", "hang"])
@pytest.mark.parametrize(("evidence", "wrong"), [({"went_on": True}, 1), ({}, 0)])
def test_a_silence_is_a_false_alarm_only_if_the_run_went_on(
    kind: str, evidence: dict[str, Any], wrong: int
) -> None:
    """Its incident is resolved, too, when the run is cancelled or a person closes it."""
    found = {**hang_evidence(convicted=False), **evidence}
    silence = incident(kind=kind, onset_step=102, response="observed", evidence=found)
    reports = samples(range(1, 200), pauses={103: 40.0})
    judged_by = {"run": run(restarts=[restart()]), "incidents": [silence]}
    row = rows(judged(reports, {"monitors.hang.after": "20s"}, **judged_by))["hang", "other"]
    assert (row["wrong"], row["unknown"]) == (wrong, 1 - wrong)


def test_a_proven_hang_is_found_later_with_a_longer_limit() -> None:
    hang = incident(
        kind="hang",
        onset_step=102,
        evidence=hang_evidence(convicted=True),
    )
    # The same silence was an incident `slow` before the rank was stopped.
    slow = incident(kind="slow", onset_step=102, evidence={"went_on": False})
    record = {**RESTARTED, "incidents": [slow, hang]}
    found = judged(samples(range(1, 103)), {"monitors.hang.after": "30s"}, **record)
    before, after = rows(found)["hang", "recorded"], rows(found)["hang", "other"]
    assert (before["right"], after["right"]) == (1, 1)
    assert (before["wrong"], after["wrong"]) == (0, 0)
    assert 3 <= before["delay_seconds"] <= 4
    assert 30 <= after["delay_seconds"] <= 32
    assert -29 <= backtest.ettr([found])["saved_seconds"] <= -26


def test_unjudged_remedies_stay_unknown() -> None:
    reports = samples(range(1, 103), rises(100, 400))
    record = {**RESTARTED, "incidents": [incident()]}
    found = judged(reports, {"monitors.loss_spike.threshold": "8000"}, **record)
    before = rows(found)["loss", "recorded"]
    assert (before["unknown"], before["precision"], before["recall"]) == (1, None, None)
    (words,) = backtest.ettr([found])["unknown"]
    assert "the rollback hides what would have come" in words


def test_verdicts_on_what_was_only_recorded_count_the_other_way() -> None:
    reports = samples(range(1, 300), rises(100, 101))
    blip = incident(kind="loss_blip", response="acted", verdict="wrong")
    found = judged(reports, {"monitors.loss_spike.persistence": "1"}, incidents=[blip])
    assert rows(found)["loss", "recorded"]["missed"] == 1
    assert rows(found)["loss", "other"]["right"] == 1


@pytest.mark.parametrize(
    ("loss", "last", "true"),
    [
        (rises(100, 110), 400, False),
        (rises(100, 400), 400, True),
        (rises(100, 400), 150, None),
        (lambda step: math.nan if step >= 100 else 2.0, 140, True),
        (lambda step: math.inf if step == 100 else 2.0, 400, False),
        (CALM, 110, None),
    ],
)
def test_what_the_loss_did_next(loss: Loss, last: int, true: bool | None) -> None:
    curve = backtest.Curve()
    for sample in samples(range(1, last), loss):
        curve.add(sample)
    assert outcome(curve, 100)[0] is true
    assert outcome(None, 100)[0] is None


def test_findings_of_other_monitors_are_counted_by_their_verdicts() -> None:
    found = backtest.shadow(
        [
            incident(kind="loss_spike", response="observed", verdict="right"),
            incident(kind="loss_spike"),
            incident(kind=FindingKind.STRAGGLER, verdict="wrong"),
            incident(kind=FindingKind.STRAGGLER),
        ]
    )
    assert [(r["kind"], r["mode"], r["incidents"], r["precision"]) for r in found] == [
        ("loss_spike", "observed", 1, 1.0),
        ("straggler", "recorded", 2, 0.0),
    ]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("threshold", "expected PATH=VALUE"),
        ("monitors.loss_spike.threshold=", "expected PATH=VALUE"),
        ("resources.nodes=3", "recorded runs cannot say"),
    ],
)
def test_words_that_are_no_settings(word: str, said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        read([word])


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("monitors.loss_spike.treshold", "6", "there is no such setting.*threshold"),
        ("checkpoint.directory.x", "1", "checkpoint.directory has no settings below it"),
        ("monitors.hang.after.x", "1", "monitors.hang.after has no settings below it"),
        ("monitors.loss_spike.threshold", "many", "monitors.loss_spike.threshold: Input should be"),
        ("monitors.loss_spike.threshold", "-1", "monitors.loss_spike.threshold: Input should be"),
    ],
)
def test_settings_that_do_not_exist_or_are_out_of_bounds(path: str, value: str, said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        changed(spec(), {path: value})


def test_values_are_read_as_in_a_file() -> None:
    other = changed(spec(), {"monitors.hang.after": "20s", "monitors.loss_spike.action": "ask"})
    assert other.monitors.hang.after == 20.0
    assert other.monitors.loss_spike.action is Action.ASK
