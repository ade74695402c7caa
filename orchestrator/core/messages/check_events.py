"""Events of checks of nodes: a check is asked for, it has results, or it ended without."""

from __future__ import annotations

from typing import Literal

from jobs.checks.results import CheckResult
from jobs.events import Event


class CheckAsked(Event):
    """Someone, or the schedule, wants a node measured."""

    kind: Literal["check_asked"] = "check_asked"
    node: str
    checks: tuple[str, ...] = ()
    """Names of check programs; empty: all."""


class LinkListening(Event):
    """The agent at one end of a link waits for the other."""

    kind: Literal["link_listening"] = "link_listening"
    node: str
    worker: str
    address: str
    port: int


class NodeChecked(Event):
    """The agent that was launched to check a node has measured it."""

    kind: Literal["node_checked"] = "node_checked"
    node: str
    worker: str
    results: tuple[CheckResult, ...]


class CheckEnded(Event):
    """The agent that was launched to check a node is gone, or its time is over."""

    kind: Literal["check_ended"] = "check_ended"
    worker: str
    reason: str


CheckEvent = CheckAsked | LinkListening | NodeChecked | CheckEnded
"""All of them."""
