"""Plots of a simulation report: ETTR, runs, disturbances and lost GPU time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

Data = dict[str, Any]
_DAY = 86_400.0
_STATES = (("running", "tab:green"), ("recovering", "tab:orange"), ("queued", "tab:gray"))
_BUCKETS = {
    "lost": "tab:red",
    "starting": "tab:orange",
    "restoring": "gold",
    "stalled": "tab:purple",
    "checkpointing": "tab:blue",
}
_MAX_CAUSES = 12


def formats() -> list[str]:
    """Supported suffixes of plot files, sorted."""
    return sorted(FigureCanvasBase.get_supported_filetypes())


def draw(outcome: Data, path: Path) -> None:
    """Draw one report to `path`; its suffix selects the format, its folder is created.

    Raises:
        ValueError: matplotlib does not support the suffix.
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(13, 9), layout="constrained")
    ettr, runs, marks, losses = figure.subplots(4, 1, height_ratios=[3, 2, 3, 3])
    _draw_ettr(ettr, outcome)
    _draw_runs(runs, outcome)
    _draw_marks(marks, outcome)
    for axes in (ettr, runs, marks):
        axes.set_xlim(0, outcome["days"])
        axes.grid(alpha=0.3)
    _draw_losses(losses, outcome)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_ettr(axes: Axes, outcome: Data) -> None:
    points = [p for p in outcome["over_time"] if p["ettr"] is not None]
    axes.plot([p["day"] for p in points], [p["ettr"] for p in points], color="tab:green")
    if outcome["expected_ettr"] is not None:
        label = f"closed form of the largest run {outcome['expected_ettr']:.2%}"
        axes.axhline(outcome["expected_ettr"], color="black", linestyle=":", label=label)
        axes.legend(loc="lower right")
    for freeze in outcome["freezes"]:
        end = freeze["end_seconds"] or outcome["days"] * _DAY
        axes.axvspan(freeze["begin_seconds"] / _DAY, end / _DAY, color="tab:red", alpha=0.2)
    low = min((p["ettr"] for p in points[len(points) // 20 :]), default=0.0)
    axes.set_ylim(max(0.0, low - 0.02), 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("ETTR so far")
    ettr = "nothing was allocated" if outcome["ettr"] is None else f"ETTR {outcome['ettr']:.2%}"
    axes.set_title(
        f"{outcome['scenario']} (seed {outcome['seed']}): {ettr},"
        f" {outcome['interruptions']} interruptions, {outcome['nodes']:,} nodes"
    )


def _draw_runs(axes: Axes, outcome: Data) -> None:
    days = [point["day"] for point in outcome["over_time"]]
    columns = [[point[state] for point in outcome["over_time"]] for state, _ in _STATES]
    labels, colours = [s for s, _ in _STATES], [colour for _, colour in _STATES]
    axes.stackplot(days, columns, labels=labels, colors=colours, step="pre", alpha=0.7)
    axes.set_ylabel("runs")
    axes.legend(loc="upper right", ncols=3)


def _draw_marks(axes: Axes, outcome: Data) -> None:
    """One row per cause, the most frequent on top, with a mark for each disturbance."""
    counts = Counter(mark["by"] for mark in outcome["disturbances"])
    causes = [cause for cause, _ in counts.most_common(_MAX_CAUSES)][::-1]
    rows = {cause: row for row, cause in enumerate(causes)}
    shown = [mark for mark in outcome["disturbances"] if mark["by"] in rows]
    axes.scatter(
        [mark["at_seconds"] / _DAY for mark in shown],
        [rows[mark["by"]] for mark in shown],
        marker="|",
        s=60,
        color="tab:red",
    )
    axes.set_yticks(range(len(causes)), [f"{cause} ({counts[cause]})" for cause in causes])
    axes.set_ylim(-0.7, max(1, len(causes)) - 0.3)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("days")


def _draw_losses(axes: Axes, outcome: Data) -> None:
    """The most expensive causes, split by bucket; all further causes share one bar."""
    rows = _with_remainder(outcome["losses"])[::-1]
    left = [0.0] * len(rows)
    for bucket, colour in _BUCKETS.items():
        widths = [row["by_bucket"].get(bucket, 0.0) for row in rows]
        axes.barh(range(len(rows)), widths, left=left, color=colour, label=bucket)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [row["cause"] for row in rows])
    axes.tick_params(axis="y", labelsize=8)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=2))
    axes.set_xlabel("share of the allocated GPU time that was lost")
    axes.legend(loc="lower right", ncols=len(_BUCKETS))
    axes.grid(alpha=0.3, axis="x")


def _with_remainder(losses: list[Data]) -> list[Data]:
    """The rows that fit the plot; the last one sums up all others."""
    if len(losses) <= _MAX_CAUSES:
        return losses
    shown, rest = losses[: _MAX_CAUSES - 1], losses[_MAX_CAUSES - 1 :]
    together = {bucket: sum(r["by_bucket"].get(bucket, 0.0) for r in rest) for bucket in _BUCKETS}
    return [*shown, {"cause": f"{len(rest)} others", "by_bucket": together}]
