"""The state of the core, apart from what is decided on it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import NoneType

from orchestrator.core.messages.events import RunCancelled
from orchestrator.core.model.detached import detached
from orchestrator.core.model.entities import Fleet
from orchestrator.core.model.state import State
from tests.world import spec, trained

IMMUTABLE = (Fleet, str, NoneType)


def containers(value: object) -> Iterator[object]:
    """Everything in a state that a turn changes in place."""
    if isinstance(value, dict | set | list):
        yield value
    if isinstance(value, dict):
        for each in value.values():
            yield from containers(each)


def test_a_detached_state_shares_nothing_that_changes() -> None:
    world = trained(15)
    world.save(10)
    state = world.state
    state.node_table(world.now)
    apart = detached(state)
    assert isinstance(apart, State)
    assert vars(apart).keys() == vars(state).keys()
    for name, value in vars(state).items():
        here = {id(each) for each in containers(value)}
        assert not here & {id(each) for each in containers(vars(apart)[name])}, name
        shared = vars(apart)[name] is value and not isinstance(value, IMMUTABLE)
        assert not shared, f"{name}: another thread must not read what a turn may change"
    before = {
        name: copy.deepcopy(value)
        for name, value in vars(apart).items()
        if name not in {"_node_table", "derived"}
    }
    world.do(world.event(RunCancelled, run="run-1", reason="enough"))
    world.settle()
    world.submit(spec("other"), run="run-2")
    assert {name: vars(apart)[name] for name in before} == before
    assert [run.id for run in apart.live_runs()] == ["run-1"]
    assert apart.workers_of("run-1")
