"""Buttons in Slack, over Socket Mode, with the real slack-sdk against a stand-in for Slack."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from jobs.clock import ManualClock, SystemClock
from jobs.events import Event
from monitors.types import Finding, FindingKind, Severity
from orchestrator.alerts.port import DictMemory
from orchestrator.alerts.rules import AlertRules
from orchestrator.alerts.slack import from_settings
from orchestrator.alerts.slack_buttons import read_click
from orchestrator.alerts.slack_socket import ClickListener
from orchestrator.core.messages.events import FindingRaised, IncidentChanged, RollbackAsked, RunHeld
from orchestrator.core.messages.notice_events import IncidentSilenced
from orchestrator.errors import ConflictError
from orchestrator.settings import Settings
from tests.alert_data import RESOLVED, update
from tests.controller_harness import Harness
from tests.slack_server import APP_TOKEN, TOKEN, SlackServer

PEOPLE = AlertRules.model_validate(
    {"people": {"UANNA": {"name": "anna"}, "UVIEW": {"name": "vera", "role": "viewer"}}}
).people


async def until(done: Callable[[], object]) -> None:
    while not done():
        await SystemClock().sleep(0.005)


class Plane:
    """Takes events, as the controller does."""

    def __init__(self) -> None:
        self.took: list[Event] = []
        self.refusal: Exception | None = None
        self.leads = True

    async def act(self, event: Event) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.took.append(event)


@pytest.fixture
async def slack() -> AsyncIterator[SlackServer]:
    async with SlackServer("training") as opened:
        yield opened


@pytest.fixture
async def plane(slack: SlackServer) -> AsyncIterator[Plane]:
    plane = Plane()
    listener = ClickListener((TOKEN, APP_TOKEN), slack.url, PEOPLE, plane.act, SystemClock())
    running = asyncio.create_task(listener.run(lambda: plane.leads))
    await until(lambda: slack.links)
    yield plane
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def buttons(slack: SlackServer, *updates: Any) -> dict[str, dict[str, Any]]:
    """The buttons of the message after some updates, by their labels."""
    channel = from_settings(
        Settings(
            alerts="slack",
            slack_token=TOKEN,
            slack_app_token=APP_TOKEN,
            slack_channel="#training",
            slack_url=slack.url,
        )
    )
    await channel.start(DictMemory(), ManualClock())
    for each in updates:
        await channel.update(each)
    await channel.close()
    blocks = [b for b in slack.only.parents()[-1]["blocks"] if b["type"] == "actions"]
    return {
        b.get("text", b.get("placeholder"))["text"]: b
        for block in blocks
        for b in block["elements"]
    }


async def test_each_click_is_the_command_of_the_person_who_clicked(
    slack: SlackServer, plane: Plane
) -> None:
    shown = await buttons(slack, update(1))
    assert list(shown) == ["Acknowledge", "Hold automation", "Roll back to …", "Silence 1 h"]
    assert "confirm" not in shown["Acknowledge"]
    assert "lost" in shown["Roll back to …"]["confirm"]["text"]["text"]
    options = shown["Roll back to …"]["options"]
    assert [option["text"]["text"] for option in options] == ["step 120", "step 100"]
    assert max(len(option["value"]) for option in options) <= 150  # Slack's limit
    for number, button in enumerate(shown.values()):
        chosen = {"selected_option": button["options"][1]} if "options" in button else {}
        await slack.click({**button, **chosen}, "UANNA", envelope=f"e-{number}")
    await until(lambda: len(plane.took) == 4)
    acknowledge, hold, back, silence = plane.took
    assert isinstance(acknowledge, IncidentChanged)
    assert (acknowledge.incident, acknowledge.acknowledge) == ("inc-1", True)
    assert isinstance(hold, RunHeld)
    assert hold.run == "run-1"
    assert isinstance(back, RollbackAsked)
    assert (back.run, back.to_step) == ("run-1", 100)
    assert isinstance(silence, IncidentSilenced)
    assert (silence.incident, silence.seconds) == ("inc-1", 3600)
    assert {event.actor for event in plane.took} == {"operator:anna"}


async def test_the_buttons_are_those_that_still_make_sense(slack: SlackServer) -> None:
    acknowledged = await buttons(slack, update(1), update(2, acknowledged_by="operator:anna"))
    assert "Acknowledge" not in acknowledged
    assert await buttons(slack, update(1, attempt=3), update(2, attempt=3, **RESOLVED)) == {}


@pytest.mark.parametrize(("user", "why"), [("UVIEW", "vera has viewer"), ("UNEW", "`people`")])
async def test_who_may_not_is_told_so_alone(
    slack: SlackServer, plane: Plane, user: str, why: str
) -> None:
    shown = await buttons(slack, update(1))
    await slack.click(shown["Hold automation"], user, envelope="e-1")
    await until(lambda: slack.ephemeral)
    assert why in slack.ephemeral[0]["text"]
    assert slack.ephemeral[0]["user"] == user
    assert plane.took == []


async def test_a_refusal_of_babysit_is_said_to_who_clicked(
    slack: SlackServer, plane: Plane
) -> None:
    plane.refusal = ConflictError("tiny-gpt is over: it succeeded")
    shown = await buttons(slack, update(1))
    await slack.click(shown["Hold automation"], "UANNA", envelope="e-1")
    await until(lambda: slack.ephemeral)
    assert slack.ephemeral[0]["text"] == "Not done: tiny-gpt is over: it succeeded"


async def test_a_click_that_slack_sends_twice_and_over_a_new_connection_counts_once(
    slack: SlackServer, plane: Plane
) -> None:
    shown = await buttons(slack, update(1))
    first = slack.links[-1]
    await slack.click(shown["Acknowledge"], "UANNA", envelope="e-1")
    await slack.refresh()
    await until(lambda: slack.links and slack.links[-1] is not first)
    await slack.click(shown["Acknowledge"], "UANNA", envelope="e-1")
    await slack.click(shown["Hold automation"], "UANNA", envelope="e-2")
    await until(lambda: len(plane.took) == 2)
    assert [type(event) for event in plane.took] == [IncidentChanged, RunHeld]


async def test_only_the_server_that_leads_listens(slack: SlackServer, plane: Plane) -> None:
    plane.leads = False
    await until(lambda: not slack.links)
    plane.leads = True
    await until(lambda: slack.links)


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"type": "view_submission"},
        {"type": "block_actions", "actions": [{"action_id": "of another app"}]},
        {"type": "block_actions", "actions": [{"action_id": "babysit_hold", "value": "no JSON"}]},
        {"type": "block_actions", "actions": [{"action_id": "babysit_hold", "value": "[]"}]},
        {"type": "block_actions", "actions": [{"action_id": "babysit_hold", "value": "{}"}]},
        {"type": "block_actions", "actions": [{"action_id": "babysit_roll_back", "value": "{}"}]},
    ],
)
def test_what_is_no_click_of_ours_is_left_out(payload: dict[str, Any]) -> None:
    assert read_click(payload) is None


async def test_a_click_is_in_the_journal_with_who_clicked_in_which_role_and_why(
    slack: SlackServer,
) -> None:
    harness = Harness(silent=True)
    controller = await harness.open()
    await harness.submit(monitors={"loss_spike": {"action": "observe"}})
    await harness.until(lambda: bool(controller.state.attempts))
    found = Finding(
        kind=FindingKind.LOSS_SPIKE,
        severity=Severity.CRITICAL,
        attempt=1,
        onset_step=3,
        onset_batch=3,
        detected_step=4,
        onset_time=0.0,
        detected_time=0.0,
        reason="loss 11.2 against a median of 2.31",
    )
    asked = harness.event(FindingRaised, run="run-1", attempt=1, finding=found)
    await controller.submit(asked)
    (incident,) = controller.state.incidents
    clock = SystemClock()
    listener = ClickListener((TOKEN, APP_TOKEN), slack.url, PEOPLE, controller.submit, clock)
    running = asyncio.create_task(listener.run(lambda: True))
    await until(lambda: slack.links)
    shown = await buttons(slack, update(1, incident=incident))
    for number, user in enumerate(("UNEW", "UVIEW", "UANNA")):
        await slack.click(shown["Hold automation"], user, envelope=f"e-{number}")
    await slack.click(shown["Acknowledge"], "UANNA", envelope="e-9")
    await until(lambda: controller.state.incidents[incident].acknowledged_by)
    rows = [e for e in await harness.store.journal("run-1") if e.actor.startswith("operator:")]
    assert [(e.name, e.actor) for e in rows] == [
        ("run_held", "operator:anna"),
        ("incident_changed", "operator:anna"),
    ]
    assert {e.reason for e in rows} == {"clicked in Slack by UANNA (role operator)"}
    assert {each["user"] for each in slack.ephemeral} == {"UNEW", "UVIEW"}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await harness.kill()


class QuickClock(ManualClock):
    """Waits for no time, and lets others work."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await SystemClock().sleep(0.001)


async def test_an_app_token_that_slack_refuses_is_trouble_until_it_is_taken(
    slack: SlackServer,
) -> None:
    plane, clock = Plane(), QuickClock()
    tokens = (TOKEN, "xapp-of-another-app")
    wrong = ClickListener(tokens, slack.url, PEOPLE, plane.act, clock)
    trouble = wrong.trouble
    listening = asyncio.create_task(wrong.run(lambda: plane.leads))
    await until(lambda: trouble)
    assert "invalid_auth" in trouble["buttons"]
    assert "Set BABYSIT_SLACK_APP_TOKEN" in trouble["buttons"]
    plane.leads = False
    await until(lambda: not trouble)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    tokens = (TOKEN, APP_TOKEN)
    right = ClickListener(tokens, slack.url, PEOPLE, plane.act, clock)
    trouble = right.trouble = {"buttons": "before"}
    plane.leads = True
    listening = asyncio.create_task(right.run(lambda: plane.leads))
    await until(lambda: not trouble)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
