"""The job of `benchmarks/engines.py` under Ray Train: the same script, with Ray's own recovery.

    python ray_train_driver.py ADDRESS JOB LOG CHECKPOINTS STEPS RANKS

Like torchrun in `benchmarks/recovery.py`, it saves each step to tmpfs, and restores from there; an
attempt is one incarnation of the workers.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def loop(config: dict[str, Any]) -> None:
    """Run the script's `main` in this worker."""
    rank = ray.train.get_context().get_world_rank()
    log = Path(config["log"])
    own = log.with_suffix(f".{rank}")
    rows = own.read_text().splitlines() if own.exists() else []
    # A worker that is killed may leave half a line, which must not join the next one.
    if rows and not own.read_text().endswith("\n"):
        own.write_text("".join(f"{row}\n" for row in rows[:-1]))
    whole = [row.split() for row in rows if len(row.split()) == 4]
    os.environ["BABYSIT_ATTEMPT"] = str(1 + max((int(row[3]) for row in whole), default=0))
    dist.destroy_process_group()  # of Ray Train: the script makes its own
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    spec = importlib.util.spec_from_file_location("recovery_job", config["job"])
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    job.main(log, config["checkpoints"], config["steps"])


def main(address: str, job: str, log: str, checkpoints: str, steps: int, ranks: int) -> None:
    ray.init(address=address)
    TorchTrainer(
        loop,
        train_loop_config={"job": job, "log": log, "checkpoints": checkpoints, "steps": steps},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=ranks, placement_strategy="STRICT_SPREAD"),
        run_config=RunConfig(
            name="engines",
            storage_path=str(Path(log).parent / "ray-train"),
            failure_config=FailureConfig(max_failures=-1),
        ),
    ).fit()


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]), int(sys.argv[6]))
