"""A run as a picture.

Its loss and its steps over time, with every restart, rollback and incident marked.
"""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Detail = dict[str, Any]
_COLOURS = {"anomaly": "tab:purple", "infrastructure": "tab:red", "user": "tab:orange"}
_OTHER_COLOUR = "tab:gray"
_CLIP = 20.0
"""Losses above this many times the median are drawn at the edge, so that the curve stays readable.

"""


def draw(detail: Detail, attempts: dict[int, Detail], path: Path) -> None:
    """Draw one run.

    Args:
        detail: As `show RUN -o json` gives it.
        attempts: Samples of each attempt, by number (`step`, `loss`, `time`).
        path: Where the picture goes; the suffix says the format.
    """
    begin = dt.datetime.fromisoformat(detail["submitted_at"]).timestamp()
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    loss, step = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for number, series in sorted(attempts.items()):
        _draw_attempt(loss, step, number, series, begin)
    _limit_losses(loss, attempts)
    for restart in detail["restarts"]:
        _mark_restart(loss, step, restart, begin)
    _mark_incidents(loss, detail["incidents"], begin)
    ettr = "" if detail["ettr"] is None else f", {detail['ettr']:.0%} of the time productive"
    loss.set_title(f"{detail['name']}: {detail['state']}, {len(detail['restarts'])} restarts{ettr}")
    loss.set_ylabel("loss")
    loss.grid(alpha=0.3)
    step.set_ylabel("step")
    step.set_xlabel("seconds since submitted")
    step.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_attempt(loss: Axes, step: Axes, number: int, series: Detail, begin: float) -> None:
    times = [time - begin for time in series["time"]]
    losses = [math.nan if value is None else value for value in series["loss"]]
    (line,) = loss.plot(times, losses, linewidth=1.2)
    step.plot(times, series["step"], color=line.get_color(), linewidth=1.8)
    if times:
        middle = len(times) // 2
        step.annotate(
            f"attempt {number}",
            (times[middle], series["step"][middle]),
            xytext=(6, -4),
            textcoords="offset points",
            fontsize=8,
            color=line.get_color(),
        )


def _limit_losses(loss: Axes, attempts: dict[int, Detail]) -> None:
    finite = sorted(v for s in attempts.values() for v in s["loss"] if v is not None)
    if finite and finite[-1] > _CLIP * finite[len(finite) // 2]:
        loss.set_yscale("log")


def _mark_restart(loss: Axes, step: Axes, restart: Detail, begin: float) -> None:
    colour = _COLOURS.get(restart["cause"], _OTHER_COLOUR)
    failed = dt.datetime.fromisoformat(restart["detected_at"]).timestamp() - begin
    label = f"{restart['class'].replace('_', ' ')}: {restart['remedy']}"
    for axes in (loss, step):
        axes.axvline(failed, color=colour, linestyle="--", linewidth=1)
    loss.annotate(
        label,
        (failed, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, -4),
        textcoords="offset points",
        rotation=90,
        va="top",
        fontsize=8,
        color=colour,
    )
    if restart["recovered_at"]:
        recovered = dt.datetime.fromisoformat(restart["recovered_at"]).timestamp() - begin
        for axes in (loss, step):
            axes.axvspan(failed, recovered, color=colour, alpha=0.08, linewidth=0)


def _mark_incidents(loss: Axes, incidents: list[Detail], begin: float) -> None:
    """Every incident as a small mark on the lower edge.

    Those with a restart carry its label already.
    """
    for incident in incidents:
        at = dt.datetime.fromisoformat(incident["opened_at"]).timestamp() - begin
        colour = {"critical": "tab:red", "warning": "tab:orange"}.get(
            incident["severity"], "tab:blue"
        )
        loss.plot(
            [at],
            [0.02],
            marker="^",
            color=colour,
            transform=loss.get_xaxis_transform(),
            clip_on=False,
        )
