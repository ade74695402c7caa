"""Events about what was said to people."""

from __future__ import annotations

from typing import Literal

from jobs.events import Event


class AskDelivered(Event):
    """A question about a remedy has reached people: from now on they have time to answer it."""

    kind: Literal["ask_delivered"] = "ask_delivered"
    run: str
    incident: str
