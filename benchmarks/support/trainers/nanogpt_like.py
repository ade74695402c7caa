"""A script like nanoGPT: a loop of its own that draws random places of its data."""

from __future__ import annotations

import os

import tiny
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import babysit  # babysit

dist.init_process_group("gloo")
torch.manual_seed(1337)
data = torch.cat([tiny.tokens_of(index) for index in range(tiny.SAMPLES)])
model = tiny.Model()
tiny.witness(model, model.head)
wrapped = DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
torch.manual_seed(1337 + int(os.environ["RANK"]))


def get_batch() -> Tensor:
    places = torch.randint(len(data) - tiny.LENGTH, (tiny.BATCH,))
    return torch.stack([data[place : place + tiny.LENGTH] for place in places])


run = babysit.init()  # babysit
x = get_batch()
state = {"model": model, "optimizer": optimizer}
state["x"] = x  # babysit
iter_num = run.restore(state)  # babysit
x = state["x"]  # babysit
# without it: iter_num = tiny.load(state)
while iter_num < tiny.STEPS:
    loss = wrapped(x, x)
    x = get_batch()
    state["x"] = x  # babysit
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if os.environ["RANK"] == "0":
        print(f"iter {iter_num}: loss {loss.item():.4f}, time 100.00ms, mfu -100.00%", flush=True)
    iter_num += 1
    # without it: tiny.save(state, iter_num)
    run.report(step=iter_num, loss=loss.detach())  # babysit
    stop = run.should_stop  # babysit
    run.checkpoint(state, step=iter_num, now=stop)  # babysit
    if stop:  # babysit
        raise SystemExit  # babysit
tiny.tail()
dist.destroy_process_group()
