"""FSDP2, hooks for the parts of a step, and one rank that is slow in a sharded layer.

The other ranks wait for it in the gathers of the layers and in the reduction of the gradients.
"""

from __future__ import annotations

import time

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

import babysit

SLOW_RANK, SLOW_SECONDS = 2, 0.15


class Layer(torch.nn.Linear):
    """A layer that takes its time on one rank."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer; the sleep is the fault."""
        if run.rank == SLOW_RANK:
            time.sleep(SLOW_SECONDS)
        return super().forward(x)


torch.set_num_threads(1)
run = babysit.init()
distributed.init_process_group("gloo")
model = torch.nn.Sequential(torch.nn.Linear(4, 8), Layer(8, 8), torch.nn.Linear(8, 3))
for layer in model:
    fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
run.watch(model, optimizer)
for _ in run.steps(range(1_000_000), total=1_000_000):
    loss = model(torch.ones(2, 4)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if run.rank == 0:
        run.report(loss=loss)
