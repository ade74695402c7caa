"""Lightning's Trainer with DDP; `manual`: manual optimization; `fsdp`: its strategy for FSDP."""

from __future__ import annotations

import sys
from typing import Any

import lightning
import tiny
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader

import babysit  # babysit

babysit.auto()  # babysit


class Module(lightning.LightningModule):
    """The model with its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = "manual" not in sys.argv
        self.model = tiny.Model()
        tiny.witness(self.model, self.model.head)

    def training_step(self, batch: dict[str, torch.Tensor], _index: int) -> Any:
        """Train on a batch."""
        loss = self.model(**batch)
        self.log("train_loss", loss, prog_bar=True)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        """Make the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class OnCPUs(FSDPStrategy):
    """FSDP on CPUs, which Lightning and torch take only if the device is named."""

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        cpu = torch.device("cpu")
        wrapped: torch.nn.Module = super()._setup_model(
            FullyShardedDataParallel(model, device_id=cpu, **self.kwargs)
        )
        return wrapped


lightning.seed_everything(3)
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    # To gather the state ends with SIGSEGV in torch 2.13 on CPUs.
    strategy=OnCPUs(state_dict_type="sharded") if "fsdp" in sys.argv else "ddp",
    max_steps=tiny.STEPS,
    logger=False,
    enable_model_summary=False,
    callbacks=[
        ModelCheckpoint("out", "{step}", every_n_train_steps=tiny.SAVE_EVERY, save_top_k=-1),
        TQDMProgressBar(),
    ],
)
trainer.fit(
    Module(),
    DataLoader(tiny.Tokens(), batch_size=tiny.BATCH, shuffle=True),
    ckpt_path=tiny.resumed(),
    weights_only=False,
)
tiny.tail()
