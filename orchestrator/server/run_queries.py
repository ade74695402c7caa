"""Reads from the run database what a view needs."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence

from orchestrator.alerts.rules import routed_channel
from orchestrator.core.model.entities import Run
from orchestrator.core.model.states import TERMINAL_RUN_STATES, RunState
from orchestrator.core.views.build import run_detail, run_view
from orchestrator.core.views.models import RunDetail, RunView
from orchestrator.database.port import JournalEntry
from orchestrator.server.context import Context

LIVE = tuple(state for state in RunState if state not in TERMINAL_RUN_STATES)
_PAGE = 1000
_METRIC_STEPS = 2048


async def newest_sample(here: Context, run: Run) -> tuple[int, float | None] | None:
    """Step and loss of the newest sample; None before the first."""
    if run.attempt == 0:
        return None
    tail = await here.store.sample_tail(run.id, count=1)
    if not tail or not tail[-1][1].step:
        return None
    columns = tail[-1][1]
    return columns.step[-1], columns.loss[-1]


async def newest_metrics(here: Context, run: Run) -> dict[str, float]:
    """The newest value of each named metric of the last `_METRIC_STEPS` steps."""
    if run.attempt == 0:
        return {}
    newest = await newest_sample(here, run)
    first = max(0, (newest[0] if newest else 0) - _METRIC_STEPS)
    series = await here.store.metrics(run.id, points=1, first_step=first)
    newest_values = {name: row[-1] for name, row in series.metrics.items() if row}
    return {name: value for name, value in newest_values.items() if math.isfinite(value)}


async def line(here: Context, run: Run) -> RunView:
    """A run in a line."""
    return (await lines(here, [run]))[0]


async def lines(here: Context, runs: Sequence[Run]) -> list[RunView]:
    """Runs in a line each, in a fixed number of queries."""
    numbers, now = await here.store.run_numbers(runs), here.clock.now()
    return [
        run_view(run, now, restarts=found.restarts, step=found.step, loss=found.loss)
        for run in runs
        for found in [numbers[run.id]]
    ]


async def detail(here: Context, run: Run) -> RunDetail:
    """A run in full."""
    found = run_detail(
        run,
        await here.store.attempts(run.id),
        await here.store.incidents(run.id),
        await here.store.checkpoints(run.id),
        now=here.clock.now(),
        newest=await newest_sample(here, run),
    )
    metrics, alerts = await newest_metrics(here, run), alerts_of(here, run)
    blind = blind_sources(here, found.node_names if run.ended_at is None else [])
    return found.model_copy(update={"metrics": metrics, "alerts": alerts, "blind": blind})


def blind_sources(here: Context, nodes: Sequence[str]) -> list[str]:
    """Hardware sources of nodes that see nothing, in sentences; none on a server without a lead."""
    return here.hardware.blind_words(nodes) if here.controller.is_leader else []


def alerts_of(here: Context, run: Run) -> str:
    """Why notices about a run do not arrive, as far as this server knows; empty: they do."""
    trouble, default = here.controller.alerts_trouble, here.settings.slack_channel
    places = {run.spec.notify.slack or _routed(here, run) or default}
    if not places.isdisjoint(trouble):
        places.add(default)  # where its messages go instead
    places |= {"token", "buttons", *here.settings.alerts.split(",")}
    return ". ".join(why for place, why in trouble.items() if place in places)


def _routed(here: Context, run: Run) -> str:
    rules, spec = here.settings.alerts_rules, run.spec
    return routed_channel(rules, run.name, spec.project, spec.queue) if rules else ""


async def journal(here: Context, run: str) -> AsyncIterator[JournalEntry]:
    """The whole journal of a run, a page at a time."""
    position = 0
    while True:
        page = await here.store.journal(run, after=position, limit=_PAGE)
        for entry in page:
            yield entry
        if len(page) < _PAGE:
            return
        position = page[-1].position


def finite(values: list[float]) -> list[float | None]:
    """Not-a-number and infinities as None: JSON has no word for them."""
    return [value if math.isfinite(value) else None for value in values]
