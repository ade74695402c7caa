"""Checks of nodes as the state holds them. Times are UTC."""

from __future__ import annotations

import dataclasses
import datetime as dt
from enum import StrEnum
from typing import Literal

from jobs.checks.results import CheckResult

PREFLIGHT = "preflight"
"""The actor that keeps a node cordoned which has failed a check, or must pass one first."""


class CheckPurpose(StrEnum):
    """Why a node is checked."""

    ASKED = "asked"  # a person wants to know
    IDLE = "idle"  # the schedule of idle nodes
    CONFIRM = "confirm"  # it was slower than its limit: once more, before anything is done
    RETURN = "return"  # it is cordoned; if it passes, it is taken back
    LINK = "link"  # the link to another node is measured, together with that node


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckUnderWay:
    """A check of a node that is under way."""

    worker: str
    since: dt.datetime
    purpose: CheckPurpose
    checks: tuple[str, ...] = ()
    """Names of check programs; empty: all."""
    partner: str = ""
    """The node at the other end of the link that is measured; empty: it measures itself."""
    listens: bool = False
    """True if this end of the link listens; the other connects, and has the results."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LinkTrial:
    """One measurement of the link to another node, as far as it tells which of the two is bad."""

    at: dt.datetime
    partner: str
    bad: str = ""
    """The trouble of the link, with the figure; empty: there is none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The newest result of one check on a node."""

    at: dt.datetime
    result: CheckResult


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckPolicy:
    """When nodes are checked by themselves, and what a failed check leads to."""

    action: Literal["off", "shadow", "act"] = "act"
    """`off`: record the results; `shadow`: also say what would be done; `act`: cordon the node."""
    idle_seconds: float = 0.0
    """An idle node is checked when its last check is older than this; 0: never by itself."""
    preflight_seconds: float = 0.0
    """A worker checks its node before it joins if the last check is older; 0: never."""


NO_CHECKS = CheckPolicy(action="off")
"""The policy until a server has said its own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The checks of one node."""

    under_way: CheckUnderWay | None = None
    results: tuple[Checked, ...] = ()
    """The newest result of each check, by name."""
    at: dt.datetime | None = None
    """When all checks last had results; None: never."""
    tries: int = 0
    """Checks in a row that ended without results."""
    tried_at: dt.datetime | None = None
    """When the last of them ended."""
    unchecked: str = ""
    """Why the last check had no results; empty: it had."""
    links: tuple[LinkTrial, ...] = ()
    """The newest trial with each partner, the newest last."""
    link_at: dt.datetime | None = None
    """When a link of the node last had results; None: never."""
    link_tried_at: dt.datetime | None = None
    """When the last measurement of a link ended without results."""

    def awaits(self, worker: str) -> bool:
        """True if this worker's check is the one under way."""
        return self.under_way is not None and self.under_way.worker == worker


NOT_MEASURED = Measured()
