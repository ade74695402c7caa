"""The screen of `babysit watch`, driven by Textual's pilot against a real control plane."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from orchestrator.cli.errors import UnreachableError
from orchestrator.cli.screen import app as screen
from orchestrator.cli.screen.dialogs import Confirm, Help
from orchestrator.cli.screen.feed import Feed
from orchestrator.cli.screen.plot import plot
from orchestrator.cli.session import Session
from orchestrator.core.model.states import IncidentState
from orchestrator.server.logs import log_path
from tests.cli import connect, data
from tests.plane import RUN_ID, Plane, finished, incident

INCIDENT = "01JNB00000000000000000OPEN"
HOSTILE = "[red]boom[/] \x1b[2J"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Plane(tmp_path_factory.mktemp("home")) as running:
        finished(running)
        open_ = incident(id=INCIDENT, state=IncidentState.OPEN, resolved_at=None, reason=HOSTILE)
        running.write(entities=[open_])
        log = log_path(running.settings.log_directory(RUN_ID), 2, 0)
        log.parent.mkdir(parents=True)
        log.write_text("step 200 loss 2.5\n[bold]not markup\n")
        yield running


@pytest.fixture(autouse=True)
def here(plane: Plane, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    connect(plane, monkeypatch, tmp_path)
    monkeypatch.setattr(screen, "POLL_SECONDS", 0.1)


@pytest.fixture
def waiting(tmp_path: Path) -> str:
    """A run that stays in `starting`."""
    file = tmp_path / "run.yaml"
    file.write_text("name: fresh\ncommand: ['true']\n")
    return str(data("submit", str(file))["id"])


class Broken(Session):
    """A session whose server can be taken away."""

    away = False

    @property
    def api(self) -> Any:
        if self.away:
            raise UnreachableError("no answer")
        return super().api


@contextlib.asynccontextmanager
async def opened(
    run: str | None = None, size: tuple[int, int] = (120, 36)
) -> AsyncIterator[tuple[screen.Watch, Pilot[Any], Broken]]:
    session = Broken()
    watch = screen.Watch(Feed(session), run)
    try:
        async with watch.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: watch.query_one("#runs", DataTable).row_count > 0)
            yield watch, pilot, session
    finally:
        session.close()


async def until(pilot: Pilot[Any], met: Callable[[], object]) -> None:
    """Wait for something to be shown."""
    for _ in range(400):
        if met():
            return
        await pilot.pause(0.02)
    shown = pilot.app._shown  # type: ignore[attr-defined]
    raise AssertionError(f"not shown: {shown}; {told(pilot.app)}")  # type: ignore[arg-type]


def text_of(watch: screen.Watch, name: str) -> str:
    return str(watch.screen.query_one(f"#{name}", Static).visual)


def cells(watch: screen.Watch, name: str) -> list[list[str]]:
    table = watch.query_one(f"#{name}", DataTable)
    return [[str(cell) for cell in table.get_row(key)] for key in table.rows]


def told(watch: screen.Watch) -> str:
    return " ".join(note.message for note in watch._notifications)


async def test_it_shows_runs_and_one_of_them_in_full() -> None:
    async with opened("tiny") as (watch, pilot, _):
        await until(pilot, lambda: "succeeded  tiny" in shown(watch))
        assert cells(watch, "runs")[-1][:5] == ["tiny", "succeeded", "200", "-", "1"]
        assert "1 restarts, 96" in shown(watch)
        assert "boom" in shown(watch)
        assert "2.5" in text_of(watch, "curve")
        await pilot.press("3")
        await until(pilot, lambda: cells(watch, "incident-table"))
        reasons = [row[-1] for row in cells(watch, "incident-table")]
        assert "[red]boom[/] \\x1b[2J" in reasons
        await pilot.press("2")
        await until(pilot, lambda: len(cells(watch, "rank-table")) == 2)
        assert [row[:2] for row in cells(watch, "rank-table")] == [["node-1", "0"], ["node-2", "1"]]
        await pilot.press("4")
        await until(pilot, lambda: "[bold]not markup" in text_of(watch, "log-text"))


def shown(watch: screen.Watch) -> str:
    """The text of the facts, which is a group of lines."""
    facts = screen.panes.facts(watch._shown.run)
    return "\n".join(map(str, getattr(facts, "renderables", [facts])))


async def test_a_hold_asks_first_and_carries_its_reason(waiting: str) -> None:
    async with opened(waiting) as (watch, pilot, _):
        await until(pilot, lambda: watch._shown.run)
        await pilot.press("h")
        await until(pilot, lambda: isinstance(watch.screen, Confirm))
        assert "a failure is not restarted" in text_of(watch, "effect")
        await pilot.press("escape")
        assert data("show", waiting)["state"] != "held"
        await pilot.press("h")
        await until(pilot, lambda: isinstance(watch.screen, Confirm))
        await pilot.press(*"disk", "enter")
        await until(pilot, lambda: watch.focused and watch.focused.id == "yes")
        await pilot.press("enter")
        await until(pilot, lambda: "fresh is held" in told(watch))
        await until(pilot, lambda: (watch._shown.run or {})["state"] == "held")
        await pilot.press("h")
        await until(pilot, lambda: isinstance(watch.screen, Confirm))
        await pilot.click("#yes")
        await until(pilot, lambda: "fresh is released" in told(watch))
    entry = next(e for e in data("events", waiting) if e["name"] == "run_held")
    assert entry["payload"]["reason"] == "disk"
    assert entry["actor"].startswith("operator:")
    data("cancel", waiting)


async def test_a_rollback_says_what_happens_and_a_refusal_is_shown(waiting: str) -> None:
    async with opened(waiting) as (watch, pilot, _):
        await until(pilot, lambda: watch._shown.run)
        await pilot.press("b")
        await until(pilot, lambda: isinstance(watch.screen, Confirm))
        assert "from step 0;" in text_of(watch, "effect")
        await pilot.press(*"soon")
        await pilot.click("#yes")
        await until(pilot, lambda: "soon: expected a step" in text_of(watch, "wrong"))
        watch.screen.query_one("#step", Input).value = "9"
        await pilot.click("#yes")
        await until(pilot, lambda: told(watch))
        assert "rolls back" not in told(watch)
        assert "9" in told(watch)
    data("cancel", waiting)


async def test_an_incident_is_acknowledged_and_an_ended_run_is_not_changed() -> None:
    async with opened("tiny") as (watch, pilot, _):
        await until(pilot, lambda: watch._shown.run)
        await pilot.press("a")
        await until(pilot, lambda: "is acknowledged" in told(watch))
        await pilot.press("h")
        await until(pilot, lambda: "tiny is over" in told(watch))
    assert data("incidents", "show", INCIDENT)["acknowledged_by"]


async def test_a_key_never_acts_on_a_run_that_is_only_still_shown(waiting: str) -> None:
    async with opened(waiting) as (watch, pilot, _):
        await until(pilot, lambda: watch._shown.run and watch._shown.run["id"] == waiting)
        await until(pilot, lambda: not watch._polling)  # its end would let the next one begin
        watch._polling = True  # the server is slow: the next run is selected, and not read yet
        await pilot.press("down", "a", "h")
        await until(pilot, lambda: told(watch).count("Another run is selected") == 2)
        assert not isinstance(watch.screen, Confirm)
        watch._polling = False
        await until(pilot, lambda: watch._shown.run and watch._shown.run["id"] != waiting)
        await pilot.press("up")
        await until(pilot, lambda: watch._shown.run and watch._shown.run["id"] == waiting)
        await pilot.press("h")
        await until(pilot, lambda: isinstance(watch.screen, Confirm))
    data("cancel", waiting)


async def test_a_server_that_is_away_is_said_and_comes_back(waiting: str) -> None:
    async with opened(waiting) as (watch, pilot, session):
        await until(pilot, lambda: watch._shown.run)
        session.away = True
        await until(pilot, lambda: "has not answered for" in text_of(watch, "away"))
        assert cells(watch, "runs")  # what was known stays
        await pilot.press("h")
        await until(pilot, lambda: "nothing was sent" in told(watch))
        session.away = False
        await until(pilot, lambda: "answers again" in told(watch))
        assert not watch.query_one("#away").has_class("on")
    data("cancel", waiting)


async def test_another_run_is_chosen_with_the_arrows_and_the_help_opens(waiting: str) -> None:
    async with opened(size=(80, 24)) as (watch, pilot, _):
        await until(pilot, lambda: watch._shown.run and watch._shown.run["id"] == waiting)
        before = watch._shown
        keys = [str(key.value) for key in watch.query_one("#runs", DataTable).rows]
        assert keys[0] == waiting
        await pilot.press("down")
        await until(pilot, lambda: watch._shown.run and watch._shown.run["id"] == keys[1])
        assert watch._shown.curve is not before.curve
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(watch.screen, Help))
        await pilot.press("escape", "q")
        await until(pilot, lambda: watch.return_value is not None)
    data("cancel", waiting)


async def test_a_screen_that_nobody_touches_asks_for_little() -> None:
    """The curve, the ranks and the log are read once, as the run does not move."""
    session, asked = Session(), []
    feed = Feed(session)
    api = session.api
    get = api.get

    def counted(where: str, **params: Any) -> Any:
        asked.append(where)
        return get(where, **params)

    api.get = counted  # type: ignore[method-assign]
    for _ in range(5):
        snapshot = await asyncio.to_thread(feed.poll, RUN_ID, rank=0, with_log=False)
    session.close()
    assert dataclasses.asdict(snapshot)["curve"]["step"] == [199, 200]
    assert len(asked) == 2 * 5 + 2


def test_a_plot_shows_the_range_the_marks_and_gaps() -> None:
    lines = plot([(1, 5.0), (2, None), (100, 1.0)], 40, 8, marks=[50])
    assert len(lines) == 8
    assert all(len(line) == 40 for line in lines[:-2])
    assert lines[0].strip().startswith("5│")
    assert lines[5].strip().startswith("1│")
    assert lines[6].count("▲") == 1
    assert lines[7].endswith("100")
    drawn = "".join(lines[:6])
    assert sum(0x2801 <= ord(char) <= 0x28FF for char in drawn) == 2


@pytest.mark.parametrize(
    "points", [[], [(1, None)], [(1, float("nan"))], [(5, 2.0)], [(1, 1e-300), (2, 1e300)]]
)
def test_a_plot_of_odd_points_is_drawn_or_empty(points: Any) -> None:
    for width, height in ((60, 12), (5, 2), (0, 0)):
        assert len(plot(points, width, height)) in {0, height}
