"""Reading what agents of other versions send: field by field, event by event.

The problem: agents stay at the version that they were started with, and a server may be newer or
older. A reader that refuses a report because of one field hears nothing of that agent any more,
since the agent sends the report again until it is acknowledged.

The design: unknown fields are ignored. Each event is read alone. An event with an optional field
that cannot be read is taken without that field, unless its absence would say that all is well
(:data:`_WORST`). What still cannot be read, or names another worker,
becomes a `ReportUnreadable` in its place: stored in the journal, acknowledged, and judged by the
core.

Limits: a report whose sequence cannot be read cannot be acknowledged. The report is skipped; the
acknowledgement of a later one covers it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs.clock import Clock
from jobs.events import (
    AgentEvent,
    Event,
    Heartbeat,
    Hello,
    RankBeat,
    RankFingerprint,
    RankSamples,
    Report,
    WorkerEvent,
)
from jobs.frames import FrameError
from monitors.failures import Failure, FailureClass
from orchestrator.controller.event_factory import EventFactory
from orchestrator.core.messages.version_events import ReportUnreadable

_EVENT: TypeAdapter[AgentEvent] = TypeAdapter(AgentEvent)
_MOST_TEXT = 2000
"""Characters of an unreadable thing that are kept."""


class ReportReader:
    """Reads the frames of one agent.

    Attributes:
        unreadable: Things that could not be read on this connection so far.
    """

    def __init__(self, hello: Hello, events: EventFactory, clock: Clock) -> None:
        self._hello, self._events, self._clock = hello, events, clock
        self.unreadable = 0

    def report(self, body: Mapping[str, Any]) -> Report:
        """A report; its events may contain `ReportUnreadable`.

        Raises:
            FrameError: There is no sequence by which the report could be acknowledged.
        """
        sequence = _number(body.get("sequence"))
        if sequence is None:
            raise FrameError(f"expected a sequence in a report, got {body.get('sequence')!r:.80}")
        number = self._attempt(body)
        samples, events = [], list[Event]()
        fingerprints = []
        for each in _list(body.get("fingerprints")):
            with contextlib.suppress(ValidationError):  # the next one is compared
                fingerprints.append(RankFingerprint.model_validate(each))
        for place, each in enumerate(_list(body.get("samples"))):
            try:
                samples.append(_rank_samples(each))
            except (ValidationError, FrameError) as error:
                events.append(self._unreadable(f"{sequence}.s{place}", number, each, error))
        for place, each in enumerate(_list(body.get("events"))):
            events += self._event(f"{sequence}.{place}", number, each)
        # Not validated again: agents have no event `ReportUnreadable`.
        read: dict[str, Any] = {"samples": tuple(samples), "events": tuple(events)}
        read["fingerprints"] = tuple(fingerprints)
        return Report.model_construct(sequence=sequence, attempt=number, **read)

    def _attempt(self, body: Mapping[str, Any]) -> int:
        number = _number(body.get("attempt"))
        return self._hello.attempt if number is None else number

    def _event(self, place: str, attempt: int, raw: object) -> list[Event]:
        """The event, or what stands for it."""
        if not isinstance(raw, Mapping):
            return [self._unreadable(place, attempt, raw, FrameError("expected a map"))]
        given, found = dict(raw), list[Event]()
        for name, value in self._origin(place, attempt).items():
            given.setdefault(name, value)
        # An id is ours to give: one that exists already would hide the event, here or elsewhere.
        given["id"] = f"{self._hello.worker}.{place}"
        try:
            event: WorkerEvent = _EVENT.validate_python(given, extra="ignore")
        except ValidationError as error:
            less = _without_faults(given, error, self._origin(place, attempt))
            if (less["run"], less["worker"]) != (self._hello.run, self._hello.worker):
                return [self._unreadable(place, attempt, {"not ours": raw}, error)]
            found.append(self._unreadable(place, attempt, raw, error))
            with contextlib.suppress(ValidationError):
                event = _EVENT.validate_python(less, extra="ignore")
                partly = found[0].model_copy(update={"partly": True})
                return [partly, event]
            return found
        if self._is_ours(event):
            return [event]
        wrong = FrameError(f"the event names {event.run}/{event.worker}, not the sender")
        # Without its kind: what somebody says of another worker is judged by nobody.
        return [self._unreadable(place, attempt, {"not ours": raw}, wrong)]

    def _origin(self, place: str, attempt: int) -> dict[str, Any]:
        """The fields that are known of any event of a report without reading it."""
        return {
            "id": f"{self._hello.worker}.{place}",
            "at": self._clock.now(),
            "run": self._hello.run,
            "worker": self._hello.worker,
            "attempt": attempt,
        }

    def _is_ours(self, event: WorkerEvent) -> bool:
        return (event.run, event.worker) == (self._hello.run, self._hello.worker)

    def _unreadable(self, place: str, attempt: int, raw: object, error: Exception) -> Event:
        self.unreadable += 1
        kind = raw.get("kind") if isinstance(raw, Mapping) else None
        return self._events.make(
            ReportUnreadable,
            # The same whenever the report is sent again: it is stored once.
            id=f"{self._hello.worker}.{place}.unreadable",
            actor=f"worker:{self._hello.worker}",
            run=self._hello.run,
            worker=self._hello.worker,
            attempt=attempt,
            event=kind[:80] if isinstance(kind, str) else "",
            body=repr(raw)[:_MOST_TEXT],
            reason=_in_one_line(error),
            first=self.unreadable == 1,
        )

    def heartbeat(self, body: Mapping[str, Any]) -> Heartbeat:
        """A sign of life, with those of its ranks that can be read."""
        beats = []
        for each in _list(body.get("beats")):
            with contextlib.suppress(ValidationError):
                beats.append(RankBeat.model_validate(each))
        time = body.get("time")
        return Heartbeat(
            attempt=self._attempt(body),
            time=time if isinstance(time, int | float) else 0.0,
            beats=tuple(beats),
        )


def _rank_samples(raw: object) -> RankSamples:
    """The samples of a rank; columns that a version does not have are filled with NaN.

    Raises:
        ValidationError, FrameError: There are no samples in it.
    """
    samples = RankSamples.model_validate(raw)
    count = len(samples.step)
    filled: dict[str, Any] = {}
    for name, kind in _COLUMNS.items():
        column = getattr(samples, name)
        if not column and count:
            filled[name] = [kind] * count
        elif len(column) != count:
            raise FrameError(f"{len(column)} values of {name} for {count} steps")
    metrics = {name: column for name, column in samples.metrics.items() if len(column) == count}
    if samples.expected_until and len(samples.expected_until) != count:
        filled["expected_until"] = []
    return samples.model_copy(update={**filled, "metrics": metrics})


_NAN = float("nan")
_COLUMNS: Mapping[str, Any] = {
    "batch": 0,
    "time": 0.0,
    "loss": None,
    "grad_norm": _NAN,
    "tokens": 0.0,
    "seconds": 0.0,
    "blocked_seconds": 0.0,
    "learning_rate": _NAN,
}
"""Columns of samples with what stands for a value that is missing."""


_WRONG = {"error": "what went wrong cannot be read"}
_EXIT = Failure(
    failure_class=FailureClass.UNKNOWN,
    reason="a rank ended, and how cannot be read",
    signature="unreadable exit",
)
_WORST: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("rank_exited", "failure"): {"failure": _EXIT},
    ("storage_trouble", "error"): _WRONG,
    # Not damaged: that would condemn a checkpoint.
    ("checkpoint_checked", "unreadable"): {"unreadable": True},
    ("checkpoint_checked", "error"): _WRONG,
    ("checkpoint_deleted", "error"): _WRONG,
    ("checkpoints_found", "error"): _WRONG,
    # No checkpoints would be an empty disk, and the run would begin anew.
    ("checkpoints_found", "shards"): {"error": "the checkpoints that it found cannot be read"},
}
"""Kind of event and field that cannot be read → values in its place.

For the fields whose absence would say that all is well. A test lists all others.
"""


def _without_faults(
    given: Mapping[str, Any], error: ValidationError, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """The event without the fields that cannot be read, or with the worst in their place.

    Its origin is known anyway.
    """
    # The first part of a place is the kind of the event, the second the field.
    faults = {str(fault["loc"][1]) for fault in error.errors() if len(fault["loc"]) > 1}
    less = {name: value for name, value in given.items() if name not in faults}
    less |= {name: value for name, value in origin.items() if name in faults}
    for name in faults:
        less |= _WORST.get((str(given.get("kind")), name), {})
    return less


def _in_one_line(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)[:_MOST_TEXT]
    faults = (f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
    return "; ".join(faults)[:_MOST_TEXT]


def _number(value: object) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return value if fits and isinstance(value, int) else None


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
