"""Replicas that must agree bit for bit: which ranks are some, which one is odd, and the replay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from monitors.replica_memory import ReplicaMemory
from monitors.replicas import MOST_STEPS, ReplicaMonitor
from monitors.types import Finding, FindingKind, Fingerprint, Severity

Digest = Callable[[int, int], str]
"""(rank, step) → digest."""


def same(_rank: int, step: int) -> str:
    return f"{step:04x}"


def flipped(odd: int, since: int) -> Digest:
    """One rank holds something else from a step on."""
    return lambda rank, step: f"{step:04x}{'!' if rank == odd and step >= since else ''}"


def said(rank: int, step: int, parts: dict[str, str], world: int = 3) -> Fingerprint:
    return Fingerprint(rank, step, step, 1e9 + step, world, parts)


def feed(
    monitor: ReplicaMonitor, steps: range, digest: Digest, world: int = 3, part: str = "weights:1"
) -> list[Finding]:
    found = []
    for step in steps:
        for rank in range(world):
            found += monitor.observe([said(rank, step, {part: digest(rank, step)}, world)])
    return found


def begun(known: ReplicaMemory | None = None) -> ReplicaMonitor:
    monitor = ReplicaMonitor(known)
    monitor.restart(1, 0)
    return monitor


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_the_majority_names_the_odd_rank_and_the_last_agreement(odd: int) -> None:
    monitor = begun()
    (found,) = feed(monitor, range(1, 9), flipped(odd, 6))
    assert (found.kind, found.severity) == (FindingKind.CORRUPTION, Severity.CRITICAL)
    assert (found.rank, found.onset_step, found.detected_step) == (odd, 6, 6)
    assert f"rank {odd} holds other weights than the majority of 3 replicas" in found.reason
    assert found.evidence["suspects"] == [odd]


def test_two_replicas_have_no_majority() -> None:
    (found,) = feed(begun(), range(1, 9), flipped(1, 6), world=2)
    assert (found.rank, found.evidence["odd"], found.evidence["suspects"]) == (None, [], [0, 1])
    assert "both" not in found.reason
    assert "all of them are suspects" in found.reason


def test_the_onset_is_after_the_last_agreement_where_steps_between_have_no_fingerprint() -> None:
    (found,) = feed(begun(), range(10, 90, 10), flipped(2, 55))
    assert (found.onset_step, found.detected_step) == (51, 60)


BY_DESIGN: dict[str, Digest] = {
    "a pipeline of equal stages": lambda rank, step: f"{rank}.{step}",
    "experts, two by two": lambda rank, step: f"{rank // 2}.{step}",
    "one rank with weights of its own": lambda rank, step: f"{rank == 3}.{step}",
    "local SGD from the first step on": lambda rank, step: f"{0 if step % 8 == 0 else rank}.{step}",
    "equal zeros at first": lambda rank, step: f"{0 if step == 1 else rank}.{step}",
    "frozen for a while, then their own": lambda rank, step: f"{'0' if step < 9 else (rank, step)}",
}


@pytest.mark.parametrize("digest", BY_DESIGN.values(), ids=BY_DESIGN)
def test_ranks_that_differ_by_design_are_never_accused(digest: Digest) -> None:
    assert feed(begun(), range(1, 60), digest, world=4) == []


def test_replicas_that_all_part_at_once_are_the_scripts_doing() -> None:
    monitor = begun()
    (found,) = feed(monitor, range(1, 60), lambda r, s: f"{0 if s < 30 else r}.{s}", world=4)
    assert (found.severity, found.evidence["form"]) == (Severity.INFO, "diverged")
    assert monitor.memory.replicas == ()


def test_only_replicas_of_the_same_shard_are_compared() -> None:
    """HSDP: ranks 0 and 2 hold one shard, 1 and 3 the other."""
    monitor = begun()
    found = []
    for step in range(1, 9):
        for rank in range(4):
            bits = f"{rank % 2}.{step}{'!' if rank == 3 and step > 5 else ''}"
            part = f"weights:1:shard={rank % 2}"
            found += monitor.observe([said(rank, step, {part: bits}, 4)])
    assert [f.evidence["suspects"] for f in found] == [[1, 3]]


def test_parts_that_split_together_are_one_finding() -> None:
    monitor, found = begun(), []
    for step in range(1, 9):
        for rank in range(3):
            bits = flipped(1, 5)(rank, step)
            parts = {"weights:1": f"{bits}w", "optimizer:2": bits, "loss:reduced": same(rank, step)}
            found += monitor.observe([said(rank, step, parts)])
    assert [f.reason.partition(" than")[0] for f in found] == [
        "rank 1 holds other weights and optimizer state"
    ]


def test_reports_of_agents_may_come_in_any_order() -> None:
    """The agent of rank 2 is behind; another never says anything of its own accord."""
    monitor, found = begun(), []
    for first in range(1, 40, 10):
        for rank in (1, 0, 2):
            steps = range(first, first + 10)
            found += [
                f
                for step in steps
                for f in monitor.observe([said(rank, step, {"w": flipped(2, 33)(rank, step)})])
            ]
    assert [(f.rank, f.onset_step) for f in found] == [(2, 33)]


def test_ranks_with_longer_intervals_are_compared_at_the_steps_that_all_take() -> None:
    monitor, found = begun(), []
    for step in range(1, 60):
        for rank, every in enumerate((1, 2, 8)):
            if step <= 2 or step % every == 0:
                parts = {"w": flipped(1, 30)(rank, step)}
                found += monitor.observe([said(rank, step, parts)])
    assert [(f.rank, f.onset_step, f.detected_step) for f in found] == [(1, 25, 32)]


def test_a_rank_without_fingerprints_holds_up_nobody() -> None:
    found = []
    monitor = begun()
    for step in range(1, 3 * MOST_STEPS):
        for rank in range(3):
            found += monitor.observe([said(rank, step, {"w": flipped(0, 150)(rank, step)}, 4)])
    assert [(f.rank, f.onset_step) for f in found] == [(0, 150)]


def accused(odd: int = 1, world: int = 3) -> ReplicaMonitor:
    monitor = begun()
    assert len(feed(monitor, range(1, 9), flipped(odd, 6), world)) == 1
    return monitor


def outcome(monitor: ReplicaMonitor, digest: Digest, world: int = 3) -> tuple[str, list[int]]:
    """What the next attempt shows, which goes on after step 3."""
    monitor.restart(2, 3)
    found = [f for f in feed(monitor, range(4, 20), digest, world) if f.kind is FindingKind.REPLAY]
    (replay,) = found
    assert (replay.evidence["of_attempt"], replay.evidence["of_step"]) == (1, 6)
    return replay.evidence["outcome"], replay.evidence["ranks"]


def test_a_replay_settles_who_of_two_was_wrong() -> None:
    assert outcome(accused(1, world=2), same, world=2) == ("hardware", [1])
    assert outcome(accused(0, world=2), same, world=2) == ("hardware", [0])


def test_a_replay_confirms_the_majority() -> None:
    assert outcome(accused(2), same) == ("hardware", [2])


def test_a_disagreement_that_comes_back_is_the_scripts_and_is_not_accused_again() -> None:
    monitor = accused(1)
    assert outcome(monitor, flipped(1, 6)) == ("script", [])
    assert feed(monitor, range(20, 40), flipped(1, 6)) == []


@pytest.mark.parametrize(("world", "named"), [(3, [1]), (2, [])])
def test_a_corruption_that_spread_before_it_was_compared_is_still_a_machines(
    world: int, named: list[int]
) -> None:
    """The flip of step 6 has reached all ranks by step 8: neither value comes back."""
    monitor, found = begun(), []

    def tainted(rank: int, step: int) -> str:
        return f"{step}{'~' * (step > 6)}{'!' * (step > 6 and rank == 1)}"

    for step in (1, 2, 4, 6, 8):
        found += feed(monitor, range(step, step + 1), tainted, world)
    monitor.restart(2, 3)
    for step in (4, 6, 8):
        found += feed(monitor, range(step, step + 1), lambda _, s: str(s), world)
    assert [f.kind for f in found] == [FindingKind.CORRUPTION, FindingKind.REPLAY]
    assert (found[1].evidence["outcome"], found[1].evidence["ranks"]) == ("hardware", named)


def test_a_script_that_does_not_repeat_itself_proves_nothing() -> None:
    assert outcome(accused(1), lambda _, step: f"other {step}") == ("unknown", [])


def test_another_disagreement_in_the_replay_is_accused() -> None:
    monitor = accused(1)
    monitor.restart(2, 3)
    (found,) = feed(monitor, range(4, 20), flipped(2, 5))
    assert (found.kind, found.rank, found.onset_step) == (FindingKind.CORRUPTION, 2, 5)


def test_the_memory_takes_the_case_to_another_server() -> None:
    text = accused(1).memory.model_dump_json()
    monitor = ReplicaMonitor(ReplicaMemory.model_validate_json(text))
    assert monitor.memory.model_dump_json() == text
    assert outcome(monitor, same) == ("hardware", [1])


def test_after_a_takeover_replicas_are_known_at_once() -> None:
    monitor = begun()
    assert feed(monitor, range(1, 9), same) == []
    monitor = ReplicaMonitor(ReplicaMemory.model_validate_json(monitor.memory.model_dump_json()))
    monitor.restart(1, 5)  # of the tail of samples with which it is rebuilt
    (found,) = feed(monitor, range(9, 12), flipped(0, 9))
    assert (found.rank, found.onset_step) == (0, 9)


def test_another_world_shares_other_things() -> None:
    monitor = begun()
    assert feed(monitor, range(1, 9), same, world=4) == []
    monitor.restart(2, 8)
    assert feed(monitor, range(9, 30), lambda r, s: f"{r}.{s}", world=2) == []
