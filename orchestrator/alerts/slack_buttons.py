"""Buttons below an incident in Slack, and what a click on one asks for. Pure.

Each click is an operator's event by the person who clicked, as if typed on the command line. The
alert rules (`people`) say who may click, by Slack's id of the person: names in Slack are chosen by
their owners and prove nothing.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

from jobs.events import Event
from orchestrator.alerts.rules import Person
from orchestrator.core.messages.events import IncidentChanged, RollbackAsked, RunHeld
from orchestrator.core.messages.instructions import IncidentUpdate
from orchestrator.core.messages.notice_events import IncidentSilenced
from orchestrator.core.model.states import IncidentState
from orchestrator.errors import PermissionDeniedError

ACKNOWLEDGE, HOLD, ROLL_BACK = "babysit_acknowledge", "babysit_hold", "babysit_roll_back"
SILENCE = "babysit_silence"
SILENCE_SECONDS = 3600.0


def actions(update: IncidentUpdate) -> list[dict[str, Any]]:
    """The block of buttons for an incident as it is; none once it is resolved."""
    if update.incident.state is IncidentState.RESOLVED:
        return []
    value = json.dumps({"run": update.run, "incident": update.incident.id})
    name = update.run_name or update.run
    hold = _confirm(
        f"Hold {name}?",
        "babysit takes no action for the run until `babysit release`. Monitoring goes on.",
        "Hold",
    )
    buttons = [_button(HOLD, "Hold automation", value, confirm=hold)]
    if update.steps:
        buttons.append(_roll_back(update, name))
    buttons.append(_button(SILENCE, "Silence 1 h", value))
    if update.incident.acknowledged_by is None:
        buttons.insert(0, _button(ACKNOWLEDGE, "Acknowledge", value, style="primary"))
    return [{"type": "actions", "elements": buttons}]


def _roll_back(update: IncidentUpdate, name: str) -> dict[str, Any]:
    """A list of the steps that a run may go back to."""
    confirm = _confirm(
        f"Roll back {name}?",
        "The run stops and loads the checkpoint of this step. What it has trained since is lost.",
        "Roll back",
    )
    options = [
        {
            "text": {"type": "plain_text", "text": f"step {step}"},
            "value": json.dumps({"run": update.run, "incident": "", "step": step}),
        }
        for step in update.steps
    ]
    return {
        "type": "static_select",
        "action_id": ROLL_BACK,
        "placeholder": {"type": "plain_text", "text": "Roll back to …"},
        "options": options,
        "confirm": {**confirm, "style": "danger"},
    }


def _button(action: str, label: str, value: str, **more: Any) -> dict[str, Any]:
    text = {"type": "plain_text", "text": label}
    return {"type": "button", "action_id": action, "text": text, "value": value, **more}


def _confirm(title: str, text: str, confirm: str) -> dict[str, Any]:
    def plain(words: str, most: int) -> dict[str, Any]:
        return {"type": "plain_text", "text": words[:most]}

    return {
        "title": plain(title, 100),
        "text": plain(text, 300),
        "confirm": plain(confirm, 30),
        "deny": plain("Cancel", 30),
    }


@dataclasses.dataclass(frozen=True)
class Click:
    """One click of a person."""

    id: str
    """Id of the click; it stays the same when Slack sends the click again."""
    user: str
    """Slack's id of the person."""
    channel: str
    action: str
    run: str
    incident: str
    step: int | None = None
    """The step that was chosen, of a roll-back."""


def read_click(payload: Mapping[str, Any]) -> Click | None:
    """The click in a payload of Slack; None: it is of no button of ours."""
    if payload.get("type") != "block_actions":
        return None
    for action in payload.get("actions", ()):
        name = action.get("action_id")
        if name not in {ACKNOWLEDGE, HOLD, ROLL_BACK, SILENCE}:
            continue
        try:
            chosen = action["selected_option"] if name == ROLL_BACK else action
            about = json.loads(chosen["value"])
            user = str(payload["user"]["id"])
            return Click(
                id=f"{user}/{name}/{action.get('action_ts')}",
                user=user,
                channel=str(payload.get("channel", {}).get("id", "")),
                action=name,
                run=str(about["run"]),
                incident=str(about["incident"]),
                step=int(about["step"]) if name == ROLL_BACK else None,
            )
        except (KeyError, TypeError, ValueError):
            return None
    return None


def event_of(click: Click, people: Mapping[str, Person], *, id_: str, now: dt.datetime) -> Event:
    """The event that a click asks for, in the name of who clicked.

    Raises:
        PermissionDeniedError: The person is not known, or has not the role.
    """
    person = people.get(click.user)
    if person is None:
        raise PermissionDeniedError(
            f"babysit does not know who you are: have {click.user} added to `people` in the alert"
            " rules"
        )
    if person.role == "viewer":
        raise PermissionDeniedError(f"this needs the role operator; {person.name} has viewer")
    common: dict[str, Any] = {
        "id": id_,
        "at": now,
        "actor": f"operator:{person.name}",
        "reason": f"clicked in Slack by {click.user} (role {person.role})",
    }
    if click.action == ACKNOWLEDGE:
        return IncidentChanged(incident=click.incident, acknowledge=True, **common)
    if click.action == HOLD:
        return RunHeld(run=click.run, **common)
    if click.action == SILENCE:
        return IncidentSilenced(incident=click.incident, seconds=SILENCE_SECONDS, **common)
    return RollbackAsked(run=click.run, to_step=click.step, **common)
