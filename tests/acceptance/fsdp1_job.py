"""A loop of torch's own with `FullyShardedDataParallel`; `orig`: with the original parameters."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import DataLoader, DistributedSampler

import babysit
from babysit import stop_agreement
from babysit.ring import RingReader
from babysit.wire import ENV_RANK_DIR, RING_FILE

WEIGHTS = 3 * 5 + 5 + 5 * 1 + 1

torch.distributed.init_process_group("gloo")
torch.manual_seed(3)
model = FullyShardedDataParallel(
    torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)),
    auto_wrap_policy=ModuleWrapPolicy({torch.nn.Linear}),
    device_id=torch.device("cpu"),
    use_orig_params="orig" in sys.argv,
)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
stop_agreement.MOST_CALLS = 1  # in each step, so that the script leaves in the one of its request
run = babysit.init()


def show(what: str) -> None:
    """Print the whole model; a collective."""
    with FullyShardedDataParallel.summon_full_params(model):
        whole = torch.cat([each.detach().flatten() for each in model.parameters()])
    sys.stdout.write(f"{what} {whole[:WEIGHTS].tolist()}\n")  # behind it, if flat, are fillers


state = {"model": model, "optimizer": optimizer}
run.restore(state)
show("restored")
assert all(values["step"] != 1 for values in optimizer.state.values()), "no step of babysit's own"
data = [torch.full((3,), index / 24) for index in range(24)]
loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data))  # type: ignore[arg-type,var-annotated]
for step, batch in run.steps(loader, total=16):
    where = f"{os.environ['RANK']}:{step}"
    if os.environ.get("KILL") == where:
        os.kill(os.getpid(), signal.SIGKILL)
    loss = (model(batch) - step / 16).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step == 8:
        show("saved")
    run.report(loss=loss)
    if os.environ.get("STOP") == where:
        RingReader(Path(os.environ[ENV_RANK_DIR]) / RING_FILE).request_stop()
    stop = run.should_stop
    run.checkpoint(state, now=stop)
    if stop:
        break
else:
    Path(f"tail-{os.environ['RANK']}").touch()
