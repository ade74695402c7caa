"""Saves and gradients that are accumulated, and the agreement of ranks on a checkpoint."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from babysit.checkpoint import restore, shard
from babysit.reporter import Reporter
from babysit.run import Run
from babysit.wire import Candidate, Plan, SavePolicy, Tier


def make_run(root: Path) -> Run:
    policy = SavePolicy(memory_directory=str(root), memory_every_steps=1, memory_keep=99)
    return Run(Plan("r", 1, 0, 1, save=policy), Reporter(None, 0))


def state_of() -> dict[str, Any]:
    model = nn.Linear(4, 1)
    return {"model": model, "opt": torch.optim.SGD(model.parameters(), lr=0.1)}


def test_saves_are_due_between_optimizer_steps_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, state, saved = make_run(tmp_path), state_of(), []
    run.restore(state)
    for step, batch in run.steps(range(7), epochs=2, accumulate=3):
        state["model"](torch.ones(2, 4)).sum().backward()
        if run.sync_gradients:
            state["opt"].step()
            state["opt"].zero_grad()
        run.checkpoint(state, now=batch == 1)
        saved.append((step, batch, run.sync_gradients, len(shard.steps_in(tmp_path))))
    assert saved[:4] == [(1, 0, False, 0), (1, 1, False, 0), (1, 2, True, 1), (2, 3, False, 1)]
    assert [step for step, *_ in saved] == [1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6]
    assert shard.steps_in(tmp_path) == [6, 5, 4, 3, 2, 1]
    assert "between the batches of an optimizer step" in caplog.text


@pytest.mark.parametrize("to_none", [True, False])
def test_a_save_waits_for_gradients_that_are_accumulated_by_hand(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, to_none: bool
) -> None:
    caplog.set_level(logging.WARNING)
    run, state = make_run(tmp_path), state_of()
    run.restore(state)
    for step, _ in run.steps(range(20), total=8):
        state["model"](torch.ones(2, 4)).sum().backward()
        if step % 4 == 0:
            state["opt"].step()
            state["opt"].zero_grad(set_to_none=to_none)
        run.checkpoint(state)
    assert shard.steps_in(tmp_path) == [8, 4]
    assert "while gradients are accumulated" in caplog.text


def test_gradients_kept_after_their_step_do_not_delay_a_save(tmp_path: Path) -> None:
    run, state = make_run(tmp_path), state_of()
    run.restore(state)
    for _ in run.steps(range(20), total=4):
        state["opt"].zero_grad()
        state["model"](torch.ones(2, 4)).sum().backward()
        state["opt"].step()
        run.checkpoint(state)
    assert shard.steps_in(tmp_path) == [4, 3, 2, 1]


UNUSED = """
import babysit, sys, os
class State:
    def save(self, directory): (directory / "x").write_text("")
    def load(self, directory): pass
run = babysit.init(checkpoint=sys.argv[1], every_steps=1)
run.restore(State())
first = int(sys.argv[2])
for epoch in range(first, 3) if "counts" in sys.argv else map(str, range(first, 3)):
    for step, _ in run.steps("abc"):
        run.checkpoint(State())
        if first == 0 and step == 8 and "die" in sys.argv:
            run.flush()
            os._exit(0)
print("ended at", run.step)
"""


def test_a_script_that_leaves_its_position_unused_fails(tmp_path: Path) -> None:
    """A script that starts in a later epoch, with no counter to be seen, makes too few calls."""

    def script(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", UNUSED, str(tmp_path), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert script("0", "die").returncode == 0
    unused = script("2")
    assert unused.returncode == 1
    assert "PositionUnusedError: the checkpoint was saved in call 3" in unused.stderr
    whole = script("0")
    assert (whole.returncode, whole.stdout) == (0, "ended at 9\n")


def _rank(rank: int, root: str, queue: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{root}/rendezvous", rank=rank, world_size=2
    )
    seen = [Candidate(str(s), s, Tier.DIRECTORY, root, 2, 1) for s in ([20, 10], [10])[rank]]
    plan = restore.agreed(Plan("", 1, rank, 2, tuple(seen)))
    queue.put((rank, [candidate.step for candidate in plan.restore]))
    torch.distributed.destroy_process_group()


def test_ranks_alone_that_see_different_checkpoints_try_the_same(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, str(tmp_path), queue)) for r in range(2)]
    for process in ranks:
        process.start()
    found = dict(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join()
    assert found == {0: [20, 10], 1: [20, 10]}


def test_a_new_rank_does_not_repeat_the_numbers_of_an_old_one() -> None:
    from babysit import rng
    from babysit.data import Position

    candidate = Candidate("c", 1, Tier.DIRECTORY, "", 2, 1)
    drawn = set()
    for rank in range(4):
        torch.manual_seed(rank % 2)
        resumed: dict[str, Any] = {"rng": rng.capture(), "position": Position()}
        warnings: list[str] = []
        restore.resized(resumed, candidate, Plan("r", 1, rank, 4), warnings.append)
        assert "saved by 2 ranks, and this attempt has 4" in warnings[0]
        assert "samples of this epoch are left out" in resumed["position"].resized
        rng.apply(resumed["rng"])
        drawn.add(torch.rand(1).item())
    assert len(drawn) == 4
