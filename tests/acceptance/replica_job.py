"""Data-parallel training with gloo, in which single bits flip on one rank when they are asked for.

`replica_job.py SCRATCH`: where SCRATCH/weights, /gradients or /optimizer names a rank, that rank
flips one bit there, once. The run ends when SCRATCH/finish exists.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import babysit

SCRATCH = Path(sys.argv[1])
PACE = 0.05


def flip(what: str, rank: int, tensor: torch.Tensor | None) -> None:
    """Flip one bit of a mantissa, if it is the rank's turn."""
    file = SCRATCH / what
    if tensor is None or not file.exists() or file.read_text() != str(rank):
        return
    file.unlink()
    tensor.detach().view(torch.int32)[0, 0] ^= 1 << 20


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run = babysit.init()
    dist.init_process_group("gloo")
    # One parameter: DDP orders several anew after its first step, and sums in another order then.
    net = torch.nn.Linear(8, 4, bias=False)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    state: dict[str, Any] = {"model": net, "optimizer": optimizer}
    run.restore(state)
    for step, batch in run.steps(range(1, 10**6)):
        time.sleep(PACE)
        generator = torch.Generator().manual_seed(1000 * batch + run.rank)
        optimizer.zero_grad()
        loss = model(torch.randn(16, 8, generator=generator)).square().mean()
        loss.backward()
        flip("gradients", run.rank, net.weight.grad)
        optimizer.step()
        flip("optimizer", run.rank, optimizer.state[net.weight]["exp_avg"])
        flip("weights", run.rank, net.weight)
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        run.fingerprint(net, optimizer, reduced={"loss": mean}, every=1)
        run.report(loss=loss.detach(), step=step)
        run.checkpoint(state)
        end = torch.tensor(int((SCRATCH / "finish").exists()))
        dist.all_reduce(end, dist.ReduceOp.MAX)
        if end:
            run.finish()
            break
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
