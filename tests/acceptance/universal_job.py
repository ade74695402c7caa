"""One rank of DeepSpeed: trains, or goes on from what another number of ranks saved.

    universal_job.py STAGE DIRECTORY [RANKS_THAT_SAVED]

Prints the mean loss of each step. All ranks together have the same batches, however many they are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from babysit.integrations.deepspeed import EngineState

STEPS, BATCH = 6, 12
stage, directory, *saved = sys.argv[1:]
deepspeed.init_distributed("gloo")
rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 7), nn.Linear(7, 1))
engine, *_ = deepspeed.initialize(
    model=model,
    model_parameters=model.parameters(),
    config={
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // ranks,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_optimization": {"stage": int(stage)},
    },
)
data = torch.randn(2 * STEPS, BATCH, 8, generator=torch.Generator().manual_seed(7))
state = EngineState(engine)


def train(first: int) -> None:
    """Some steps, from one on."""
    for step in range(first, first + STEPS):
        x = data[step].chunk(ranks)[rank]
        loss = nn.functional.mse_loss(engine(x), x.sum(1, keepdim=True))
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        sys.stdout.write(f"step {step} loss {float(mean) / ranks}\n")


if saved:
    state.load(Path(directory) / f"rank-{rank % int(saved[0]):05d}")
else:
    train(0)
    place = Path(directory) / f"rank-{rank:05d}"
    place.mkdir(parents=True)
    state.save(place)
train(STEPS)
