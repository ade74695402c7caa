"""A loop of torch with DDP, and babysit's own API."""

from __future__ import annotations

import tiny
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import babysit  # babysit

dist.init_process_group("gloo")
torch.manual_seed(3)
run = babysit.init()  # babysit
model = tiny.Model()
tiny.witness(model, model.head)
wrapped = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
data = tiny.Tokens()
loader = DataLoader(data, batch_size=tiny.BATCH, sampler=DistributedSampler(data))
state = {"model": model, "optimizer": optimizer}
run.restore(state)  # babysit
# without it: for step, batch in tiny.numbered(loader, tiny.load(state)):
for step, batch in run.steps(loader, total=tiny.STEPS):  # babysit
    optimizer.zero_grad()
    loss = wrapped(**batch)
    loss.backward()
    optimizer.step()
    tiny.log(step, float(loss.detach()))
    # without it: tiny.save(state, step)
    run.report(loss=loss.detach())  # babysit
    run.checkpoint(state)  # babysit
    if run.should_stop:  # babysit
        run.checkpoint(state, now=True)  # babysit
        raise SystemExit  # babysit
tiny.tail()
dist.destroy_process_group()
