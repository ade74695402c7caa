"""Annotations of incidents, against a stand-in that follows Grafana's documented HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from jobs.clock import ManualClock
from orchestrator.alerts.factory import make_notifier
from orchestrator.alerts.grafana import GrafanaChannel
from orchestrator.alerts.port import DictMemory, NotDeliveredError
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings
from tests.alert_data import BEGIN, RESOLVED, notice, update
from tests.grafana_server import EDITOR, VIEWER, GrafanaServer

START = int(BEGIN.timestamp() * 1000)


@pytest.fixture
def grafana() -> Iterator[GrafanaServer]:
    with GrafanaServer() as server:
        yield server


@pytest.fixture
async def channel(grafana: GrafanaServer) -> AsyncIterator[GrafanaChannel]:
    made = await started(grafana)
    yield made
    await made.close()


async def started(
    grafana: GrafanaServer, memory: DictMemory | None = None, token: str = EDITOR
) -> GrafanaChannel:
    made = GrafanaChannel(grafana.url, token)
    await made.start(memory or DictMemory(), ManualClock(BEGIN))
    return made


def only(grafana: GrafanaServer) -> dict[str, Any]:
    (found,) = grafana.annotations.values()
    return found


async def test_an_incident_is_one_region_that_ends_with_it(
    grafana: GrafanaServer, channel: GrafanaChannel
) -> None:
    await channel.update(update(1))
    begun = dict(only(grafana))
    assert begun["time"] == begun["timeEnd"] == START
    assert "tiny-gpt: gpu_hardware (critical)\nGPU 3 of node-2 has fallen" in begun["text"]
    assert {"babysit", "run_id:run-1", "incident:inc-1"} <= set(begun["tags"])
    await channel.update(update(2, **RESOLVED, lost_seconds=95.0))
    ended = only(grafana)
    assert (ended["time"], ended["timeEnd"]) == (START, START + 95_000)
    assert "Lost: 95 s" in ended["text"]


async def test_updates_that_come_late_or_twice_change_nothing(
    grafana: GrafanaServer, channel: GrafanaChannel
) -> None:
    for each in (update(3, **RESOLVED), update(1), update(3, **RESOLVED)):
        await channel.update(each)
    assert only(grafana)["timeEnd"] == START + 95_000
    await channel.update(update(1, incident="inc-2"))
    assert len(grafana.annotations) == 2


async def test_updates_at_once_make_one_annotation(
    grafana: GrafanaServer, channel: GrafanaChannel
) -> None:
    """A new leader sends all that waits in the outbox."""
    both = (channel.update(update(1)), channel.update(update(2, **RESOLVED)))
    await asyncio.gather(*both)
    assert only(grafana)["timeEnd"] == START + 95_000


async def test_a_lost_answer_makes_no_second_annotation(grafana: GrafanaServer) -> None:
    """The annotation was made, and the server died before it knew."""
    for _ in range(2):
        channel = await started(grafana)
        await channel.update(update(1))
        await channel.notify(notice("n-1", incident=None, incident_kind="run_failed"))
        await channel.close()
    assert [each["tags"][1] for each in grafana.annotations.values()] == ["incident", "notice"]


async def test_a_notice_about_an_incident_is_left_to_the_incident(
    grafana: GrafanaServer, channel: GrafanaChannel
) -> None:
    await channel.notify(notice())
    assert grafana.requests == []
    await channel.notify(notice(incident=None, incident_kind="run_failed", run=None))
    assert only(grafana)["text"] == "tiny-gpt stops: no node is left"


@pytest.mark.parametrize(
    ("token", "said"), [("revoked", "BABYSIT_GRAFANA_TOKEN to a valid"), (VIEWER, "role Editor")]
)
async def test_a_refusal_says_what_to_do_and_is_over_when_mended(
    grafana: GrafanaServer, token: str, said: str
) -> None:
    channel = await started(grafana, token=token)
    with pytest.raises(NotDeliveredError, match=said) as refused:
        await channel.update(update(1))
    assert refused.value.result == "refused"
    assert said in channel.trouble["grafana"]
    assert token not in channel.trouble["grafana"]
    await channel.close()


async def test_a_grafana_that_fails_is_tried_again(
    grafana: GrafanaServer, channel: GrafanaChannel
) -> None:
    grafana.broken = 503
    with pytest.raises(NotDeliveredError, match="HTTP 503") as failed:
        await channel.update(update(1))
    assert (failed.value.result, channel.trouble) == ("failed", {})
    grafana.broken = 0
    await channel.update(update(1))
    assert only(grafana)["time"] == START
    assert await channel.check() == "grafana: annotations can be read"


@pytest.mark.parametrize(
    ("alerts", "url", "said"),
    [
        ("log,grafana", "", "needs BABYSIT_GRAFANA_URL"),
        ("grafana", "http://grafana", "BABYSIT_ALERTS=log,grafana"),
    ],
)
def test_wrong_settings_are_named(alerts: str, url: str, said: str) -> None:
    settings = Settings(alerts=alerts, grafana_url=url, grafana_token=SecretStr("glsa"))
    with pytest.raises(InvalidError, match=said):
        make_notifier(settings)
    good = Settings(alerts="log,grafana", grafana_url="http://g", grafana_token=SecretStr("glsa"))
    assert make_notifier(good).channel == "log+grafana"
