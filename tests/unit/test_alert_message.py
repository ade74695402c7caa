"""The message that docs and README show is what Slack gets, block by block."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import Any

import pytest

from monitors.types import FindingKind
from orchestrator.alerts import slack_blocks, slack_buttons
from orchestrator.alerts.threads import Thread
from orchestrator.core.model.states import IncidentState
from orchestrator.core.model.vocabulary import Remedy, Response
from tests.alert_data import BEGIN, RESOLVED, update

ROOT = Path(__file__).parents[2]
END = {**RESOLVED, "evidence": {"resolved": "training passed step 903 again"}}
NOW = BEGIN.replace(hour=1, minute=59, second=30)


def as_text(blocks: list[dict[str, Any]]) -> str:
    """Blocks as people see them: one line for each text, and one for the buttons."""
    lines = []
    for block in blocks:
        match block:
            case {"type": "section", "text": {"text": text}}:
                lines.append(text)
            case {"type": "section", "fields": fields}:
                lines += [": ".join(f["text"].replace("*", "").split("\n", 1)) for f in fields]
            case {"type": "context", "elements": elements}:
                lines += [each["text"] for each in elements]
            case {"type": "actions", "elements": elements}:
                labels = (e.get("text") or e["placeholder"] for e in elements)
                lines.append(" ".join(f"[{label['text']}]" for label in labels))
    return "\n".join(lines)


def rendered() -> str:
    question = {
        "incident": "01JGF2Z7Q4",
        "kind": FindingKind.LOSS_SPIKE,
        "state": IncidentState.OPEN,
        "subject": "",
        "onset_step": 903,
        "remedy": Remedy.ROLL_BACK,
        "response": Response.ASKED,
        "remedy_seconds": 900.0,
        "remedy_step": 900,
        "remedy_at": BEGIN.replace(hour=2, minute=14),
        "reason": "loss 11.2 against a median of 2.31 for 20 steps",
        "opened_at": NOW - dt.timedelta(seconds=30),
    }
    thread = Thread(key="run-1/loss_spike/2")
    at_begin = {"step": 918, "steps": (900, 800)}
    thread.take([update(1, run="01JGF2Z7", **question).model_copy(update=at_begin)])
    link = "https://babysit.example.org/runs/{run}"
    message = slack_blocks.parent(thread, link=link, mention="<!here>", now=NOW)
    blocks = message.blocks + slack_buttons.actions(list(thread.updates.values()))
    over = Thread(key=thread.key)
    lost = {"lost_seconds": 95.0, "lost_steps": 18}
    over.take([update(3, run="01JGF2Z7", **lost, **{**question, **END})])
    below = f"    {slack_blocks.standing(over)}"
    return f"{as_text(blocks)}\n{below}\n"


@pytest.mark.parametrize("page", ["docs/alerts.md", "README.md"])
def test_the_example_is_the_rendered_message(page: str) -> None:
    expected = rendered()
    shown = re.search(r"```text\n(<!here>.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert shown is not None
    assert shown[1] == expected, f"the example in {page} should be:\n{expected}"
