"""A loop with accelerate's Accelerator; the argument `fsdp`: FSDP2 in place of DDP."""

from __future__ import annotations

import sys

import tiny
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, set_seed
from torch.utils.data import DataLoader

from babysit.integrations.accelerate import watch  # babysit

set_seed(3)
sharded = None
if "fsdp" in sys.argv:
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU  # it asks for no more
    sharded = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
accelerator = Accelerator(cpu=True, fsdp_plugin=sharded)
watch(accelerator)  # babysit
model = tiny.Model()
tiny.witness(model, model.head)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loader = DataLoader(tiny.Tokens(), batch_size=tiny.BATCH, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
step, length = 0, len(loader)
# without it: step = tiny.step_of(tiny.resumed())
# without it: if step: accelerator.load_state(tiny.resumed())
for _ in range(step // length, tiny.STEPS // length):
    for batch in accelerator.skip_first_batches(loader, step % length):
        loss = model(**batch)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        tiny.log(step, float(loss.detach()))
        # without it: if tiny.is_due(step): accelerator.save_state(f"out/checkpoint-{step}")
tiny.tail()
