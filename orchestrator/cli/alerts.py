"""`babysit alerts`: whether notices reach people."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from typing import Annotated, Any

import typer
from ulid import ULID

from jobs.clock import Clock
from monitors.types import FindingKind, Severity
from orchestrator.alerts.factory import make_channel
from orchestrator.alerts.port import CountedNotifier, DictMemory, RunningChannel
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import Column, Format, FormatOption, emit, text
from orchestrator.cli.session import session
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.states import IncidentState
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.errors import BabysitError
from orchestrator.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Notices to people.")
_SENT = [
    Column("SENT", text("sent")),
    Column("RESULT", text("result")),
    Column("DETAIL", text("detail")),
]


@app.callback()
def alerts() -> None:
    """Group commands, though there is one so far."""


@app.command("test")
def send_test(
    ctx: typer.Context,
    channel: Annotated[
        str, typer.Argument(help="slack, webhook, pagerduty, email or log; set up by BABYSIT_….")
    ],
    form: FormatOption = Format.TABLE,
) -> None:
    """Send one of each through a channel: an incident, a notice, the end of the incident.

    The settings are those of this environment; no server is needed. All three say that they are a
    test. Exit code 1 if one does not arrive.

    For example:

        babysit alerts test slack
    """
    here = session(ctx)
    try:
        rows = asyncio.run(_send(here.settings, channel, here.clock))
    except BabysitError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    emit(rows, _SENT, form, name="sent")
    if any(row["result"] != "delivered" for row in rows):
        raise typer.Exit(1)


async def _send(settings: Settings, channel: str, clock: Clock) -> list[dict[str, Any]]:
    notifier = make_channel(settings, channel)
    if isinstance(notifier, RunningChannel):
        await notifier.start(DictMemory(), clock)
    counted, rows = CountedNotifier(notifier), []
    try:
        for name, item in _one_of_each(clock.now()):
            result, detail = "delivered", ""
            try:
                await (counted.notify(item) if isinstance(item, Notify) else counted.update(item))
            except Exception as error:  # noqa: BLE001 (whatever a channel raises is the answer)
                result, detail = "failed", str(error) or type(error).__name__
            rows.append({"sent": name, "result": result, "detail": detail})
    finally:
        if isinstance(notifier, RunningChannel):
            await notifier.close()
    return rows


def _one_of_each(now: dt.datetime) -> list[tuple[str, Notify | IncidentUpdate]]:
    """An incident, a notice about it, and its end."""
    id_ = str(ULID())
    why = "this is a test of the alert channel; nothing has happened"
    incident = Incident(
        id=f"{id_}-incident",
        run=id_,
        attempt=1,
        kind=FindingKind.HANG,
        severity=Severity.CRITICAL,
        subject="rank 0 on node-1",
        onset_step=100,
        remedy=Remedy.RESTART,
        reason=why,
        opened_at=now,
    )
    opened = IncidentUpdate(
        id=f"{id_}.1",
        cause=f"{id_}-1",
        run=id_,
        reason=why,
        at=now,
        run_name="alerts-test",
        project="default",
        queue="default",
        channel=None,
        step=100,
        node="node-1",
        rank=0,
        incident=incident,
    )
    notice = Notify(
        id=f"{id_}.2",
        cause=f"{id_}-2",
        run=id_,
        reason=why,
        severity=Severity.CRITICAL,
        text=f"alerts-test: {why}",
        incident=incident.id,
        incident_kind=str(incident.kind),
        attempt=1,
        run_name="alerts-test",
    )
    over = dataclasses.replace(
        incident,
        state=IncidentState.RESOLVED,
        resolved_at=now,
        evidence={"resolved": "the test is over"},
    )
    ended = {"id": f"{id_}.3", "cause": f"{id_}-3", "incident": over, "lost_seconds": 0.0}
    later = {"at": now + dt.timedelta(seconds=1)}
    resolved = opened.model_copy(update={**ended, **later})
    return [("incident", opened), ("notice", notice), ("end", resolved)]
