"""A training script for babysit. Replace the model and the data with your own."""

from __future__ import annotations

import argparse
import os

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import babysit


def main() -> None:
    """Train a small network on a task with a known solution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)  # the same start on every attempt
    model: nn.Module = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # more than one rank
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    run = babysit.init()
    state = {"model": model, "optimizer": optimizer}
    run.restore(state)  # loads the chosen checkpoint; nothing on the first attempt

    # Continues at the right batch after a restart, and skips quarantined batches.
    for step, (inputs, targets) in run.steps(batches(), total=options.steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}  loss {float(loss.detach()):.4f}", flush=True)
        run.report(loss=float(loss.detach()), grad_norm=float(norm), tokens=len(inputs))
        run.checkpoint(state)  # saves if a save is due, in the background
        if run.should_stop:  # preemption, or a drained node: save first
            run.checkpoint(state, now=True)
            break


def batches() -> DataLoader[tuple[Tensor, ...]]:
    """The training data; replace it with your own."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4096, 8, generator=generator)
    targets = inputs.square().sum(dim=1, keepdim=True).sqrt()
    return DataLoader(TensorDataset(inputs, targets), batch_size=32)


if __name__ == "__main__":
    main()
