"""A report as one picture (PNG): the loss with its events, the time, and the phases of restarts."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.core.text import visible, words
from orchestrator.core.views.phases import PHASES
from orchestrator.reports import report as content
from orchestrator.reports.ledger import MEANINGS, phases
from orchestrator.reports.report import Report
from orchestrator.reports.scales import loss_scale

_TONES = {"restart": "#0a6a78", "rollback": "#7a3db8", "incident": "#9a4b00"}
_BUCKETS = {
    "productive": "#2c8a4b", "lost": "#c6303a", "restoring": "#b98900", "starting": "#d1661b",
    "stalled": "#7a3db8", "unknown": "#7d8590", "checkpointing": "#2f6fd0", "queued": "#a7b0ba",
}  # fmt: skip
_PHASES = dict(
    zip(PHASES, ("#7a3db8", "#d1661b", "#a7b0ba", "#2f6fd0", "#b98900", "#c6303a"), strict=True)
)
_MOST_RESTARTS = 30
_LONGEST, _WIDEST = 70, 140
"""Characters of a name, and of a line, in the title."""


def draw(report: Report) -> bytes:
    """The picture, as the bytes of a PNG file."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    loss, time, restarts = figure.subplots(3, 1, height_ratios=[5, 1.1, 3])
    run = report.record.run
    title = f"{run.name[:_LONGEST]}: {run.state}\n{content.headline(report)[:_WIDEST]}"
    figure.suptitle(_plain(title), x=0.02, ha="left", fontsize=11)
    _draw_loss(loss, report)
    _draw_time(time, report)
    _draw_restarts(restarts, report)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _plain(text: str) -> str:
    """Text without the dollar signs that matplotlib reads as mathematics."""
    return visible(text).replace("$", r"\$")


def _say(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, _plain(text), ha="center", va="center", wrap=True)


def _draw_loss(axes: Axes, report: Report) -> None:
    if why := content.no_curve(report):
        _say(axes, why)
        return
    curve = report.curve
    if curve.band:
        steps, low, high = zip(*curve.band, strict=True)
        axes.fill_between(steps, low, high, color="#0b5cad", alpha=0.2, linewidth=0)
    for lines, colour, dashes in ((curve.undone, "#6a737d", ":"), (curve.lines, "#0b5cad", "-")):
        for line in lines:
            steps, losses = zip(*line, strict=True)
            marker = "." if len(line) == 1 else None
            axes.plot(steps, losses, dashes, color=colour, linewidth=1.2, marker=marker)
    for first, last in curve.lost:
        axes.axvspan(first - 0.5, last + 0.5, ymin=0.97, color="#b3202a")
    if loss_scale(curve.values, 0, 1).log:
        axes.set_yscale("log")
    for event in report.events:
        if event.step is not None:
            _mark(axes, event.number, event.step, _TONES[event.tone])
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)


def _mark(axes: Axes, number: int, step: int, colour: str) -> None:
    axes.axvline(step, color=colour, linestyle="--", linewidth=0.9)
    axes.annotate(
        str(number),
        (step, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=colour,
    )


def _draw_time(axes: Axes, report: Report) -> None:
    ledger = report.time
    if ledger.total <= 0:
        _say(axes, "No time has passed yet.")
        return
    left = 0.0
    for bucket in MEANINGS:
        seconds = ledger.buckets[bucket]
        if seconds > 0:
            label = f"{bucket} {words(seconds)} ({seconds / ledger.total:.0%})"
            axes.barh([0], [seconds], left=left, color=_BUCKETS[bucket], label=label)
            left += seconds
    axes.set_yticks([])
    axes.set_xlim(0, ledger.total)
    axes.set_xlabel(f"seconds of {words(ledger.total)}")
    axes.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _draw_restarts(axes: Axes, report: Report) -> None:
    events = report.restarts[-_MOST_RESTARTS:]
    if not events:
        _say(axes, "There was no restart.")
        return
    spent = [phases(event.restart) for event in events if event.restart is not None]
    left = [0.0] * len(events)
    for phase in PHASES:
        widths = [each[phase] for each in spent]
        axes.barh(range(len(events)), widths, left=left, color=_PHASES[phase], label=phase)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    labels = [_plain(f"{event.number}: {event.kind[:24]}") for event in events]
    axes.set_yticks(range(len(events)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds of a recovery by phase")
    axes.legend(ncols=6, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False)
    axes.grid(alpha=0.3, axis="x")
