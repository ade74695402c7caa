"""A training script with real collectives (gloo) and one rank that sleeps in its forward pass."""

from __future__ import annotations

import time

import torch
from torch import distributed

import babysit

SLOW_RANK, SLOW_SECONDS = 2, 0.15

torch.set_num_threads(1)
run = babysit.init()
distributed.init_process_group("gloo")
weight = torch.zeros(4)
for _ in run.steps(range(1_000_000), total=1_000_000):
    with run.phase("forward"):
        if run.rank == SLOW_RANK:
            time.sleep(SLOW_SECONDS)
        gradient = (weight - 1.0) / run.world_size
    with run.phase("communicate"):
        distributed.all_reduce(gradient)
    with run.phase("optimizer"):
        weight -= 0.1 * gradient
    if run.rank == 0:  # the others never report, and are measured too
        run.report(loss=float((weight - 1.0).square().mean()))
