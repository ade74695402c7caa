"""The contents of the screen's parts, from data of the API. All text of others is plain text."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.text import Text

from orchestrator.cli.screen.plot import plot
from orchestrator.cli.show_run import checkpoint_words
from orchestrator.core.text import named, visible, words

Data = dict[str, Any]
STYLES = {
    "running": "green", "succeeded": "green", "resolved": "green", "ready": "green",
    "recovering": "yellow", "starting": "yellow", "queued": "yellow", "held": "bold yellow",
    "warning": "yellow", "mitigating": "yellow", "cordoned": "yellow", "draining": "yellow",
    "failed": "bold red", "critical": "bold red", "open": "red", "bad": "red", "gone": "red",
}  # fmt: skip
RUNS = ("name", "state", "step", "loss", "restarts", "ettr", "why")
RANKS = ("node", "ranks", "agent", "node is", "failure")
INCIDENTS = ("at (UTC)", "kind", "severity", "state", "remedy", "reason")
_SHOWN = 4
"""Incidents of the overview."""


def plain(value: object, style: str = "") -> Text:
    """Text in one line, never markup."""
    return Text(visible(str(value)).replace("\n", " "), style=style, no_wrap=True)


def run_row(run: Data) -> list[Text]:
    """A run in the table of runs."""
    return [
        plain(run["name"]),
        plain(run["state"], STYLES.get(run["state"], "")),
        plain(f"{run['step']:,}" if run.get("reports", True) else "-"),
        plain("-" if run["loss"] is None else f"{run['loss']:.4g}"),
        plain(run["restarts_count"]),
        plain("-" if run["ettr"] is None else f"{run['ettr']:.0%}"),
        plain(run["reason"]),
    ]


def rank_rows(ranks: Data | None) -> list[list[Text]]:
    """The nodes of the newest attempt, with their ranks; failures first."""
    seats = sorted((ranks or {}).get("seats", ()), key=lambda seat: not seat["failures"])
    return [
        [
            plain(seat["node"]),
            plain(seat["ranks"]),
            plain(seat["worker_state"] or "ended", STYLES.get(seat["worker_state"] or "", "")),
            plain(seat["node_state"] or "gone", STYLES.get(seat["node_state"] or "gone", "")),
            plain("; ".join(seat["failures"]) or "-", "red" if seat["failures"] else ""),
        ]
        for seat in seats
    ]


def incident_row(incident: Data) -> list[Text]:
    """An incident in the table of incidents."""
    return [
        plain(incident["opened_at"][:19].replace("T", " ")),
        plain(incident["kind"]),
        plain(incident["severity"], STYLES.get(incident["severity"], "")),
        plain(incident["state"], STYLES.get(incident["state"], "")),
        plain(incident["remedy"] or "-"),
        plain(incident["reason"]),
    ]


def curve(run: Data | None, series: Data | None, width: int, height: int) -> Text:
    """The loss curve, with restarts marked."""
    if not run:
        return Text("no run" if run is None else "reading …")
    points = list(zip(series["step"], series["loss"], strict=True)) if series else []
    marks = [each["resumed_step"] for each in run["restarts"] if each["resumed_step"] is not None]
    lines = plot(points, width, height, marks)
    if not lines:
        lost = bool(points) and all(loss is None for _, loss in points)
        return Text("the loss is not finite, or not reported" if lost else "no loss yet")
    return Text("\n".join(lines), no_wrap=True)


def facts(run: Data | None) -> Group | Text:
    """State, progress, checkpoint and newest incidents of a run."""
    if not run:
        return Text("There is no run.")
    state = Text.assemble((run["state"], STYLES.get(run["state"], "")), f"  {visible(run['name'])}")
    loss = "" if run["loss"] is None else f", loss {run['loss']:.4g}"
    ettr = "-" if run["ettr"] is None else f"{run['ettr']:.1%}"
    lines = [
        state,
        plain(run["reason"], "dim"),
        Text(f"step {run['step']:,}{loss}" if run.get("reports", True) else "step not known"),
        Text(f"attempt {run['attempt']} on {visible(named(run['node_names'], 3)) or 'no node'}"),
        Text(f"checkpoint {checkpoint_words(run['checkpoint'])}"),
        Text(f"{run['restarts_count']} restarts, {ettr} of the time productive"),
    ]
    if run["suspect"] is not None:
        lines.append(Text(f"suspect: {visible(run['suspect']['evidence'])}", style="bold yellow"))
    for incident in run["incidents"][:_SHOWN]:
        style = STYLES.get(incident["severity"], "")
        kind = (f"{incident['kind']} ", style)
        lines.append(
            Text.assemble(kind, (f"{incident['state']}: ", "dim"), visible(incident["reason"]))
        )
    return Group(*lines)


def away(seconds: float) -> str:
    """The banner while the server does not answer."""
    return f" The server has not answered for {words(seconds)}. Runs go on. Trying again … "
