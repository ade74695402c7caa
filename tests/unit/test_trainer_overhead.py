"""The cost of a step, as `benchmarks/trainers.py --overhead` finds it: turns, compared."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from benchmarks.support.trainer_overhead import STEPS, Turn, cost
from benchmarks.support.trainers.turns import FIRST_TURN, STEPS_PER_TURN, Turns

PASSES = FIRST_TURN + 2 * STEPS_PER_TURN


def test_jobs_train_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passes").write_bytes(bytes(32))
    monkeypatch.setenv("TRAINERS_STEPS", str(PASSES))
    seen: list[tuple[int, int]] = []

    def train(turns: Turns, job: int) -> None:
        for step in range(1, PASSES + 1):
            seen.append((job, step))
            turns.end_pass()

    threads = []
    for job in (0, 1):
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            threads.append(threading.Thread(target=train, args=(Turns(tmp_path, job), job)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    after_start = [job for job, step in seen if step > 1]
    turns = [job for at, job in enumerate(after_start) if after_start[at - 1 : at] != [job]]
    assert turns == [0, 1] * 3, "a job waits while the other one trains"
    rows = [json.loads(line) for line in (tmp_path / "2.jsonl").read_text().splitlines()]
    assert [row["last"] for row in rows] == [10, 30, 50]
    assert [len(row["wall"]) for row in rows] == [10, 20, 20]


def test_a_save_is_no_part_of_a_step() -> None:
    lasts = range(90, STEPS, STEPS_PER_TURN)
    without = {last: Turn([100.0] * 20, [80.0] * 20) for last in lasts}
    having = {}
    for last in lasts:
        steps = range(last - 20, last)  # a save after step N counts in the next one
        extra = [(step % 100 == 0) * 500.0 + (step % 140 == 0) * 900.0 for step in steps]
        having[last] = Turn([107.0 + more for more in extra], [85.0] * 20)
    found = cost(without, having, load=1.5)
    assert (found.without, found.with_it, found.difference) == (100.0, 107.0, 7.0)
    assert (found.cpu_without, found.cpu_difference) == (80.0, 5.0)
    assert (found.memory, found.directory) == (500.0, 900.0)
    assert found.ratio == pytest.approx(0.07)
