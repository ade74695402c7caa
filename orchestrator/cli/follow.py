"""Follows a run: a live screen on a terminal, plain lines elsewhere. Waits for an absent server."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import moment, say
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session
from orchestrator.cli.show_run import checkpoint_words
from orchestrator.core.model.states import TERMINAL_RUN_STATES
from orchestrator.core.text import visible, words

POLL_SECONDS = 0.5
PROGRESS_SECONDS = 10.0
"""Seconds between two plain lines that only report progress."""
DETACHED = 130
"""Exit code after Ctrl-C, as in shells: the outcome is not known, so no code of an outcome."""
OUTCOMES = {
    "succeeded": ExitCode.OK,
    "failed": ExitCode.FAILED,
    "cancelled": ExitCode.CANCELLED,
}
_OVER = {state.value for state in TERMINAL_RUN_STATES}
_STYLES = {"running": "green", "succeeded": "green", "failed": "bold red", "critical": "red"}
_SHOWN_INCIDENTS = 5

Detail = dict[str, Any]

if TYPE_CHECKING:
    from rich.console import Group


def to_the_end(here: Session, run: Detail) -> Detail:
    """Follow a run until it is over.

    Raises:
        typer.Exit: The person detached (Ctrl-C).
        UnreachableError: The control plane did not answer for five minutes.
    """
    try:
        if sys.stderr.isatty():
            return _live(here, run["id"])
        return _plain(here, run["id"])
    except KeyboardInterrupt:
        say(
            f"Detached; {run['name']} goes on. Follow it again: babysit watch {run['id']}; "
            f"end it: babysit cancel {run['id']}"
        )
        raise typer.Exit(DETACHED) from None


def details(here: Session, run: str) -> Iterator[Detail]:
    """The run, polled until it is over; an absent control plane is awaited for minutes."""
    while True:
        detail: Detail = here.patient.get(path("runs", run))
        yield detail
        if detail["state"] in _OVER:
            return
        here.wait(POLL_SECONDS)


def changes(before: Detail | None, after: Detail) -> list[str]:
    """The changes between two polls: restarts, incidents, state. Scripts parse these lines."""
    lines = []
    old = before or {"state": None, "reason": None, "restarts": [], "incidents": []}
    earlier = {restart["attempt"]: restart for restart in old["restarts"]}
    for restart in after["restarts"]:
        was = earlier.get(restart["attempt"])
        if was is None:
            lines.append(f"restart {restart['attempt']} ({restart['class']}): {restart['reason']}")
        if restart["recovered_at"] and not (was and was["recovered_at"]):
            lines.append(_recovered(restart))
    seen = {incident["id"] for incident in old["incidents"]}
    lines += [
        f"incident {incident['kind']} ({incident['severity']}): {incident['reason']}"
        for incident in reversed(after["incidents"])
        if incident["id"] not in seen
    ]
    if after["state"] != old["state"] or (
        after["reason"] != old["reason"] and after["state"] != "running"
    ):
        reason = after["reason"].removeprefix(f"{after['state']} ")
        lines.append(f"{after['state']}: {reason}" if reason else after["state"])
    return lines


def _stamp(here: Session, detail: Detail) -> str:
    """The time before a line, with its day once the run is older than one."""
    return moment(here.clock.now(), since=dt.datetime.fromisoformat(detail["submitted_at"]))


def _recovered(restart: Detail) -> str:
    seconds = sum(value for value in restart["seconds"].values() if value is not None)
    if restart["lost_steps"] is None:
        return f"recovered in {words(seconds)}; how many steps were lost is not known"
    resumed = f"step {restart['resumed_step']}" if restart["resumed_step"] else "the beginning"
    return f"recovered from {resumed} in {words(seconds)}, {restart['lost_steps']} steps lost"


def progress(detail: Detail) -> str:
    """`step 57, loss 2.31`."""
    loss = "" if detail["loss"] is None else f", loss {detail['loss']:.4g}"
    return f"step {detail['step']}{loss}" if detail.get("reports", True) else "step not known"


def _plain(here: Session, run: str) -> Detail:
    last: Detail | None = None
    spoken, step = here.clock.monotonic(), 0
    for detail in details(here, run):
        at = _stamp(here, detail)
        for line in changes(last, detail):
            say(f"{at} {detail['name']} {line}")
        if detail["step"] != step and here.clock.monotonic() - spoken >= PROGRESS_SECONDS:
            say(f"{at} {detail['name']} {progress(detail)}")
            spoken, step = here.clock.monotonic(), detail["step"]
        last = detail
    if last is None:
        raise CliError(f"there is no run {run}", ExitCode.NOT_FOUND)
    return last


def _live(here: Session, run: str) -> Detail:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    last: Detail | None = None
    with Live(console=console, auto_refresh=False, transient=False) as screen:
        for detail in details(here, run):
            for line in changes(last, detail):
                console.print(Text(visible(f"{_stamp(here, detail)} {line}")))
            screen.update(picture(detail), refresh=True)
            last = detail
    if last is None:
        raise CliError(f"there is no run {run}", ExitCode.NOT_FOUND)
    return last


def picture(detail: Detail) -> Group:
    """The live screen of one run."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column()
    state = detail["state"]
    facts.add_row("run", f"{detail['name']}  {detail['id']}")
    facts.add_row("state", Text(state, style=_STYLES.get(state, "yellow")))
    facts.add_row("why", Text(visible(detail["reason"] or "-")))
    facts.add_row("progress", progress(detail))
    nodes = ", ".join(detail["node_names"]) or "no node"
    facts.add_row("attempt", f"{detail['attempt']} on {nodes}")
    facts.add_row("checkpoint", checkpoint_words(detail["checkpoint"]))
    facts.add_row("restarts", str(detail["restarts_count"]))
    facts.add_row("ettr", "-" if detail["ettr"] is None else f"{detail['ettr']:.1%}")
    incidents = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("incident", "severity", "state", "remedy", "reason"):
        incidents.add_column(title, style="dim" if title == "reason" else None)
    for incident in detail["incidents"][:_SHOWN_INCIDENTS]:
        incidents.add_row(
            incident["kind"],
            Text(incident["severity"], style=_STYLES.get(incident["severity"], "")),
            incident["state"],
            incident["remedy"] or "-",
            Text(visible(incident["reason"])),
        )
    return Group(facts, incidents) if detail["incidents"] else Group(facts)
