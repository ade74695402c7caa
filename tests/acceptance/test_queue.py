"""More runs than nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Jobs
from tests.acceptance.record import check_record
from tests.control_plane import ControlPlane, Servers, control_plane


@pytest.fixture
def plane(servers: Servers, tmp_path: Path) -> Iterator[ControlPlane]:
    """Two nodes of one core each: room for one run of two nodes."""
    with control_plane(servers, tmp_path / "home", local_cpus_per_node=1) as running:
        yield running


def test_the_second_run_waits_for_the_first(plane: ControlPlane, jobs: Jobs) -> None:
    """It is told for what, and who is ahead; it starts when the first ends."""
    first, second, third = (jobs(name) for name in ("first", "second", "third"))
    one = plane.submit(first.spec)
    plane.at_step(one, 3)
    two = plane.submit(second.spec)
    three = plane.submit(third.spec)

    assert plane.show(two)["state"] == plane.show(three)["state"] == "queued"
    assert plane.show(two)["reason"] == "waits for 2 nodes: not enough free nodes fit"
    why = plane.ask("explain", two)
    assert (why["underlying"], why["place"], why["ahead"]) == ("no_capacity", 1, [])
    assert why["unblock"] == "first ends"
    said = plane.babysit("explain", "third").stdout
    assert "third needs 2 nodes" in said
    assert "number 2 in the queue, behind second." in said
    assert "used by first." in said

    first.finish()
    plane.state(one, "succeeded")
    plane.at_step(two, 3)
    assert plane.show(three)["state"] == "queued"
    second.finish()
    plane.state(two, "succeeded")
    plane.at_step(three, 3)
    third.finish()
    plane.state(three, "succeeded")
    shown = [plane.show(run) for run in (one, two, three)]
    assert [run["restarts"] for run in shown] == [[], [], []]
    assert 0 < shown[1]["seconds"]["queued"] < shown[2]["seconds"]["queued"]
    ended, began = plane.attempts(one)[0].ended_at, plane.attempts(two)[0].started_at
    assert ended is not None
    assert ended <= began
    check_record(plane, two, second)


def test_a_waiting_run_can_be_cancelled(plane: ControlPlane, jobs: Jobs) -> None:
    """It never started, and nothing of it was made."""
    first, second = jobs("first"), jobs("second")
    one = plane.submit(first.spec)
    plane.at_step(one, 1)
    two = plane.submit(second.spec)
    assert plane.babysit("cancel", two, "--reason", "changed my mind").exit_code == 0
    shown = plane.show(two)
    assert (shown["state"], shown["attempt"]) == ("cancelled", 0)
    assert "changed my mind" in shown["reason"]
    assert plane.agents(two) == {}
    assert not second.checkpoints.exists()
