"""DistributedDataParallel, hooks for the parts of a step, and one rank that is slow in its model.

The script says nothing of its parts: `run.watch` measures them.
"""

from __future__ import annotations

import time

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import babysit

SLOW_RANK, SLOW_SECONDS = 2, 0.15


class Model(torch.nn.Linear):
    """A layer that takes its time on one rank."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer; the sleep is the fault."""
        if run.rank == SLOW_RANK:
            time.sleep(SLOW_SECONDS)
        return super().forward(x)


torch.set_num_threads(1)
run = babysit.init()
distributed.init_process_group("gloo")
model = DistributedDataParallel(Model(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run.watch(model, optimizer)
for _ in run.steps(range(1_000_000), total=1_000_000):
    loss = model(torch.ones(2, 4)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if run.rank == 0:
        run.report(loss=loss)
