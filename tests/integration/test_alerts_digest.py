"""Digest and daily summary, with the real slack-sdk against a stand-in for Slack."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from jobs.clock import ManualClock
from monitors.types import Severity
from orchestrator.alerts import slack
from orchestrator.alerts.port import DictMemory, NotDeliveredError
from orchestrator.alerts.router import Router
from orchestrator.alerts.rules import AlertRules
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.model.states import IncidentState
from orchestrator.core.model.vocabulary import Response
from orchestrator.settings import Settings
from tests.alert_data import BEGIN, RESOLVED, notice, update
from tests.slack_server import TOKEN, SlackServer

RULES = {"digest": {"severity": "warning", "every": "1h"}}


@pytest.fixture
async def server() -> AsyncIterator[SlackServer]:
    async with SlackServer("training", "llm") as opened:
        yield opened


class DyingError(Exception):
    """The server dies here."""


class Memory(DictMemory):
    """Dies at a write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes_left: int | None = None
        self.written = 0

    async def write(self, key: str, body: Mapping[str, Any], *, run: str | None = None) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise DyingError
            self.writes_left -= 1
        self.written += 1
        await super().write(key, body, run=run)


class Desk:
    def __init__(self, server: SlackServer) -> None:
        self.server, self.memory, self.clock = server, Memory(), ManualClock(BEGIN)
        self.opened: list[Router] = []

    async def router(self, rules: Mapping[str, Any] = RULES) -> Router:
        settings = Settings(
            alerts="slack", slack_token=TOKEN, slack_channel="#training", slack_url=self.server.url
        )
        router = Router({"slack": slack.from_settings(settings)}, AlertRules.model_validate(rules))
        await router.start(self.memory, self.clock)
        self.opened.append(router)
        return router


@pytest.fixture
async def desk(server: SlackServer) -> AsyncIterator[Desk]:
    desk = Desk(server)
    yield desk
    for router in desk.opened:
        await router.close()


async def fill(router: Router, count: int) -> None:
    low = {"severity": Severity.WARNING, "state": IncidentState.OPEN}
    for n in range(count):
        run = {"run": f"run-{n}", "run_name": f"gpt-{n}"}
        await router.update(update(1, incident=f"inc-{n}", **run, **low))


async def test_many_warnings_are_one_message_with_their_newest_state(
    server: SlackServer, desk: Desk
) -> None:
    router = await desk.router()
    await fill(router, 40)
    run = {"incident": "inc-39", "run": "run-39", "run_name": "gpt-39"}
    await router.update(update(2, **run, severity=Severity.WARNING, **RESOLVED))
    await router.update(update(1, incident="page"))  # critical: at once
    await router.notify(notice("low", severity=Severity.INFO, text="gpt-3 grew", incident=None))
    assert len(server.named("training").parents()) == 1
    await desk.clock.sleep(3599)
    await router.send_digests()
    assert len(server.named("training").parents()) == 1
    await desk.clock.sleep(1)
    await router.send_digests()
    await router.send_digests()
    _, digest = server.named("training").parents()
    lines = digest["text"].splitlines()
    assert "Digest since 2026-01-01 00:00 UTC: 41 items" in lines[0]
    assert lines[-1] == "and 16 before"
    assert any("gpt-39" in line and "fallen off the bus" in line for line in lines)
    assert "<!here>" not in digest["text"]


async def test_a_digest_is_a_new_message_each_time_and_goes_where_its_items_would(
    server: SlackServer, desk: Desk
) -> None:
    router = await desk.router()
    low = {"severity": Severity.WARNING}
    for hour in range(2):
        await router.update(update(1, incident=f"a-{hour}", **low))
        await router.update(update(1, incident=f"b-{hour}", channel="#llm", **low))
        await desk.clock.sleep(3600)
        await router.send_digests()
    assert len(server.named("training").parents()) == 2
    assert len(server.named("llm").parents()) == 2


