"""A script with DeepSpeed's pipeline: two stages on two ranks; each step has two micro-batches."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import deepspeed
import torch
from deepspeed.pipe import PipelineModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import babysit
from babysit.integrations.deepspeed import EngineState
from tests.acceptance.asked_to_leave import leave_now, meet_at_each_step

run = babysit.init()
deepspeed.init_distributed("gloo")
meet_at_each_step()
torch.manual_seed(3)
layers = [nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 8), nn.Linear(8, 1)]
model = PipelineModule(
    layers=layers, loss_fn=nn.functional.mse_loss, num_stages=2, partition_method="uniform"
)
engine, *_ = deepspeed.initialize(
    model=model,
    model_parameters=list(model.parameters()),
    config={
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
    },
)
inputs = torch.rand(64, 4, generator=torch.Generator().manual_seed(5))
loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=2)
state = EngineState(engine)
run.restore(state)
group = []
for step, batch in run.steps(loader, total=15, accumulate=2):
    group.append(batch)
    if not run.sync_gradients:
        continue
    loss = engine.train_batch(iter(group))
    group = []
    where = f"{run.rank}:{step}"
    if os.environ.get("KILL") == where:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("STOP") == where:
        leave_now()
    run.report(loss=loss)
    run.checkpoint(state)
    if run.should_stop:
        run.checkpoint(state, now=True)
        raise SystemExit
Path(f"tail-{run.rank}").touch()
