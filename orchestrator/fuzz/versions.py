"""Frames of agents of another version, and reports of which a part cannot be read.

The real reader (:mod:`orchestrator.server.agent_reports`) gets the frames. What is said here stays
as it is however often it is sent again: a fault of the writer, not of the wire.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from jobs.events import Report, ShardWritten

_NEWER = {"invented_later": 1, "also_new": {"deep": [1, 2]}}
"""Fields that this server does not know."""
_MAY_BE_ABSENT = {
    "hello": ("address",),
    "heartbeat": (),
    "report": (),
    "beat": ("moved", "first_step"),
    "samples": ("learning_rate", "blocked_seconds", "expected_until", "metrics", "lost"),
    "event": ("actor", "cause", "medium", "seconds", "resumed", "pid", "unreadable", "full"),
}
"""Optional fields that an older agent does not send."""


class Hand:
    """How one agent writes its frames.

    Attributes:
        another_version: True if it writes them as an agent of another version does.
        damages: Reports to come of which a part cannot be read.
    """

    def __init__(self, rng: random.Random) -> None:
        self.another_version, self.damages = False, 0
        self._rng = rng
        self._illegible: set[str] = set()
        """Directories of shards that were reported in words which nobody can read."""
        self._written: dict[str, int] = {}
        """Directory of a shard → sequence of the last report of it."""
        self._damaged: dict[int, dict[str, Any]] = {}
        """Bodies of damaged reports, by sequence."""

    def write(self, report: Report) -> None:
        """Write a report, for good: a damaged one is the same however often it is sent."""
        shards = (event.shard.path for event in report.events if isinstance(event, ShardWritten))
        self._written |= dict.fromkeys(shards, report.sequence)
        if self.damages and report.events:
            self.damages -= 1
            body = report.model_dump(mode="json")
            damaged = self._damaged[report.sequence] = damage(body, self._rng)
            lost = [event for event in body["events"] if event not in damaged["events"]]
            self._illegible |= {event["shard"]["path"] for event in lost if "shard" in event}

    def unsaid(self, taken: int) -> set[str]:
        """Directories of shards of which nobody heard, where reports after `taken` never came.

        What lies there after a deletion is swept when ranks start next, and not before.
        """
        return self._illegible | {path for path, at in self._written.items() if at > taken}

    def frame(self, kind: str, body: BaseModel) -> BaseModel | dict[str, Any]:
        """The body of a frame as it is sent."""
        damaged = self._damaged.get(body.sequence) if isinstance(body, Report) else None
        if not self.another_version:
            return body if damaged is None else damaged
        return of_another_version(kind, damaged or body.model_dump(mode="json"))


def of_another_version(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A frame as an older agent would write it, with fields of a newer one among the rest."""
    changed = _changed(body, kind)
    for name, part in (("beats", "beat"), ("samples", "samples"), ("events", "event")):
        if name in changed:
            changed[name] = [
                _changed(each, part) if isinstance(each, Mapping) else each
                for each in changed[name]
            ]
    return changed


def _changed(body: Mapping[str, Any], part: str) -> dict[str, Any]:
    left_out = _MAY_BE_ABSENT.get(part, ())
    return {name: value for name, value in body.items() if name not in left_out} | _NEWER


def damage(body: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """A report with one event that cannot be read, or of which a field cannot, and odd samples.

    An exit keeps its kind, which the skew policy promises, and its sender: of an exit of somebody
    else nobody judges, so that no token ends what is not its own.
    """
    spoilt = dict(body)
    events = [dict(each) for each in body.get("events", ())]
    if events:
        event = rng.choice(events)
        how = ("kind", "field", "gone", "other")
        match rng.choice(how[1:3] if event["kind"] == "rank_exited" else how):
            case "kind":
                event["kind"] = "invented_later"
            case "field":
                name = rng.choice([name for name in event if name not in {"kind", "id"}])
                event[name] = {"odd": [None]}
            case "gone":
                event.pop(rng.choice([name for name in event if name != "kind"]))
            case _:
                event["worker"] = "somebody-else"
    spoilt["events"] = events
    spoilt["samples"] = [*body.get("samples", ()), rng.choice(("odd", {"rank": "none"}))]
    return spoilt
