"""What the process that is connected to Ray tells of the ends of workers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from ray import exceptions

from orchestrator.clusters.ray import connection, names, workers
from orchestrator.clusters.ray.facts import RayFailedError, RayNode, Snapshot
from orchestrator.clusters.ray.leftovers import Leftovers

KEY = functools.partial(names.key, "r1", "w1")


class Store(dict[str, str]):
    """Ray's store of keys."""

    namespace = "babysit-of-test"

    def put(self, key: str, value: str) -> str:
        return self.setdefault(key, value)

    def remove(self, prefix: str) -> None:
        for key in [key for key in self if key.startswith(prefix)]:
            del self[key]


class Now(Executor):
    """Does at once what is submitted."""

    def submit(self, what: Any, /, *given: Any, **named: Any) -> Future[Any]:
        what(*given, **named)
        return Future()


class Actor:
    """A handle of an actor whose node does not answer at first."""

    def __init__(self, failures: int) -> None:
        self._actor_id = b"actor"
        self.end: Future[str] = Future()
        self.wait = SimpleNamespace(remote=lambda: SimpleNamespace(future=lambda: self.end))
        self.stop = SimpleNamespace(remote=lambda _: None)
        self._failures = failures

    def answer(self, _: object, timeout: float) -> None:
        assert timeout > 0
        if self._failures:
            self._failures -= 1
            raise exceptions.ActorUnavailableError("its node does not answer", None)


@pytest.mark.parametrize("failures", [0, 7])
def test_an_end_is_told_once_for_each_stop_that_returned(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    actor, told = Actor(failures), []
    monkeypatch.setattr(connection, "find", lambda *_: actor)
    monkeypatch.setattr(workers.ray, "get", actor.answer)
    known: Any = Store({KEY(names.CLAIM): "actor", KEY(names.ACTOR): "actor"})
    driver = workers.Workers(known, "test", lambda *change: told.append(change))
    for _ in range(failures):
        with pytest.raises(RayFailedError, match="worker w1: its actor cannot be reached now"):
            driver.stop("w1", "r1", 1.0)
    driver.stop("w1", "r1", 1.0)
    driver.stop("w1", "r1", 1.0)
    actor.end.set_result("agent was killed by SIGKILL")
    driver._pool.shutdown()
    assert told == [("gone", "w1", "r1", "agent was killed by SIGKILL")] * 2


def test_what_a_lost_node_left_is_swept_when_its_machine_has_a_raylet_again() -> None:
    swept: list[Any] = []
    known: Any = Store()
    pool = Now()

    def sweep(order: Mapping[str, Any], node: str) -> None:
        swept.append((order["worker"], node))
        if len(swept) == 1:
            raise exceptions.RaySystemError("the node is gone again")

    left = Leftovers(known, pool, sweep)
    left.lost("vm-1", {"run": "r1", "worker": "w1"})
    other, same = (RayNode(i, i, host, {}, {}, {}) for i, host in (("a", "vm-2"), ("b", "vm-1")))
    left.look(Snapshot((other,)))
    assert swept == []
    assert known == {KEY(names.LEFT): "vm-1"}
    left.look(Snapshot((other, same)))
    assert known == {KEY(names.LEFT): "vm-1"}  # the first try failed
    left.look(Snapshot((other, same)))
    left.look(Snapshot((other, same)))
    assert swept == [("w1", "b")] * 2
    assert known == {}
