"""Webhook, PagerDuty, e-mail and the dead man's handle, against stand-ins of what they talk to."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from jobs.clock import ManualClock, SystemClock
from monitors.types import Severity
from orchestrator.alerts import dead_man
from orchestrator.alerts.factory import make_notifier
from orchestrator.alerts.port import DictMemory, NotDeliveredError
from orchestrator.cli.alerts import _send
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings
from tests.alert_data import RESOLVED, notice, update
from tests.alert_receivers import MailServer, Receiver

SECRET = base64.b64encode(b"a key of twenty-four byt").decode()


@pytest.fixture
async def service() -> AsyncIterator[Receiver]:
    async with Receiver() as opened:
        yield opened


@pytest.fixture
async def mail() -> AsyncIterator[MailServer]:
    async with MailServer() as opened:
        yield opened


@contextlib.asynccontextmanager
async def opened(settings: Settings, memory: DictMemory | None = None) -> AsyncIterator[Any]:
    channel: Any = make_notifier(settings)
    await channel.start(memory or DictMemory(), ManualClock())
    yield channel
    await channel.close()


def webhook(service: Receiver) -> Settings:
    return Settings(
        alerts="webhook", webhook_url=service.url, webhook_secret=SecretStr(f"whsec_{SECRET}")
    )


def pagerduty(service: Receiver) -> Settings:
    return Settings(
        alerts="pagerduty",
        pagerduty_key=SecretStr("R0UT1NG"),
        pagerduty_url=service.url,
        alerts_link="https://babysit.example.org/runs/{run}",
    )


async def test_a_webhook_can_be_verified_and_keeps_its_id_when_it_is_sent_again(
    service: Receiver,
) -> None:
    async with opened(webhook(service)) as channel:
        service.statuses = [503, 429]
        for _ in range(2):
            with pytest.raises(NotDeliveredError, match="HTTP"):
                await channel.update(update(1))
        assert not channel.trouble  # it may pass by itself
        await channel.update(update(1))
        await channel.update(update(1))
    (headers, body), (again, _) = service.got
    assert headers["webhook-id"] == again["webhook-id"] == update(1).id
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key = b"a key of twenty-four byt"
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    data = service.bodies[0]["data"]
    assert (data["dedup_key"], data["incident"]["state"]) == ("run-1/gpu_hardware/2", "mitigating")


async def test_a_refusal_of_a_webhook_says_what_to_do_until_it_is_mended(service: Receiver) -> None:
    async with opened(webhook(service)) as channel:
        service.statuses = [404]
        with pytest.raises(NotDeliveredError, match="BABYSIT_WEBHOOK_URL"):
            await channel.notify(notice())
        assert "HTTP 404" in channel.trouble["webhook"]
        await channel.notify(notice())
        assert not channel.trouble


async def test_a_page_is_triggered_once_acknowledged_and_resolved_with_its_incident(
    service: Receiver,
) -> None:
    async with opened(pagerduty(service)) as channel:
        await channel.update(update(1))  # an update pages nobody
        await channel.notify(notice("n-0", severity=Severity.WARNING))
        await channel.notify(notice("n-1", run_name="tiny-gpt"))
        await channel.update(update(2, acknowledged_by="operator:anna"))
        await channel.update(update(3, **RESOLVED))
        await channel.update(update(1, incident="inc-9", attempt=7, **RESOLVED))  # was never paged
    trigger, acknowledge, resolve = service.bodies
    assert [b["event_action"] for b in service.bodies] == ["trigger", "acknowledge", "resolve"]
    keys = {b["dedup_key"] for b in service.bodies}
    assert keys == {"run-1/gpu_hardware/2"}
    assert trigger["payload"]["severity"] == "critical"
    assert trigger["payload"]["source"] == "tiny-gpt"
    assert trigger["links"][0]["href"] == "https://babysit.example.org/runs/run-1"
    assert acknowledge["routing_key"] == resolve["routing_key"] == "R0UT1NG"


async def test_a_page_about_the_end_of_a_run_is_not_resolved_by_that_end(service: Receiver) -> None:
    async with opened(pagerduty(service)) as channel:
        end = update(3, **RESOLVED)
        await channel.notify(notice("n-1", text="tiny-gpt failed", cause=end.cause))
        await channel.update(end)
    assert [b["event_action"] for b in service.bodies] == ["trigger"]


async def test_a_wrong_key_of_pagerduty_is_said_with_the_fix(service: Receiver) -> None:
    async with opened(pagerduty(service)) as channel:
        service.statuses = [400]
        with pytest.raises(NotDeliveredError, match="BABYSIT_PAGERDUTY_KEY"):
            await channel.notify(notice(text="x" * 5000))


async def test_mails_about_one_problem_are_a_thread(mail: MailServer) -> None:
    settings = Settings(
        alerts="email",
        smtp_url=SecretStr(mail.url),
        email_from="babysit@example.org",
        email_to="anna@example.org, ben@example.org",
    )
    channel = make_notifier(settings)
    mail.refuse_next = "451 try again later"
    with pytest.raises(NotDeliveredError, match="451"):
        await channel.notify(notice())
    await channel.notify(notice("n-1", text="rank 1\nSubject: spoofed ü", run_name="a\r\nb"))
    await channel.notify(notice("n-2"))
    one, two = (email.message_from_string(text) for text in mail.mails)
    assert one["Subject"] == "[babysit] a b: gpu hardware (critical)"
    assert one["References"] == two["References"] == "<run-1.gpu_hardware.2@babysit>"
    assert (one["Message-ID"], two["Message-ID"]) == ("<n-1@babysit>", "<n-2@babysit>")
    assert "ben@example.org" in one["To"]
    mail.unknown = {"anna", "ben"}
    with pytest.raises(NotDeliveredError, match="BABYSIT_EMAIL_TO"):
        await channel.notify(notice())


async def test_the_watcher_hears_while_babysit_lives_and_not_when_it_cannot_decide(
    service: Receiver,
) -> None:
    alive = True
    clock = ManualClock()
    holding = asyncio.create_task(dead_man.hold(service.url, 60.0, clock, lambda: alive))
    service.statuses = [500]  # a watcher that fails is asked again
    while len(service.got) < 3:
        await SystemClock().sleep(0.001)
    alive = False
    await SystemClock().sleep(0.05)
    heard = len(service.got)
    await SystemClock().sleep(0.05)
    assert len(service.got) == heard
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("webhook", "BABYSIT_WEBHOOK_URL"),
        ("pagerduty", "BABYSIT_PAGERDUTY_KEY"),
        ("email", "BABYSIT_SMTP_URL"),
    ],
)
def test_missing_settings_are_named(name: str, missing: str) -> None:
    with pytest.raises(InvalidError, match=missing):
        make_notifier(Settings(alerts=name))


async def test_one_of_each_is_sent_as_a_test(service: Receiver) -> None:
    rows = await _send(webhook(service), "webhook", ManualClock())
    assert [(row["sent"], row["result"]) for row in rows] == [
        ("incident", "delivered"),
        ("notice", "delivered"),
        ("end", "delivered"),
    ]
    assert all("this is a test" in str(body) for body in service.bodies)
    service.statuses = [404] * 3
    rows = await _send(webhook(service), "webhook", ManualClock())
    assert {row["result"] for row in rows} == {"failed"}
    assert "BABYSIT_WEBHOOK_URL" in rows[0]["detail"]