async def test_wherever_the_server_dies_a_digest_is_neither_lost_nor_doubled(
    server: SlackServer, desk: Desk
) -> None:
    soon = {"digest": {"severity": "warning", "every": "1m"}}  # Slack's clock stands still
    deaths = 0
    while True:
        desk.memory = Memory()
        before = len(server.named("training").parents())
        router = await desk.router(soon)
        await fill(router, 2)
        await desk.clock.sleep(60)
        desk.memory.writes_left = deaths
        try:
            await router.send_digests()
        except (DyingError, NotDeliveredError):
            desk.memory.writes_left = None
            await (await desk.router(soon)).send_digests()
            assert len(server.named("training").parents()) == before + 1, deaths
            deaths += 1
        else:
            break
    assert deaths >= 4


async def test_slack_away_for_an_hour_delays_a_digest(server: SlackServer, desk: Desk) -> None:
    router = await desk.router()
    await fill(router, 2)
    await desk.clock.sleep(3600)
    await server.close()
    for _ in range(3):
        with pytest.raises(NotDeliveredError):
            await router.send_digests()
    await fill(router, 3)  # more comes in the meantime
    await server.open(server.port)
    await desk.clock.sleep(3600)
    await router.send_digests()
    await desk.clock.sleep(3600)
    await router.send_digests()
    texts = [m["text"] for m in server.named("training").parents()]
    assert ["2 items" in texts[0], "1 item" in texts[1], len(texts)] == [True, True, 2]


async def test_a_summary_passes_every_floor_and_is_a_message_of_its_day(
    server: SlackServer, desk: Desk
) -> None:
    router = await desk.router({**RULES, "quiet": {"info": "00:00-23:59"}})

    def summary(day: str) -> Notify:
        return Notify(
            id=day,
            cause="e",
            run=None,
            reason="",
            severity=Severity.INFO,
            text=f"Summary of {day}: 2 running",
            incident_kind="daily_summary",
            cascade=f"daily_summary/{day}",
            report=True,
        )

    for day in ("2026-01-01", "2026-01-02", "2026-01-02"):
        await router.notify(summary(day))
    first, second = server.named("training").messages
    assert "Summary of 2026-01-01: 2 running" in first["text"]
    assert "thread_ts" not in second
    assert desk.clock.now() - BEGIN < dt.timedelta(seconds=1)  # no quiet hour holds it back


async def test_receivers_that_cannot_be_reached_hold_up_no_other_digest(
    server: SlackServer, desk: Desk
) -> None:
    router = await desk.router()
    low = {"severity": Severity.WARNING}
    await router.update(update(1, incident="a", **low))
    await router.update(update(1, incident="b", channel="#llm", **low))
    await desk.clock.sleep(3600)
    server.named("training").archived = True
    with pytest.raises(NotDeliveredError, match="archived"):
        await router.send_digests()
    assert len(server.named("llm").parents()) == 1
    server.named("training").archived = False
    await router.send_digests()
    assert len(server.named("training").parents()) == 1
    written = desk.memory.written
    await router.send_digests()
    assert desk.memory.written == written  # nothing is due, nothing is stored


async def test_a_question_shows_its_end_and_is_in_no_digest(
    server: SlackServer, desk: Desk
) -> None:
    router = await desk.router()
    due = BEGIN + dt.timedelta(minutes=15)
    asked = {
        "severity": Severity.WARNING,
        "response": Response.ASKED,
        "state": IncidentState.OPEN,
        "remedy_seconds": 900.0,
    }
    began = {**asked, "state": IncidentState.MITIGATING, "response": Response.ACTED}
    await router.update(update(1, **asked))
    await router.update(update(2, **asked, remedy_at=due))
    (question,) = server.named("training").parents()
    assert "15 min left" in question["text"]
    await router.update(update(3, **began, remedy_at=due))
    (question,) = server.named("training").parents()
    assert "min left" not in question["text"]
    await router.update(update(4, severity=Severity.WARNING, remedy_at=due, **RESOLVED))
    await desk.clock.sleep(3600)
    await router.send_digests()
    (question,) = server.named("training").parents()
    assert "Resolved" in question["text"]
