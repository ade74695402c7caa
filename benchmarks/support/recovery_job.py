"""The job of `benchmarks/recovery.py`: FSDP2 on two ranks, under torchrun and under babysit.

Under torchrun it also saves to tmpfs after every step, so that only the surrounding machinery
differs. Each rank writes one line per step: time, step, pid, and its attempt under babysit.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import babysit

WIDTH, LAYERS, BATCH = 256, 4, 64
STEP_SECONDS = 0.1
"""Each step is padded to this duration, so that both sides compute equally many."""


def main(log: Path, checkpoints: str, steps: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    run = babysit.init(checkpoint=checkpoints, every_steps=1, keep=2)
    model = nn.Sequential(
        *[nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(LAYERS)]
    )
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state = {"model": model, "optimizer": optimizer}
    run.restore(state)
    data = torch.utils.data.TensorDataset(torch.randn(BATCH * 16, WIDTH))
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH)
    with log.with_suffix(f".{dist.get_rank()}").open("a", buffering=1) as lines:
        for step, (batch,) in run.steps(loader, total=steps):
            begun = time.monotonic()
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            run.report(loss=float(loss))
            run.checkpoint(state)
            attempt = os.environ.get("BABYSIT_ATTEMPT", "0")
            lines.write(f"{time.time():.6f} {step} {os.getpid()} {attempt}\n")
            time.sleep(max(0.0, STEP_SECONDS - (time.monotonic() - begun)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
