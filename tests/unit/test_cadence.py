"""Saves to memory cost little, whatever the spec asks for, and ranks keep a step in common."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from babysit.checkpoint import saver as saver_module
from babysit.checkpoint.cadence import MOST_BLOCKED, Cadence
from babysit.checkpoint.shard import ShardWriter
from babysit.wire import Tier
from tests.unit.test_babysit_checkpoint import Counter, Home


def train(cadence: Cadence, steps: int, pace: float, copy: float, whole: float) -> float:
    """Train with saves that never overlap; the share of time that copies take at the end."""
    now = blocked = counted = 0.0
    for step in range(1, steps + 1):
        now += pace
        begun = now
        cadence.step(step, now)
        if cadence.due(step):
            now += copy
            cadence.blocked(copy)
            cadence.saved(copy, whole)
        if step > steps // 2:
            blocked += now - begun
            counted += pace + now - begun
    return blocked / counted


@pytest.mark.parametrize(
    ("pace", "copy", "whole", "interval"),
    [
        (10.0, 0.2, 1.0, 1),  # saves are short beside steps
        (0.1, 0.0, 0.7, 16),  # saves would overlap: 0.7 s x 1.25 are 9 steps
        (0.1, 0.03, 0.7, 16),
        (1.0, 0.35, 2.0, 8),  # the copy alone would take 35 % of the time
    ],
)
def test_the_interval_follows_what_a_save_costs(
    pace: float, copy: float, whole: float, interval: int
) -> None:
    cadence = Cadence(1)
    share = train(cadence, 400, pace, copy, whole)
    assert cadence.interval == interval
    assert share <= MOST_BLOCKED * 1.05


def test_what_was_asked_for_is_kept_where_it_costs_little_and_taken_up_again() -> None:
    cadence = Cadence(5)
    train(cadence, 100, 1.0, 0.01, 0.1)
    assert cadence.interval == 5
    train(cadence, 300, 0.1, 0.01, 3.0)
    slow = cadence.interval
    assert slow >= 40
    train(cadence, 2000, 5.0, 0.01, 0.1)
    assert cadence.interval in {5, 10}  # one doubling stays: it does not change back and forth


def test_ranks_that_differ_by_one_doubling_always_have_a_step_in_common(tmp_path: Path) -> None:
    """While the slower rank writes its newest step, and the faster one is steps ahead."""
    rng = random.Random(7)
    for _ in range(200):
        fast, slow = Cadence(rng.choice((1, 2, 3))), Cadence(1)
        slow._every, slow.doublings = fast._every, 1
        at = rng.randint(20, 200)
        kept: dict[int, set[int]] = {}
        for number, (rank, behind) in enumerate(((fast, 0), (slow, rng.randint(0, slow.interval)))):
            saved: list[int] = []
            for step in range(1, at - behind + 1):
                if rank.due(step):
                    saved = sorted(rank.kept([*saved, step], 3))
            kept[number] = set(saved)
        assert kept[0] & kept[1]


def test_ranks_of_a_node_take_the_longest_interval(tmp_path: Path) -> None:
    slow, fast, later = Cadence(1), Cadence(1), Cadence(1)
    slow.doublings = 3
    slow.agree(tmp_path, 1)
    fast.agree(tmp_path, 1)
    assert fast.interval == 8
    later.agree(tmp_path, 2)  # of the next attempt: measured anew
    assert later.interval == 1
    (tmp_path / "cadence").write_text("nonsense")
    later.agree(tmp_path, 2)
    later.agree(tmp_path / "gone", 2)
    assert later.interval == 1


def test_training_does_not_wait_for_a_large_save_to_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saver_module, "INLINE_BYTES", 0)
    going, begun = threading.Event(), threading.Event()
    adopt = ShardWriter.adopt

    def slow(writer: ShardWriter, source: Path) -> None:
        begun.set()
        assert going.wait(60)
        adopt(writer, source)

    home, state = Home(tmp_path), Counter()
    run = home.run()
    monkeypatch.setattr(Cadence, "saved", lambda *_: False)  # steps here take no time
    monkeypatch.setattr(ShardWriter, "adopt", slow)
    run.checkpoint(state, step=1)
    assert begun.wait(60)
    for step in (2, 3):
        run.checkpoint(state, step=step)  # would wait for ever
    going.set()
    run.flush()
    run.checkpoint(state, step=5)
    run.flush()
    assert home.steps(Tier.MEMORY) == [1, 5]
    assert "step 2 is not saved to memory" in caplog.text
