"""Buttons below an incident in Slack, and what a click on one asks for. Pure.

Each click is an operator's event by the person who clicked, as if typed on the command line. The
alert rules (`people`) say who may click, by Slack's id of the person: names in Slack are chosen by
their owners and prove nothing.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
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
_INCIDENTS, _OPTIONS, _LABEL = 50, 100, 75
"""Slack takes 2000 characters in the value of a button, 100 options in a list, and 75 characters in
the label of one."""


def actions(updates: Sequence[IncidentUpdate]) -> list[dict[str, Any]]:
    """The block of buttons for the incidents of one problem; none once all are resolved.

    A button is about all incidents of the problem, up to `_INCIDENTS`. Of a problem of several
    runs, the run to be held is chosen, and none is rolled back from here.
    """
    open_ = [u for u in updates if u.incident.state is not IncidentState.RESOLVED]
    if not open_:
        return []
    first = min(open_, key=lambda u: (u.incident.opened_at, u.incident.id))
    runs = {u.run: u.run_name or u.run for u in open_}
    value = json.dumps({"run": first.run, "incidents": [u.incident.id for u in open_][:_INCIDENTS]})
    buttons = [_hold_of(runs) if len(runs) > 1 else _hold(first, value)]
    if first.steps and len(runs) == 1:
        buttons.append(_roll_back(first, runs[first.run]))
    buttons.append(_button(SILENCE, "Silence 1 h", value))
    if any(u.incident.acknowledged_by is None for u in open_):
        buttons.insert(0, _button(ACKNOWLEDGE, "Acknowledge", value, style="primary"))
    return [{"type": "actions", "elements": buttons}]


_HELD = "babysit takes no action for the run until `babysit release`. Monitoring goes on."


def _hold(update: IncidentUpdate, value: str) -> dict[str, Any]:
    confirm = _confirm(f"Hold {update.run_name or update.run}?", _HELD, "Hold")
    return _button(HOLD, "Hold automation", value, confirm=confirm)


def _hold_of(runs: Mapping[str, str]) -> dict[str, Any]:
    """A list of the runs that may be held."""
    return {
        "type": "static_select",
        "action_id": HOLD,
        "placeholder": {"type": "plain_text", "text": "Hold automation of …"},
        "options": [
            {
                "text": {"type": "plain_text", "text": name[:_LABEL]},
                "value": json.dumps({"run": run, "incidents": []}),
            }
            for run, name in list(runs.items())[:_OPTIONS]
        ],
        "confirm": {**_confirm("Hold this run?", _HELD, "Hold"), "style": "danger"},
    }


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
            "value": json.dumps({"run": update.run, "incidents": [], "step": step}),
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
    incidents: tuple[str, ...]
    """The incidents of the message, if the click is about them."""
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
            chosen = action.get("selected_option") or action
            about = json.loads(chosen["value"])
            user = str(payload["user"]["id"])
            return Click(
                id=f"{user}/{name}/{action.get('action_ts')}",
                user=user,
                channel=str(payload.get("channel", {}).get("id", "")),
                action=name,
                run=str(about["run"]),
                incidents=tuple(map(str, about["incidents"])),
                step=int(about["step"]) if name == ROLL_BACK else None,
            )
        except (KeyError, TypeError, ValueError):
            return None
    return None


def events_of(
    click: Click, people: Mapping[str, Person], *, new_id: Callable[[], str], now: dt.datetime
) -> list[Event]:
    """The events that a click asks for, in the name of who clicked: one for each incident or run.

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
        "at": now,
        "actor": f"operator:{person.name}",
        "reason": f"clicked in Slack by {click.user} (role {person.role})",
    }
    if click.action == HOLD:
        return [RunHeld(id=new_id(), run=click.run, **common)]
    if click.action == ROLL_BACK:
        return [RollbackAsked(id=new_id(), run=click.run, to_step=click.step, **common)]
    if click.action == ACKNOWLEDGE:
        about: dict[str, Any] = {"acknowledge": True, **common}
        return [IncidentChanged(id=new_id(), incident=id_, **about) for id_ in click.incidents]
    about = {"seconds": SILENCE_SECONDS, **common}
    return [IncidentSilenced(id=new_id(), incident=id_, **about) for id_ in click.incidents]
