"""Train a byte-level GPT on Python's own source, sharded with FSDP2. Read from `train` on.

babysit run run.yaml                             watched, and restarted when something breaks
torchrun --standalone --nproc-per-node 2 train.py        the same script without babysit
python train.py                                          one process
"""

from __future__ import annotations

import argparse
import gc
import math
import os

import torch
import torch.distributed as dist
from data import Windows
from faults import Drill
from model import GPT, Config
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import babysit

PEAK_LEARNING_RATE = 3e-3
WARM_UP_STEPS = 20


def main() -> None:
    options = parse_options()
    device = set_up()
    train(options, device)
    if dist.is_initialized():
        # Free the model's references to the process group, so that its threads end here: gloo's
        # threads sometimes abort the process ("terminate called") if they outlive the interpreter.
        gc.collect()
        dist.destroy_process_group()


def train(options: argparse.Namespace, device: torch.device) -> None:
    run = babysit.init(checkpoint=options.checkpoints)
    drill = Drill.from_environment(run)

    model = build_model(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1)
    state = {"model": model, "optimizer": optimizer}
    run.restore(state)

    loader = build_loader(run, options)
    for step, batch in run.steps(loader, total=options.steps):
        drill.strike(step, model)
        windows = drill.spoil(batch).to(device)

        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = model(windows)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        loss = average(loss.detach())
        if step % 10 == 0 and run.rank == 0:
            print(f"step {step}  loss {loss:.3f}", flush=True)
        run.report(
            loss=loss, grad_norm=whole(norm), tokens=windows[:, 1:].numel(), learning_rate=rate
        )
        run.checkpoint(state)
        if run.should_stop:
            run.checkpoint(state, now=True)
            break


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8, help="windows per rank and step")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--checkpoints", help="where to save, when run without babysit")
    return parser.parse_args()


def set_up() -> torch.device:
    """Set one thread and fixed seeds: the losses are bit for bit equal in every attempt."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    return torch.device(device)


def build_model(device: torch.device) -> GPT:
    model = GPT(Config()).to(device)
    if dist.is_initialized():
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    return model


def build_loader(run: babysit.Run, options: argparse.Namespace) -> DataLoader[Tensor]:
    windows = Windows(Config.context)
    sampler = DistributedSampler(windows, run.world_size, run.rank, shuffle=True, seed=0)
    return DataLoader(
        windows,
        batch_size=options.batch_size,
        sampler=sampler,
        num_workers=options.workers,
        drop_last=True,
    )


def learning_rate(step: int) -> float:
    """Linear warm-up, then inverse square root of the step."""
    warm = min(1.0, step / WARM_UP_STEPS)
    return PEAK_LEARNING_RATE * warm * math.sqrt(WARM_UP_STEPS / max(step, WARM_UP_STEPS))


def average(value: Tensor) -> float:
    """Mean over the ranks."""
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return float(value)


def whole(norm: Tensor) -> float:
    """The norm over all shards."""
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


if __name__ == "__main__":
    main()
