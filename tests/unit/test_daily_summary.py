"""The daily summary: its text, its hour, and that there is one for each day."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from pydantic import ValidationError

from orchestrator.core.messages.instructions import Notify
from orchestrator.core.messages.notice_events import SummaryDue
from orchestrator.core.views import daily_summary
from orchestrator.core.views.daily_summary import Story
from orchestrator.server.daily_summary import due
from orchestrator.settings import Settings
from tests.world import World, spec, trained


def story(world: World, run: str = "run-1") -> Story:
    found = world.state
    attempts = [a for a in [found.attempts.get(run)] if a is not None]
    return Story(found.runs[run], found.runs[run].best_step, attempts, found.incidents_of(run))


def test_a_summary_says_state_progress_losses_restarts_and_what_is_asked() -> None:
    world = trained(30, monitors={"loss_spike": {"action": "ask"}})
    world.find(onset=28)
    asked = daily_summary.text("2026-01-01", [story(world)], world.now)
    lines = asked.splitlines()
    assert lines[0] == "Summary of 2026-01-01: 1 running"
    assert lines[1].startswith("Asked: tiny: asked; will roll back to step 20 at ")
    assert lines[2] == "Queue default: 1 run"
    assert lines[3].startswith("• tiny: running, step 30, ")
    world.advance(901)
    world.settle()
    world.trained_to(40)
    world.now += dt.timedelta(hours=1)
    later = daily_summary.text("2026-01-01", [story(world)], world.now)
    assert "1 restart" in later
    assert "lost 15 min" in later
    assert "anomaly" in later
    assert "Asked" not in later
    world.now += dt.timedelta(days=1)  # of the last 24 hours alone
    assert "lost" not in daily_summary.text("2026-01-02", [story(world)], world.now)


def test_a_thousand_runs_fit_into_one_message_and_each_queue_has_its_own_line() -> None:
    world = World()
    for number in range(40):
        world.submit(spec(name=f"a-long-name-of-a-run-{number}"), f"run-{number}")
    stories = [story(world, f"run-{n % 40}") for n in range(1000)]
    text = daily_summary.text("2026-01-01", stories, world.now)
    assert len(text) < 2800
    assert "more lines: `babysit ls`" in text
    assert "no run" in daily_summary.text("2026-01-01", [], world.now)


def test_a_run_that_ended_long_ago_is_left_out() -> None:
    world = trained(30)
    run = world.run()
    assert daily_summary.concerns(run, world.now)
    from orchestrator.core.model.states import RunState

    over = dataclasses.replace(run, state=RunState.FAILED, ended_at=world.now)
    assert daily_summary.concerns(over, world.now + dt.timedelta(hours=23))
    assert not daily_summary.concerns(over, world.now + dt.timedelta(hours=25))


def test_there_is_one_for_each_day_however_often_it_is_due() -> None:
    world = World()
    for day in ("2026-01-01", "2026-01-01", "2026-01-02", "2026-01-01"):
        world.do(world.event(SummaryDue, day=day, text=f"Summary of {day}"))
    sent = [n for n in world.carried if isinstance(n, Notify) and n.report]
    assert [n.text for n in sent] == ["Summary of 2026-01-01", "Summary of 2026-01-02"]
    assert [n.problem for n in sent] == ["daily_summary/2026-01-01", "daily_summary/2026-01-02"]


@pytest.mark.parametrize(
    ("now", "summarised", "day"),
    [
        ("2026-06-01T05:59", "", None),  # 07:59 in Berlin
        ("2026-06-01T06:00", "", "2026-06-01"),
        ("2026-06-01T06:00", "2026-06-01", None),
        ("2026-06-01T19:00", "2026-05-31", "2026-06-01"),  # no server was there at 08:00
        ("2026-06-01T22:30", "2026-06-01", None),  # the next day in Berlin, before its hour
        ("2026-12-01T06:59", "2026-11-30", None),  # winter
        ("2026-12-01T07:00", "2026-11-30", "2026-12-01"),
    ],
)
def test_the_hour_is_that_of_the_zone(now: str, summarised: str, day: str | None) -> None:
    at = dt.datetime.fromisoformat(now).replace(tzinfo=dt.UTC)
    assert due("08:00 Europe/Berlin", summarised, at) == day


@pytest.mark.parametrize("setting", ["8:00", "24:00", "08:00 Mars/Olympus", "08:00  UTC", "noon"])
def test_a_wrong_hour_or_zone_is_refused(setting: str) -> None:
    with pytest.raises(ValidationError):
        Settings(alerts_summary=setting)
    assert Settings(alerts_summary="08:00").alerts_summary == "08:00"
