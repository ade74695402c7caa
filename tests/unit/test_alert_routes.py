"""Routes, quiet hours and escalations."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from jobs.clock import ManualClock, SystemClock
from monitors.types import Severity
from orchestrator.alerts import log
from orchestrator.alerts.factory import make_notifier
from orchestrator.alerts.log import LogNotifier
from orchestrator.alerts.port import CountedNotifier, DictMemory, NotDeliveredError
from orchestrator.alerts.router import Router
from orchestrator.alerts.rules import AlertRules, Quiet, read, routed_channel
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings
from tests.alert_data import BEGIN, RESOLVED, notice, update


class Box:
    """A channel that keeps what it gets, and may be away."""

    ignored_fields: Mapping[str, str] = {}

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.got: list[Any] = []
        self.away = False

    async def notify(self, item: Any) -> None:
        if self.away:
            raise NotDeliveredError(f"{self.channel} is away")
        self.got.append(item)

    async def update(self, item: Any) -> None:
        await self.notify(item)


class Desk:
    def __init__(self, **rules: Any) -> None:
        self.slack, self.pager = Box("slack"), Box("pagerduty")
        self.memory, self.clock = DictMemory(), ManualClock(BEGIN)
        self.rules = AlertRules.model_validate(rules)
        self.router = Router({"slack": self.slack, "pagerduty": self.pager}, self.rules)

    async def open(self) -> Router:
        await self.router.start(self.memory, self.clock)
        return self.router


def ids(box: Box) -> list[str]:
    return [item.id for item in box.got]


async def test_the_first_route_that_takes_a_notice_decides() -> None:
    desk = Desk(
        routes=[
            {"queue": "prod", "severity": "critical", "to": ["slack", "pagerduty"]},
            {"project": "ll?", "run": "tiny-*", "to": ["slack"], "slack": "#llm"},
            {"queue": "scratch", "to": []},
        ]
    )
    router = await desk.open()
    await router.notify(notice("page", queue="prod", project="x", run_name="big"))
    await router.notify(notice("mine", queue="q", project="llm", run_name="tiny-2"))
    await router.notify(notice("none", queue="scratch", project="x", run_name="big"))
    await router.notify(notice("else", queue="q", project="x", run_name="big"))
    await router.notify(notice("ask", queue="scratch", project="x", run_name="big", asks=True))
    assert ids(desk.slack) == ["page", "mine", "else", "ask"]
    assert ids(desk.pager) == ["page", "else", "ask"]  # a question that nobody gets acts unasked
    assert [item.channel for item in desk.slack.got] == [None, "#llm", None, None]


async def test_a_channel_that_has_a_notice_does_not_get_it_again_when_another_is_away() -> None:
    desk = Desk()
    router = await desk.open()
    counted = CountedNotifier(router)
    desk.pager.away = True
    for _ in range(3):
        with pytest.raises(NotDeliveredError, match="pagerduty is away"):
            await counted.notify(notice("n"))
    desk.pager.away = False
    successor = Router({"slack": desk.slack, "pagerduty": desk.pager}, desk.rules)
    await successor.start(desk.memory, desk.clock)  # another server, after this one died
    await successor.notify(notice("n"))
    assert ids(desk.slack) == ids(desk.pager) == ["n"]
    assert counted.counts["pagerduty", "failed"] == 3
    assert counted.counts["slack", "delivered"] == 1


@pytest.mark.parametrize(
    ("severity", "now", "hours"),
    [
        (Severity.WARNING, "23:00", 8),
        (Severity.WARNING, "06:30", 0.5),
        (Severity.WARNING, "07:00", 0),
        (Severity.WARNING, "21:59", 0),
        (Severity.INFO, "12:00", 2),
        (Severity.INFO, "14:00", 0),
        (Severity.CRITICAL, "23:00", 0),
    ],
)
def test_quiet_hours_by_severity(severity: Severity, now: str, hours: float) -> None:
    quiet = Quiet(warning="22:00-07:00", info="12:00-14:00")
    moment = dt.datetime.fromisoformat(f"2026-01-15T{now}:00+00:00")
    assert quiet.seconds(severity, moment) == hours * 3600


def test_quiet_hours_end_by_the_clock_of_their_zone_on_the_day_on_which_clocks_change() -> None:
    quiet = Quiet(warning="22:00-07:00", timezone="Europe/Berlin")
    before = dt.datetime(2026, 3, 28, 22, 0, tzinfo=dt.UTC)  # 23:00; at 02:00 clocks go to 03:00
    assert quiet.seconds(Severity.WARNING, before) == 7 * 3600


async def test_a_quiet_warning_arrives_when_the_hours_end() -> None:
    desk = Desk(quiet={"warning": "22:00-07:00"})
    router = await desk.open()  # at midnight
    await router.update(update(1, severity=Severity.WARNING))
    assert desk.clock.now() == BEGIN + dt.timedelta(hours=7)
    assert len(desk.slack.got) == 1


async def escalating() -> tuple[Desk, Router]:
    desk = Desk(
        routes=[{"to": ["slack"]}],
        escalation=[{"after": "15m", "to": ["pagerduty"]}, {"after": "30m", "to": ["pagerduty"]}],
    )
    return desk, await desk.open()


async def test_a_page_that_nobody_acknowledges_goes_down_the_list_also_after_a_restart() -> None:
    desk, router = await escalating()
    await router.notify(notice("n", asks=True))
    await router.notify(notice("warning", severity=Severity.WARNING))
    await router.notify(notice("by hand", actor="operator:anna"))
    await desk.clock.sleep(899)
    await router.escalate()
    assert desk.pager.got == []
    await desk.clock.sleep(1)
    desk.pager.away = True
    with pytest.raises(NotDeliveredError):
        await router.escalate()
    desk.pager.away = False
    successor = Router({"slack": desk.slack, "pagerduty": desk.pager}, desk.rules)
    await successor.start(desk.memory, desk.clock)
    await successor.escalate()
    await successor.escalate()
    assert ids(desk.pager) == ["n/1"]
    assert "nobody has acknowledged it" in desk.pager.got[0].text
    assert not desk.pager.got[0].asks
    await desk.clock.sleep(1800)
    for _ in range(3):
        await successor.escalate()
    assert ids(desk.pager) == ["n/1", "n/2"]


@pytest.mark.parametrize("change", [{"acknowledged_by": "operator:anna"}, RESOLVED])
async def test_an_answer_ends_the_escalation(change: dict[str, Any]) -> None:
    desk, router = await escalating()
    await router.notify(notice("n"))
    await router.update(update(2, **change))
    await desk.clock.sleep(7200)
    await router.escalate()
    assert desk.pager.got == []


def test_a_file_of_rules_is_read_and_its_faults_have_their_place(tmp_path: Path) -> None:
    file = tmp_path / "alerts.yaml"
    file.write_text(
        "routes:\n  - {queue: prod, to: [log]}\nescalation:\n  - {after: 5m, to: [log]}\n"
    )
    assert read(file, ["log"]).escalation[0].after == 300
    assert isinstance(make_notifier(Settings(alerts="log", alerts_rules=file)), Router)
    with pytest.raises(InvalidError, match="log: not among the channels"):
        read(file, ["slack"])
    file.write_text("routes:\n  - {queu: prod, to: [log]}\nquiet: {warning: late}\n")
    with pytest.raises(InvalidError) as caught:
        read(file, ["log"])
    assert "alerts.yaml:2:" in str(caught.value)
    assert "expected hours such as 22:00-07:00" in str(caught.value)


async def test_the_log_has_incidents_as_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = CapturingLogger()
    monkeypatch.setattr(log, "_log", lines)
    channel = CountedNotifier(LogNotifier())
    await channel.update(update(1))
    await channel.update(update(2, **RESOLVED, lost_seconds=95.0))
    opened, resolved = (call.kwargs for call in lines.calls)
    assert {(call.method_name, call.args) for call in lines.calls} == {("warning", ("incident",))}
    assert opened["state"] == "mitigating"
    assert "fallen off the bus" in opened["cause"]
    assert (resolved["state"], resolved["lost_seconds"]) == ("resolved", 95.0)
    assert resolved["text"] == "Resolved: training passed step 120 again"
    assert channel.counts["log", "delivered"] == 2


def test_the_slack_channel_of_a_run_is_that_of_its_route(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text('routes: [{project: llm, run: "tiny-*", to: [slack], slack: "#llm"}]\n')
    assert routed_channel(path, "tiny-gpt", "llm", "default") == "#llm"
    assert routed_channel(path, "huge-gpt", "llm", "default") == ""


async def test_an_escalation_goes_to_persons_and_a_failing_one_holds_up_no_other() -> None:
    desk = Desk(
        people={"UANNA": {"name": "anna", "email": "anna@x.org"}, "UBEN": {"name": "ben"}},
        escalation=[
            {"after": "15m", "to": ["slack"], "people": ["anna"]},
            {"after": "15m", "to": ["slack", "pagerduty"], "people": ["ben", "anna"]},
        ],
    )
    router = await desk.open()
    await router.notify(notice("n"))
    await desk.clock.sleep(900)
    await router.notify(notice("m", incident="inc-2"))
    await router.escalate()
    first = desk.slack.got[-1]
    assert (first.id, first.mention, first.mail_to) == ("n/1", "<@UANNA>", "anna@x.org")
    desk.pager.away = True
    await desk.clock.sleep(900)
    with pytest.raises(NotDeliveredError):
        await router.escalate()  # n goes to the second stage, and fails there
    await desk.clock.sleep(900)
    with pytest.raises(NotDeliveredError):
        await router.escalate()
    assert {"m/1", "m/2"} <= set(ids(desk.slack))
    desk.pager.away = False
    await router.escalate()
    assert {"n/2", "m/2"} <= set(ids(desk.pager))
    assert desk.pager.got[-1].mention == "<@UANNA> <@UBEN>"


async def test_a_page_that_arrives_after_its_answer_is_not_escalated() -> None:
    desk, router = await escalating()
    await router.update(update(2, acknowledged_by="operator:anna"))
    await router.notify(notice("n"))
    await desk.clock.sleep(7200)
    await router.escalate()
    assert desk.pager.got == []


async def test_a_silence_puts_an_escalation_off() -> None:
    desk, router = await escalating()
    await router.notify(notice("n"))
    await router.update(update(2, silenced_until=desk.clock.now() + dt.timedelta(hours=1)))
    await desk.clock.sleep(4499)
    await router.escalate()
    assert desk.pager.got == []
    await desk.clock.sleep(1)
    await router.escalate()
    assert ids(desk.pager) == ["n/1"]


def test_an_escalation_to_a_stranger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("escalation: [{after: 15m, to: [log], people: [zoe]}]\n")
    with pytest.raises(InvalidError, match="zoe: an escalation names persons of `people`"):
        read(path, ["log"])


class SlowMemory(DictMemory):
    """Gives way at each read, as a database does."""

    async def read(self, key: str) -> Mapping[str, Any] | None:
        found = await super().read(key)
        await SystemClock().sleep(0)
        return found


async def test_answers_and_pages_that_come_together_lose_none_of_each_other() -> None:
    desk, router = await escalating()
    desk.memory = SlowMemory()
    await router.start(desk.memory, desk.clock)
    several = [f"inc-{number}" for number in range(5)]
    answers = [update(2, incident=id_, acknowledged_by="operator:anna") for id_ in several]
    pages = [notice(f"of {id_}", incident=id_) for id_ in several]
    together = [*map(router.update, answers), *map(router.notify, pages)]
    await asyncio.gather(*together)
    for page in pages:  # as the outbox gives them again
        await router.notify(page)
    await desk.clock.sleep(7200)
    await router.escalate()
    assert desk.pager.got == []
