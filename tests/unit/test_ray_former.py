"""A Ray cluster that was started anew: its control store has forgotten the workers before."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

from jobs.clock import ManualClock
from orchestrator.clusters.ray import ends, names
from orchestrator.clusters.ray.former import Former
from orchestrator.clusters.ray.identity import RAYLET_SECONDS, KnownCluster

NOW = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)


class Store(dict[str, str]):
    def put(self, key: str, value: str) -> str:
        return self.setdefault(key, value)


def after(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


def test_a_change_of_cluster_is_known_also_to_the_next_server(tmp_path: Path) -> None:
    file = tmp_path / "ray.json"
    assert KnownCluster(file).meet("a", NOW) is None
    assert KnownCluster(file).meet("a", after(5)) is None
    assert KnownCluster(file).meet("b", after(10)) == RAYLET_SECONDS
    assert KnownCluster(file).meet("b", after(30)) == RAYLET_SECONDS - 20
    assert KnownCluster(file).meet("b", after(3600)) == 0
    assert KnownCluster(file).meet("c", after(3600)) == RAYLET_SECONDS


def test_a_file_that_cannot_be_read_is_of_no_former_cluster(tmp_path: Path) -> None:
    (tmp_path / "ray.json").write_text("{")
    assert KnownCluster(tmp_path / "ray.json").meet("a", NOW) is None


def test_forgotten_workers_are_over_when_no_raylet_of_their_cluster_can_be_left() -> None:
    told: list[Any] = []
    clock, store = ManualClock(), Store({names.key("r1", "new", names.LAUNCH): "{}"})
    former = Former(store, lambda *change: told.append(change), clock)
    assert former.may_live("old", "r1") is None  # nothing says that there was another cluster
    former.begin(75)
    assert former.may_live("new", "r1") is None
    assert former.may_live("old", "r1") is True
    assert store[names.key("r1", "old", names.CLAIM)] == names.STOPPED
    clock.advance(75)
    assert former.may_live("old", "r1") is False
    assert told == [("gone", "old", "r1", ends.FORGOTTEN)]
    assert former.may_live("old", "r1") is None  # its end is in the store now


def test_a_launch_that_may_have_taken_effect_in_the_former_cluster_waits() -> None:
    clock, store = ManualClock(), Store({names.key("r1", "here", names.LAUNCH): "{}"})
    former = Former(store, lambda *_: None, clock)
    assert former.may_start("w1", "r1")
    former.begin(75)
    assert not former.may_start("w1", "r1")
    assert former.may_start("here", "r1")
    clock.advance(75)
    assert former.may_start("w1", "r1")
    assert {key for key in store if "w1" in key} == set()  # nothing keeps it from starting
