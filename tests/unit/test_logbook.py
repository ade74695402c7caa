"""The story of a run, in sentences."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest

from monitors.failures import Cause
from monitors.types import FindingKind, Severity
from orchestrator.core.model.entities import Attempt, Seat
from orchestrator.core.model.states import AttemptState, IncidentState, RunState
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.views import logbook
from orchestrator.database.port import JournalEntry
from tests.plane import RUN_ID, at, attempts, finished_run, incident, restart


def entry(seconds: float, name: str, actor: str = "operator:mia", **payload: Any) -> JournalEntry:
    return JournalEntry(
        id=f"{seconds}{name}",
        at=at(seconds),
        run=RUN_ID,
        actor=actor,
        kind="event",
        name=name,
        cause=None,
        reason="",
        payload=payload,
    )


def tell(run: Any = None, tries: Any = None, incidents: Any = (), journal: Any = ()) -> list[str]:
    run = run or finished_run()
    chapters = attempts() if tries is None else tries
    return logbook.text(logbook.story(run, chapters, incidents, journal, now=at(500)))


def second(**fields: Any) -> list[Attempt]:
    """The attempts, with the second changed."""
    first, last = attempts()
    return [first, dataclasses.replace(last, **fields)]


def test_the_story_of_a_run_that_was_killed_once() -> None:
    assert tell(incidents=[incident()]) == [
        "03:12:00 mia submitted tiny (2 nodes, 2 ranks): python train.py",
        "03:12:02 Started on node-1, node-2; the first step ended 3.0 s later.",
        (
            "03:13:00 rank 1 on node-2 was killed by SIGKILL (sender unknown). "
            "Restarted in place from step 57 (memory): 1.4 s, 0 steps lost."
        ),
        (
            "03:15:20 Succeeded at step 200, after 3 min 20 s: 1 restart, 0 steps computed again, "
            "96% of the time productive."
        ),
    ]


def test_a_hang_says_how_long_it_went_unnoticed() -> None:
    hang = restart(reason="no step for 12 s", failed_at=at(48), node="node-2", rank=1)
    assert tell(tries=second(restart=hang))[2] == (
        "03:13:00 rank 1 on node-2: no step for 12 s (noticed after 12.1 s). Restarted in place "
        "from step 57 (memory): 13.4 s, 0 steps lost."
    )


def test_a_rollback_and_a_replaced_node() -> None:
    spike = restart(
        reason="loss 11.2 against a median of 2.31", rank=None, node=None, remedy=Remedy.ROLL_BACK,
        cause=Cause.ANOMALY, resumed_step=40,
    )  # fmt: skip
    rolled = second(restart=spike, restored=f"{RUN_ID}/1/directory/40")
    assert "Rolled back to step 40 (directory): 1.4 s, 17 steps lost." in tell(tries=rolled)[2]
    seats = (
        Seat(worker="w1", node="node-1", ranks=(0,)),
        Seat(worker="w3", node="node-3", ranks=(1,)),
    )
    assert "Restarted with node-3 for node-2, from step 57" in tell(tries=second(seats=seats))[2]


def test_a_recovery_that_is_not_over_or_failed() -> None:
    waiting = restart(recovered_at=None, restored_at=None, resumed_step=None)
    live = second(
        restart=waiting, state=AttemptState.RUNNING, restored=None, restored_ranks=frozenset(),
        candidates=("a",),
    )  # fmt: skip
    assert tell(tries=live)[2].endswith("Restarted in place from a checkpoint: no new step yet.")
    dead = second(
        restart=waiting, restored=None, restored_ranks=frozenset(), start_step=0, first_step_at=None
    )
    assert tell(tries=dead)[2].endswith("from the beginning: it ended before a new step.")


def test_incidents_that_led_to_no_restart_are_told_by_themselves() -> None:
    blip = incident(
        id="01JNB0000000000000000BLIP", kind=FindingKind.LOSS_BLIP, severity=Severity.INFO,
        remedy=Remedy.RECORD,
        reason="loss 4.1 at step 80, back at once", state=IncidentState.OPEN, verdict="right",
        opened_at=at(80),
    )  # fmt: skip
    assert tell(incidents=[incident(), blip])[3] == (
        "03:13:20 loss 4.1 at step 80, back at once. Only recorded. It is still open. Judged right."
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (entry(90, "run_held", run="r", reason="look."), "mia held the run: look."),
        (entry(90, "run_held", run=None, reason=""), "mia held everything."),
        (entry(90, "run_released", run="r"), "mia released the run."),
        (entry(90, "restart_asked", reason="driver"), "mia asked for a restart: driver."),
        (
            entry(90, "rollback_asked", to_step=40, skip=[60, 79], reason=""),
            "mia asked for a rollback to step 40, leaving out batches 60 to 79.",
        ),
        (
            entry(90, "node_changed", node="node-2", state="draining", reason="disk"),
            "mia drained node-2: disk.",
        ),
        (
            entry(90, "checkpoint_pinned", checkpoint="c", pinned=False),
            "mia unpinned checkpoint c.",
        ),
        (
            entry(90, "worker_lost", worker="w2", confirmed=False, reason="silent for 15 s"),
            "Agent w2 is out of contact: silent for 15 s.",
        ),
    ],
)
def test_the_journal_adds_what_people_and_machines_did(line: JournalEntry, sentence: str) -> None:
    assert f"03:13:30 {sentence}" in tell(journal=[line])
    assert logbook.matters(line)


def test_what_is_no_news_is_left_out() -> None:
    dismissed = [
        entry(199, "stop_worker", worker="w1"),
        entry(200, "worker_lost", worker="w1", confirmed=True, reason="asked"),
        entry(200, "step_reached", step=3),
        entry(61, "rank_restored", rejected=[{"id": "c40", "reason": "hash differs"}]),
        entry(62, "save_failed", rank=1, step=40, tier="directory", error="disk full"),
    ]
    lines = tell(journal=dismissed)
    assert len(lines) == 4, "incidents tell the rest, and an agent that was told to go is no news"
    assert not logbook.matters(dismissed[2])


def test_the_last_line_says_how_it_stands() -> None:
    failed = finished_run(state=RunState.FAILED, reason="RuntimeError: boom")
    assert "Failed at step 200, after 3 min 20 s (RuntimeError: boom): " in tell(failed)[-1]
    live = finished_run(state=RunState.RUNNING, ended_at=None, reason="training")
    assert tell(live)[-1].startswith("03:20:20 It is running at step 200 (training): 1 restart")
    newest = logbook.story(live, attempts(), [], [], now=at(500), step=231)[-1]
    assert newest.text.startswith("It is running at step 231 (training): 1 restart")


def test_a_script_that_reports_nothing_is_not_told_that_it_lost_nothing() -> None:
    silent = finished_run(instrumented=False, best_step=0)
    restart = dataclasses.replace(attempts()[1].restart, recovered_at=None, resumed_step=None)
    told = tell(silent, second(restart=restart))
    assert "an unknown number of steps computed again" in told[-1]
    assert any(line.endswith("no step is known.") for line in told)
    assert not any("before a new step" in line for line in told)


def test_a_story_over_days_has_dates() -> None:
    run = finished_run(ended_at=at(90_000))
    assert tell(run)[0].startswith("2026-03-01 03:12:00 mia")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.94, "0.9 s"), (151, "2 min 31 s"), (11_520, "3 h 12 min"), (439_200, "5 d 2 h")],
)
def test_durations_in_words(seconds: float, said: str) -> None:
    assert logbook.words(seconds) == said


def test_times_are_kept() -> None:
    lines = logbook.story(finished_run(), attempts(), [], [], now=at(500))
    assert [line.at for line in lines] == sorted(line.at for line in lines)
    assert lines[0].at == dt.datetime(2026, 3, 1, 3, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("remedy", "words"),
    [
        (Remedy.PREEMPTED, "Came back"),
        (Remedy.GROW, "Went on"),
        (Remedy.SHRINK, "Went on"),
    ],
)
def test_a_run_that_made_room_has_lost_nothing(remedy: Remedy, words: str) -> None:
    reason = "leaves its nodes for urgent, which has a higher priority"
    again = restart(cause=Cause.PREEMPTION, reason=reason, remedy=remedy, rank=None, node=None)
    told = tell(tries=second(restart=again))[2]
    assert "Leaves its nodes for urgent, which has a higher priority." in told
    assert f"{words} on node-1, node-2, from step 57 (memory): " in told
    assert told.endswith("0 steps lost.")
