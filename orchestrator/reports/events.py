"""The numbered events of a run: its restarts, rollbacks and incidents in order of time. Pure."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable

from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.text import counted, words
from orchestrator.core.views.models import IncidentView, RestartView
from orchestrator.reports.record import RunRecord

_ROLLBACKS = frozenset({Remedy.ROLL_BACK.value, Remedy.ROLL_BACK_AND_SKIP.value})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """Something that happened to a run: an incident, a restart, or both."""

    number: int
    """From 1; the same number is on the curve and in the lists."""
    at: dt.datetime
    step: int | None
    """Where it is on the curve; None: not known."""
    incident: IncidentView | None
    restart: RestartView | None

    @property
    def kind(self) -> str:
        """The kind in words, such as `loss spike` or `restart`."""
        if self.incident is not None:
            return self.incident.kind.replace("_", " ")
        return self.restart.failure_class.replace("_", " ") if self.restart else ""

    @property
    def tone(self) -> str:
        """`rollback`, `restart`, or `incident` for one that stopped nothing."""
        if self.restart is None:
            return "incident"
        back = self.restart.remedy in _ROLLBACKS or self.restart.failure_class == "rollback"
        return "rollback" if back else "restart"

    @property
    def severity(self) -> str:
        """`info`, `warning` or `critical`; empty for a restart that a person asked for."""
        return self.incident.severity if self.incident else ""

    @property
    def reason(self) -> str:
        """The finding or failure, as a sentence."""
        if self.incident is not None:
            return self.incident.reason
        return self.restart.reason if self.restart else ""

    @property
    def remedy(self) -> str:
        """The decision, in words."""
        if self.incident is not None and self.incident.remedy:
            return self.incident.remedy
        return self.restart.remedy if self.restart else "none"

    @property
    def where(self) -> str:
        """`rank 1 on node-2`; empty if it is not known."""
        if self.incident is not None and self.incident.subject:
            return self.incident.subject
        if self.restart is None:
            return ""
        rank, node = self.restart.rank, self.restart.node
        said = [f"rank {rank}" if rank is not None else "", node or ""]
        return " on ".join(filter(None, said))

    @property
    def cost(self) -> str:
        """`7.4 s, 13 steps computed again`; empty for what stopped nothing."""
        restart = self.restart
        if restart is None:
            return ""
        if restart.recovered_at is None:
            return "no new step followed"
        seconds = sum(value or 0.0 for value in restart.seconds.values())
        lost = restart.lost_steps
        steps = "an unknown number of steps" if lost is None else counted(lost, "step")
        return f"{words(seconds)}, {steps} computed again"


def run_events(record: RunRecord) -> list[RunEvent]:
    """All events of a run, oldest first."""
    by_id = {incident.id: incident for incident in record.incidents}
    pairs = [(by_id.get(restart.incident or ""), restart) for restart in record.run.restarts]
    paired = {incident.id for incident, _ in pairs if incident is not None}
    alone: Iterable[tuple[IncidentView | None, RestartView | None]] = (
        (incident, None) for incident in record.incidents if incident.id not in paired
    )
    found = [
        (restart.detected_at if restart else incident.opened_at, incident, restart)  # type: ignore[union-attr]
        for incident, restart in [*pairs, *alone]
    ]
    found.sort(key=lambda each: each[0])
    return [
        RunEvent(
            number=number, at=at, step=_step(record, incident, restart),
            incident=incident, restart=restart,
        )
        for number, (at, incident, restart) in enumerate(found, 1)
    ]  # fmt: skip


def _step(
    record: RunRecord, incident: IncidentView | None, restart: RestartView | None
) -> int | None:
    """The step of the first sign of an incident, or the last one before a restart.

    Where neither is recorded, the newest step at that time.
    """
    if incident is not None and incident.onset_step is not None:
        return incident.onset_step
    if restart is not None and restart.resumed_step is not None and restart.lost_steps is not None:
        return restart.resumed_step + restart.lost_steps
    at = restart.detected_at if restart else incident.opened_at if incident else record.now
    curve = record.curve
    before = [s for s, t in zip(curve.step, curve.time, strict=True) if t <= at.timestamp()]
    if before:
        return before[-1]
    number = restart.attempt - 1 if restart else incident.attempt if incident else 0
    return next((each.step for each in record.attempts if each.number == number), None)
