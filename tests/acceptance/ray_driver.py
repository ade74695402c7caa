"""The driver of a tiny `TorchTrainer` with two workers, on a Ray cluster of its own.

    python ray_driver.py DIRECTORY TEMPORARY KILLED_AT NAN_FROM

Rank 1 kills itself once at one step, and its loss is NaN from another one on; a checkpoint is saved
every 5 steps; the file `finish` in the directory ends the loop.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from babysit.integrations import ray as watched

EVERY, PACE_SECONDS, TRIES = 5, 0.1, 8


def loop(config: dict[str, Any]) -> None:
    directory, rank = Path(config["directory"]), ray.train.get_context().get_world_rank()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ray.train.torch.prepare_model(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = 0
    if (found := ray.train.get_checkpoint()) is not None:
        with found.as_directory() as there:
            step = int(Path(there, "step").read_text())
    over = torch.zeros(1)
    while not over:
        step += 1
        batch = torch.randn(8, 4)
        loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(PACE_SECONDS)
        is_nan = rank == 1 and step >= config["nan_from"]
        watched.report(step, loss=float("nan") if is_nan else loss, tokens=8)
        if step == config["killed_at"] and rank == 1 and not (directory / "killed").exists():
            (directory / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if step % EVERY == 0:
            with tempfile.TemporaryDirectory() as there:
                Path(there, "step").write_text(str(step))
                saved = Checkpoint(there) if rank == 0 else None
                ray.train.report({"step": step, "rank": rank}, checkpoint=saved)
        over.fill_((directory / "finish").exists())
        dist.all_reduce(over)


def join(temporary: str) -> None:
    """Start a cluster: Ray gives up after 30 s, in which a loaded machine may not get that far."""
    for tries in range(TRIES):
        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100 * 2**20,
                _temp_dir=temporary,
            )
        except Exception:
            ray.shutdown()
            if tries + 1 == TRIES:
                raise
        else:
            return


def main(directory: str, temporary: str, killed_at: int, nan_from: int) -> None:
    join(temporary)
    ray.train.torch.TorchTrainer(
        loop,
        train_loop_config={
            "directory": directory,
            "killed_at": killed_at,
            "nan_from": nan_from,
        },
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name="tiny",
            storage_path=str(Path(directory, "store")),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[watched.watch()],
        ),
    ).fit()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
