"""Spares beside the number that failures call for: in words, in the daily summary, in reports."""

from __future__ import annotations

import dataclasses
import datetime as dt

from monitors.failures import FailureClass
from orchestrator.core.messages.events import SparesChanged
from orchestrator.core.model.machine_record import Fault
from orchestrator.core.model.states import NodeState
from orchestrator.core.views import daily_summary
from orchestrator.core.views.spares import standing
from orchestrator.reports import html, markdown, report
from orchestrator.reports.what_if import what_if_of
from tests.gpu_cluster import cluster, start
from tests.report_data import record
from tests.world import World


def said(world: World) -> str:
    return str(standing(world.state, world.now))


def set_spares(world: World, number: int) -> None:
    world.do(world.event(SparesChanged, spares=number))


def make_lemon(world: World, name: str) -> None:
    faults = tuple(
        Fault(
            at=world.now - dt.timedelta(days=day), run="", failure_class=FailureClass.GPU_HARDWARE
        )
        for day in range(20, 0, -1)
    )
    world.state.put(dataclasses.replace(world.state.nodes[name], faults=faults))


def test_a_fleet_without_spares_is_short_with_the_figures_and_the_command() -> None:
    world = cluster(100)
    assert said(world) == (
        "0 spares reserved, 3 advised (6.5 failures per 1,000 node-days); 100 nodes are idle:"
        " `babysit nodes spares auto` reserves that number"
    )
    set_spares(world, 3)
    assert standing(world.state, world.now).remedy == ""
    assert said(world).endswith("; 100 nodes are idle")
    set_spares(world, 5)  # more than advised is nobody's trouble
    assert standing(world.state, world.now).remedy == ""


def test_lemons_are_named_and_raise_the_number() -> None:
    world = cluster(100)
    world.advance(30 * 86400.0)
    before = standing(world.state, world.now).advised
    for number in range(1, 8):
        make_lemon(world, f"node-{number}")
    found = standing(world.state, world.now)
    assert found.advised > before
    assert found.because.endswith("; 7 lemons: node-1, node-2, node-3, node-4, node-5 and 2 more")


def test_reserved_nodes_that_are_at_work_or_away_are_no_spares() -> None:
    world = cluster(4)
    set_spares(world, 2)
    start(world, "run-1", nodes=2)
    assert said(world).endswith("; 2 nodes are idle")
    name = next(n for n in ("node-3", "node-2", "node-1") if not at_work(world, n))
    node = world.state.nodes[name]
    world.state.put(dataclasses.replace(node, state=NodeState.CORDONED))
    assert said(world).endswith(
        "; 1 node is idle: repair or add 1 node, or a recovery may wait for one"
    )


def at_work(world: World, node: str) -> bool:
    return any(w.node == node for _, there in world.state.tenants() for w in there)


def test_a_busy_fleet_without_spares_needs_both() -> None:
    world = cluster(10)
    start(world, "run-1", nodes=10)
    assert standing(world.state, world.now).remedy == (
        "`babysit nodes spares auto` reserves that number; repair or add 1 node, or a recovery may"
        " wait for one"
    )


def test_the_daily_summary_has_the_spares_before_the_queues() -> None:
    world = cluster(100)
    start(world, "run-1", nodes=2)
    run = world.run()
    story = daily_summary.Story(run, 0, [], [])
    spares = standing(world.state, world.now)
    lines = daily_summary.text("2026-01-01", [story], world.now, spares).splitlines()
    assert lines[1] == f"Spares: {spares}"
    assert lines[2].startswith("Queue ")
    alone = daily_summary.text("2026-01-01", [], world.now, spares).splitlines()
    assert alone[1:] == [f"Spares: {spares}"]
    none = dataclasses.replace(spares, advised=0)
    assert "Spares" not in daily_summary.text("2026-01-01", [story], world.now, none)


def test_a_report_has_the_spares_below_the_nodes_if_it_may_see_them() -> None:
    sentence = "Spares of the cluster when this report was made: 0 spares reserved, 3 advised."
    for spares, count in (("0 spares reserved, 3 advised", 1), ("", 0)):
        made = report.make(of := record(spares=spares), what_if_of(of), "0.1.0")
        assert html.page(made).count(sentence) == count
        assert markdown.page(made).count(sentence) == count
