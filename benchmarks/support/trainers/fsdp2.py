"""A loop of torch with FSDP2: each rank has its part of the parameters."""

from __future__ import annotations

import tiny
import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

import babysit  # babysit

dist.init_process_group("gloo")
torch.manual_seed(3)
run = babysit.init()  # babysit
model = tiny.Model()
fully_shard(model.layer)
fully_shard(model)
tiny.witness(model, model.head)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
data = tiny.Tokens()
loader = DataLoader(data, batch_size=tiny.BATCH, sampler=DistributedSampler(data))
state = {"model": model, "optimizer": optimizer}  # babysit


def load() -> int:
    """As a script does that saves by itself: in the format of torch's distributed checkpoints."""
    if found := tiny.resumed():
        parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        checkpoint.load(parts, checkpoint_id=found)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=parts["model"],
            optim_state_dict=parts["optimizer"],
        )
    return tiny.step_of(tiny.resumed())


def save(step: int) -> None:
    if tiny.is_due(step):
        parts = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        checkpoint.save(parts, checkpoint_id=f"out/checkpoint-{step}")


run.restore(state)  # babysit
# without it: for step, batch in tiny.numbered(loader, load()):
for step, batch in run.steps(loader, total=tiny.STEPS):  # babysit
    optimizer.zero_grad()
    loss = model(**batch)
    loss.backward()
    optimizer.step()
    tiny.log(step, float(loss.detach()))
    # without it: save(step)
    run.report(loss=loss.detach())  # babysit
    run.checkpoint(state)  # babysit
    if run.should_stop:  # babysit
        run.checkpoint(state, now=True)  # babysit
        raise SystemExit  # babysit
tiny.tail()
dist.destroy_process_group()
