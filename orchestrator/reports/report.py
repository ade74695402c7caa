"""A report's content, made once and rendered as HTML, Markdown or a picture. Pure."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from orchestrator.core.text import counted, words
from orchestrator.core.views.models import CheckpointView
from orchestrator.reports.curve import Curve, curve_of
from orchestrator.reports.events import RunEvent, run_events
from orchestrator.reports.ledger import TimeByCause, time_by_cause
from orchestrator.reports.node_map import NodeMap, node_map, ranges
from orchestrator.reports.record import RunRecord
from orchestrator.reports.what_if import WhatIf

MOST_EVENTS = 200
"""Restarts, and incidents, in the lists of a report: the newest."""
MOST_CHECKPOINTS = 40
_LOADABLE = frozenset({"complete", "verified", "good"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a report says."""

    record: RunRecord
    events: Sequence[RunEvent]
    curve: Curve
    time: TimeByCause
    nodes: NodeMap
    what_if: WhatIf
    version: str
    """Of babysit."""

    @property
    def restarts(self) -> list[RunEvent]:
        """Events that are restarts, oldest first."""
        return [event for event in self.events if event.restart is not None]

    @property
    def incidents(self) -> list[RunEvent]:
        """Events that are incidents, oldest first."""
        return [event for event in self.events if event.incident is not None]

    @property
    def loadable(self) -> list[CheckpointView]:
        """Checkpoints that a restart could load, newest first."""
        return [
            each
            for each in self.record.checkpoints
            if each.trust in _LOADABLE and not (each.superseded or each.doubted or each.deleting)
        ]


def make(record: RunRecord, what_if: WhatIf, version: str) -> Report:
    """The report of a run."""
    return Report(
        record=record,
        events=run_events(record),
        curve=curve_of(record),
        time=time_by_cause(record),
        nodes=node_map(record),
        what_if=what_if,
        version=version,
    )


def facts(report: Report) -> list[tuple[str, str]]:
    """The figures that are asked for first."""
    run, record = report.record.run, report.record
    lost = sum(restart.lost_steps or 0 for restart in run.restarts)
    unknown = any(
        not run.reports or (each.lost_steps is None and each.recovered_at) for each in run.restarts
    )
    world = record.attempts[-1].world_size if record.attempts else 0
    ranks = f", {world:,} {'rank' if world == 1 else 'ranks'}" if world else ""
    return [
        ("step", f"{run.step:,}" if run.reports else "not known"),
        ("loss", "none" if run.loss is None else f"{run.loss:.4g}"),
        ("wall time", words(record.wall_seconds)),
        ("productive", "not known" if run.ettr is None else f"{run.ettr:.1%}"),
        ("restarts", f"{len(run.restarts)}"),
        ("steps computed again", "not known" if unknown else f"{lost:,}"),
        ("nodes", f"{len(run.node_names) or run.nodes}{ranks}"),
        ("attempts", f"{run.attempt}"),
    ]


def about(report: Report) -> list[tuple[str, str]]:
    """The identity of a run: owner, queue, command, times."""
    run = report.record.run
    rows = [
        ("id", run.id),
        ("owner", run.owner or "not named"),
        ("project, queue, priority", f"{run.project}, {run.queue}, {run.priority}"),
        ("command", " ".join(run.spec.command)),
        ("submitted", f"{run.submitted_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("ended", f"{run.ended_at:%Y-%m-%d %H:%M:%S} UTC" if run.ended_at else "not yet"),
    ]
    if run.skip_batches:
        skipped = ", ".join(f"{first} to {last}" for first, last in run.skip_batches)
        rows.append(("batches left out", skipped))
    return rows


def headline(report: Report) -> str:
    """The run in one sentence, as its logbook ends."""
    story = report.record.story
    return story[-1].text if story else report.record.run.reason


def checkpoints_in_words(report: Report) -> str:
    """How many checkpoints there are, and from which steps."""
    checkpoints = report.record.checkpoints
    if not checkpoints:
        return "No checkpoint of the run is stored."
    counts = Counter(each.trust for each in checkpoints)
    said = ", ".join(f"{count} {trust}" for trust, count in counts.most_common())
    steps = ranges(each.step for each in report.loadable[:10])
    newest = f" The newest that can be loaded: steps {steps}." if steps else ""
    return f"{counted(len(checkpoints), 'checkpoint')} stored: {said}.{newest}"


def spares_in_words(report: Report) -> str:
    """The spares of the cluster beside the number that its failures call for; empty: not known."""
    spares = report.record.spares
    return f"Spares of the cluster when this report was made: {spares}." if spares else ""


def notes_of(checkpoint: CheckpointView) -> str:
    """Marks of a checkpoint, such as `pinned`; empty: none."""
    notes = [
        ("pinned", checkpoint.pinned),
        ("superseded", checkpoint.superseded),
        ("doubted", checkpoint.doubted),
        ("deletion decided", checkpoint.deleting),
    ]
    said = [note for note, holds in notes if holds]
    return "; ".join([*said, *([checkpoint.reason] if checkpoint.reason else [])])


def size(count: float) -> str:
    """`512 B`, `1.5 KiB`, `2.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def no_curve(report: Report) -> str:
    """Why there is no curve; empty: there is one."""
    if report.record.curve.step and (report.curve.values or report.curve.lost):
        return ""
    run = report.record.run
    if run.attempt == 0:
        return f"The run has not started: {run.reason or 'it is ' + run.state}."
    if not report.record.curve.step:
        return (
            "No sample of the run is stored: its script reports none, it ended before the first, "
            "or they were removed after its end, as retention does."
        )
    return "The script reports steps, and no loss."
