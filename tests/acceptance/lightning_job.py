"""A script of Lightning's with one word of babysit; the first argument is the strategy.

`ddp`; `fsdp`: Lightning's strategy for FSDP, past its check for GPUs; `model-parallel`: FSDP2;
`deepspeed`, `zero3`: ZeRO-2 and ZeRO-3, past its check for GPUs.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import DataLoader, Dataset

import babysit
from tests.acceptance.asked_to_leave import leave_now, meet_at_each_step

# An agent sets these, and Lightning knows the ranks by them.
os.environ |= {"GROUP_RANK": os.environ["RANK"], "TORCHELASTIC_RUN_ID": "job"}
babysit.auto()
meet_at_each_step()
STEPS = 16


class Noisy(Dataset[torch.Tensor]):
    """Samples with noise from the global generator, as augmentation draws it."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((4,), index / 24) + 0.1 * torch.rand(4)


class Module(lightning.LightningModule):
    """Two layers; at a batch of the environment it is killed, or asked to leave."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 2)
        )
        self.register_buffer("seen", torch.zeros(()))

    def configure_model(self) -> None:
        """Shard the model, where that is the module's part."""
        if sys.argv[1] == "model-parallel":
            fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: torch.Tensor, _index: int) -> torch.Tensor:
        """Train on a batch."""
        where = f"{os.environ['RANK']}:{self.global_step}"
        if os.environ.get("KILL") == where:
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("STOP") == where:
            leave_now()
        self.seen += 1
        return (self.layers(batch) - self.seen / STEPS).square().mean()

    def validation_step(self, batch: torch.Tensor, _index: int) -> None:
        """Look at a batch of the same data."""
        self.layers(batch)

    def configure_optimizers(self) -> Any:
        """Make the optimizer, and a schedule for each step."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Sharded(FSDPStrategy):
    """FSDP on CPUs, which Lightning and torch take only if the device is named."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        cpu, layers = torch.device("cpu"), ModuleWrapPolicy({torch.nn.Linear})
        model = FullyShardedDataParallel(
            model, device_id=cpu, auto_wrap_policy=layers, **self.kwargs
        )
        wrapped: torch.nn.Module = super()._setup_model(model)
        return wrapped


class Engine(DeepSpeedStrategy):
    """DeepSpeed on CPUs, without the check that the accelerator is CUDA's."""

    @property
    def root_device(self) -> torch.device:
        """With a number, as DeepSpeed wants it."""
        return torch.device("cpu", 0)

    def setup_environment(self) -> None:
        """Set up the process group."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Let DeepSpeed make the process group."""
        self.set_world_ranks()
        self._init_deepspeed_distributed()


lightning.seed_everything(3)
strategy: Any = "ddp"
if sys.argv[1] == "fsdp":
    strategy = Sharded()
elif sys.argv[1] == "model-parallel":
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
elif sys.argv[1] == "deepspeed":
    strategy = Engine(stage=2)
elif sys.argv[1] == "zero3":
    strategy = Engine(stage=3)
    strategy.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=1,
    num_nodes=2,
    strategy=strategy,
    max_steps=STEPS,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
    check_val_every_n_epoch=1,
)
loaders = (DataLoader(Noisy(), batch_size=2, shuffle=True), DataLoader(Noisy(), batch_size=6))
trainer.fit(Module(), *loaders)
Path(f"tail-{os.environ['RANK']}").touch()
