"""What goes wrong in training, and what the control plane makes of it without anybody's help."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.acceptance.conftest import Jobs
from tests.acceptance.record import check_memory_tier, check_record
from tests.control_plane import FAILED, ControlPlane, until


def only_restart(shown: dict[str, Any]) -> dict[str, Any]:
    assert len(shown["restarts"]) == 1, shown["restarts"]
    restart: dict[str, Any] = shown["restarts"][0]
    return restart


def recovered(plane: ControlPlane, run: str, restarts: int = 1) -> dict[str, Any]:
    """Wait until a run is past where it failed, for the n-th time."""

    def is_past() -> dict[str, Any] | None:
        shown = plane.show(run)
        known = shown["restarts"]
        return shown if len(known) == restarts and known[-1]["recovered_at"] else None

    return until(is_past, f"recovered {restarts} times")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_killed_from_outside(
    plane: ControlPlane, jobs: Jobs, number: signal.Signals
) -> None:
    """The run goes on from node memory, a step or two before; the reason names the rank."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 12)
    plane.signal_rank(run, 1, number)
    recovered(plane, run)
    job.finish()
    shown = plane.state(run, "succeeded")
    restart = only_restart(shown)
    assert (restart["class"], restart["cause"]) == ("signal", "infrastructure")
    assert restart["rank"] == 1
    assert number.name in restart["reason"]
    check_memory_tier(plane, run)
    assert all(seconds is not None for seconds in restart["seconds"].values())
    check_record(plane, run, job)


def test_a_rank_that_hangs(plane: ControlPlane, jobs: Jobs) -> None:
    """SIGSTOP: nothing ends and nothing is said, but no step follows. The stacks tell who it is."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 12)
    plane.signal_rank(run, 1, signal.SIGSTOP)
    shown = recovered(plane, run)
    restart = only_restart(shown)
    assert (restart["class"], restart["rank"]) == ("hang", 1)
    (incident,) = shown["incidents"]
    assert (incident["kind"], incident["state"]) == ("hang", "resolved")
    assert incident["subject"] == f"rank 1 on {shown['node_names'][1]}"
    stacks = {stack["rank"]: stack for stack in incident["evidence"]["stacks"]}
    assert stacks[1]["process_state"] == "T"
    assert any("_receive" in frame for frame in stacks[0]["frames"]), "rank 0 waits for rank 1"
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job)


def test_out_of_memory_once(plane: ControlPlane, jobs: Jobs) -> None:
    """The host's memory ran out: tried once more, and it goes on."""
    job = jobs(steps=30, faults=("oom@15",))
    run = plane.submit(job.spec)
    shown = plane.state(run, "succeeded")
    restart = only_restart(shown)
    assert (restart["class"], restart["rank"], restart["cause"]) == ("host_oom", 1, "user")
    assert "cannot hold step 15" in restart["reason"]
    check_record(plane, run, job)


def test_a_loss_that_is_no_number(plane: ControlPlane, jobs: Jobs) -> None:
    """NaN from a step on: back to a checkpoint that is known to be good, and computed again."""
    job = jobs(steps=60, faults=("nan@35",))
    run = plane.submit(job.spec)
    shown = plane.state(run, "succeeded")
    restart = only_restart(shown)
    assert (restart["class"], restart["remedy"]) == ("numerics", "roll back")
    assert restart["resumed_step"] in {20, 30}, "good, and from before step 35"
    (incident,) = shown["incidents"]
    assert (incident["kind"], incident["onset_step"]) == ("non_finite", 35)
    assert shown["skip_batches"] == []


def test_a_poisoned_stretch_of_data(plane: ControlPlane, jobs: Jobs) -> None:
    """The spike comes back after a rollback: it is in the data, which are left out from then on."""
    job = jobs(
        steps=100,
        faults=("poison@51-60",),
        monitors={"loss_spike": {"skip_batches": 12}},
    )
    run = plane.submit(job.spec)
    shown = plane.state(run, "succeeded")
    assert [r["remedy"] for r in shown["restarts"]] == ["roll back", "roll back and skip batches"]
    # Step 50 is a candidate where it was read back before the spike was seen, and doubted after it.
    back, back_again = [r["resumed_step"] for r in shown["restarts"]]
    assert (back in {40, 50}, back_again) == (True, 40)
    ((first, last),) = shown["skip_batches"]
    assert first <= 51
    assert last >= 60
    assert {i["kind"] for i in shown["incidents"]} == {"loss_spike"}
    steps = job.steps()[shown["attempt"], 0]
    batches = [batch for _, batch, _ in steps]
    assert batches == [*range(41, first), *range(last + 1, last + 102 - first)]
    assert all(loss < 3 for _, _, loss in steps)


def test_a_spike_that_never_goes_away(plane: ControlPlane, jobs: Jobs) -> None:
    """Neither rolling back nor leaving data out helps: the run stops, and says so."""
    job = jobs(
        steps=400,
        faults=("explode@50",),
        recovery={"anomaly": 2},
        monitors={"loss_spike": {"skip_batches": 10}},
    )
    run = plane.submit(job.spec)
    shown = plane.state(run, "failed")
    assert [r["remedy"] for r in shown["restarts"]] == ["roll back", "roll back and skip batches"]
    assert "it came back after 2 rollbacks: the model or its data must change" in shown["reason"]
    assert plane.babysit("wait", run).exit_code == FAILED
