"""Records of runs for reports, as the API would give them."""

from __future__ import annotations

import dataclasses
from typing import Any

from monitors.failures import Cause, FailureClass
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import Attempt, Seat
from orchestrator.core.model.states import AttemptState, RunState
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.views import build, logbook
from orchestrator.core.views.models import SeriesView
from orchestrator.reports.record import RunRecord
from tests.plane import RUN_ID, at, attempts, checkpoint, finished_run, incident, spec


def series(losses: list[float | None], *, first: int = 1, **columns: Any) -> SeriesView:
    """A curve with a point for each step, a second apart; None: not finite."""
    count = len(losses)
    return SeriesView(
        **{
            "step": list(range(first, first + count)),
            "attempt": [1] * count,
            "loss": losses,
            "loss_min": losses,
            "loss_max": losses,
            "missing": [int(loss is None) for loss in losses],
            "grad_norm": [1.0] * count,
            "seconds": [1.0] * count,
            "time": [at(step).timestamp() for step in range(first, first + count)],
            **columns,
        }
    )


def record(**fields: Any) -> RunRecord:
    """The finished run of `tests.plane`, with 200 losses.

    Keywords that are fields of a record replace them; `entities` replaces its attempts, `opened`
    its incidents, `stored` its checkpoints, and all others are fields of the run.
    """
    tries = fields.pop("entities", attempts())
    opened = fields.pop("opened", [incident()])
    stored = fields.pop("stored", [checkpoint(60), checkpoint(40)])
    own = {each.name for each in dataclasses.fields(RunRecord)}
    changes = {key: fields.pop(key) for key in list(fields) if key in own}
    run = finished_run(**fields)
    now = at(500)
    return dataclasses.replace(
        RunRecord(
            run=build.run_detail(run, tries, opened, stored, now=now, newest=(run.best_step, 2.5)),
            now=now,
            attempts=[build.attempt_view(each) for each in tries],
            incidents=[build.incident_view(each) for each in opened],
            checkpoints=[build.checkpoint_view(each, now) for each in stored],
            curve=series([5.0 / step + 2 for step in range(1, 201)]),
            story=logbook.story(run, tries, opened, [], now=now),
        ),
        **changes,
    )


def pending() -> RunRecord:
    """A run that waits for its first nodes."""
    fields = {"attempt": 0, "best_step": 0, "started_at": None, "ended_at": None}
    waiting = Ledger(bucket=Bucket.QUEUED, since=at(0))
    return record(
        entities=[], opened=[], stored=[], ledger=waiting, curve=series([]), state=RunState.QUEUED,
        reason="needs 4 nodes; 2 are free", **fields,
    )  # fmt: skip


def crashes(
    count: int, every: float, lost: int = 90, moved: bool = False, ranks: int = 2
) -> tuple[list[Attempt], dict[str, Any]]:
    """Attempts of a run that died every so many seconds and lost so many steps each time.

    A step takes a second, a recovery 10 s, a save 0.2 s; saves come every 100 steps. Returns the
    attempts, and fields of the run.
    """
    tries = [_attempt(1, 0.0, every, None, moved=moved, ranks=ranks)]
    for number in range(2, count + 2):
        died = (number - 1) * every
        restart = _restart(number, died, lost)
        tries.append(_attempt(number, died, died + every, restart, moved=moved, ranks=ranks))
    whole = (count + 1) * every
    again = float(count * lost)
    steps = int(whole - count * 10 - again)
    saving = 0.2 * (steps + count * lost) / 100
    seconds = {
        Bucket.STARTING: count * 10.0,
        Bucket.LOST: again,
        Bucket.CHECKPOINTING: saving,
        Bucket.PRODUCTIVE: whole - count * 10.0 - again - saving,
    }
    fields = {
        "attempt": count + 1,
        "best_step": steps,
        "started_at": at(0),
        "ended_at": at(whole),
        "ledger": Ledger(bucket=Bucket.QUEUED, since=at(whole), seconds=seconds),
        "spec": spec(checkpoint={"directory": "/c", "every_steps": 100, "good_after_steps": 10}),
    }
    return tries, fields


def _restart(number: int, died: float, lost: int) -> Restart:
    return Restart(
        attempt=number,
        cause=Cause.INFRASTRUCTURE,
        failure_class=FailureClass.SIGNAL,
        reason="killed by SIGKILL",
        remedy=Remedy.RETRY,
        node="node-1",
        rank=0,
        failed_at=at(died),
        detected_at=at(died + 1),
        stopped_at=at(died + 2),
        placed_at=at(died + 2),
        ready_at=at(died + 8),
        restored_at=at(died + 10),
        recovered_at=at(died + 10 + lost),
        best_step=int(died),
        resumed_step=max(0, int(died) - lost),
    )


def _attempt(
    number: int, begin: float, end: float, restart: Restart | None, *, moved: bool, ranks: int
) -> Attempt:
    first = f"spare-{number}" if moved and number > 1 else "node-1"
    per_node = max(1, ranks // 375)
    nodes = [first, *(f"node-{place}" for place in range(2, ranks // per_node + 1))]
    seats = tuple(
        Seat(
            worker=f"w{place}",
            node=node,
            ranks=tuple(range(place * per_node, (place + 1) * per_node)),
        )
        for place, node in enumerate(nodes)
    )
    return Attempt(
        run=RUN_ID, number=number, state=AttemptState.ENDED, seats=seats, world_size=ranks,
        restart=restart, step=int(end), started_at=at(begin), ended_at=at(end),
    )  # fmt: skip
