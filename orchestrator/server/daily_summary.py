"""Sends the daily summary at the hour that the settings name.

A summary of a day that is missed, as no server was there at its hour, is sent as soon as one leads,
until the day is over. The core sends one for each day.
"""

from __future__ import annotations

import datetime as dt
import zoneinfo

import structlog
from ulid import ULID

from jobs.clock import Clock
from orchestrator.controller.controller import Controller
from orchestrator.core.messages.notice_events import SummaryDue
from orchestrator.core.views import daily_summary
from orchestrator.core.views.daily_summary import Story
from orchestrator.core.views.spares import standing
from orchestrator.errors import BabysitError

_log = structlog.get_logger(__name__)
LOOK_SECONDS = 30.0
_RUNS = 500
"""Runs that are looked at, the newest; the text has room for fewer."""


def due(setting: str, summarised: str, now: dt.datetime) -> str | None:
    """The local date whose summary is due; None: there is none.

    Args:
        setting: `HH:MM ZONE`, as in BABYSIT_ALERTS_SUMMARY.
        summarised: The newest date that has one.
        now: The time.
    """
    at, _, zone = setting.partition(" ")
    local = now.astimezone(zoneinfo.ZoneInfo(zone or "UTC"))
    day = local.date().isoformat()
    return day if f"{local:%H:%M}" >= at and day > summarised else None


async def keep(setting: str, controller: Controller, clock: Clock) -> None:
    """Send each summary when it is due while this server leads, until cancelled."""
    while True:
        if controller.is_leader:
            try:
                day = due(setting, controller.state.fleet.summarised, clock.now())
                if day is not None:
                    await send(day, controller, clock)
            except BabysitError as error:
                _log.warning("no daily summary yet, will retry", error=str(error))
        await clock.sleep(LOOK_SECONDS)


async def send(day: str, controller: Controller, clock: Clock) -> None:
    """Have the summary of a day sent; raises as the store and `Controller.submit` do."""
    store, now = controller.store, clock.now()
    runs = [r for r in await store.runs(limit=_RUNS) if daily_summary.concerns(r, now)]
    numbers = await store.run_numbers(runs)
    stories = [
        Story(
            run,
            max(run.best_step, numbers[run.id].step or 0),
            await store.attempts(run.id),
            await store.incidents(run.id, open_only=True),
        )
        for run in runs
    ]
    spares = standing(controller.state, now)
    text = daily_summary.text(day, stories, now, spares)
    await controller.submit(
        SummaryDue(id=str(ULID()), at=now, actor="controller", day=day, text=text)
    )
